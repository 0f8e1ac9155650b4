"""What a method is: a way to grow, as data."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace
from typing import Literal

from lightning_ligo.methods.maps import Start
from lightning_ligo.methods.mixes import Mix


@dataclass(frozen=True)
class Width:
    """How axes become longer: ``W_large = B_out W A_inᵀ``."""

    start: Start  # of the map of an axis
    inner: Start  # of the map of an axis that queries and keys are contracted over
    learns: Literal["nothing", "lower", "both", "low-rank"] = "nothing"
    """What of a form is learned: the part ``C`` of ``[start; C]``, the whole, or ``U Vᵀ`` in
    ``start + U Vᵀ``, with U zero at first."""
    rank: int = 0  # of U and V
    ties: Literal["axis", "flow"] = "axis"
    """A producing and a consuming form for every axis, free of one another; or, as the paper, one
    map ``B = A`` for every flow of values."""
    rest: Literal["zero", "built"] = "zero"  # of entries that the maps do not reach
    noise: float = 0.0
    """Relative root mean square of noise on weights that read copies, which cancels between two
    copies of an entry: ``W + N`` and ``W - N``."""
    rescales: bool = True  # make up for what a norm and a softmax see of the new length
    diagonal: bool = False  # copies read copies of their own number only: ``[[W, 0], [0, W]]``
    ahead: bool = False  # new entries of a layer are those of the next layer
    whole: bool = False  # only for lengths that divide

    def __str__(self) -> str:
        words = _words(self.start)
        return f"{words}, rest as built" if self.rest == "built" else words


@dataclass(frozen=True)
class Depth:
    """How stacks become deeper: ``W[g] = Σ_l w[g, l] W_small[l]``."""

    mix: Mix
    new: Literal["works", "silent", "identity", "built"] = "works"
    """What a layer gets whose source a layer before it has, too: all of its source; the same but
    for what it adds to the stream, which is zero; matrices that are the identity, all else zero; or
    what the large network was built with. In modules that are chained, with no stream to add to, a
    silent layer is the identity."""
    learned: bool = False
    always: bool = False  # mix the layers of a stack that does not grow, too
    whole: bool = False  # only for depths that divide

    def __str__(self) -> str:
        words = _words(self.mix)
        return words if self.new == "works" else f"{words}, new layers {self.new}"


@dataclass(frozen=True)
class Method:
    """A way to grow, as data; ``print(method)`` shows its card.

    A method of your own may be without ``width``, and cannot widen, or without ``depth``. One that
    has neither, as ``random``, takes nothing from the small network.
    """

    name: str
    idea: str
    equation: str
    source: str
    keeps_function: bool  # at the start, before anything is learned
    conditions: str  # under which it does, or why it does not
    parts: str  # whether copies become different in training
    settings: str  # hyperparameters, and where they come from
    width: Width | None = None
    depth: Depth | None = None
    steps: int = 0  # of learning the operator
    learning_rate: float = 0.0
    warmup: int = 0
    ramp: int = 0
    """Steps of training after the growth in which new parts are let in, see `Ramp`; the maps must
    leave old entries as they are, ``[I; ...]``."""

    @property
    def takes_nothing(self) -> bool:
        """Whether the large network stays as it was built."""
        return self.width is None and self.depth is None

    @property
    def learns(self) -> bool:
        """Whether there is an operator to learn."""
        width = self.width is not None and self.width.learns != "nothing"
        return width or (self.depth is not None and self.depth.learned)

    def __str__(self) -> str:
        keeps = "yes" if self.keeps_function else "no"
        lines = {
            "width": str(self.width or ""),
            "depth": str(self.depth or ""),
            "equation": self.equation,
            "keeps the function": f"{keeps}: {self.conditions}",
            "copies part": self.parts,
            "settings": self.settings,
            "source": self.source,
        }
        text = [
            textwrap.fill(words, 100, initial_indent=f"  {what:<20}", subsequent_indent=" " * 22)
            for what, words in lines.items()
            if words
        ]
        return "\n".join([f"{self.name}: {self.idea}", *text])


def combined(depth: Method, width: Method) -> Method:
    """The method that deepens as one does and widens as another does.

    It learns what the parts learn, for the larger number of steps, at the lower rate.

    Raises:
        ValueError: if one has no such part.
    """
    name = f"{depth.name}+{width.name}"
    if depth.depth is None or width.width is None:
        lacking, what = (depth, "depth") if depth.depth is None else (width, "width")
        raise ValueError(
            f"method {name!r} has the depth of {depth.name!r} and the width of {width.name!r}, and "
            f"{lacking.name!r} has no {what}"
        )
    if depth.ramp != width.ramp:
        masking = depth.name if depth.ramp else width.name
        raise ValueError(
            f"method {name!r} is of two, and {masking!r} masks all that is new; take it by itself"
        )
    learning = [
        part
        for part, learns in ((depth, depth.depth.learned), (width, width.width.learns != "nothing"))
        if learns
    ]
    return replace(
        width,
        name=name,
        idea=f"depth: {depth.idea}; width: {width.idea}",
        equation=f"depth: {depth.equation}; width: {width.equation}",
        source=f"depth: {depth.source}; width: {width.source}",
        keeps_function=depth.keeps_function and width.keeps_function,
        conditions=f"depth: {depth.conditions}; width: {width.conditions}",
        parts=width.parts,
        settings=f"depth: {depth.settings}; width: {width.settings}",
        depth=depth.depth,
        steps=max((part.steps for part in learning), default=0),
        learning_rate=min((part.learning_rate for part in learning), default=0.0),
        warmup=max((part.warmup for part in learning), default=0),
    )


def _words(function: object) -> str:
    return getattr(function, "__name__", type(function).__name__).replace("_", " ")
