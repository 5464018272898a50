"""What loading and running a model imports: start-up time is a promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import helper

from mnnpy.decompose.families import FAMILIES, FAMILY_OF, RULE_MODULES
from mnnpy.decompose.registry import ops

#: Modules that take milliseconds each and that a small model does not need.
HEAVY = (
    "onnx", "google.protobuf", "ml_dtypes", "torch", "importlib.metadata", "numpy.typing", "numpy.random", "secrets",
    "statistics", "fractions", "argparse", "subprocess", "zipfile", "email", "mnnpy.cli", "mnnpy.control.scan",
    "mnnpy.decompose.ops.recurrent", "mnnpy.decompose.ops.ml", "mnnpy.decompose.rules.image",
    "mnnpy.backends.reference.kernels.ml", "mnnpy.convert.onnx.recurrent", "mnnpy.convert.onnx.control",
)  # fmt: skip
#: Packages and modules that only planning needs.
PLANNING = ("mnnpy.convert", "mnnpy.decompose", "mnnpy.search", "mnnpy.specialize", "mnnpy.control", "mnnpy.explain",
            "mnnpy.backends.reference", "mnnpy.backends.cpu.passes", "mnnpy.backends.cpu.program",
            "mnnpy.backends.cpu.select")  # fmt: skip


def loaded(code: str) -> set[str]:
    """Modules that *code* imports beyond numpy and what numpy itself imports."""
    script = f"import numpy, sys; before = set(sys.modules)\n{code}\nprint('\\n'.join(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_package_alone_imports_next_to_nothing() -> None:
    assert {m for m in loaded("import mnnpy") if m.startswith("mnnpy")} == {"mnnpy"}


def test_a_small_model_imports_no_heavy_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["h"], transB=1), helper.make_node("Relu", ["h"], ["y"])],
        "mlp",
        [helper.make_tensor_value_info("x", 1, [1, 4])],
        [helper.make_tensor_value_info("y", 1, [1, 4])],
        [helper.make_tensor("w", 1, [4, 4], range(16))],
    )
    path = tmp_path / "mlp.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    monkeypatch.setenv("MNNPY_CACHE_DIR", str(tmp_path))
    code = (
        f"import mnnpy\ns = mnnpy.Session({str(path)!r}, threads=1)\n"
        "s.run(None, {'x': numpy.ones((1, 4), numpy.float32)})"
    )
    planned = loaded(code)
    assert "mnnpy.backends.cpu.program" in planned, "it was planned for the cpu backend"
    assert not planned & set(HEAVY)
    kept = loaded(code)
    assert "mnnpy.backends.cpu.compiled" in kept
    assert not kept & set(HEAVY)
    assert not {m for m in kept if m.startswith(PLANNING)}, "the plan lies on disk"


def test_the_table_of_families_is_that_of_the_decorators() -> None:
    found: dict[str, set[str]] = {}
    for name, definition in ops().items():
        if definition.shape.__module__.startswith("mnnpy."):
            found.setdefault(definition.family, set()).add(name)
    assert found == {family: set(names.split()) for family, names in FAMILIES.items()}


def test_every_rule_and_reference_is_found_by_its_family() -> None:
    """Modules are imported by family: one with rules or references of another family would be missed."""
    for name, definition in ops().items():
        if name not in FAMILY_OF:
            continue
        modules = RULE_MODULES.get(definition.family, (definition.family,))
        for fn in definition.rules.values():
            where = getattr(fn, "__module__", "")
            assert where.rpartition(".")[2] in (*modules, "linear_attention", "functools"), f"rule of {name}: {where}"
    root = Path(__file__).parents[2] / "decompose" / "rules"
    known = {m for f in FAMILIES for m in RULE_MODULES.get(f, (f,))}
    assert {p.stem for p in root.glob("*.py")} - {"__init__", "helpers", "linear_attention"} <= known
