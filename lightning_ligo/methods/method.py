"""A method: a way to grow, as data."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from lightning_ligo.methods.maps import Start
from lightning_ligo.methods.mixes import Mix

New = Literal["copied", "zero_output", "identity", "fresh"]


@dataclass(frozen=True)
class Width:
    """How axes become longer: ``W_large = B_out W A_inᵀ``.

    Args:
        start: starts the map of an axis.
        inner: starts the map of an axis that queries and keys are contracted over.
        learns: the part of a form that is learned: "lower" is ``C`` in ``[start; C]``, "both" the
            whole form, "low-rank" ``U Vᵀ`` in ``start + U Vᵀ``, with U zero at first.
        rank: of U and V.
        ties: "axis" gives every axis a producing and a consuming form, free of one another. "flow"
            gives every flow of values one map ``B = A``, as the paper does.
        rest: new entries are "zero", where no map reaches them, or "fresh", as the large network
            was built. "one-sided" ones are fresh where the function is kept: in what writes a
            hidden axis, and what reads it is zero; in what reads a stream under a norm, and what
            writes it is as the map says.
        noise: relative root mean square of noise on weights that read copies. It cancels between
            two copies of an entry: ``W + N`` and ``W - N``.
        rescales: correct for the new length in norms and softmaxes.
        diagonal: copies read copies of their own number only: ``[[W, 0], [0, W]]``.
        from_next_layer: new entries of a layer are those of the next layer.
        whole: only lengths that are whole multiples.
    """

    start: Start
    inner: Start
    learns: Literal["nothing", "lower", "both", "low-rank"] = "nothing"
    rank: int = 0
    ties: Literal["axis", "flow"] = "axis"
    rest: Literal["zero", "fresh", "one-sided"] = "zero"
    noise: float = 0.0
    rescales: bool = True
    diagonal: bool = False
    from_next_layer: bool = False
    whole: bool = False

    def __str__(self) -> str:
        words = _words(self.start)
        return words if self.rest == "zero" else f"{words}, rest {self.rest}"


@dataclass(frozen=True)
class Depth:
    """How stacks become deeper: ``W[g] = Σ_l w[g, l] W_small[l]``.

    A layer is new if it has no source, or if a layer before it has the same source. It gets:

    =============  ===============================================  ==============================
    ``new``        a new layer                                      for example in
    =============  ===============================================  ==============================
    "copied"       is its source                                    stack, interpolate, msg
    "zero_output"  is its source, and adds zero to the residual     lemon, ligo, llama-pro
                   stream
    "identity"     has matrices that are the identity, else zeros   staged
    "fresh"        is as the large network was built                copy
    =============  ===============================================  ==============================

    In a sequential stack, which has no residual stream, "zero_output" is "identity" if its layers
    are mostly matrices, and "copied" if not. A recurrent layer is copied in place of both.

    Args:
        mix: starts the mix ``w`` of one module of a stack.
        new: the kind of a new layer, see the table.
        learned: the mix is learned.
        always: mix the layers of a stack that does not grow, too.
        whole: only depths that are whole multiples.
    """

    mix: Mix
    new: New = "copied"
    learned: bool = False
    always: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if self.new not in get_args(New):
            known = ", ".join(map(repr, get_args(New)))
            raise ValueError(f"got Depth(new={self.new!r}), expected one of {known}")

    def __str__(self) -> str:
        words = _words(self.mix)
        return words if self.new == "copied" else f"{words}, new layers {_words(self.new)}"


@dataclass(frozen=True)
class Method:
    """A way to grow, as data; ``print(method)`` shows its card.

    A method of your own may leave out ``width`` and cannot widen then, or leave out ``depth``. One
    without both, such as ``random``, takes nothing from the small network.

    Args:
        name: the name to choose it by.
        idea: a few words.
        equation: the weights of the large network.
        source: the publication.
        keeps_function: the large network computes what the small one does, before it is trained.
        conditions: when it does, or why it does not.
        breaks_symmetry: whether copies become different in training.
        settings: hyperparameters, and where they come from.
        width, depth: how axes become longer, and stacks deeper.
        steps, learning_rate, warmup: of learning the operator.
        ramp: steps of training after the growth in which new parts are let in, see `Ramp`. The maps
            must leave old entries as they are, ``[I; ...]``.
    """

    name: str
    idea: str
    equation: str
    source: str
    keeps_function: bool
    conditions: str
    breaks_symmetry: str
    settings: str = "none"
    width: Width | None = None
    depth: Depth | None = None
    steps: int = 0
    learning_rate: float = 0.0
    warmup: int = 0
    ramp: int = 0

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
            "breaks symmetry": self.breaks_symmetry,
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
    """Combine the depth of one method with the width of another.

    If both learn, it learns for the larger number of steps, at the lower rate.

    Raises:
        ValueError: if one has no such part, or only one of them has a ramp.
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
            f"method {name!r} combines two, and {masking!r} masks all that is new; use it by itself"
        )
    learning = [
        part
        for part, learns in ((depth, depth.depth.learned), (width, width.width.learns != "nothing"))
        if learns
    ]
    both: dict[str, Any] = {
        words: f"depth: {getattr(depth, words)}; width: {getattr(width, words)}"
        for words in ("idea", "equation", "source", "conditions", "settings")
    }
    return replace(
        width,
        name=name,
        keeps_function=depth.keeps_function and width.keeps_function,
        depth=depth.depth,
        **both,
        steps=max((part.steps for part in learning), default=0),
        learning_rate=min((part.learning_rate for part in learning), default=0.0),
        warmup=max((part.warmup for part in learning), default=0),
    )


def _words(of: object) -> str:
    name = of if isinstance(of, str) else getattr(of, "__name__", type(of).__name__)
    return name.replace("_", " ")
