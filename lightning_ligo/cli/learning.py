"""Data and loss of learning an operator between two files."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_ligo.axes.calls import Call
from lightning_ligo.cli.growing import Learning
from lightning_ligo.methods.method import Method
from lightning_ligo.tasks.images import ImageFolderDataModule
from lightning_ligo.tasks.modules import language_loss, logits_of
from lightning_ligo.tasks.order import OrderedDataModule
from lightning_ligo.tasks.text import TextDataModule

KINDS: dict[str, type[OrderedDataModule]] = {
    "text": TextDataModule,
    "images": ImageFolderDataModule,
}
MASK = 0.15
"""The share of tokens that a masked model predicts, unless --data.mask is given."""


def learning(
    kind: str | None,
    settings: Mapping[str, Any],
    small: Mapping[str, Any],
    method: Method,
    steps: int | None,
    learning_rate: float | None,
) -> Learning:
    """Load the data of a command line.

    A text is read by the tokenizer beside the small network, if there is one. A network whose class
    is of masked language modelling learns from masked texts.

    Raises:
        ValueError: for an unknown kind, settings that the data does not have, and data that is not
            there.
    """
    if kind not in KINDS:
        raise ValueError(f"--data is one of {', '.join(KINDS)}, got {kind}")
    options = dict(settings)
    is_masked = "ForMaskedLM" in str(small["class_path"])
    if kind == "text":
        weights = small.get("weights")
        folder = Path(str(weights["path"] if isinstance(weights, Mapping) else weights))
        if any(folder.glob("tokenizer*")):
            options.setdefault("tokenizer", str(folder))
        if is_masked:
            options.setdefault("mask", MASK)
    data = _data(KINDS[kind], options)
    rate = method.learning_rate if learning_rate is None else learning_rate
    steps = method.steps if steps is None else steps

    def batches() -> Iterator[Any]:
        for epoch in itertools.count():
            loader = data.train_dataloader()
            loader.sampler.set_epoch(epoch)
            yield from loader

    def image_loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(network(batch[0]), batch[1])

    def text_loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        logits = logits_of(network, batch["input_ids"])
        objective = "masked" if is_masked else "causal"
        nats, tokens = language_loss(logits, batch["labels"], objective)
        return nats / tokens

    if kind == "images":
        return Learning(image_loss, batches, steps, rate, lambda batch: Call((batch[0],)))
    return Learning(
        text_loss,
        batches,
        steps,
        rate,
        lambda batch: Call(kwargs={"input_ids": batch["input_ids"]}),
    )


def _data(kind: type[OrderedDataModule], options: dict[str, Any]) -> OrderedDataModule:
    """Make a data module; raise ValueError for an option that it does not have, or lacks."""
    known = inspect.signature(kind).parameters
    unknown = sorted(options.keys() - known.keys())
    lacking = [n for n, p in known.items() if p.default is p.empty and n not in options]
    if unknown or lacking:
        raise ValueError(
            f"{kind.__name__} has no option {', '.join(unknown)}; it has {', '.join(known)}"
            if unknown
            else f"{kind.__name__} needs {', '.join(f'--data.{name}' for name in lacking)}"
        )
    data = kind(**options)
    data.setup("fit")
    return data
