"""The command `lightning-ligo methods`: the ways to grow, as a table or as the card of one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from lightning_ligo.methods.catalog import DEFAULT, METHODS, method_named
from lightning_ligo.methods.method import Method

DESCRIPTION = f"""\
List the methods: how each makes axes longer and stacks deeper, what of that is learned, whether
the large network computes what the small one does, and where it is from. A name shows the whole
card of a method: lightning-ligo methods lemon. Two with a plus between are a method too, the first
for depth and the second for width: the default is {DEFAULT}, see lightning-ligo methods {DEFAULT}.
"""

LEARNED = {
    "nothing": "",
    "lower": "new rows of every map",
    "both": "both forms of every map",
    "low-rank": "a low-rank part of every map",
}


def methods(words: Sequence[str]) -> None:
    """Run the command with what stands behind `lightning-ligo methods`."""
    parser = argparse.ArgumentParser(
        prog="lightning-ligo methods",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", metavar="METHOD", help="show the card of this one")
    options = parser.parse_args(words)
    if options.name is None:
        Console().print(methods_table())
        return
    try:
        print(method_named(options.name))
    except ValueError as error:
        sys.exit(f"lightning-ligo methods: {error}")


def methods_table() -> Table:
    """The methods by name."""
    table = Table(title="Methods")
    for column in ("method", "width", "depth", "learned", "keeps the function", "source"):
        table.add_column(column, overflow="fold")
    for method in METHODS.values():
        keeps = "yes" if method.keeps_function else "no"
        table.add_row(method.name, str(method.width or ""), str(method.depth or ""),
                      _learned(method), keeps, method.source)  # fmt: skip
    return table


def _learned(method: Method) -> str:
    """
    >>> _learned(METHODS["ligo"]), _learned(METHODS["lemon"])
    ('both forms of every map, depth mix', '')
    """
    of_width = LEARNED[method.width.learns] if method.width is not None else ""
    of_depth = "depth mix" if method.depth is not None and method.depth.learned else ""
    return ", ".join(filter(None, (of_width, of_depth)))
