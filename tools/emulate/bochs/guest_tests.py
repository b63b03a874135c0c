# SPDX-License-Identifier: Apache-2.0
"""guest_tests.py MODEL [PYTEST_ARGUMENT...]: the tests, in the emulated machine."""

from __future__ import annotations

import sys

import pytest

import nibblas

# What each CPU has the instructions for, of the targets that nibblas ever had.
CPUS = {
    "corei7_haswell_4770": ("scalar", "avx2"),
    "corei7_skylake_x": ("scalar", "avx2", "avx512"),
    "corei7_icelake_u": ("scalar", "avx2", "avx512", "avx512vnni"),
    "sapphire_rapids": ("scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "amx"),
    "arrow_lake": ("scalar", "avx2", "avxvnni"),
}


def main(model: str, *pytest_arguments: str) -> int:
    info, targets = nibblas.cpu_info(), nibblas.available_targets()
    print(f"{info['brand']}: targets {', '.join(targets)}; {nibblas.target()} is active")
    if model in CPUS:
        compiled = {target["name"] for target in info["targets"]}
        expected = compiled & set(CPUS[model])
        if set(targets) != expected:
            print(f"expected the targets {', '.join(sorted(expected))}")
            return 1
    return int(pytest.main(["-p", "no:cacheprovider", *pytest_arguments]))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
