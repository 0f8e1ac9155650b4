"""The command `lightning-ligo methods`: the ways to grow, as a table or as the card of one."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import zip_longest

from lightning_ligo.cli.parser import CommandParser, show
from lightning_ligo.methods.catalog import DEFAULT, METHODS, method_named
from lightning_ligo.methods.method import Method

DESCRIPTION = f"""\
List the methods: how each widens and deepens, what of that is learned, whether the large network
starts as the same function as the small one, and the source. A name prints the whole card:

  lightning-ligo methods lemon

DEPTH+WIDTH combines two methods. The default is {DEFAULT}.
"""

WIDTHS = (18, 11, 13, 10, 5, 13)
"""Columns of text; 80 with two spaces between them."""

LEARNED = {
    "nothing": "",
    "lower": "new rows of every map",
    "both": "both forms of every map",
    "low-rank": "a low-rank part of every map",
}


def methods(words: Sequence[str]) -> None:
    """Run `lightning-ligo methods` with these arguments."""
    parser = CommandParser("methods", description=DESCRIPTION)
    parser.add_argument("name", nargs="?", metavar="METHOD", help="print the card of this method")
    name = parser.parse_args(words).name
    with parser.refusing():
        show(methods_table() if name is None else str(method_named(name)))


def methods_table() -> str:
    """Return a table of the methods, 80 columns wide."""
    rows = [["method", "width", "depth", "learned", "exact", "source"], ["-" * w for w in WIDTHS]]
    for method in METHODS.values():
        keeps, source = "yes" if method.keeps_function else "no", method.source.partition(",")[0]
        rows.append([method.name, str(method.width or ""), str(method.depth or ""),
                     _learned(method), keeps, source])  # fmt: skip
    lines = []
    for row in rows:
        cells = (
            textwrap.wrap(cell, width, break_on_hyphens=False)
            for cell, width in zip(row, WIDTHS, strict=True)
        )
        for words in zip_longest(*cells, fillvalue=""):
            columns = (word.ljust(width) for word, width in zip(words, WIDTHS, strict=True))
            lines.append("  ".join(columns).rstrip())
    return "\n".join([*lines, "", "exact: the large network starts as the same function"])


def _learned(method: Method) -> str:
    """
    >>> _learned(METHODS["ligo"]), _learned(METHODS["lemon"])
    ('both forms of every map, depth mix', '')
    """
    of_width = LEARNED[method.width.learns] if method.width is not None else ""
    of_depth = "depth mix" if method.depth is not None and method.depth.learned else ""
    return ", ".join(filter(None, (of_width, of_depth)))
