"""Write what a run or a comparison has found: tables, Markdown, HTML, plots and whole files."""

from __future__ import annotations

import base64
import html
import io
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch

from lightning_ligo.networks.saving import placed
from lightning_ligo.operator.cost import short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Sequence[Sequence[str]]
"""A table: the first row holds the heads, the first column the names."""

PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }}
tr > :first-child {{ text-align: left; font-weight: normal; color: #555; padding-left: 0; }}
img {{ max-width: 100%; }}
footer {{ color: #666; font-size: .85rem; margin-top: 2rem; }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write atomically: into a temporary file, then rename it."""
    with placed(path) as part:
        write(part)


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files of these names and contents, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        write_whole(folder / name, lambda path, data=data: path.write_bytes(data))  # type: ignore[misc]


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "lightning_ligo": version("lightning-ligo"),
    }


def listed(numbers: Mapping[str, Any]) -> str:
    """
    >>> listed({"torch": "2.9", "lightning": "2.6"})
    'torch 2.9, lightning 2.6'
    """
    return ", ".join(f"{name} {number}" for name, number in numbers.items())


# Tables -------------------------------------------------------------------------------------------


def markdown_table(rows: Rows) -> list[str]:
    """Return the lines of a table in Markdown."""
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]] if rows else []
    return [f"| {' | '.join(cell.strip() for cell in row)} |" for row in rows]


def html_table(rows: Rows) -> str:
    """Return a table in HTML."""

    def line(row: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)

    tags = ["th", *["td"] * len(rows)]
    lines = "\n".join(f"<tr>{line(row, tag)}</tr>" for row, tag in zip(rows, tags, strict=False))
    return f"<table>\n{lines}\n</table>"


def show(title: str, rows: Rows, notes: Sequence[str]) -> None:
    """Print a table, if it has rows, and lines below it."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if rows:
        table = Table(title=title)
        for number, head in enumerate(rows[0]):
            table.add_column(head, justify="right" if number else "left")
        for row in rows[1:]:
            table.add_row(*row)
        console.print(table)
    for note in notes:
        console.print(note, soft_wrap=True, highlight=False, markup=False)


# Pages --------------------------------------------------------------------------------------------


def page(title: str, *parts: str) -> str:
    """Return a self-contained HTML page."""
    return PAGE.format(title=html.escape(title), body="\n".join(parts))


def paragraph(text: str) -> str:
    """Return a paragraph in HTML."""
    return f"<p>{html.escape(text)}</p>"


def code(text: str) -> str:
    """Return preformatted text in HTML."""
    return f"<pre>{html.escape(text)}</pre>"


def heading(text: str) -> str:
    """Return a heading in HTML."""
    return f"<h2>{html.escape(text)}</h2>"


def image(picture: bytes, title: str) -> str:
    """Return a PNG picture that is embedded in HTML."""
    data = base64.b64encode(picture).decode()
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'


# Plots --------------------------------------------------------------------------------------------


def blank(width: float, height: float) -> Figure:
    """Return an empty figure, in inches, that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def log_axis(axis: Any, low: float, high: float, ticks: Sequence[int] = (1, 2, 5)) -> None:
    """Make an axis logarithmic, with ticks at these digits if it spans more than a factor of 5."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=ticks) if high > 5 * low else MaxNLocator(6))
    axis.set_major_formatter(lambda value, _: short(value).strip())
    axis.set_minor_formatter(lambda value, _: "")


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG picture."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    return picture.getvalue()
