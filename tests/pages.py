"""The Markdown pages of the project, taken apart."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in sorted(
        [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").glob("*.md")]
    )
}
KINDS = ("python", "yaml", "console", "text", "{toctree}", "{eval-rst}", "{include}")
"""Of blocks: the first three are run, `text` is for output and drawings, others are of Sphinx."""


@dataclass(frozen=True)
class Block:
    kind: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The lines that start with `$`, each with the lines that it goes on in."""
        text = self.text.replace("\\\n", "\\")
        lines = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
        return [re.sub(r"\\ *", lambda found: found[0][1:], line) for line in lines]

    @property
    def output(self) -> list[str]:
        return [line for line in self.text.splitlines() if not line.startswith("$ ")]


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, and its indented ones, which are commands."""
    found = []
    rest = PAGES[page].splitlines()
    while rest:
        line = rest.pop(0)
        if line.startswith("```"):
            end = rest.index("```")
            found.append(Block(line[3:].split(" ")[0], "\n".join(rest[:end]) + "\n"))
            rest = rest[end + 1 :]
        elif line.startswith("    "):
            found.append(Block("console", f"$ {line.strip()}\n"))
    return found


def kinds(page: str, kind: str) -> list[Block]:
    return [block for block in blocks(page) if block.kind == kind]


def prose(page: str) -> str:
    """A page without its blocks."""
    return re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)


def anchors(page: str) -> set[str]:
    """What can be linked to within a page: its headings, as GitHub and MyST spell them."""
    heads = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
