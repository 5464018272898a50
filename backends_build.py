"""Builds the CPU extension: the core once, every kernel source once per instruction set.

Linking order is part of the design. Inline functions and templates (also those of the standard library) exist in
several variants; a linker keeps the first it sees. With the core first and the instruction sets in rising order,
code never calls a variant above its own. The version script keeps the extension's symbols to itself.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from setuptools import Extension
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
NATIVE = ROOT / "backends" / "cpu" / "native"
MODULE = "mnnpy.backends.cpu._native"

Job = tuple[Path, Path, list[str]]  #: source, object, command

#: Compiler flags by instruction set, in rising order; the index is MNNPY_ISA.
ISA_FLAGS: dict[str, list[str]] = {
    "generic": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mlzcnt", "-mpopcnt"],
    "avx512": ["-march=skylake-avx512", "-mtune=generic", "-mprefer-vector-width=512"],
}
FLAGS = [
    "-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-fno-math-errno",
    "-fno-trapping-math", "-ffp-contract=fast", "-fno-semantic-interposition", "-Wall", "-Wextra", "-Wno-psabi",
    "-Wno-restrict", "-Wno-uninitialized", "-Wno-maybe-uninitialized",  # noise of gcc 12
    "-DNDEBUG",
]  # fmt: skip


def isas(machine: str = "") -> list[str]:
    """Instruction sets to build for *machine*, or for the one at hand."""
    return list(ISA_FLAGS) if (machine or platform.machine()).lower() in ("x86_64", "amd64") else ["generic"]


def jobs_for(common: list[str], out: Path, variants: list[str], core: list[Path]) -> list[Job]:
    """Compilations of *core* and of every kernel source per variant, in the order in which to link them."""
    groups: list[tuple[str, list[Path], list[str]]] = [("core", core, ["-DMNNPY_ISA=0"])]
    for isa in variants:
        level = list(ISA_FLAGS).index(isa)
        groups.append((isa, sorted(NATIVE.glob("kernels/*.cpp")), [*ISA_FLAGS[isa], f"-DMNNPY_ISA={level}"]))
    jobs = []
    for group, sources, flags in groups:
        for source in sources:
            target = out / group / f"{source.stem}.o"
            jobs.append((source, target, [*common, *flags, "-c", str(source), "-o", str(target)]))
    return jobs


def compile_stale(jobs: list[Job]) -> int:
    """Compile what is missing or older than its sources, in parallel; returns how many."""
    stale = [j for j in jobs if _stale(j)]
    stale.sort(key=lambda j: -j[0].stat().st_size)  # long ones first
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(max(1, cpus or 1)) as workers:
        for _ in workers.map(_compile, stale):
            pass
    return len(stale)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes *folder* and keeps other builds out of it: two at once would write the same objects."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        _lock(file)
        yield


def python_includes() -> list[str]:
    """Compiler arguments that find the headers of pybind11 and Python."""
    import pybind11

    return [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]


class BuildNative(build_ext):
    """build_ext that compiles in groups, in parallel, and only what changed."""

    def build_extension(self, ext: Extension) -> None:
        if ext.name != MODULE:
            super().build_extension(ext)
            return
        compiler = os.environ.get("CXX", "c++")
        common = [compiler, *FLAGS, f"-I{NATIVE}", *python_includes(), *os.environ.get("CXXFLAGS", "").split()]
        # Not build_temp: installs from a temporary folder should find what was compiled before.
        out = ROOT / "build" / f"native-{sys.implementation.cache_tag}-{platform.machine()}"
        with locked(out):
            self._build(ext, common, out)

    def _build(self, ext: Extension, common: list[str], out: Path) -> None:
        jobs = jobs_for(common, out, isas(), sorted(NATIVE.glob("core/*.cpp")))
        stale = compile_stale(jobs)
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        objects = [target for _, target, _ in jobs]
        if not stale and _fresh(library, max(o.stat().st_mtime for o in objects)):
            return
        staged = library.with_suffix(".tmp")
        link = [common[0], "-shared", *(str(o) for o in objects), "-o", str(staged)]
        if sys.platform == "darwin":
            link += ["-undefined", "dynamic_lookup", "-Wl,-exported_symbol,_PyInit__native"]
        else:
            script = out / "exports.map"
            script.write_text("{ global: PyInit__native; local: *; };\n")
            link += [f"-Wl,--version-script={script}", "-Wl,--no-undefined-version", "-pthread", "-s"]
            if os.environ.get("MNNPY_BUILD_SYMBOLS"):
                link.remove("-s")
        execute([*link, *os.environ.get("LDFLAGS", "").split()])
        staged.replace(library)  # never leave a half-written library in place


def _lock(file: IO[str]) -> None:
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_EX)


def _fresh(target: Path, moment: float) -> bool:
    return target.exists() and target.stat().st_mtime >= moment


def _stale(job: Job) -> bool:
    """Whether the object is missing, older than its source or a header it includes, or made by another command."""
    source, target, command = job
    listing = target.with_suffix(".d")
    if not target.exists() or not listing.exists():
        return True
    told = listing.with_suffix(".cmd")
    if not told.exists() or told.read_text() != "\n".join(command):
        return True
    rule = listing.read_text().replace("\\\n", " ").split(":", 1)[-1]
    needs = [source, *(Path(p) for p in rule.split())]
    built = target.stat().st_mtime
    return any(not p.exists() or p.stat().st_mtime > built for p in needs)


def _compile(job: Job) -> None:
    source, target, command = job
    print(f"compiling {source.relative_to(ROOT)} -> {target.parent.name}", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_suffix(".part")
    started = time.time()
    execute([*command[:-1], str(staged), "-MMD", "-MF", str(target.with_suffix(".d"))])
    os.utime(staged, (started, started))  # a source that changes while it is compiled stays newer
    staged.replace(target)
    target.with_suffix(".cmd").write_text("\n".join(command))


def execute(command: list[str]) -> None:
    """Run a compiler; its messages are passed on, a failure ends the build."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  our own compiler line
    if done.stderr:
        print(done.stderr, file=sys.stderr, flush=True)
    if done.returncode:
        raise SystemExit(f"failed with status {done.returncode}: {' '.join(command)}")


def cpu_extension() -> dict[str, Any]:
    """Keyword arguments for ``setup()``: the extension and the command that builds it."""
    sources = [*NATIVE.glob("core/*.cpp"), *NATIVE.glob("kernels/*.cpp")]
    names = [str(p.relative_to(ROOT)) for p in sorted(sources)]
    return {"ext_modules": [Extension(MODULE, names, language="c++")], "cmdclass": {"build_ext": BuildNative}}
