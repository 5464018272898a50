"""A pytest plugin that runs the conformance table on a backend, one test per case.

::

    pytest -p mnnpy.testing.plugin --mnnpy-backend NAME [--mnnpy-suite atomic|onnx|all] [--mnnpy-expect FILE]

A test's id ends in the case's id, so ``-k`` selects. What the device declines and what ``[[unsupported]]`` of the file
lists is skipped with its reason; what ``[[xfail]]`` lists is a strict expected failure: once it passes, the run fails.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

#: Suite → the module that is collected for it.
MODULES = {s: Path(__file__).with_name(f"test_{s}.py") for s in ("atomic", "onnx")}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mnnpy", "conformance of mnnpy backends")
    group.addoption(
        "--mnnpy-backend", action="append", default=[], metavar="NAME",
        help="run the conformance cases on this backend (or backend:device); repeat for several",
    )  # fmt: skip
    group.addoption("--mnnpy-suite", choices=("all", "atomic", "onnx"), default="all", help="default: all")
    group.addoption("--mnnpy-sample", action="store_true", help="the short run: about a fifth of the cases")
    group.addoption(
        "--mnnpy-expect", metavar="FILE", help="TOML file of [[unsupported]] and [[xfail]] cases with reasons"
    )
    group.addoption("--mnnpy-no-guards", action="store_true", help="leave out guard bytes")


def pytest_configure(config: pytest.Config) -> None:
    """Add our test module to what is collected; without other arguments it is all that is."""
    if not config.getoption("--mnnpy-backend"):
        return
    import pytest

    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = []
    for suite, module in MODULES.items():
        if config.getoption("--mnnpy-suite") in ("all", suite) and str(module) not in config.args:
            config.args.append(str(module))


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Label and facts of every target: no result is shown without them."""
    from mnnpy.errors import BackendUnavailableError

    lines = []
    for name in config.getoption("--mnnpy-backend"):
        try:
            found: Any = target_of(config, name)
            lines.append(f"mnnpy conformance on {name}: label {found.label}, device {found.info.name}")
        except BackendUnavailableError as error:
            lines.append(f"mnnpy conformance on {name}: {error}")
    return lines


def target_of(config: pytest.Config, name: str) -> Any:
    """The target *name*, opened once per process."""
    from mnnpy.conformance.targets import open_target

    opened = config.stash.setdefault(_key(), {})
    if name not in opened:
        opened[name] = open_target(name)
    return opened[name]


def parametrize(metafunc: pytest.Metafunc, cases: list[tuple[str, Any]]) -> None:
    """*cases* (id without target, case) on every target that was asked for, with the marks of the listed ones."""
    import pytest

    from mnnpy.conformance.expectations import Expectations, load_expectations

    config = metafunc.config
    path = config.getoption("--mnnpy-expect")
    expect = load_expectations(path) if path else Expectations()
    params = []
    for backend in config.getoption("--mnnpy-backend"):
        for name, case in cases:
            full = f"{name}-{backend}"
            marks: list[Any] = []
            if never := expect.unsupported(full):
                marks.append(pytest.mark.skip(reason=f"unsupported: {never}"))
            elif later := expect.expected_failure(full):
                marks.append(pytest.mark.xfail(strict=True, reason=later))
            params.append(pytest.param(backend, case, id=full, marks=marks))
    metafunc.parametrize(("backend", "case"), params)


_KEYS: list[Any] = []


def _key() -> Any:
    import pytest

    if not _KEYS:
        _KEYS.append(pytest.StashKey())
    return _KEYS[0]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """What was skipped and why; how many ONNX cases ran wholly on the target."""
    if not config.getoption("--mnnpy-backend"):
        return
    from collections import Counter

    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[text.removeprefix("Skipped: ")] += 1
    for report in terminalreporter.stats.get("xfailed", []):
        reasons[f"expected failure: {report.wasxfail}"] += 1
    where = Counter(dict(r.user_properties).get("where", "") for r in terminalreporter.stats.get("passed", []))
    terminalreporter.section("mnnpy conformance")
    terminalreporter.write_line(
        f"passed wholly on the target: {where['device']}, with an op on the reference: {where['host']}"
    )
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:6d}  {reason}")
