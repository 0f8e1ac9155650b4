"""Configuration of the documentation: `sphinx-build -W docs docs/_build`."""

import os

from sphinx.application import Sphinx

import lightning_ligo
from lightning_ligo.methods.catalog import DEFAULT, METHODS
from lightning_ligo.methods.method import Method

project = "lightning_ligo"
author = copyright = "lightning_ligo contributors"
release = lightning_ligo.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"lightning_ligo {release}"
default_role = "code"  # in docstrings, `name` is code

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # types stay in the source; signatures stay readable

nitpicky = True
nitpick_ignore = [("py:exc", "Uncounted")]  # named by its docstring, and not public
nitpick_ignore_regex = [(r"py:.*", r"(torch|lightning)\..*")]  # of other projects

if os.environ.get("DOCS_INTERSPHINX"):  # needs internet, so it is off by default
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "lightning": ("https://lightning.ai/docs/pytorch/stable", None),
    }

LEARNED = {
    "nothing": "",
    "lower": "new rows of every map",
    "both": "both forms of every map",
    "low-rank": "a low-rank part of every map",
    "low_rank": "a low-rank part of every map",
}


def learned(method: Method) -> str:
    """Name the parts of a method that are learned."""
    width = LEARNED[method.width.learns] if method.width else ""
    depth = "depth mix" if method.depth and method.depth.learned else ""
    return ", ".join(filter(None, (width, depth)))


def table() -> str:
    """List the methods, one a row."""
    rows = ["| method | width | depth | learned | keeps the function |", "|---|---|---|---|---|"]
    for name, method in METHODS.items():
        keeps = "yes" if method.keeps_function else "no"
        cells = (f"[`{name}`](#{name})", str(method.width or "as built"),
                 str(method.depth or "as built"), learned(method), keeps)  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def cards() -> str:
    """Show the card of every method under a heading of its own."""
    return "\n\n".join(f"### {name}\n\n```text\n{method}\n```" for name, method in METHODS.items())


def fill_in(app: Sphinx, name: str, source: list[str]) -> None:
    """Put the catalogue into the page of the methods."""
    if name == "methods":
        parts = {"table": table(), "cards": cards(), "default": f"`{DEFAULT}`"}
        for part, text in parts.items():
            assert f"<!-- {part} -->" in source[0], f"methods.md has no place for the {part}"
            source[0] = source[0].replace(f"<!-- {part} -->", text)


def keep_colons(app: Sphinx, what: str, *args: object) -> None:
    """Join `words: more words`, whose first part napoleon takes for the type of an attribute."""
    start, lines = ":type: ", args[-1]
    assert isinstance(lines, list)
    for number, line in enumerate(lines):
        if what in ("attribute", "property") and line.startswith(start):
            del lines[number]
            lines[0] = f"{line.removeprefix(start)}: {lines[0]}"


def setup(app: Sphinx) -> None:
    app.connect("source-read", fill_in)
    app.connect("autodoc-process-docstring", keep_colons, priority=600)  # after napoleon
