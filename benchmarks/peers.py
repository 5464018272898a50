"""Latency of mnnpy beside other engines: ``python benchmarks/peers.py [--models …] [--engines …]``.

Every engine × model × thread count is a process of its own. Rounds are interleaved (one round of each engine in
turn, several runs per round), so that noise of the machine hits all alike; the numbers are medians over rounds, and
ratios are medians of the ratios within rounds. Prints Markdown; ``--json FILE`` keeps every round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks.engines import ENGINES, ENVIRONMENT, PEERS, version_of  # noqa: E402
from benchmarks.zoo import ZOO, Workload  # noqa: E402

DEFAULT_ENGINES = ("mnnpy", "onnxruntime", "openvino", "openvino-default", "mnn", "torch")
#: Our settings, and whom each is compared with.
OURS = {
    "mnnpy": PEERS,
    "mnnpy-high": PEERS,
    "mnnpy-avx2": PEERS,
    "mnnpy-low": ("openvino-default",),
    "mnnpy-bound": ("onnxruntime-bound",),
}
#: An engine that keeps more cores busy than it was given, or whose answer is nonsense, is shown but not compared with.
CORES_SLACK, NONSENSE = 0.2, 0.5


def environment() -> dict[str, str]:
    """Compiled modules are cached, as they are where packages are installed; malloc asks for huge pages."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {
        **kept,
        "PYTHONPYCACHEPREFIX": str(ROOT / "benchmarks" / "out" / "pycache"),
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }


class Worker:
    """A process with one engine and one model."""

    def __init__(self, engine: str, model: str, threads: int) -> None:
        self.engine = engine
        command = [sys.executable, str(ROOT / "benchmarks" / "peer_worker.py"), engine, model, str(threads)]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env={**environment(), **ENVIRONMENT.get(engine, {})},
        )
        self.loaded = self._answer()
        self.error: str = self.loaded.get("error", "")
        self.rounds: list[float] = []
        self.cores: list[float] = []
        self.facts: dict[str, Any] = {}

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        self._log.seek(0)
        tail = self._log.read().strip().splitlines()[-1:]
        return {"error": f"its process ended with {self._process.wait()}: {' '.join(tail)}"[:200]}

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        """Send a command and wait for the answer; an engine that dies keeps its reason in ``error``."""
        if self.error:
            return {}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **values}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self._answer()
        self.error = answer.get("error", "")
        return answer

    def close(self) -> None:
        self._process.stdin.close() if self._process.stdin else None
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def measure(model: str, engines: Sequence[str], threads: int, rounds: int) -> dict[str, Any]:
    """All engines on one model: a dictionary per engine."""
    workers: list[tuple[str, Worker | None, str]] = []
    for engine in engines:
        if not version_of(engine):
            workers.append((engine, None, "not installed"))
            continue
        worker = Worker(engine, model, threads)
        workers.append((engine, worker, ""))
    live = [w for _, w, _ in workers if w is not None]
    with tempfile.TemporaryDirectory() as folder:
        for w in live:
            w.ask("save", path=f"{folder}/{w.engine}.npz")
        agreement = _agreement(Path(folder))
    for w in live:
        w.facts |= w.ask("warm", seconds=0.3)
    for k in range(rounds):
        for w in live if k % 2 == 0 else live[::-1]:
            found = w.ask("round")
            if "seconds" in found:
                w.rounds.append(found["seconds"])
                w.cores.append(found["cores"])
    out: dict[str, Any] = {}
    for engine, opened, reason in workers:
        if opened is None:
            out[engine] = {"error": reason}
            continue
        opened.facts |= opened.ask("quit")
        opened.close()
        if opened.error or not opened.rounds:
            out[engine] = {"error": opened.error or "no round was finished"}
            continue
        out[engine] = {
            "ms": 1e3 * statistics.median(opened.rounds),
            "rounds": opened.rounds,
            "load": opened.loaded["load"],
            "first": opened.loaded["first"],
            "rss": opened.facts["rss"],
            "idle": opened.facts["idle"],
            "cores": statistics.median(opened.cores),
            "difference": agreement.get(engine),
        }
        out[engine]["unfair"] = _unfair(out[engine], threads)
    _speedups(out)
    return out


def _agreement(folder: Path) -> dict[str, float | str]:
    """Engine → largest difference from onnxruntime's outputs over their largest magnitude."""
    wanted_path = folder / "onnxruntime.npz"
    if not wanted_path.is_file():
        return {}
    found: dict[str, float | str] = {}
    with np.load(wanted_path) as wanted:
        for path in folder.glob("*.npz"):
            if path.stem.startswith("torch"):  # its weights are its own
                continue
            with np.load(path) as got:
                if len(got.files) != len(wanted.files) or any(got[n].size != wanted[n].size for n in wanted.files):
                    found[path.stem] = "other shapes"
                    continue
                found[path.stem] = max(
                    float(np.abs(got[n].ravel().astype(np.float64) - wanted[n].ravel()).max(initial=0))
                    / max(float(np.abs(wanted[n]).max(initial=0)), 1e-30)
                    for n in wanted.files
                )
    return found


def _unfair(found: dict[str, Any], threads: int) -> str:
    """Why an engine's time is not comparable, or empty."""
    if found["cores"] > threads + CORES_SLACK:
        return f"kept {found['cores']:.1f} cores busy with {threads} thread(s)"
    difference = found["difference"]
    if isinstance(difference, str) or (difference is not None and difference > NONSENSE):
        return f"its answer differs: {difference if isinstance(difference, str) else f'{difference:.0e}'}"
    return ""


def _speedups(out: dict[str, Any]) -> None:
    """Time of the best peer ÷ ours, for each of our settings: above 1 where mnnpy is faster."""
    for name, peers in OURS.items():
        ours = out.get(name, {})
        fair = {e: out[e] for e in peers if "rounds" in out.get(e, {}) and not out[e]["unfair"]}
        if "rounds" not in ours or not fair:
            continue
        ours["best peer"] = best = min(fair, key=lambda e: float(fair[e]["ms"]))
        ours["speedup"] = _pairwise(out[best], ours)
        if "onnxruntime" in fair:
            ours["over onnxruntime"] = _pairwise(out["onnxruntime"], ours)


def _pairwise(theirs: dict[str, Any], ours: dict[str, Any]) -> float:
    """Median over rounds of the ratio within the round."""
    return float(statistics.median(a / b for a, b in zip(theirs["rounds"], ours["rounds"], strict=False)))


def machine() -> str:
    """Processor, cores and system, for the head of a report."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        text = cpuinfo.read_text()
        name = next(
            (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), name
        )
        flags = [f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile") if f in text]
        name += f" ({', '.join(flags)})" if flags else ""
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {platform.system()}, Python {platform.python_version()}"


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown tables."""
    lines = [f"{report['machine']}.", ""]
    lines.append("Versions: " + ", ".join(f"{e} {v or 'not installed'}" for e, v in report["versions"].items()) + ".")
    lines.append(
        f"Milliseconds, median of {report['rounds']} interleaved rounds. `best ÷ X`: time of the fastest fp32 peer ÷ "
        "time of X in the same round, above 1 where mnnpy is faster."
    )
    if {"mnnpy-low", "openvino-default"} & set(report["engines"]):
        lines.append(
            "`mnnpy-low` and `openvino-default` compute in bf16 where the processor has it, all others in fp32."
        )
    for threads, models in report["results"].items():
        lines += ["", f"### {threads} thread{'s' * (threads != '1')}", "", *latency_table(models, report["engines"])]
        lines += [
            "",
            "Load ms / first run ms / peak MB / largest difference from onnxruntime over the largest value:",
            "",
            *cold_table(models, report["engines"]),
        ]
    return "\n".join(lines)


def geomean(values: Sequence[float]) -> float:
    """Geometric mean."""
    return statistics.geometric_mean(values) if values else float("nan")


def latency_table(models: dict[str, Any], engines: Sequence[str]) -> list[str]:
    """Rows of a Markdown table with speed-ups, a line of geometric means, and notes on what is not comparable."""
    ours = [e for e in engines if e in OURS]
    lines = ["| model | " + " | ".join(engines) + "".join(f" | best ÷ {e}" for e in ours) + " |"]
    lines.append("|---|" + "--:|" * (len(engines) + len(ours)))
    notes = []
    for model, found in models.items():
        cells = [_ms(found.get(e, {})) + "*" * bool(found.get(e, {}).get("unfair")) for e in engines]
        for e in ours:
            one = found.get(e, {})
            cells.append(f"{one['speedup']:.2f} ({one['best peer']})" if "speedup" in one else "–")
        lines.append(f"| {model} | {' | '.join(cells)} |")
        for e in engines:
            reason = found.get(e, {}).get("error") or found.get(e, {}).get("unfair")
            if reason and "LookupError" not in reason:  # torch lacks modules of the trained models
                notes.append(f"- {model}, {e}: {reason}")
    means = []
    for e in ours:
        found_all = [m[e]["speedup"] for m in models.values() if "speedup" in m.get(e, {})]
        means.append(f"**{geomean(found_all):.2f}** (least {min(found_all):.2f})" if found_all else "–")
    lines.append("| geometric mean |" + " |" * len(engines) + "".join(f" {m} |" for m in means))
    return [*lines, "", *notes] if notes else lines


def cold_table(models: dict[str, Any], engines: Sequence[str]) -> list[str]:
    """Rows of a Markdown table of load, first run, memory and agreement."""
    lines = ["| model | " + " | ".join(engines) + " |", "|---|" + "--:|" * len(engines)]
    for model, found in models.items():
        lines.append(f"| {model} | " + " | ".join(_cold(found.get(e, {})) for e in engines) + " |")
    return lines


def _ms(found: dict[str, Any]) -> str:
    return "n/a" if "ms" not in found else f"{found['ms']:.3g}"


def _cold(found: dict[str, Any]) -> str:
    if "ms" not in found:
        return "n/a"
    d = found["difference"]
    shown = "–" if d is None else d if isinstance(d, str) else f"{d:.0e}"
    return f"{found['load']:.0f} / {found['first']:.3g} / {found['rss']:.0f} / {shown}"


def compare(workloads: Sequence[str], engines: Sequence[str], threads: Sequence[int], rounds: int) -> dict[str, Any]:
    """Measure everything; progress goes to stderr."""
    results: dict[str, dict[str, Any]] = {}
    for count in threads:
        for name in workloads:
            model = Workload.parse(name).model
            if reason := model.available():
                print(f"{name}: {reason}", file=sys.stderr)
                continue
            model.build()
            found = measure(name, engines, count, rounds)
            results.setdefault(str(count), {})[name] = found
            shown = ", ".join(f"{e} {_ms(r)}" for e, r in found.items())
            print(f"{name}, {count} threads: {shown}", file=sys.stderr, flush=True)
    versions = {e: version_of(e) for e in engines}
    return {"machine": machine(), "versions": versions, "engines": list(engines), "rounds": rounds, "results": results}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", default=list(ZOO), metavar="NAME", help="zoo models; NAME@batch=8, NAME@length=384"
    )
    parser.add_argument("--engines", nargs="+", default=list(DEFAULT_ENGINES), choices=sorted(ENGINES))
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default 15)")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="thread counts (default 1 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, every round included")
    parser.add_argument("--md", type=Path, metavar="FILE", help="also write the Markdown to a file")
    options = parser.parse_args(argv)
    try:
        for name in options.models:
            Workload.parse(name)
    except ValueError as error:
        parser.error(str(error))
    report = compare(options.models, options.engines, options.threads, options.rounds)
    text = markdown(report)
    print(text)
    if options.md:
        options.md.write_text(text + "\n")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
