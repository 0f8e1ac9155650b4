"""What the commands of this package share: their parser, their errors and their output."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """Parses the words of one command of `lightning-ligo`."""

    def __init__(self, command: str, **options: Any) -> None:
        super().__init__(
            prog=f"lightning-ligo {command}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )

    def add_config(self, what: str, required: bool = False) -> None:
        """Add `--config FILE`, which may be given several times."""
        self.add_argument("--config", metavar="FILE", action="append", required=required, help=what)

    @contextmanager
    def refusing(self, kinds: tuple[type[Exception], ...] = (ValueError,)) -> Iterator[None]:
        """Print an error of these kinds as one line, and exit with status 1."""
        try:
            yield
        except kinds as error:
            sys.exit(f"{self.prog}: {error}")


def fit_words(configs: Sequence[str], rest: Sequence[str]) -> list[str]:
    """Return the words of `lightning-ligo fit` with these configurations and other options."""
    return ["fit", *(word for config in configs for word in ("--config", config)), *rest]


def show(text: str) -> None:
    """Print text; that the reader of a pipe, such as `head`, leaves early is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the interpreter flushes once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
