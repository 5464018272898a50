"""Runs the whole suite and writes docs/benchmarks.md: ``python benchmarks/report.py [SECTION …]``.

Each section is measured by the script that can also be run alone, and kept below benchmarks/out/report; sections that
are not named are taken from there. The machine must be otherwise idle: everything takes about an hour on two cores.
``--write`` measures nothing and only writes the page and its pictures (needs the extra ``plot``).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(ROOT))

from benchmarks import peers, tuning  # noqa: E402
from benchmarks.zoo import ZOO  # noqa: E402

KEPT = ROOT / "benchmarks" / "out" / "report"
PAGE = ROOT / "docs" / "benchmarks.md"
PICTURES = ROOT / "docs" / "benchmarks"

#: Models with a batch dimension that is free (BERT-base would take four seconds a run).
BATCHED = (
    "mlp_64_64_10", "din", "squeezenet", "shufflenet_v2", "mobilenet_v2", "resnet18", "resnet50", "vit_tiny", "lstm",
    "minilm_l6", "ppocr_det", "ppocr_rec", "ppocr_cls", "magika", "silero_vad",
)  # fmt: skip
SIZES = (*(f"{n}@batch=8" for n in BATCHED), "minilm_l6@length=384", "bert_base@length=384")
TIERS = ("mnnpy", "mnnpy-high", "mnnpy-low", "onnxruntime", "openvino", "openvino-default", "mnn", "torch")


METHOD = """\
Every engine and model runs in a process of its own; rounds are interleaved; numbers are medians, ratios are medians of
the ratios within rounds. Peers get static shapes, all optimisations and a latency hint; malloc asks for huge pages in
all processes (`GLIBC_TUNABLES=glibc.malloc.hugetlb=1`). An engine that keeps more cores busy than it was given, or
whose answer is nonsense, is marked `*` and not compared with. Repeat everything with `python benchmarks/report.py`, a
section with its command."""


def _installed() -> list[str]:
    return [n for n, m in ZOO.items() if not m.available()]


@dataclass(frozen=True, slots=True)
class Latency:
    """A section of ``peers.py``. Rows can be measured again by themselves: a process beside may have spoilt them."""

    workloads: tuple[str, ...]
    engines: tuple[str, ...]
    threads: tuple[int, ...]

    def __call__(self, rounds: int) -> Any:
        return peers.compare(self.workloads, self.engines, self.threads, rounds)

    def again(self, kept: Any, workloads: Sequence[str], threads: Sequence[int], rounds: int) -> Any:
        """*kept* with new rows for *workloads*."""
        found = peers.compare(workloads, self.engines, threads or self.threads, rounds)
        for count, rows in found["results"].items():
            kept["results"][count].update(rows)
        return kept


def _script(name: str, *arguments: str) -> Callable[[int], Any]:
    """A benchmark that writes its numbers with ``--json``."""

    def run(_: int) -> Any:
        path = KEPT / f"{name}.raw.json"
        command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *arguments, "--json", str(path)]
        done = subprocess.run(command, check=False, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if done.returncode not in (0, 1):  # 1: a goal was missed, which the page says
            raise SystemExit(f"{name}.py ended with {done.returncode}")
        return {"text": done.stdout, **json.loads(path.read_text())}

    return run


SECTIONS: dict[str, Callable[[int], Any]] = {
    "main": Latency(tuple(_installed()), TIERS, (1, 2)),
    "sizes": Latency(SIZES, ("mnnpy", "onnxruntime", "openvino"), (1, 2)),
    "avx2": Latency(tuple(_installed()), ("mnnpy-avx2", "onnxruntime", "openvino-avx2", "mnn", "torch-avx2"), (1,)),
    "bound": Latency(("mlp_64_64_10", "mlp_64_128_128_10", "din"), ("mnnpy-bound", "onnxruntime-bound"), (1,)),
    "load": _script("load", "--all"),
    "under_load": _script("under_load"),
    "kernels": _script("kernels"),
    "tuning": lambda _: tuning.measure(_installed(), threads=1),
}


def speedups(report: dict[str, Any], engine: str, threads: int) -> dict[str, float]:
    """Model → time of the best peer ÷ time of *engine*."""
    models = report["results"].get(str(threads), {})
    return {n: m[engine]["speedup"] for n, m in models.items() if "speedup" in m.get(engine, {})}


def _bar(name: str, found: dict[str, float], mean: float, least: float | None) -> str:
    """A row: the goal, what was measured, which models miss it."""
    if not found:
        return f"| {name} | – | not measured | |"
    reached = peers.geomean(list(found.values()))
    goal = f"mean ≥ {mean}" if mean else ""
    if least is not None:
        goal += (", " if goal else "") + f"each ≥ {least}"
    under = sorted((v, n) for n, v in found.items() if least is not None and v < least)
    met = "yes" if reached >= mean and not under else "no"
    if under:
        met += ": " + ", ".join(f"{n} {v:.2f}" for v, n in under)
    return f"| {name} | {goal} | {reached:.2f} (least {min(found.values()):.2f}) | {met} |"


def bars(kept: dict[str, Any]) -> list[str]:
    """The goals and what was measured."""
    rows = ["| ratio of geometric means over models | goal | measured | met |", "|---|---|---|---|"]
    if main := kept.get("main"):
        rows += [
            _bar("normal, 1 thread: best fp32 peer ÷ mnnpy", speedups(main, "mnnpy", 1), 1.5, 1.0),
            _bar("normal, 2 threads", speedups(main, "mnnpy", 2), 1.4, 1.0),
            _bar("high, 1 thread", speedups(main, "mnnpy-high", 1), 1.1, 0.95),
            _bar("high, 2 threads", speedups(main, "mnnpy-high", 2), 1.1, 0.95),
            _bar("low, 1 thread: OpenVINO's bf16 default ÷ mnnpy", speedups(main, "mnnpy-low", 1), 1.0, None),
            _bar("low, 2 threads", speedups(main, "mnnpy-low", 2), 1.0, None),
        ]
        din = {m: v for m, v in speedups(main, "mnnpy", 1).items() if m == "din"}
        rows.append(_bar("DIN, 1 thread", din, 0.0, 1.5))
    if bound := kept.get("bound"):
        mlp = {m: v for m, v in speedups(bound, "mnnpy-bound", 1).items() if m == "mlp_64_64_10"}
        rows.append(_bar("tiny MLP, inputs and outputs bound: ONNX Runtime ÷ mnnpy", mlp, 0.0, 2.0))
    if sizes := kept.get("sizes"):
        rows += [_bar(f"batch 8 and length 384, {t} thread(s)", speedups(sizes, "mnnpy", t), 0.0, 1.0) for t in (1, 2)]
    if avx2 := kept.get("avx2"):
        rows.append(_bar("AVX2 only, 1 thread", speedups(avx2, "mnnpy-avx2", 1), 1.1, None))
    return rows + _cold_bars(kept) + _kernel_bars(kept)


def _kernel_bars(kept: dict[str, Any]) -> list[str]:
    """Goals of the kernel backends, one number each."""
    rows = []
    for r in kept.get("kernels", {}).get("rows", ()):
        if r["goal"] is not None:
            goal, value = (f"{v:.3g} {r['unit']}".strip() for v in (r["goal"], r["value"]))
            met = r["value"] >= r["goal"] if r["least"] else r["value"] <= r["goal"]
            rows.append(f"| {r['backend']}, {r['what']} | {'≥' if r['least'] else '≤'} {goal} | {value} | "
                        f"{'yes' if met else 'no'} |")  # fmt: skip
    return rows


def _cold_bars(kept: dict[str, Any]) -> list[str]:
    """Goals of load, memory, selection and load from outside; here smaller is better for us, so ratios are turned."""
    rows = []
    if found := kept.get("load"):
        for facts, title in (
            (("create", "first"), "load + first inference"),
            (("total",), "the same with import"),
            (("peak",), "peak memory"),
        ):
            medians = {
                name: {
                    e: statistics.median(sum(r[f] for f in facts) for r in runs) for e, runs in engines.items() if runs
                }
                for name, engines in found["models"].items()
            }
            for engine in ("mnnpy", "mnnpy cold"):
                ratios = {
                    n: m["onnxruntime"] / m[engine] for n, m in medians.items() if {engine, "onnxruntime"} <= set(m)
                }
                rows.append(_bar(f"{title}, {engine}: ONNX Runtime ÷ ours", ratios, 1.0, None))
    if found := kept.get("tuning"):
        added = {n: m["cold"] - m["off"] for n, m in found["models"].items()}
        cached = {n: m["cached"] - m["off"] for n, m in found["models"].items()}
        worst, again = max(added, key=lambda n: added[n]), max(cached, key=lambda n: cached[n])
        met = "yes" if added[worst] <= 1 else "no"
        rows.append(f"| selection adds, s | each ≤ 1 | at most {added[worst]:.2f} ({worst}) | {met} |")
        rows.append(f"| the same, cached, s | 0 | at most {cached[again]:.2f} ({again}) | |")
    if found := kept.get("under_load"):
        factors: dict[str, dict[str, float]] = {}
        for name, engines in found["results"].items():
            factors[name] = {
                e: statistics.median(f["busy"]) / statistics.median(f["quiet"]) for e, f in engines.items() if f["busy"]
            }
        ratios = {n: f["onnxruntime"] / f["mnnpy"] for n, f in factors.items() if {"mnnpy", "onnxruntime"} <= set(f)}
        rows.append(_bar("slow-down beside busy processes: ONNX Runtime's ÷ ours", ratios, 1.0, None))
    return rows


def draw(report: dict[str, Any], path: Path) -> None:
    """Time of every engine over ours by model: right of the line is slower than mnnpy."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    engines = [e for e in ("onnxruntime", "openvino", "mnn", "torch") if e in report["engines"]]
    figure, panes = plt.subplots(1, len(report["results"]), figsize=(11, 7), sharey=True, squeeze=False)
    for axes, (threads, models) in zip(panes[0], report["results"].items(), strict=True):
        names = [n for n in models if "ms" in models[n].get("mnnpy", {})][::-1]
        for k, engine in enumerate(engines):
            found = [(models[n][engine]["ms"] / models[n]["mnnpy"]["ms"], i) for i, n in enumerate(names)
                     if "ms" in models[n].get(engine, {}) and not models[n][engine]["unfair"]]  # fmt: skip
            axes.scatter([x for x, _ in found], [y for _, y in found], 26, marker="osD^"[k], label=engine, alpha=0.8)
        axes.axvline(1, color="black", linewidth=1.2)
        axes.set(xscale="log", xlabel="time of the engine ÷ time of mnnpy", xlim=(0.6, 20))
        axes.set_xticks([0.7, 1, 1.5, 2, 3, 5, 10, 20], ["0.7", "1", "1.5", "2", "3", "5", "10", "20"])
        axes.minorticks_off()
        axes.set_yticks(range(len(names)), names)
        axes.set_title(f"{threads} thread{'s' * (threads != '1')}")
        axes.grid(visible=True, alpha=0.25)
    panes[0][0].legend(loc="lower right", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def page(kept: dict[str, Any], notes: str) -> str:
    """The text of docs/benchmarks.md."""
    lines = [
        "# Benchmarks",
        "",
        "<!-- Written by benchmarks/report.py; remarks come from docs/benchmarks/notes.md. -->",
        "",
    ]
    if main := kept.get("main"):
        lines += [f"{main['machine']}."]
        lines += [
            "Versions: " + ", ".join(f"{e} {v or 'not installed'}" for e, v in main["versions"].items()) + ".",
            "",
        ]
    lines += [METHOD, "", "## Goals", "", *bars(kept), "", notes.strip(), ""]
    titles = {
        "main": "Batch 1 — `python benchmarks/peers.py --rounds 15 --engines " + " ".join(TIERS) + "`",
        "sizes": "Batch 8 and length 384 — `python benchmarks/peers.py --models NAME@batch=8 …`",
        "bound": "Bound inputs and outputs — `python benchmarks/peers.py --engines mnnpy-bound onnxruntime-bound …`",
        "avx2": "AVX2 only — `python benchmarks/peers.py --engines mnnpy-avx2 openvino-avx2 torch-avx2 …`",
    }
    for section, title in titles.items():
        if section not in kept:
            continue
        lines += [f"## {title}", ""]
        if section == "main":
            lines += ["![time of each engine over ours](benchmarks/speedups.png)", ""]
        for threads, models in kept[section]["results"].items():
            lines += [
                f"### {threads} thread{'s' * (threads != '1')}",
                "",
                *peers.latency_table(models, kept[section]["engines"]),
                "",
            ]
    scripts = {"load": "Load, first inference, memory", "under_load": "Under load", "kernels": "Kernel backends"}
    for section, title in scripts.items():
        if section in kept:
            lines += [f"## {title} — `python benchmarks/{section}.py`", "", kept[section]["text"].strip(), ""]
    if "tuning" in kept:
        lines += ["## Measured selection — `python benchmarks/tuning.py`", "", *tuning.table(kept["tuning"]), ""]
    lines += ["## Rooflines — `python benchmarks/roofline.py`", ""]
    lines += ["Each dot is a kernel call; its area is its share of the time; the line is what this machine allows.", ""]
    lines += [f"![{n}](benchmarks/roofline-{n}.png)" for n in ZOO if (PICTURES / f"roofline-{n}.png").is_file()]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="only write the page from what is kept")
    parser.add_argument("--again", nargs="+", default=[], metavar="MODEL", help="measure only these rows anew")
    parser.add_argument("--threads", nargs="+", type=int, default=[], help="of the rows that are measured anew")
    options = parser.parse_args(argv)
    unknown = sorted(set(options.sections) - set(SECTIONS))
    if unknown:
        parser.error(f"unknown sections: {', '.join(unknown)}")
    KEPT.mkdir(parents=True, exist_ok=True)
    PICTURES.mkdir(parents=True, exist_ok=True)
    for section in [] if options.write else options.sections or list(SECTIONS):
        path, run = KEPT / f"{section}.json", SECTIONS[section]
        if options.again and isinstance(run, Latency):
            found = run.again(json.loads(path.read_text()), options.again, options.threads, options.rounds)
        else:
            found = run(options.rounds)
        path.write_text(json.dumps(found))
    kept = {s: json.loads((KEPT / f"{s}.json").read_text()) for s in SECTIONS if (KEPT / f"{s}.json").is_file()}
    if "main" in kept:
        draw(kept["main"], PICTURES / "speedups.png")
    notes = PICTURES / "notes.md"
    PAGE.write_text(page(kept, notes.read_text() if notes.is_file() else ""))
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
