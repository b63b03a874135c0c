# SPDX-License-Identifier: Apache-2.0
"""Files: packed weights in the safetensors format."""

from nibblas.io.packed import load, save

__all__ = ["load", "save"]
