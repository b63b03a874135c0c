# SPDX-License-Identifier: Apache-2.0
"""The rooms: what may include what, and that no function leaves its target's files."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nibblas
import nibblas._nibblas as native

from .builds import (
    BUILDS,
    COMPILER,
    CSRC,
    EMULATED,
    ROOT,
    TARGETS,
    run,
    target_of,
    target_sources,
    this_arch,
)

PACKAGE = ROOT / "python" / "nibblas"

# bindings -> ops -> runtime -> targets -> kernels -> {simd, layout}: a room may use itself and what
# is further down. simd/ and layout/ do not know each other.
ROOMS = ("layout", "simd", "kernels", "targets", "runtime", "ops", "bindings")
ALLOWED = {room: set(ROOMS[: index + 1]) for index, room in enumerate(ROOMS)} | {"simd": {"simd"}}
# simd/ holds instructions, so only what is compiled with a target's flags may see it.
for _room in ("runtime", "ops", "bindings"):
    ALLOWED[_room].discard("simd")

FREESTANDING = {"cstddef", "cstdint", "cstring", "cfloat", "climits", "stddef.h", "stdint.h"}
INTRINSICS = re.compile(r"(\w+intrin|arm_\w+)\.h")
THREADS = {"thread", "mutex", "shared_mutex", "condition_variable", "pthread.h", "future"}
NO_TEMPLATE = (  # of std, what is a type or a C function and so leaves no weak symbol
    r"std::(?!(size_t|ptrdiff_t|u?int(8|16|32|64|ptr)_t|memcpy|memset|memmove)\b)\w+"
)
NOT_IN_KERNELS = re.compile(
    rf"{NO_TEMPLATE}|\b(malloc|calloc|realloc|free|alloca|new|delete|throw|try|catch|virtual"
    r"|dynamic_cast|typeid|thread_local|printf|fprintf|abort|exit)\b"
)


def cpp_files(*rooms: str) -> list[Path]:
    paths = [path for room in rooms for path in sorted((CSRC / room).rglob("*"))]
    found = [path for path in paths if path.suffix in {".h", ".cpp"}]
    assert found, f"no C++ files in {rooms}"
    return found


def python_files() -> list[Path]:
    places = ("python", "tests", "bench", "examples")
    return [path for place in places for path in sorted((ROOT / place).rglob("*.py"))]


def without_comments(text: str) -> str:
    """The C++ text with comments and string literals blanked; line numbers stay."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"'
    return re.sub(pattern, lambda match: "\n" * match[0].count("\n"), text, flags=re.S)


def room_of(path: Path) -> str:
    return path.relative_to(CSRC).parts[0]


def includes(path: Path) -> list[tuple[str, str]]:
    return re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', path.read_text(), flags=re.M)


def test_every_file_is_in_a_room():
    rooms = {room_of(path) for path in CSRC.rglob("*") if path.suffix in {".h", ".cpp"}}
    assert rooms == set(ROOMS)


def test_includes_point_one_way():
    wrong = []
    for path in cpp_files(*ROOMS):
        for kind, name in includes(path):
            if kind == '"' and not (
                (CSRC / name).is_file() and name.split("/")[0] in ALLOWED[room_of(path)]
            ):
                wrong.append(f"{path.relative_to(ROOT)} includes {name}")
    assert not wrong


def test_system_headers_stay_in_their_rooms():
    wrong = []
    for path in cpp_files(*ROOMS):
        room = room_of(path)
        for kind, name in includes(path):
            if kind != "<":
                continue
            bad = (
                (INTRINSICS.fullmatch(name) and room != "simd")
                or (name.startswith("pybind11/") or name == "Python.h") * (room != "bindings")
                or (name in THREADS and room not in {"runtime", "ops"})
                or (name == "atomic" and room not in {"runtime", "ops", "bindings"})
                or (
                    room in {"simd", "kernels", "targets"}
                    and name not in FREESTANDING
                    and not INTRINSICS.fullmatch(name)
                )
            )
            if bad:
                wrong.append(f"{path.relative_to(ROOT)} includes <{name}>")
    assert not wrong


def test_kernels_only_compute():
    wrong = []
    for path in cpp_files("simd", "kernels", "targets"):
        for number, line in enumerate(without_comments(path.read_text()).splitlines(), 1):
            if (match := NOT_IN_KERNELS.search(line)) is not None:
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {match[0]}")
    assert not wrong


def test_files_are_short_and_licensed():
    wrong = []
    for path in [*cpp_files(*ROOMS), *python_files()]:
        name, lines = path.relative_to(ROOT), path.read_text().splitlines()
        if len(lines) > 400:
            wrong.append(f"{name}: {len(lines)} lines, more than 400")
        wrong += [f"{name}:{n}: long line" for n, line in enumerate(lines, 1) if len(line) > 100]
        if not any("SPDX-License-Identifier: Apache-2.0" in line for line in lines[:2]):
            wrong.append(f"{name}: no SPDX line at the top")
    assert not wrong


# --- no illegal instructions: what the compiler leaves in the objects of csrc/targets


# What a compiler may call on its own, whatever the source says. No libm, no libstdc++.
MAY_CALL = re.compile(
    r"memcpy|memset|memmove|memcmp|_GLOBAL_OFFSET_TABLE_|__stack_chk_fail|__(asan|ubsan|tsan)_\w+"
)


def test_every_target_file_has_a_target():
    owners = {path.stem: target_of(path) for path in (CSRC / "targets").glob("*.cpp")}
    assert all(owners.values()), owners
    assert set(owners.values()) == set(TARGETS["targets"]) == set(owners) & set(owners.values())


def check_object(path: Path) -> None:
    """One symbol goes out, and none is weak.

    A weak symbol is a function that the linker may take from here for the whole library.
    """
    symbols = [line.split()[-2:] for line in run("nm", path).splitlines()]
    symbols = [(kind, symbol) for kind, symbol in symbols if not symbol.startswith("__odr_asan")]
    assert not [symbol for kind, symbol in symbols if kind in "WwVvu"], "weak"
    exported = [symbol for kind, symbol in symbols if kind in "TDBRSGC"]
    assert len(exported) == 1, f"one kernel table expected, found {exported}"
    called = [symbol for kind, symbol in symbols if kind == "U" and not MAY_CALL.fullmatch(symbol)]
    if path.name.startswith("amx."):  # what needs no tiles is another target's
        called = [symbol for symbol in called if "kAvx512VnniKernels" not in symbol]
    assert not called, "kernels call no library function"
    if not any(re.match("__[at]san_init", symbol) for kind, symbol in symbols):
        assert "init_array" not in run("objdump", "-h", path), "no static initializers"


# Others' text with another dot product.
DERIVED = {"avxvnni", "avx512", "neon_dotprod", "neon_i8mm"}


@pytest.mark.slow
@pytest.mark.skipif(not COMPILER or not shutil.which("nm"), reason="needs a compiler and nm")
@pytest.mark.parametrize(
    ("name", "source"),
    [(name, source) for name, source in target_sources() if source.stem not in DERIVED],
    ids=lambda x: getattr(x, "stem", ""),
)
def test_targets_export_one_symbol_and_no_weak_one(name, source, tmp_path):
    """At -O0, where nothing is inlined that need not be; CI looks at its builds' objects, too."""
    flags = [*TARGETS["common"]["gnu"], *TARGETS["kernels"]["gnu"]]
    flags += TARGETS["targets"][name]["flags"]["gnu"]
    x86 = this_arch() == "x86_64"
    defines = [f"-DNIBBLAS_X86={x86:d}", f"-DNIBBLAS_ARM={this_arch() == 'aarch64':d}"]
    output = tmp_path / f"{source.name}.o"
    subprocess.run(
        [*COMPILER.split(), "-std=c++17", "-O0", "-fPIC", "-fvisibility=hidden", *flags, *defines,
         f"-I{CSRC}", "-c", str(source), "-o", str(output)],
        check=True,
    )  # fmt: skip
    check_object(output)


def test_objects_of_a_build():
    for build in BUILDS:
        for name in {name for name, source in target_sources()}:
            objects = sorted(build.glob(f"CMakeFiles/nibblas_{name}.dir/csrc/targets/*.o"))
            assert objects
            for path in objects:
                check_object(path)


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("nm"), reason="needs ELF and nm")
def test_extension_exports_only_its_init_functions():
    """The one Python calls, and the one that it calls in turn (csrc/bindings/module.cpp)."""
    lines = run("nm", "-D", "--defined-only", native.__file__).splitlines()
    symbols = [line.split()[-2:] for line in lines]
    ours = [name for kind, name in symbols if kind in "TDBR" and not name.startswith(("__", "_Z"))]
    assert sorted(ours) == ["PyInit__nibblas", "PyInit_main_interpreter"]
    assert not [name for kind, name in symbols if "nibblas" in name and name != "PyInit__nibblas"]


# --- the Python side


def imported_modules(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found |= {base} | {f"{base}.{alias.name}".replace("..", ".") for alias in node.names}
    return found


def test_package_needs_only_numpy():
    """Optional packages are imported inside the functions that need them, and there are few."""
    optional = {"ml_dtypes", "matplotlib", "threadpoolctl", "onnx", "google"}
    compared_with = {"onnxruntime", "torch", "openvino", "ai_edge_litert", "flatbuffers"}
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        inside = {name.split(".")[0] for name in imported_modules(tree)} - {""}
        for node in ast.walk(tree):  # what is left after this stands at module level
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_type_checking(node):
                node.body = []
        top = {name.split(".")[0] for name in imported_modules(tree)} - {""}
        allowed = sys.stdlib_module_names | {"numpy", "nibblas"}
        assert top <= allowed, f"{path.relative_to(ROOT)} imports {top - allowed}"
        extra = inside - allowed - optional
        if path.parent == PACKAGE / "cli" / "peers":
            extra -= compared_with
        assert not extra, f"{path.relative_to(ROOT)} imports {extra}"


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def test_numerics_is_independent_of_the_native_module():
    """The contract in NumPy would prove nothing if it called what it is held against."""
    paths = [*PACKAGE.glob("numerics.py"), *PACKAGE.glob("numerics/*.py")]
    assert paths
    for path in paths:
        names = imported_modules(ast.parse(path.read_text()))
        assert not [name for name in names if re.search(r"_nibblas|\.(ops|runtime)\b", name)], path


def test_nothing_imports_the_command_line():
    for path in sorted(PACKAGE.rglob("*.py")):
        if "cli" in path.relative_to(PACKAGE).parts or path.name == "__main__.py":
            continue
        names = imported_modules(ast.parse(path.read_text()))
        assert not [name for name in names if re.search(r"(^|\.)cli(\.|$)", name)], path


def in_fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def test_import_is_quiet_and_changes_nothing():
    printed = in_fresh_python(
        "import os, numpy\n"
        "tasks = '/proc/self/task' if os.path.isdir('/proc/self/task') else '/'\n"
        "environment, threads = dict(os.environ), os.listdir(tasks)\n"
        "import nibblas\n"
        "assert dict(os.environ) == environment\n"
        "assert os.listdir(tasks) == threads"
    )
    assert printed == ""


def test_import_loads_nothing_but_numpy():
    printed = in_fresh_python(
        "import sys, numpy; before = set(sys.modules)\n"
        "import nibblas\n"
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    assert set(printed.split()) - sys.stdlib_module_names - {"numpy"} == {"nibblas"}


@pytest.mark.skipif(EMULATED, reason="an emulated CPU's times say nothing")
def test_import_takes_less_than_50_ms():
    """Beyond NumPy's own time. The best of several: what the machine does besides only adds."""
    code = (
        "import numpy, time; start = time.perf_counter()\n"
        "import nibblas\n"
        "print(time.perf_counter() - start)"
    )
    assert min(float(in_fresh_python(code)) for _ in range(7)) < 0.050


def test_registry_agrees_with_the_build():
    known = {name for name, path in target_sources()}
    assert set(nibblas.available_targets()) <= known
    assert "scalar" in nibblas.available_targets()
