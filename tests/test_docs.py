# SPDX-License-Identifier: Apache-2.0
"""The documents: their examples run, their links lead somewhere, the README's commands are two."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

import nibblas

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
    *sorted((ROOT / "bench").rglob("*.md")),
]
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
numpy_2 = pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="examples show scalars as NumPy 2 does"
)


def test_the_documents_are_there():
    names = {str(path.relative_to(ROOT)) for path in PAGES}
    assert names >= {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/api.md"}


def code_blocks(path: Path, language: str) -> list[tuple[int, str]]:
    """(line number, text) of each fenced block of that language."""
    text = path.read_text(encoding="utf-8")
    blocks = re.finditer(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)
    return [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in blocks]


def run_doctest(test: doctest.DocTest) -> None:
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    runner.run(test, out=report.append, clear_globs=False)
    assert not runner.failures, "\n" + "".join(report)


@numpy_2
@page
def test_examples_of_the_documents(path, tmp_path, monkeypatch):
    """Every ```python block runs, those of a page in one namespace; `>>>` results are compared."""
    monkeypatch.chdir(tmp_path)
    names = {"np": np, "nibblas": nibblas, "__name__": "__main__"}
    for line, text in code_blocks(path, "python"):
        if ">>>" in text:
            parser = doctest.DocTestParser()
            test = parser.get_doctest(text, names, path.name, str(path), line - 1)
            test.globs = names
            run_doctest(test)
        else:
            exec(compile("\n" * (line - 1) + text, str(path), "exec"), names)


def modules() -> list[str]:
    found = pkgutil.walk_packages(nibblas.__path__, "nibblas.")
    return ["nibblas", *sorted(m.name for m in found if not m.name.endswith("__main__"))]


def example_arrays() -> dict[str, object]:
    """The names that examples in docstrings use without making them."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 128), np.float32)
    return {
        "np": np,
        "nibblas": nibblas,
        "weight": weight,
        "w": nibblas.quantize(weight, "int4"),
        "x": rng.standard_normal((8, 128), np.float32),
        "bias": rng.standard_normal(64, np.float32),
    }


@numpy_2
@pytest.mark.parametrize("module", modules())
def test_examples_of_the_docstrings(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finder = doctest.DocTestFinder(exclude_empty=True)
    loaded = importlib.import_module(module)
    for test in finder.find(loaded, extraglobs=example_arrays()):
        if test.examples:
            run_doctest(test)


def test_api_page_names_everything_public():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    headings = " ".join(re.findall(r"^#+ (.*)$", text, flags=re.M))
    missing = [name for name in nibblas.__all__ if not re.search(rf"\b{name}\b", headings)]
    assert not missing, "docs/api.md has no heading for these"
    public = [name for name in vars(nibblas.PackedWeight) if not name.startswith("_")]
    missing = [name for name in public if f"`{name}" not in text and f".{name}" not in text]
    assert not missing, "docs/api.md does not mention these members of PackedWeight"


def test_readme_sets_up_with_two_commands():
    readme_commands = runpy.run_path(str(ROOT / ".ci" / "readme_commands.py"))["readme_commands"]
    first, second = readme_commands((ROOT / "README.md").read_text(encoding="utf-8"))[:2]
    assert first.startswith("python3 -m venv .venv && ")
    assert "nibblas bench" in first
    assert "pytest" in second
    assert not first.endswith("\\")
    assert not second.endswith("\\")


def slug(heading: str) -> str:
    """The anchor that a Markdown host makes of a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, flags=re.M)}


@page
def test_links_lead_somewhere(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://[\w.-]+\.\w+(/|$)", link):
            continue
        name, _, anchor = link.partition("#")
        linked = (path.parent / name).resolve() if name else path
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            broken.append(link)
    assert not broken
