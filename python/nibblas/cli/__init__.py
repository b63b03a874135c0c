# SPDX-License-Identifier: Apache-2.0
"""The command ``nibblas``: info, bench, quantize, convert and inspect."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "info": "this CPU, the targets it runs, threads, versions",
    "bench": "speed and accuracy against NumPy float32 on this machine",
    "quantize": "quantize the matrices of a checkpoint",
    "convert": "turn a checkpoint's low-bit weights into packed weights, exactly",
    "inspect": "list the tensors and packed weights of a checkpoint",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 for an error, 2 for a wrong command line.

    An error is one line on standard error.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 2
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`head`, a pager) has gone. What is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("nibblas: interrupted", file=sys.stderr)
        return 130
    except (ArithmeticError, ImportError, MemoryError, OSError, TypeError, ValueError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"nibblas {arguments.command}: error: {message}", file=sys.stderr)
        return 1
    return code


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="nibblas",
        description="Exact, fast int8 and int4 matrix kernels for the CPU, on NumPy arrays.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        module = import_module(f"nibblas.cli.{name}")
        command = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        import nibblas

        print(f"nibblas {nibblas.__version__}")
        parser.exit()
