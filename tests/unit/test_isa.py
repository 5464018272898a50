"""The instruction set as an option: answers, masking of features, tuning records, errors, contents of the objects."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mnnpy
from mnnpy.backends.cpu import _native, select
from mnnpy.backends.cpu.provider import CpuBackend
from mnnpy.cli import main
from mnnpy.errors import BackendUnavailableError, InputError
from mnnpy.options import ISAS, Options
from mnnpy.search.records import Records
from tests.models import MODELS
from tests.unit.test_select import conv_net

ROOT = Path(__file__).resolve().parents[2]
AVAILABLE: list[str] = _native.available_isas()
x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="about instruction sets of x86-64")


@pytest.mark.peers
@pytest.mark.parametrize("isa", AVAILABLE)
@pytest.mark.parametrize("name", sorted(MODELS))
def test_models_agree_with_onnxruntime(name: str, isa: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model, feeds = MODELS[name]()
    peer = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    right = peer.run(None, feeds)
    for precision, bar in (("normal", 3e-5), ("high", 1e-5), ("low", 2e-2)):
        session = mnnpy.Session(model, isa=isa, precision=precision, threads=2, tune="off")
        for got, want in zip(session.run(None, feeds), right, strict=True):
            assert np.abs(got - want).max() <= bar * np.abs(want).max(), precision


@pytest.mark.parametrize("isa", AVAILABLE)
def test_explained_and_masked(isa: str) -> None:
    model, feeds = conv_net()
    session = mnnpy.Session(model, isa=isa, precision="low", tune="off")
    report = session.explain(feeds)
    assert report.isa == isa
    assert f"; isa {isa}; " in str(report).splitlines()[0]
    used = " ".join(str(row["algorithm"]) for row in report.rows)
    for other in set(ISAS) - {isa}:
        assert other not in used
    if isa != "avx512":
        assert "bf16" not in used  # AVX512_BF16 is beyond this level, whatever the CPU has
    best = mnnpy.Session(model, tune="off")
    assert best.explain(feeds).isa == AVAILABLE[-1]


@x86
def test_features_rise_with_the_instruction_set() -> None:
    levels = [set(_native.cpu_features(isa)) for isa in AVAILABLE]
    assert levels == sorted(levels, key=len)
    assert levels[-1] == set(_native.cpu_features())
    assert not any(f.startswith(("avx", "amx", "fma")) for f in levels[0])
    assert not any(f.startswith(("avx512", "amx")) for isa, level in zip(AVAILABLE, levels, strict=True)
                   if isa != "avx512" for f in level)  # fmt: skip
    [info] = CpuBackend().devices()
    device = CpuBackend().open(info, isa="generic")
    assert device.info.facts["isa"] == "generic"
    assert set(device.info.facts["features"]) == levels[0]


def test_tuning_is_kept_per_instruction_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = conv_net()
    records = Records(f"this machine {tmp_path}", tmp_path / "cpu.jsonl")
    monkeypatch.setattr(select, "records", lambda: records)
    monkeypatch.setattr(select, "SHORTLIST", 1e9)
    monkeypatch.setattr(select, "MATTERS", 0.0)
    built: list[str] = []
    single = select._single

    def watched(*args: Any) -> Any:
        made = single(*args)
        built.append(made[0].isa)
        return made

    monkeypatch.setattr(select, "_single", watched)
    for count, isa in enumerate(AVAILABLE, 1):
        built.clear()
        mnnpy.Session(model, threads=1, isa=isa, tune=60)
        assert set(built) == {isa}
        assert (tmp_path / "cpu.jsonl").read_text().count("schema") == 2 * count  # two layers
    built.clear()
    mnnpy.Session(model, threads=1, tune=60)  # the best is the last of AVAILABLE: decided already
    assert not built


def test_unknown_and_missing_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="isa 'sse9' is not one of generic, avx2, avx512"):
        Options(isa="sse9")
    with pytest.raises(ValueError, match="unknown instruction set 'mmx'"):
        _native.cpu_features("mmx")
    model, _ = conv_net()
    monkeypatch.setattr(_native, "available_isas", lambda: ["generic", "avx2"])
    with pytest.raises(
        BackendUnavailableError, match=r"isa='avx512' was asked for.*have generic, avx2 only \(features: "
    ):
        mnnpy.Session(model, isa="avx512")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnx

    model, _ = conv_net()
    path = tmp_path / "net.onnx"
    onnx.save(model, path)  # type: ignore[arg-type]
    assert main(["run", str(path), "--isa", "generic", "--explain"]) == 0
    assert "isa generic" in capsys.readouterr().out
    assert main(["bench", str(path), "--isa", "generic", "-n", "1", "--warmup", "0", "--json"]) == 0
    assert '"isa": "generic"' in capsys.readouterr().out


@x86
@pytest.mark.parametrize(
    ("group", "forbidden"),
    [("core", r"%[yz]mm|\tv[a-z]"), ("generic", r"%[yz]mm|\tv[a-z]"), ("avx2", r"%zmm|\{%k[0-7]\}")],
)
def test_objects_stay_within_their_instruction_set(group: str, forbidden: str) -> None:
    """VEX mnemonics start with v; ymm and zmm registers are those of AVX and AVX-512."""
    objects = sorted(ROOT.glob(f"build/native-{sys.implementation.cache_tag}-x86_64/{group}/*.o"))
    if not objects:
        pytest.skip("no objects of the extension in build/: it was installed from elsewhere")
    tool = shutil.which("objdump")
    if tool is None:
        pytest.skip("objdump is not installed")
    bad = re.compile(forbidden)
    moves = 0
    for path in objects:
        listing = subprocess.run([tool, "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True)
        moves += listing.stdout.count("\tmov")
        found = bad.search(listing.stdout)
        assert found is None, f"{group}/{path.name}: {listing.stdout[max(0, found.start() - 60) : found.end() + 60]}"
    assert moves > 1000  # the listings were read at all
