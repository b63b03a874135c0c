# SPDX-License-Identifier: Apache-2.0
"""Memory of commands that go through files larger than it."""

from __future__ import annotations

import ctypes
import platform

_M_MMAP_THRESHOLD = -3
_LARGE = 1 << 20


def give_back_large_arrays() -> None:
    """Make freed arrays of a megabyte and more leave the process at once, in this process.

    glibc raises the size from which it does so to that of the largest array freed so far, at most
    32 MB, and keeps what is smaller, in pieces: several times of what is in use.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)
