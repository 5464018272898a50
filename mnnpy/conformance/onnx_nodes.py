"""ONNX's own node tests on a backend: what passes, what is skipped and why, and what ran wholly on the device."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from mnnpy.backends.base import Device
from mnnpy.conformance.expectations import Expectations
from mnnpy.conformance.targets import Target, open_target
from mnnpy.decompose.registry import OpClass, get_op
from mnnpy.errors import MnnpyError
from mnnpy.graph.dtypes import DType
from mnnpy.runtime import Executable
from mnnpy.session import Session

__all__ = ["CaseResult", "Report", "load_cases", "run_case", "run_suite"]

#: Cases whose result is random: only shape, dtype and range of the result can be compared.
RANDOM_OPS = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


#: Cases that a correct implementation fails, and why: the conformance program skips them.
UNSOUND = {
    "test_dft_inverse": "the recorded values carry rounding noise of 2e-6 where the exact result is 0 (atol 1e-7)",
    "test_dft_inverse_opset19": "as test_dft_inverse",
    "test_training_dropout": "random by specification; the recorded mask is NumPy's own stream",
    "test_training_dropout_default": "as test_training_dropout",
    "test_training_dropout_default_mask": "as test_training_dropout",
    "test_training_dropout_mask": "as test_training_dropout",
    "test_attention_4d_causal_fp16_expanded": "one unit in the last place of f16: Softmax sums in f32 here",
}


@dataclass(frozen=True, slots=True)
class CaseResult:
    """Outcome of one case. *where* is ``device`` (wholly on the backend), ``host`` (a host op took part) or empty."""

    name: str
    op: str
    status: str  #: passed, failed, skipped, unsupported, xfailed or xpassed
    reason: str = ""
    where: str = ""
    host_ops: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """All results of a run on one backend."""

    backend: str
    label: str
    results: tuple[CaseResult, ...]

    def count(self, status: str) -> int:
        return sum(r.status == status for r in self.results)

    @property
    def on_device(self) -> int:
        """Passed cases that ran wholly on the backend."""
        return sum(r.status == "passed" and r.where == "device" for r in self.results)

    @property
    def host_cases(self) -> int:
        """Cases with an op that is a host op by definition: data-dependent shapes, strings, sequences, image files."""
        return sum(any(is_host_by_definition(o) for o in r.host_ops) for r in self.results)

    def summary(self) -> str:
        total = len(self.results)
        share = 100.0 * self.on_device / max(1, total - self.host_cases)
        return (
            f"{self.backend} [{self.label}]: {self.count('passed')} passed, {self.count('failed')} failed, "
            f"{self.count('skipped')} skipped of {total}; {self.on_device} wholly on '{self.backend}' "
            f"({share:.1f} % of the {total - self.host_cases} cases without host ops)"
        )

    def coverage(self) -> dict[str, Counter[str]]:
        """Op → counts of device, host, failed and skipped cases."""
        table: dict[str, Counter[str]] = defaultdict(Counter)
        for r in self.results:
            table[r.op][r.where if r.status == "passed" else r.status] += 1
        return dict(sorted(table.items()))


#: Ops whose output shape only the data tell, and image files.
DATA_DEPENDENT = frozenset({"Compress", "ImageDecoder", "NonMaxSuppression", "NonZero", "Unique"})


#: Ops of ai.onnx.ml whose input or output is a map, or strings whatever the attributes.
MAPS = frozenset({"ml.CastMap", "ml.CategoryMapper", "ml.DictVectorizer", "ml.ZipMap"})


def is_host_by_definition(op: str) -> bool:
    """True for ops that no device is expected to run (``string`` stands for values that are no numeric tensors)."""
    if op == "string" or op in DATA_DEPENDENT or op in MAPS:
        return True
    return get_op(op).op_class is OpClass.HOST and get_op(op).family in ("sequence", "text")


@cache
def load_cases() -> tuple[Any, ...]:
    """ONNX's node cases, made in memory by the installed ``onnx`` (about ten seconds)."""
    import warnings

    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # making the expected values overflows on purpose
        return tuple(sorted(load_model_tests(kind="node"), key=lambda c: c.name))


def case_op(case: Any) -> str:
    """The op that a case is about: that of its first node (its name where the function was expanded)."""
    if case.name.endswith("_expanded") or "_expanded_" in case.name:
        return "(expanded functions)"
    return str(case.model.graph.node[-1].op_type)


def run_case(case: Any, backend: str | Device, **options: Any) -> CaseResult:
    """Run one case on a backend or an opened device and compare with its recorded outputs."""
    op = case_op(case)
    try:
        session = Session(case.model, [backend], **options)
    except MnnpyError as error:
        return CaseResult(case.name, op, "failed", f"load: {_first_line(error)}")
    try:
        for inputs, wanted in case.data_sets:
            names = [v.name for v in session.graph.inputs]
            feeds = {n: _as_input(x) for n, x in zip(names, inputs, strict=False)}
            got = session.run(None, feeds)
            problem = _compare(
                got, [_as_input(w) for w in wanted], case, any(n.op_type in RANDOM_OPS for n in case.model.graph.node)
            )
            if problem:
                return CaseResult(case.name, op, "failed", problem, *_where(session, backend))
    except MnnpyError as error:
        if "ImageDecoder" in op and "Pillow" in str(error):
            return CaseResult(case.name, op, "skipped", _first_line(error))
        return CaseResult(case.name, op, "failed", f"{type(error).__name__}: {_first_line(error)}")
    return CaseResult(case.name, op, "passed", "", *_where(session, backend))


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:300]


def _as_input(value: Any) -> Any:
    """Recorded values as a user would hold them: arrays, lists; some cases record protobuf messages."""
    if hasattr(value, "SerializeToString"):
        from onnx import numpy_helper

        reader: dict[str, Callable[[Any], Any]] = {
            "SequenceProto": numpy_helper.to_list,
            "OptionalProto": numpy_helper.to_optional,
        }
        read: Callable[[Any], Any] = reader.get(type(value).__name__, numpy_helper.to_array)
        value = read(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "US":
        return value.astype(object)
    return value


def _where(session: Session, backend: str | Device) -> tuple[str, tuple[str, ...]]:
    """Whether everything ran on *backend*, and the ops that did not."""
    backend = backend if isinstance(backend, str) else backend.info.backend
    elsewhere = tuple(dict.fromkeys(_host_ops(session._executable, backend)))
    return ("host" if elsewhere else "device"), elsewhere


def _host_ops(executable: Executable, backend: str) -> Iterator[str]:
    from mnnpy.graph.ir import TensorType

    for plan in executable.plans():
        for step in plan.steps:
            for body in step.bodies.values():
                yield from _host_ops(body, backend)
            if step.device not in (backend.partition(":")[0], "control"):
                for node in step.graph.nodes:
                    yield node.op
                    types = [step.graph.types.get(n) for n in (*node.inputs, *node.outputs) if n]
                    if any(not isinstance(t, TensorType) or t.dtype is DType.STRING for t in types):
                        yield "string"
        if plan.late is not None:
            yield from _host_ops(plan.late, backend)


def _compare(got: list[Any], wanted: Any, case: Any, random: bool) -> str:
    if len(got) < len(wanted):
        return f"{len(got)} outputs, {len(wanted)} wanted"
    for k, (g, w) in enumerate(zip(got, wanted, strict=False)):
        problem = compare_value(g, w, case.rtol, case.atol, random)
        if problem:
            return f"output {k}: {problem}"
    return ""


def compare_value(got: Any, wanted: Any, rtol: float, atol: float, random: bool = False) -> str:
    """Empty where *got* equals *wanted* as ONNX's runner compares, else what differs."""
    if isinstance(wanted, (list, tuple)):
        if not isinstance(got, (list, tuple)) or len(got) != len(wanted):
            return f"a sequence of {len(wanted)} was wanted, got {type(got).__name__}"
        return next((p for g, w in zip(got, wanted, strict=True) if (p := compare_value(g, w, rtol, atol, random))), "")
    if isinstance(wanted, dict):
        return "" if got == wanted or _dict_close(got, wanted) else f"{got} instead of {wanted}"
    if wanted is None or got is None:
        return "" if got is wanted else f"{type(got).__name__} instead of {type(wanted).__name__}"
    got, wanted = np.asarray(got), np.asarray(wanted)
    if got.shape != wanted.shape:
        return f"shape {got.shape} instead of {wanted.shape}"
    if wanted.dtype.kind in "USO":
        same = [str(a) for a in got.reshape(-1)] == [str(b) for b in wanted.reshape(-1)]
        return "" if same else "strings differ"
    if got.dtype != wanted.dtype:
        return f"dtype {got.dtype} instead of {wanted.dtype}"
    if random:
        return ""
    if wanted.dtype.name == "bfloat16":
        rtol = max(rtol, 2**-6)  # two units in the last place, as ONNX's own runner allows
    return _close(got, wanted, rtol, atol)


def _dict_close(got: Any, wanted: dict[Any, Any]) -> bool:
    same_keys = isinstance(got, dict) and got.keys() == wanted.keys()
    return same_keys and all(np.allclose(got[k], wanted[k]) for k in wanted)


def _close(got: Any, wanted: Any, rtol: float, atol: float) -> str:
    if got.dtype.kind in "biu" and DType.of(got.dtype).itemsize >= 1:
        same = np.array_equal(got, wanted)
        return "" if same else f"{np.count_nonzero(got != wanted)} of {got.size} integers differ"
    wide = np.complex128 if got.dtype.kind == "c" else np.float64
    a, b = got.astype(wide), wanted.astype(wide)
    if np.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True):
        return ""
    with np.errstate(all="ignore"):
        return f"largest difference {np.nanmax(np.abs(a - b)):.3g} (rtol {rtol}, atol {atol})"


def run_suite(
    backend: str,
    *,
    pattern: str = "",
    progress: Callable[[int, int], None] | None = None,
    cases: Iterable[Any] | None = None,
    target: Target | None = None,
    expectations: Expectations | None = None,
    skip_unsound: bool = False,
    **options: Any,
) -> Report:
    """Run all (or matching) node cases on *backend*, or on the device of *target* (opened once for all cases)."""
    where: str | Device = backend if target is None else target.device
    label = _label(backend) if target is None else target.label
    chosen = [c for c in (load_cases() if cases is None else cases) if re.search(pattern, c.name)]
    results = []
    listed = expectations or Expectations()
    for k, case in enumerate(chosen):
        op = case_op(case)
        name = f"{op}[{case.name}]-{backend}"
        never = listed.unsupported(name)
        if never:
            results.append(CaseResult(case.name, op, "unsupported", never))
        elif skip_unsound and case.name in UNSOUND:
            results.append(CaseResult(case.name, op, "skipped", UNSOUND[case.name]))
        else:
            try:
                found = run_case(case, where, **options)
            except Exception as error:  # a crash of ours is a failure of the case, reported with its type
                found = CaseResult(case.name, op, "failed", f"{type(error).__name__}: {_first_line(error)}")
            results.append(replace(found, **listed.applied(name, {"status": found.status, "reason": found.reason})))
        if progress is not None:
            progress(k + 1, len(chosen))
    return Report(backend, label, tuple(results))


def _label(backend: str) -> str:
    name = backend.partition(":")[0]
    if name in ("cpu", "reference"):
        return "R"
    return open_target(backend).label
