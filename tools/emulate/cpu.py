# SPDX-License-Identifier: Apache-2.0
"""Run the test suite on a CPU that is not here, emulated by qemu's user mode.

    python tools/emulate/cpu.py NAME... [--full] [--jobs N] [-- PYTEST_ARGUMENT...]
    python tools/emulate/cpu.py NAME --python [-- PYTHON_ARGUMENT...]
    python tools/emulate/cpu.py --list

By default the tests marked `emulated` run, which is what CI does, a CPU in one run of pytest.
--full takes all tests, a file in each run (those that are named in one), and adds up at the end.
Before the tests each CPU must offer the targets that it has the instructions for, no more and no
fewer.
--python is the interpreter alone: `cpu.py nehalem --python -- -m nibblas info`.

x86-64 CPUs run this interpreter, its packages and the nibblas in it. For aarch64 CPUs the first
run makes a Python and a cross-built wheel in the cache folder (see aarch64_python.py); later runs
build what changed (--no-build: nothing).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import aarch64_python
import aarch64_wheel

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nibblas-emulate"

# What qemu's Haswell would warn that it lacks.
HASWELL = "Haswell,-pcid,-x2apic,-tsc-deadline,-hle,-invpcid,-rtm"
NEON = ("scalar", "neon")
NO_TESTS = 5  # pytest's exit status


class Cpu(NamedTuple):
    arch: str
    model: str
    """For qemu's -cpu."""
    targets: tuple[str, ...]
    """The targets that it has the instructions for, of all that nibblas ever had."""
    what: str


CPUS = {
    "nehalem": Cpu("x86_64", "Nehalem", ("scalar",), "SSE4.2, no AVX"),
    "sandybridge": Cpu("x86_64", "SandyBridge", ("scalar",), "AVX without AVX2"),
    "haswell": Cpu("x86_64", HASWELL, ("scalar", "avx2"), "AVX2, FMA, F16C, BMI2; no AVX-512"),
    "haswell-no-avx2": Cpu("x86_64", f"{HASWELL},-avx2", ("scalar",), "Haswell without AVX2"),
    "haswell-no-fma": Cpu("x86_64", f"{HASWELL},-fma", ("scalar",), "Haswell without FMA"),
    "haswell-no-f16c": Cpu("x86_64", f"{HASWELL},-f16c", ("scalar",), "Haswell without F16C"),
    "haswell-no-bmi2": Cpu("x86_64", f"{HASWELL},-bmi2", ("scalar",), "Haswell without BMI2"),
    "haswell-no-xsave": Cpu(
        "x86_64", f"{HASWELL},-xsave", ("scalar",), "AVX2 that the operating system does not save"
    ),
    "cortex-a53": Cpu("aarch64", "cortex-a53", NEON, "plain armv8-a"),
    "neoverse-n1": Cpu("aarch64", "neoverse-n1", (*NEON, "neon_dotprod"), "dot products"),
    "max": Cpu("aarch64", "max", (*NEON, "neon_dotprod", "neon_i8mm"), "i8mm, all that qemu has"),
}


def x86_python(folder: Path, model: str) -> Path:
    """A command in `folder` that runs this interpreter on that CPU, and its child processes too.

    The folder is a virtual environment with this one's packages, whose interpreter is a script.
    """
    version = f"python3.{sys.version_info[1]}"
    own = sys.prefix != sys.base_prefix
    home = Path(sys._base_executable).parent
    (folder / "bin").mkdir()
    (folder / "pyvenv.cfg").write_text(
        f"home = {home}\ninclude-system-site-packages = {'false' if own else 'true'}\n"
    )
    (folder / "lib" / version).mkdir(parents=True)
    if own:
        packages = Path("lib") / version / "site-packages"
        (folder / packages).symlink_to(Path(sys.prefix) / packages)
    command = folder / "bin" / "python3"
    interpreter = Path(sys.executable).resolve()
    command.write_text(
        f'#!/bin/sh\nexec qemu-x86_64-static -cpu {model} -0 "{command}" "{interpreter}" "$@"\n'
    )
    command.chmod(0o755)
    return command


def expected_targets(cpu: Cpu) -> set[str]:
    """Those of its targets that this source tree has."""
    known = json.loads((ROOT / "cmake" / "targets.json").read_text(encoding="utf-8"))["targets"]
    return set(cpu.targets) & set(known)


def check_targets(command: Path, cpu: Cpu, environment: dict[str, str]) -> None:
    code = "import nibblas; print(*nibblas.available_targets())"
    done = subprocess.run([command, "-c", code], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{cpu.model}: import ended with {done.returncode}\n{done.stderr}")
    found = set(done.stdout.split())
    if found != expected_targets(cpu):
        expected = ", ".join(sorted(expected_targets(cpu)))
        raise SystemExit(f"{cpu.model}: expected targets {expected}; {sorted(found)} came")


@contextlib.contextmanager
def emulated_python(name: str, folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """The interpreter on that CPU, as a command and the environment that it wants."""
    cpu = CPUS[name]
    environment = {**os.environ, "NIBBLAS_EMULATED_CPU": name, "PYTHONDONTWRITEBYTECODE": "1"}
    if cpu.arch == "aarch64":
        yield aarch64_python.command(folder), {**environment, "QEMU_CPU": cpu.model}
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield x86_python(Path(temporary), cpu.model), environment


def suite(containing: str = "") -> list[str]:
    """The test files with that text in them, the largest first."""
    files = sorted((ROOT / "tests").glob("test_*.py"), key=lambda path: -path.stat().st_size)
    used = [path for path in files if containing in path.read_text(encoding="utf-8")]
    return [str(path.relative_to(ROOT)) for path in used]


class Run(NamedTuple):
    """One run of pytest."""

    cpu: str
    title: str
    arguments: list[str]


def planned_runs(arguments: argparse.Namespace) -> list[Run]:
    """A run for each CPU, or, of the whole suite, for each CPU and test file."""
    named = any((ROOT / word.partition("::")[0]).exists() for word in arguments.given)
    if arguments.full and not named:
        return [
            Run(name, f"{name}, {file}", ["-q", file, *arguments.given])
            for name in arguments.names
            for file in suite()
        ]
    selection = ["-q"] if arguments.full else ["-q", "-m", "emulated"]
    if not named:
        selection += suite("mark.emulated")  # collecting the others takes an emulator long
    return [
        Run(name, f"{name} ({CPUS[name].what})", selection + arguments.given)
        for name in arguments.names
    ]


def run_tests(run: Run, folder: Path, limit: int) -> tuple[int, Counter[str]]:
    """Run pytest on that CPU and print what it printed; its status, and its last line's counts."""
    started, cut = time.monotonic(), ("timeout", str(limit)) if limit else ()
    with emulated_python(run.cpu, folder) as (command, environment):
        done = subprocess.run(
            [*cut, command, "-m", "pytest", "-p", "no:cacheprovider", *run.arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    seconds = time.monotonic() - started
    end = f"over the limit of {limit} s" if done.returncode == 124 else f"exit {done.returncode}"
    print(f"\n== {run.title}: {end}, {seconds:.0f} s\n{done.stdout}", flush=True)
    last = done.stdout.strip().rpartition("\n")[2]
    found = re.findall(r"(\d+) (passed|skipped|failed|error)", last)
    return done.returncode, Counter({word: int(number) for number, word in found})


def run_all(runs: list[Run], folder: Path, jobs: int, limit: int) -> bool:
    """Run them, `jobs` at a time, and add up for each CPU; whether all passed."""
    pool = concurrent.futures.ThreadPoolExecutor(jobs)
    try:
        results = list(pool.map(lambda run: run_tests(run, folder, limit), runs))
    finally:  # also after Ctrl-C: what has not begun will not
        pool.shutdown(cancel_futures=True)
    passed = True
    for name in dict.fromkeys(run.cpu for run in runs):
        own = [(run, *result) for run, result in zip(runs, results, strict=True) if run.cpu == name]
        total = sum((counts for _, _, counts in own), Counter())
        # Of several runs one may be of a file without a test for this CPU.
        fine = (0, NO_TESTS) if len(own) > 1 and total["passed"] else (0,)
        bad = [run.title for run, status, _ in own if status not in fine]
        counts = ", ".join(f"{number} {word}" for word, number in sorted(total.items()))
        print(f"== {name}: {counts}; not passed: {'; '.join(bad) or 'nothing'}", flush=True)
        passed = passed and not bad
    return passed


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CPUS))
    parser.add_argument("--list", action="store_true", help="print the CPUs and their targets")
    parser.add_argument("--python", action="store_true", help="run the interpreter, not pytest")
    parser.add_argument("--full", action="store_true", help="all tests, a file in a run")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (1)")
    parser.add_argument("--limit", type=int, default=0, metavar="SECONDS", help="for each run")
    parser.add_argument("--folder", type=Path, default=CACHE, help="of the aarch64 Python")
    parser.add_argument("--packages", choices=("few", "all"), help="of it (all with --full)")
    parser.add_argument("--no-build", action="store_true", help="the wheel is as it should be")
    own, given = sys.argv[1:], []
    if "--" in own:
        own, given = own[: own.index("--")], own[own.index("--") + 1 :]
    arguments = parser.parse_args(own)
    arguments.given = given
    unknown = sorted(set(arguments.names) - set(CPUS))
    if unknown or not (arguments.names or arguments.list):
        parser.error(f"expected names of CPUs ({', '.join(CPUS)}), got {unknown}")
    return arguments


def main() -> None:
    arguments = parse()
    if arguments.list:
        for name, cpu in CPUS.items():
            print(f"{name:16} {cpu.arch:8} {cpu.what}: {', '.join(cpu.targets)}")
        return
    folder = arguments.folder.resolve()
    if any(CPUS[name].arch == "aarch64" for name in arguments.names):
        packages = arguments.packages or ("all" if arguments.full else "few")
        aarch64_python.make(folder, packages)
        if not arguments.no_build:
            aarch64_wheel.make(folder)
    if arguments.python:
        (name,) = arguments.names
        with emulated_python(name, folder) as (command, environment):
            raise SystemExit(
                subprocess.run([command, *arguments.given], env=environment).returncode
            )
    for name in arguments.names:
        with emulated_python(name, folder) as (command, environment):
            check_targets(command, CPUS[name], environment)
    runs = planned_runs(arguments)
    raise SystemExit(0 if run_all(runs, folder, arguments.jobs, arguments.limit) else 1)


if __name__ == "__main__":
    main()
