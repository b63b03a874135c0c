# SPDX-License-Identifier: Apache-2.0
"""Files mapped into memory."""

from __future__ import annotations

import errno
import mmap
from typing import BinaryIO


def map_file(file: BinaryIO, size: int) -> mmap.mmap:
    """The first `size` bytes of an open file, to read; MemoryError if there is no room for them."""
    try:
        return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        raise MemoryError(f"no room in memory to map the {size} bytes of {file.name}") from None


def release_pages(mapped: mmap.mmap) -> None:
    """Give up the pages of a read-only mapping, which count as the process's memory."""
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
