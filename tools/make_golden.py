# SPDX-License-Identifier: Apache-2.0
"""Write golden outputs: a small packed file and, in the same file, the results it must give.

    python tools/make_golden.py tests/golden/NAME [--schemes int4,uint4] [--force]
    python tools/make_golden.py tests/golden/NAME --integers [--force]

The folder NAME gets `golden.safetensors` and `manifest.json`; with --integers, the operands and
results of matmul_integer as `integers.safetensors` and `integers.json`. tests/test_golden.py checks
every such folder: that the file loads, that quantizing gives its planes again, and that each target
gives its outputs, bit for bit. Golden files are never changed: a new scheme gets a folder of its
own, and so does a new version of the format, the layout or the contract (docs/versioning.md),
beside those of the older versions. That is why an existing folder is only overwritten with --force.

Everything here is computed by `nibblas.numerics`, the written contract, on the planes that the
scalar target made; the tests compare both with it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import nibblas
from nibblas import numerics
from nibblas._nibblas import CONTRACT_VERSION
from nibblas.io.packed import FORMAT_VERSION
from nibblas.schemes import LAYOUT_VERSION, SCHEMES, Scheme

FILE, MANIFEST = "golden.safetensors", "manifest.json"
INTEGERS, INTEGERS_MANIFEST = "integers.safetensors", "integers.json"

# Two panels, of which the second is short; a depth with tails of every group and of 64.
COLS, DEPTH, ROWS = 19, 150, 5
GROUPS = (None, 16, 64)
COMPUTES = ("int8", "float32")


class Recipe(NamedTuple):
    """The arguments with which `quantize` makes a weight from the dense matrix."""

    scheme: str
    group_size: int | None
    rule: str
    scale_dtype: str
    offset: str

    @property
    def name(self) -> str:
        group = "channel" if self.group_size is None else f"g{self.group_size}"
        return f"{self.scheme}-{self.offset}-{group}-{self.scale_dtype}-{self.rule}"


def recipes(schemes: list[str]) -> Iterator[Recipe]:
    """Each offset with each group size (4 and 8 bits) or one of them; types and rules by turns."""
    turn = 0
    for name in schemes:
        scheme = SCHEMES[name]
        for offset in scheme.offsets:
            for group in _groups(scheme, turn):
                rule = scheme.rules[turn % len(scheme.rules)]
                scale_dtype = scheme.scale_types[turn % len(scheme.scale_types)]
                yield Recipe(name, group, rule, scale_dtype, offset)
                turn += 1


def _groups(scheme: Scheme, turn: int) -> tuple[int | None, ...]:
    if scheme.fixed_group is not None:
        return (scheme.fixed_group,)
    every = scheme.codebook is None and scheme.bits in (4, 8)
    return GROUPS if every else (GROUPS[turn % len(GROUPS)],)


def inputs() -> dict[str, np.ndarray]:
    """The dense matrix, activations and bias: from integers, so the same with every NumPy."""

    def noise(seed: int, count: int) -> np.ndarray:
        # Sums of four bytes of a hash: near enough to a bell, in steps of 1 / 128.
        digest = hashlib.shake_128(seed.to_bytes(4, "little")).digest(4 * count)
        four = np.frombuffer(digest, np.uint8).reshape(count, 4).astype(np.int64)
        return ((four.sum(axis=1) - 510) / 128).astype(np.float32)

    dense = noise(1, COLS * DEPTH).reshape(COLS, DEPTH)
    dense *= np.float32(2) ** -np.arange(COLS, dtype=np.float32)[:, None]
    dense[3, 5] = 11.0  # an outlier
    dense[4, :80] = 0.0  # groups of zeros
    dense[5] = np.abs(dense[5])
    x = noise(2, ROWS * DEPTH).reshape(ROWS, DEPTH)
    x[1] *= np.float32(1e-3)
    x[2] *= np.float32(2e4)
    x[3, 32:] = 0.0
    x[4, 0], x[4, 20], x[4, 149] = np.float32(1e-40), np.float32(np.inf), np.float32(-0.0)
    ends = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-38, 3e38, -88.7], np.float32)
    return {
        "dense": dense,
        "x": x,
        "bias": noise(3, COLS),
        "z": np.concatenate([ends, 5 * noise(4, 247)]),  # for the activations
    }


def golden(schemes: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of the file, and the part of the manifest that describes the weights."""
    given = inputs()
    tensors: dict[str, Any] = dict(given)
    described: dict[str, Any] = {}
    for number, recipe in enumerate(recipes(schemes)):
        w = nibblas.quantize(given["dense"], **recipe._asdict())
        parts = w._raw_parts()
        # Outputs: with a bias and each activation by turns; one of them in a 16-bit type.
        names = (None, *numerics.ACTIVATIONS)
        activation = names[number % len(names)]
        bias = given["bias"] if number % 2 else None
        for compute in COMPUTES:
            y = numerics.linear(given["x"], parts, bias, compute, activation)
            tensors[f"{recipe.name}/{compute}"] = y
        half = numerics.linear(given["x"], parts, bias, "int8", activation, np.float16)
        tensors[f"{recipe.name}/float16"] = half
        tensors[recipe.name] = w
        described[recipe.name] = {
            "quantize": recipe._asdict(),
            "activation": activation,
            "bias": bias is not None,
            "dequantized_sha256": digest(numerics.dequantize(parts)),
        }
    for group in GROUPS:
        codes, scales = numerics.quantize_activations(given["x"], group)
        key = "channel" if group is None else f"g{group}"
        tensors[f"activation-codes/{key}"], tensors[f"activation-scales/{key}"] = codes, scales
    for name, function in numerics.ACTIVATIONS.items():
        tensors[f"activation/{name}"] = numerics.canonical_nan(function(given["z"]))
    return tensors, described


def integers() -> tuple[dict[str, Any], dict[str, Any]]:
    """Operands and results of matmul_integer: plain matrices and each scheme that has integers."""

    def random(seed: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        count = int(np.prod(shape))
        data = hashlib.shake_128(b"integers" + bytes([seed])).digest(count)
        return np.frombuffer(data, dtype).reshape(shape).copy()

    depth = 70  # shorter, to keep the file small
    tensors: dict[str, Any] = {
        "a_zero/int8": random(1, (ROWS,), np.int8),
        "a_zero/uint8": random(2, (ROWS,), np.uint8),
        "b_zero/int8": random(3, (COLS,), np.int8),
        "b_zero/uint8": random(4, (COLS,), np.uint8),
    }
    for seed, dtype in enumerate((np.int8, np.uint8)):
        ends = np.iinfo(dtype)
        a = random(5 + 2 * seed, (ROWS, depth), dtype)
        b = random(6 + 2 * seed, (depth, COLS), dtype)
        a[1], a[2] = ends.max, ends.min  # the ends of the range, where a sum would saturate
        b[:, 1], b[:, 2] = ends.max, ends.min
        tensors |= {f"a/{ends.dtype}": a, f"b/{ends.dtype}": b}

    names = ("int8", "uint8")
    for a_name in names:
        for b_name in names:
            a, b = tensors[f"a/{a_name}"], tensors[f"b/{b_name}"]
            za, zb = tensors[f"a_zero/{a_name}"], tensors[f"b_zero/{b_name}"]
            tensors[f"c/{a_name}/{b_name}"] = exact(a, b)
            tensors[f"c/{a_name}/{b_name}/zeros"] = exact(a, b, za, zb)
    described: dict[str, Any] = {}
    for turn, scheme in enumerate(SCHEMES.values()):
        if scheme.codebook is not None or scheme.two_level:
            continue
        span = scheme.code_max - scheme.code_min + 1
        codes = random(20 + turn, (COLS, depth), np.uint8).astype(np.int64) % span
        codes = (codes + scheme.code_min).astype(scheme.code_dtype)
        codes[1], codes[2] = scheme.code_max, scheme.code_min
        group = (scheme.fixed_group, GROUPS[turn % len(GROUPS)])[scheme.fixed_group is None]
        w = nibblas.quantize(np.ones(codes.shape, np.float32), scheme.name, group)
        parts = {**w.unpack(), "codes": codes}
        tensors[scheme.name] = nibblas.pack(**parts)
        described[scheme.name] = {"group_size": group}
        for a_name in names:
            a, za = tensors[f"a/{a_name}"], tensors[f"a_zero/{a_name}"]
            tensors[f"packed/{a_name}/{scheme.name}"] = exact(a, codes.T)
            tensors[f"packed/{a_name}/{scheme.name}/zeros"] = exact(a, codes.T, za)
    return tensors, described


def exact(
    a: np.ndarray, b: np.ndarray, a_zero: np.ndarray | None = None, b_zero: np.ndarray | None = None
) -> np.ndarray:
    """(a - a_zero) (b - b_zero) in int64, then its low 32 bits."""
    left, right = a.astype(np.int64), b.astype(np.int64)
    if a_zero is not None:
        left = left - a_zero.astype(np.int64)[:, None]
    if b_zero is not None:
        right = right - b_zero.astype(np.int64)
    return (left @ right).astype(np.uint32).view(np.int32)


def digest(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--schemes", default=",".join(SCHEMES), help="names, with commas between")
    parser.add_argument("--integers", action="store_true", help="of matmul_integer instead")
    parser.add_argument("--force", action="store_true", help="overwrite an existing folder")
    options = parser.parse_args(arguments)
    names = (INTEGERS, INTEGERS_MANIFEST) if options.integers else (FILE, MANIFEST)
    if not options.force and any((options.folder / name).exists() for name in names):
        print(
            f"{options.folder} has golden files already. They hold results that must not change; "
            "make a new folder, or give --force if you know why these were wrong",
            file=sys.stderr,
        )
        return 1
    with nibblas.use_target("scalar"):
        tensors, described = integers() if options.integers else golden(options.schemes.split(","))
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / names[0]
    nibblas.save(path, tensors)
    manifest = {
        "format_version": FORMAT_VERSION,
        "layout_version": LAYOUT_VERSION,
        "contract_version": CONTRACT_VERSION,
        "file": names[0],
        "file_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        **({} if options.integers else {"groups": GROUPS}),
        "tensors": list(tensors),
        "weights": described,
    }
    text = json.dumps(manifest, indent=1) + "\n"
    (options.folder / names[1]).write_text(text, encoding="utf-8", newline="\n")
    print(f"{path}: {path.stat().st_size:,} bytes, {len(described)} weights")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
