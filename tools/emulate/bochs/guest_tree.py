# SPDX-License-Identifier: Apache-2.0
"""guest_tree.py FOLDER: what the tests need to run where nothing else is, copied into FOLDER.

The interpreter that runs this file keeps its paths there; the packages that it finds, nibblas among
them, go to /site, and this repository's tests to /nibblas. Shared libraries keep their paths, too.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
NEEDED = ("numpy", "pytest", "hypothesis", "ml_dtypes")
USEFUL = ("safetensors",)  # tests that need it are skipped, or can be left out, without it

# Of the standard library and of packages; nothing here is imported by a test of nibblas.
LEFT_OUT = shutil.ignore_patterns(
    *("site-packages", "dist-packages", "ensurepip", "lib2to3", "config-*"),
    *("idlelib", "tkinter", "_tkinter*", "turtledemo", "test", "tests"),
    *("*.opt-?.pyc", "*.a"),
)


def closure(names: list[str]) -> dict[str, importlib.metadata.Distribution]:
    """The installed distributions of these names and, without extras, of all they require."""
    from packaging.requirements import Requirement

    found: dict[str, importlib.metadata.Distribution] = {}
    while names:
        name = names.pop()
        if name in found:
            continue
        found[name] = distribution = importlib.metadata.distribution(name)
        for line in distribution.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                names.append(requirement.name)
    return found


def copy_package(distribution: importlib.metadata.Distribution, site: Path) -> None:
    """The files of an installed distribution, but not its scripts and its own tests."""
    for file in distribution.files or ():
        if ".." in file.parts or "tests" in file.parts:
            continue
        source = Path(str(distribution.locate_file(file)))
        if source.exists():
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, site / file)


def libraries(files: list[Path]) -> set[Path]:
    """The shared libraries that the dynamic linker would load for these files."""
    report = subprocess.run(["ldd", *map(str, files)], capture_output=True, text=True).stdout
    return {Path(path) for path in re.findall(r"^\t(?:\S+ => )?(/\S+) \(", report, re.MULTILINE)}


def main() -> None:
    root = Path(sys.argv[1])
    site = root / "site"

    def inside(path: Path) -> Path:
        return root / path.relative_to("/")

    interpreter = Path(os.path.realpath(sys.executable))
    library = Path(os.__file__).parent
    inside(interpreter).parent.mkdir(parents=True)
    shutil.copy2(interpreter, inside(interpreter))
    shutil.copytree(library, inside(library), ignore=LEFT_OUT, symlinks=True, dirs_exist_ok=True)

    useful = [name for name in USEFUL if importlib.util.find_spec(name) is not None]
    for distribution in closure([*NEEDED, *useful]).values():
        copy_package(distribution, site)
    spec = importlib.util.find_spec("nibblas")
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"{sys.executable} does not find nibblas: install it, or set PYTHONPATH")
    package = Path(spec.submodule_search_locations[0])
    for folder in (package, package.with_name("nibblas.libs")):  # the second as auditwheel makes it
        if folder.exists():
            shutil.copytree(folder, site / folder.name, ignore=LEFT_OUT)
    shutil.copytree(REPOSITORY / "tests", root / "nibblas/tests", ignore=LEFT_OUT)
    for file in ("pyproject.toml", "tools/make_golden.py", "tools/emulate/bochs/guest_tests.py"):
        (root / "nibblas" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / file, root / "nibblas" / file)

    binaries = [interpreter, *library.glob("lib-dynload/*.so"), *site.rglob("*.so*")]
    for path in libraries(binaries):
        if not path.is_relative_to(root):
            inside(path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, inside(path))
    print(interpreter)


if __name__ == "__main__":
    main()
