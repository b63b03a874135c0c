# SPDX-License-Identifier: Apache-2.0
"""bench/peers: the page of figures, and holding libraries to AVX2."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nibblas
from nibblas.cli import _measure, main

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench" / "peers"))
    for name in ("report", "hold_avx2"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_the_page_is_written_from_results(capsys, tmp_path, tools, monkeypatch):
    pytest.importorskip("matplotlib")
    import report

    docs, results = tmp_path / "docs", tmp_path / "results"
    docs.mkdir()
    page = docs / "performance.md"
    page.write_text(f"Before.\n\n{report.BEGIN}\nstale\n{report.END}\n\nAfter.\n")
    monkeypatch.setattr(report, "SHOWN", [48, 256])
    monkeypatch.setattr(_measure, "COLD_BYTES", 100_000)
    column = nibblas.target()
    for folder, options in ((results / column, []), (results / column / "arrays", ["--arrays"])):
        folder.mkdir(parents=True)
        for shape in ("48x256", "16x512"):
            for kind in ("integers", "int8"):
                arguments = ["numpy", "--shapes", shape, "--rows", "1", "--schemes", kind, *options]
                assert main(["bench", "--json", "--seconds", "0.001", "--peers", *arguments]) == 0
                result = folder / f"{shape}-{kind}.json"
                result.write_text(capsys.readouterr().out)
    command = [str(results), "--columns", f"{column},other", "--render", "--docs", str(docs)]
    report.main(command)
    written = page.read_text()
    assert written.startswith(f"Before.\n\n{report.BEGIN}")
    assert written.endswith(f"{report.END}\n\nAfter.\n")
    assert "stale" not in written
    for words in (
        f"### {column}",
        "| 1 cold |",
        "16x512",
        "#### ",
        "| NumPy float32 |",
        "x as a NumPy array",
    ):
        assert words in re.sub(" +", " ", written)
    for name in ("speed", "roofline"):
        drawn = docs / f"performance-{column}-{name}.svg"
        first = drawn.read_bytes()
        report.main(command)
        assert drawn.read_bytes() == first
    assert page.read_text() == written
    page.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the marks"):
        report.main(command)


needs_objdump = pytest.mark.skipif(shutil.which("objdump") is None, reason="needs binutils")


@needs_objdump
def test_cpuid_is_told_from_bytes_within_instructions(tools):
    import hold_avx2

    filler = bytes.fromhex("488b7c2408 89d8 4883c410 0f1f4000 b807000000 31c9")  # 20 bytes
    ahead = filler * 12

    def starts(code):
        return [code[-before:] for before in hold_avx2.BEFORE]

    real = hold_avx2.confirmed([starts(ahead), starts(ahead + b"\x90")])
    assert min(real) > 0.9
    # mov $0x..a20f.., %eax and call +0x..a20f: what follows belongs to an instruction.
    false = hold_avx2.confirmed([starts(ahead + b"\xb8"), starts(ahead + b"\xe8\x10")])
    assert max(false) < 0.2


@needs_objdump
@pytest.mark.slow
def test_libraries_are_held_to_avx2(tools):
    if "avx512vnni" not in nibblas.available_targets() or shutil.which("gcc") is None:
        pytest.skip("needs gcc and a CPU with more than AVX2")
    script = ROOT / "bench" / "peers" / "hold_avx2.py"
    code = "import nibblas; print(*nibblas.available_targets())"
    environment = {k: v for k, v in os.environ.items() if k != "NIBBLAS_TARGET"}
    done = subprocess.run(
        [sys.executable, script, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert (done.returncode, done.stdout) == (0, "avx2 scalar\n"), done.stderr
