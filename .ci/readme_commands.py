# SPDX-License-Identifier: Apache-2.0
"""The set-up commands of the README: the first two lines of its bash blocks, as they stand there.

`python .ci/readme_commands.py README.md 1` prints the first one, which CI runs as it is; the tests
import `readme_commands`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def readme_commands(text: str) -> list[str]:
    """The lines of all bash blocks, in order, without blank lines and comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.M | re.S)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


if __name__ == "__main__":
    path, number = sys.argv[1:]
    print(readme_commands(Path(path).read_text(encoding="utf-8"))[int(number) - 1])
