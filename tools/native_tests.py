"""Builds and runs the C++ tests of the native kernels (tests/native): for this machine, for others, under sanitizers.

    python tools/native_tests.py                                # this machine, every instruction set it has
    python tools/native_tests.py --target aarch64               # NEON, cross-compiled, under qemu
    python tools/native_tests.py --cpu Nehalem                  # x86-64 without AVX, under qemu
    python tools/native_tests.py --sanitize address,undefined   # with leak detection
    python tools/native_tests.py --sanitize thread core         # only the group 'core'
    python tools/native_tests.py --sanitize address,undefined --pytest tests/unit/test_native_conv.py

With ``--pytest`` the Python extension itself is built with the sanitizers, next to and not instead of the usual one,
and pytest runs on it. Objects are kept in ``build/``. Exit status 3: a tool is missing, named on stderr.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import backends_build as build  # noqa: E402

SOURCES = sorted((ROOT / "tests" / "native").glob("*.cpp"))
MISSING = 3
#: GCC's cross compiler and qemu come from the same place as the compiler, with a static C library.
COMPILERS = {"aarch64": "aarch64-linux-gnu-g++"}
PACKAGES = "g++-aarch64-linux-gnu qemu-user-static"
#: CPython keeps memory until the process ends, so leaks are looked for in the C++ driver only.
#: Without detect_stack_use_after_return: GCC's substitute stack frames are aligned to 32 bytes only, and code for
#: AVX-512 stores vectors of 64 bytes there (GCC bug 110027).
ASAN = "detect_leaks=0:detect_stack_use_after_return=0:strict_init_order=1"
UBSAN = "halt_on_error=1:print_stacktrace=1"


class MissingToolError(Exception):
    """A compiler or emulator that is not installed."""


def need(tool: str) -> str:
    """Path of *tool*; raises MissingToolError."""
    found = shutil.which(tool)
    if found is None:
        raise MissingToolError(f"{tool} is not installed; on Debian and Ubuntu: apt-get install {PACKAGES}")
    return found


def flags(args: argparse.Namespace) -> list[str]:
    """Compiler and arguments that all sources have in common; the extension's own where nothing is asked for."""
    target = args.target
    compiler = os.environ.get("CXX", "c++") if target == platform.machine() else need(COMPILERS[target])
    plain = not args.sanitize and target == platform.machine()
    common = [compiler, *build.FLAGS, f"-I{build.NATIVE}", *(build.python_includes() if plain or args.pytest else [])]
    if plain:
        return [*common, *os.environ.get("CXXFLAGS", "").split()]
    if args.sanitize:
        # Not optimised further: what is compiled has to stay recognisable, and compile quickly.
        common += ["-O1", "-g1", "-fno-omit-frame-pointer", f"-fsanitize={args.sanitize}", "-fno-sanitize-recover=all"]
    else:
        common += ["-O2"]
    return common


def folder(args: argparse.Namespace) -> Path:
    """Where objects are kept; those of the extension serve the driver as well."""
    kind = "-".join(args.sanitize.split(",")) if args.sanitize else sys.implementation.cache_tag
    if not args.sanitize and args.target != platform.machine():
        kind = "driver"
    return ROOT / "build" / f"native-{kind}-{args.target}"


def build_driver(args: argparse.Namespace) -> Path:
    """The test driver, linked with kernels and executor but without Python."""
    common, out = flags(args), folder(args)
    core = [p for p in sorted(build.NATIVE.glob("core/*.cpp")) if p.stem != "module"]
    with build.locked(out):
        jobs = build.jobs_for(common, out, args.isa or build.isas(args.target), core)
        for source in SOURCES:
            target = out / "driver" / f"{source.stem}.o"
            jobs.append((source, target, [*common, "-DMNNPY_ISA=0", "-O1", "-c", str(source), "-o", str(target)]))
        build.compile_stale(jobs)
        driver = out / "driver" / "driver"
        link = [common[0], *(str(j[1]) for j in jobs), "-pthread", "-o", str(driver)]
        if args.sanitize:
            link.append(f"-fsanitize={args.sanitize}")
        elif args.target != platform.machine():
            link.append("-static")
        build.execute(link)
    return driver


def run_driver(args: argparse.Namespace) -> int:
    """Run the driver, in an emulator where it is not for this CPU."""
    driver = build_driver(args)
    command = [str(driver), f"--threads={args.threads}", *args.groups]
    if args.isa:
        command.append("--isa=" + ",".join(args.isa))
    if args.cpu:
        command = [need(f"qemu-{args.target}-static"), "-cpu", args.cpu, *command]
    elif args.target != platform.machine():
        command = [need(f"qemu-{args.target}-static"), *command]
    environment = {**os.environ, "UBSAN_OPTIONS": UBSAN, "ASAN_OPTIONS": "detect_stack_use_after_return=0"}
    return subprocess.run(command, env=environment, check=False).returncode  # noqa: S603


def build_extension(args: argparse.Namespace) -> Path:
    """The Python extension with sanitizers; returns its path."""
    common, out = flags(args), folder(args)
    with build.locked(out):
        jobs = build.jobs_for(common, out, args.isa or build.isas(args.target), sorted(build.NATIVE.glob("core/*.cpp")))
        build.compile_stale(jobs)
        library = out / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
        link = [common[0], "-shared", f"-fsanitize={args.sanitize}", *(str(j[1]) for j in jobs), "-pthread"]
        build.execute([*link, "-o", str(library)])
    return library


def run_pytest(args: argparse.Namespace) -> int:
    """Run pytest in a process that loads the sanitizers first and the sanitized extension instead of the usual one."""
    library = build_extension(args)
    compiler = os.environ.get("CXX", "c++")
    runtimes = []
    for name in args.sanitize.split(","):
        file = {"address": "libasan.so", "undefined": "libubsan.so", "thread": "libtsan.so"}[name]
        shown = subprocess.run(  # noqa: S603
            [compiler, f"-print-file-name={file}"], capture_output=True, text=True, check=True
        )
        runtimes.append(str(Path(shown.stdout.strip()).resolve()))
    environment = {
        **os.environ, "LD_PRELOAD": " ".join(runtimes), "ASAN_OPTIONS": ASAN, "UBSAN_OPTIONS": UBSAN,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
    }  # fmt: skip
    command = [
        sys.executable,
        str(ROOT / "tools" / "with_native.py"),
        str(library),
        "-p",
        "no:cacheprovider",
        *args.groups,
    ]
    return subprocess.run(command, env=environment, check=False, cwd=ROOT).returncode  # noqa: S603


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    machine = platform.machine()
    parser.add_argument("--target", default=machine, choices=sorted({machine, *COMPILERS}))
    parser.add_argument("--cpu", default="", help="emulate this CPU model of qemu")
    parser.add_argument("--sanitize", default="", metavar="LIST", help="address,undefined or thread")
    parser.add_argument("--isa", action="append", default=[], choices=list(build.ISA_FLAGS), help="build only these")
    parser.add_argument("--threads", default="1,2,7")
    parser.add_argument("--pytest", action="store_true", help="run pytest on the sanitized extension")
    parser.add_argument("groups", nargs="*", help="groups of the driver, or arguments of pytest")
    args, more = parser.parse_known_args(argv)
    args.groups += more
    if args.pytest and not args.sanitize:
        parser.error("--pytest needs --sanitize; without, call pytest itself")
    try:
        return run_pytest(args) if args.pytest else run_driver(args)
    except MissingToolError as error:
        print(error, file=sys.stderr)
        return MISSING


if __name__ == "__main__":
    raise SystemExit(main())
