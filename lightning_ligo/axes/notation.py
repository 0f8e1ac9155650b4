"""The notation of axes, ``(3 heads head_dim) embed``: read, written, and matched to parameters.

A line names the dimensions of a parameter, in order. A word is an axis, a number a length that
stays. Parentheses hold the factors of a dimension, slowest first, or, with ``+``, its segments in
order. ``blocks.*.attn.qkv.weight`` is a parameter of every layer of a list,
``blocks.{0,2}``, ``blocks.{1..5}`` and ``blocks.{1..}`` of some layers.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Collection, Mapping

from lightning_ligo.axes.dims import Product, Sum, fold, length, uses_of

Term = str | int  # a word, which is an axis, or a number, which is a length that stays


class Unreadable(ValueError):
    """A text that is no notation, and where it is wrong."""

    def __init__(self, what: str, position: int) -> None:
        super().__init__(what)
        self.position = position


# Axes -------------------------------------------------------------------------------------------


def parse(text: str) -> tuple[Product[Term], ...]:
    """Read the dimensions that a text names.

    Raises:
        Unreadable: with the position of the mistake.

    >>> parse("(3 heads head_dim) embed")
    ((3, 'heads', 'head_dim'), ('embed',))
    """
    found = re.finditer(r"[\w.*\[\]]+|[^\s\w]", text)
    tokens = [("", len(text)), *reversed([(token[0], token.start()) for token in found])]
    dims = []
    while len(tokens) > 1:
        dims.append(_parsed(tokens))
    return tuple(dims)


def _parsed(tokens: list[tuple[str, int]]) -> Product[Term]:
    """Read one dimension off the end of the reversed tokens."""
    token, position = tokens.pop()
    if token.isdecimal():
        return (int(token),)
    if re.search(r"[^\W\d]", token):
        return (token,)
    if token != "(":
        wanted = "a name, a number or ( is expected"
        if token in "+)":
            wanted = "+ and ) stand inside parentheses"
        raise Unreadable(f"{token!r} cannot stand here, {wanted}", position)
    segments: list[Product[Term]] = [()]
    while (following := tokens[-1])[0] != ")":
        if not following[0]:
            raise Unreadable("this parenthesis is not closed", position)
        if following[0] == "+" and segments[-1]:
            tokens.pop()
            segments.append(())
        else:
            segments[-1] += _parsed(tokens)
    if not segments[-1]:
        raise Unreadable("a name or a number is missing before this", following[1])
    tokens.pop()
    return segments[0] if len(segments) == 1 else (Sum(tuple(segments)),)


def write(dims: tuple[Product[Term], ...]) -> str:
    """Write the text that names these dimensions.

    >>> write((("embed",), (Sum((("heads", "head_dim"), ("rest",))),)))
    'embed ((heads head_dim) + rest)'
    """
    return " ".join(fold(dim, str, _factors, _segments) for dim in dims)


def _factors(words: list[str]) -> str:
    return "1" if not words else words[0] if len(words) == 1 else f"({' '.join(words)})"


def _segments(products: list[str]) -> str:
    return f"({' + '.join(products)})"


def words(product: Product[Term]) -> list[str]:
    """List the words of a dimension in order, each as often as it occurs."""
    return [node for node in uses_of(product) if isinstance(node, str)]


def measure(product: Product[Term], lengths: Mapping[str, int]) -> int:
    """Compute how long a dimension is, given the lengths of its words."""
    return length(product, lambda node: lengths[node] if isinstance(node, str) else node)


def solve(product: Product[Term], size: int, word: str, lengths: Mapping[str, int]) -> int | None:
    """Find how long ``word`` is in a dimension that is ``size`` long, if a length fits.

    >>> solve((3, "heads", "head_dim"), 1152, "heads", {"head_dim": 64})
    6
    """

    def whole(candidate: int) -> int:
        return measure(product, {**lengths, word: candidate})

    found = bisect.bisect_left(range(size + 1), size, key=whole)
    return found if found and whole(found) == size else None


# Their names ------------------------------------------------------------------------------------


def last_word(name: str) -> str:
    """Return the last word of an axis's name: ``heads`` of ``blocks.*.attn.heads``.

    >>> last_word("blocks.*.attn.heads"), last_word("blocks.*.mlp.hidden.2")
    ('heads', 'hidden.2')
    """
    parts = name.split(".")
    return ".".join(parts[-2 if parts[-1].isdecimal() else -1 :])


def labels(names: Collection[str]) -> dict[str, str]:
    """Shorten every name to as many last words as tell it from all others.

    >>> list(labels(["embed", "stem.embed", "blocks.*.attn.heads"]).values())
    ['embed', 'stem.embed', 'heads']
    """
    return {name: _label(name, names) for name in names}


def _label(name: str, names: Collection[str]) -> str:
    parts = name.split(".")
    for start in range(len(parts) - last_word(name).count(".") - 1, 0, -1):
        ending = "." + ".".join(parts[start:])
        if re.match(r"[^\W\d]", parts[start]) and not any(
            f".{other}".endswith(ending) for other in names if other != name
        ):
            return ending[1:]
    return name


# Parameters -------------------------------------------------------------------------------------


def split(pattern: str) -> tuple[str, ...]:
    """Split a pattern at its dots.

    Raises:
        Unreadable: for braces that hold anything but numbers.

    >>> split("blocks.{0..2}.mlp.fc1.weight")
    ('blocks', '{0..2}', 'mlp', 'fc1', 'weight')
    """
    parts = re.findall(r"(?:\{[^}]*\}?|[^.{])+", pattern)
    for part in parts:
        choice = part[part.index("{") :] if "{" in part else ""
        if choice and not re.fullmatch(r"\{\d+(\.\.\d*)?(,\d+(\.\.\d*)?)*\}[^{}]*", choice):
            raise Unreadable(
                f"{choice} is no choice of layers, as {{0,2}} or {{1..}} are; every layer is *",
                pattern.index(choice),
            )
    return tuple(parts)


def is_hole(part: str) -> bool:
    """Whether a part of a pattern stands for the number of a layer."""
    return "*" in part or "{" in part


def match(parts: tuple[str, ...], name: str) -> tuple[int, ...] | None:
    """Find the numbers in a parameter's name at the holes of a pattern; None if it does not match.

    >>> match(("blocks", "*", "mlp", "fc1", "weight"), "blocks.3.mlp.fc1.weight")
    (3,)
    """
    numbers = []
    given = name.split(".")
    if len(given) != len(parts):
        return None
    for part, actual in zip(parts, given, strict=True):
        if part == actual:
            continue
        if not is_hole(part):
            return None
        before, choices, after = re.split(r"(\*|\{.*\})", part, maxsplit=1)
        number = actual.removeprefix(before).removesuffix(after)
        if f"{before}{number}{after}" != actual or not number.isdecimal():
            return None
        if not _allows(choices, int(number)):
            return None
        numbers.append(int(number))
    return tuple(numbers)


def _allows(choices: str, number: int) -> bool:
    if choices == "*":
        return True
    for choice in choices.strip("{}").split(","):
        first, dots, last = choice.partition("..")
        if number == int(first) or (dots and int(first) <= number <= int(last or number)):
            return True
    return False


def hole(layers: Collection[int], others: Collection[int]) -> str:
    """Write the part of a pattern for these layers of a list and not for the others.

    >>> hole([0, 1, 2], []), hole([1, 2, 3], [0]), hole([1, 2, 3], [0, 4]), hole([0, 2], [1])
    ('*', '{1..}', '{1..3}', '{0,2}')
    """
    first, last = min(layers), max(layers)
    if not others:
        return "*"
    if last - first < len(layers) and max(others) < first:
        return f"{{{first}..}}"
    if last - first < len(layers) and len(layers) > 2:
        return f"{{{first}..{last}}}"
    return f"{{{','.join(map(str, sorted(layers)))}}}"
