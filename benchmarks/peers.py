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

from benchmarks.engines import ENGINES, PEERS, version_of  # noqa: E402
from benchmarks.zoo import ZOO  # noqa: E402

DEFAULT_ENGINES = ("mnnpy", "onnxruntime", "openvino", "openvino-default", "mnn", "torch")


class Worker:
    """A process with one engine and one model."""

    def __init__(self, engine: str, model: str, threads: int) -> None:
        self.engine = engine
        command = [sys.executable, str(ROOT / "benchmarks" / "peer_worker.py"), engine, model, str(threads)]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=ROOT
        )
        self.loaded = self._answer()
        self.error: str = self.loaded.get("error", "")
        self.rounds: list[float] = []
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
            seconds = w.ask("round").get("seconds")
            if seconds is not None:
                w.rounds.append(seconds)
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
            "difference": agreement.get(engine),
        }
    _ratios(out)
    return out


def _agreement(folder: Path) -> dict[str, float | str]:
    """Engine → largest difference from onnxruntime's outputs over their largest magnitude."""
    wanted_path = folder / "onnxruntime.npz"
    if not wanted_path.is_file():
        return {}
    found: dict[str, float | str] = {}
    with np.load(wanted_path) as wanted:
        for path in folder.glob("*.npz"):
            if path.stem == "torch":
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


def _ratios(out: dict[str, Any]) -> None:
    """Mnnpy relative to the best fp32 peer and to onnxruntime, below 1 where mnnpy is faster; likewise in bf16."""
    low, theirs = out.get("mnnpy-low", {}).get("rounds"), out.get("openvino-default", {}).get("rounds")
    if low and theirs:
        out["mnnpy-low"]["to openvino-default"] = statistics.median(a / b for a, b in zip(low, theirs, strict=False))
    ours = out.get("mnnpy", {}).get("rounds")
    peers = {e: out[e] for e in PEERS if "rounds" in out.get(e, {})}
    if not ours or not peers:
        return
    best = min(peers, key=lambda e: peers[e]["ms"])
    out["mnnpy"]["best peer"] = best
    for key, peer in (("to best", best), ("to onnxruntime", "onnxruntime")):
        if peer in peers:
            pairs = zip(ours, peers[peer]["rounds"], strict=False)
            out["mnnpy"][key] = statistics.median(a / b for a, b in pairs)


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
    engines: list[str] = report["engines"]
    lines = [f"{report['machine']}.", ""]
    lines.append("Versions: " + ", ".join(f"{e} {v or 'not installed'}" for e, v in report["versions"].items()) + ".")
    lines.append(
        f"Batch 1, milliseconds, median of {report['rounds']} interleaved rounds. Ratios below 1: mnnpy is faster."
    )
    if "mnnpy-low" in engines or "openvino-default" in engines:
        lines.append(
            "`mnnpy-low` and `openvino-default` compute in bf16 where the processor has it, all others in fp32."
        )
    low = "mnnpy-low" in engines and "openvino-default" in engines
    for threads, models in report["results"].items():
        lines += ["", f"### {threads} thread{'s' * (threads != '1')}", ""]
        lines.append(
            "| model | " + " | ".join(engines) + " | ÷ best peer | ÷ onnxruntime |" + " low ÷ openvino-default |" * low
        )
        lines.append("|---" * (len(engines) + 3 + low) + "|")
        notes = []
        for model, found in models.items():
            ours = found.get("mnnpy", {})
            cells = [_ms(found[e]) for e in engines]
            best = f"{ours['to best']:.2f} ({ours['best peer']})" if "to best" in ours else "–"
            ort = f"{ours['to onnxruntime']:.2f}" if "to onnxruntime" in ours else "–"
            ratio = found.get("mnnpy-low", {}).get("to openvino-default")
            last = (f" {ratio:.2f} |" if ratio else " – |") if low else ""
            lines.append(f"| {model} | {' | '.join(cells)} | {best} | {ort} |{last}")
            notes += [f"- {model}, {e}: {found[e]['error']}" for e in engines if "error" in found[e]]
        lines += ["", *notes] if notes else []
        lines += [
            "",
            "Load ms / first run ms / peak MB / largest difference from onnxruntime over the largest value:",
            "",
        ]
        lines.append("| model | " + " | ".join(engines) + " |")
        lines.append("|---" * (len(engines) + 1) + "|")
        for model, found in models.items():
            lines.append(f"| {model} | " + " | ".join(_cold(found[e]) for e in engines) + " |")
    return "\n".join(lines)


def _ms(found: dict[str, Any]) -> str:
    return "n/a" if "ms" not in found else f"{found['ms']:.3g}"


def _cold(found: dict[str, Any]) -> str:
    if "ms" not in found:
        return "n/a"
    d = found["difference"]
    shown = "–" if d is None else d if isinstance(d, str) else f"{d:.0e}"
    return f"{found['load']:.0f} / {found['first']:.3g} / {found['rss']:.0f} / {shown}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = [m.name for m in ZOO.values() if not m.trained or m.name.startswith("ppocr")]
    parser.add_argument("--models", nargs="+", default=default, metavar="NAME", choices=sorted(ZOO), help="zoo models")
    parser.add_argument("--engines", nargs="+", default=list(DEFAULT_ENGINES), choices=sorted(ENGINES))
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default 15)")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="thread counts (default 1 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, every round included")
    parser.add_argument("--md", type=Path, metavar="FILE", help="also write the Markdown to a file")
    options = parser.parse_args(argv)
    results: dict[str, dict[str, Any]] = {}
    for threads in options.threads:
        for model in options.models:
            if reason := ZOO[model].available():
                print(f"{model}: {reason}", file=sys.stderr)
                continue
            ZOO[model].build()
            found = measure(model, options.engines, threads, options.rounds)
            results.setdefault(str(threads), {})[model] = found
            print(
                f"{model}, {threads} threads: " + ", ".join(f"{e} {_ms(r)}" for e, r in found.items()), file=sys.stderr
            )
    report = {
        "machine": machine(),
        "versions": {e: version_of(e) for e in options.engines},
        "engines": options.engines,
        "rounds": options.rounds,
        "results": results,
    }
    text = markdown(report)
    print(text)
    if options.md:
        options.md.write_text(text + "\n")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
