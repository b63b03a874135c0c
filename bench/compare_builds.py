# SPDX-License-Identifier: Apache-2.0
"""The two sides of compare.py: finds what a word means and builds it into a folder of its own.

A commit is built once, from what git has of it; commits with the same sources share a build. The
working tree is built anew where it changed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
WORKING_TREE = "."
BUILT_FROM = ("csrc", "python", "cmake", "CMakeLists.txt", "pyproject.toml")
SETTINGS = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS")
"""What CMake takes from the environment, so what else makes one build differ from another."""


class Side(NamedTuple):
    """`site` is the folder to import from; `commit` is empty where there is none."""

    word: str
    commit: str
    site: Path


def git(*arguments: str) -> str:
    """What git prints in this repository."""
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError as error:
        raise ValueError(f"git {' '.join(arguments)}: {error.stderr.strip()}") from None
    return done.stdout.strip()


def is_changed() -> bool:
    """Whether the working tree has something to build that HEAD does not have."""
    return bool(git("status", "--porcelain", "--", *BUILT_FROM))


def default_base() -> str:
    """What the working tree most likely wants to be compared with.

    On another branch than main where it left main; on main HEAD if there are changes to commit, and
    what was before it if there are none.
    """
    if git("rev-parse", "--abbrev-ref", "HEAD") != "main":
        try:
            fork = git("merge-base", "main", "HEAD")
        except ValueError:
            fork = ""
        if fork and fork != git("rev-parse", "HEAD"):
            return fork
    return "HEAD" if is_changed() else "HEAD~"


def find(word: str, cache: Path) -> Side:
    """The side that a revision, the working tree or a folder with a built package means."""
    if (Path(word) / "nibblas" / "__init__.py").is_file():
        return Side(word, "", Path(word).resolve())
    if word == WORKING_TREE and is_changed():
        return Side(word, "", built(ROOT, cache / f"working-tree{suffix()}"))
    commit = git("rev-parse", "--verify", f"{'HEAD' if word == WORKING_TREE else word}^{{commit}}")
    sources = hashlib.sha256(git("ls-tree", commit, "--", *BUILT_FROM).encode())
    folder = cache / f"{sources.hexdigest()[:12]}{suffix()}"
    if not (folder / "site").is_dir():
        extract(commit, folder / "source")
        built(folder / "source", folder)
        for name in ("source", "build"):
            shutil.rmtree(folder / name)
    return Side(word, commit, folder / "site")


def suffix() -> str:
    """Tells apart builds for other Pythons and with other settings."""
    settings = "".join(f"{name}={os.environ[name]} " for name in SETTINGS if name in os.environ)
    digest = f"-{hashlib.sha256(settings.encode()).hexdigest()[:8]}" if settings else ""
    return f"-{sysconfig.get_config_var('SOABI')}{digest}"


def extract(commit: str, source: Path) -> None:
    """The commit's files. No worktree: git would go on keeping a record of it."""
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    archive = source.with_suffix(".zip")
    git("archive", "--output", str(archive), commit)
    with zipfile.ZipFile(archive) as files:
        files.extractall(source)
    archive.unlink()


def built(source: Path, folder: Path) -> Path:
    """Build with CMake as a wheel would be, and install the package into `folder`/site."""
    print(f"compare.py: building {source} ...", file=sys.stderr)
    build, site, fresh = folder / "build", folder / "site", folder / "site.new"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    cmake = shutil.which("cmake", path=path)
    if cmake is None:
        raise ValueError("cmake is not installed; see CONTRIBUTING.md for the environment")
    ninja = ["-G", "Ninja"] if shutil.which("ninja", path=path) else []
    configure = ["-S", str(source), "-B", str(build), *ninja, "-DCMAKE_BUILD_TYPE=Release"]
    shutil.rmtree(fresh, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "build.log"
    with log.open("w") as out:
        for arguments in (
            [*configure, f"-DPython_EXECUTABLE={sys.executable}"],
            ["--build", str(build), "--parallel", str(os.cpu_count())],
            ["--install", str(build), "--prefix", str(fresh)],
        ):
            done = subprocess.run(
                [cmake, *arguments], env={**os.environ, "PATH": path}, stdout=out, stderr=out
            )
            if done.returncode:
                raise ValueError(f"building {source} failed, see {log}")
    shutil.rmtree(site, ignore_errors=True)
    fresh.rename(site)  # only a build that succeeded is ever taken for one
    return site
