# SPDX-License-Identifier: Apache-2.0
"""``python -m nibblas``: the same as the command ``nibblas``."""

import sys

from nibblas.cli import main

if __name__ == "__main__":
    sys.exit(main())
