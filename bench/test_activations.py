# SPDX-License-Identifier: Apache-2.0
"""quantize_activations: rows to 8 bits. GB/s are of the input."""

from __future__ import annotations

import pytest

import nibblas

GROUPS = {"row": None, "g32": 32, "g128": 128}


@pytest.mark.parametrize("group", GROUPS)
def test_quantize_activations(measure, data, depth, rows, group, threads):
    group_size = GROUPS[group]
    x = data.activations(rows, depth)
    measure(
        lambda: nibblas.quantize_activations(x, group_size, num_threads=threads),
        f"quantize_activations {rows}x{depth}",
        nbytes=x.nbytes,
        moved=x.nbytes + rows * depth + 4 * rows * (depth // group_size if group_size else 1),
        fresh=True,
        rows=rows,
        shape=f"{rows}x{depth}",
        group_size=group_size,
    )
