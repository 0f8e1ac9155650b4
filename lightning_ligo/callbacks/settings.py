"""The settings of a GrowthCallback that its parts share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from lightning.pytorch import LightningModule, Trainer

from lightning_ligo.axes.override import read
from lightning_ligo.callbacks.companions import Stopping
from lightning_ligo.callbacks.failure import OnFailure
from lightning_ligo.methods.catalog import method_named
from lightning_ligo.methods.method import Method
from lightning_ligo.operator.optimizer_state import Policy
from lightning_ligo.schedule import DECIDED, KNOWN, Growth
from lightning_ligo.trainer.checkpoint import record_of
from lightning_ligo.trainer.hparams import described, small_of
from lightning_ligo.trainer.several import NETWORKS, SEPARATOR
from lightning_ligo.trainer.sharding import is_sharded
from lightning_ligo.trainer.slot import Slot, listed
from lightning_ligo.trainer.snapshot import isolated_random


@dataclass
class Settings:
    """Settings of all growths of a run, see `GrowthCallback`.

    Raises:
        ValueError: if there are no growths, or growths of two kinds, the policy is unknown, or the
            override cannot be read.
    """

    growths: list[Growth]
    attribute: str
    method: Method
    optimizer_state: Policy
    seed: int
    override: dict[str, str | None] | None
    is_found: bool = True  # whether the place of the network is known

    def slot(self, module: LightningModule) -> Slot:
        """Return the place of the network in a module, or in an averaged copy."""
        return Slot(module, self.attribute)

    def slot_of(self, trainer: Trainer) -> Slot:
        """Return the place of the network in the module of a run."""
        return Slot(trainer.lightning_module, self.attribute)

    def find(self, trainer: Trainer, module: LightningModule) -> tuple[Slot, dict[str, Any] | None]:
        """Find the place of the network, and its description in the module's hyperparameters.

        Raises:
            ValueError: for growths by hyperparameters that the module cannot be made again with.
        """
        if self.growths[0].hparams is None:
            slot = self.slot(module)
            return slot, described(slot)
        if is_sharded(trainer):
            raise ValueError(
                f"growth by hparams under {type(trainer.strategy).__name__} is not supported; "
                "describe the large network, with Growth(to=...)"
            )
        with isolated_random(self.seed):
            found, small = small_of(module, self.growths)
        record = record_of(module) or {}
        self.is_found = found is not None or "attribute" in record
        self.attribute = record.get("attribute", self.attribute) if found is None else found
        return self.slot(module), small

    def found(self, attribute: str) -> None:
        """Take the place of the network from a checkpoint, for growths that find it."""
        if self.growths[0].hparams is not None:
            self.attribute, self.is_found = attribute, True

    def check_found(self, module: LightningModule) -> None:
        """Raise ValueError if growths by hyperparameters change nothing."""
        if not self.is_found:
            changes = ", ".join(str(growth.hparams) for growth in self.growths)
            raise ValueError(
                f"no parameter of {type(module).__name__} changes with the hyperparameters "
                f"{changes}; change those that its network is made from"
            )

    def __post_init__(self) -> None:
        if not self.growths:
            raise ValueError("GrowthCallback has no growths; give at least one")
        names = [growth.attribute or self.attribute for growth in self.growths]
        by_hparams = {growth.hparams is not None for growth in self.growths}
        if len(by_hparams) > 1:
            raise ValueError(
                "some growths have hparams and others have to; give all growths of a run hparams, "
                "or none"
            )
        self.attribute = SEPARATOR.join(dict.fromkeys(names))
        if by_hparams == {True} and self.attribute != "network":
            raise ValueError(
                f"growths by hparams find the network, got attribute={self.attribute!r}; leave it "
                "out"
            )
        if len(set(names)) > 1:
            self.growths = together(names, self.growths)
        if self.optimizer_state not in get_args(Policy):
            known = ", ".join(map(repr, get_args(Policy)))
            raise ValueError(
                f"got optimizer_state={self.optimizer_state!r}, expected one of {known}"
            )
        read(self.override)


def together(names: Sequence[str], growths: Sequence[Growth]) -> list[Growth]:
    """Return growths of several networks, with one growth for those at one moment.

    These follow one another and have the same trigger.

    Raises:
        ValueError: for a network inside of another one, one that grows twice at a moment, and two
            rates or data at one moment.
    """
    for one, other in itertools.permutations(dict.fromkeys(names), 2):
        if f"{one}.".startswith(f"{other}."):
            raise ValueError(
                f"the network {one!r} is a part of {other!r}, and both have growths; let "
                f"{other!r} grow as one network, or each of its parts by itself"
            )
    merged: list[tuple[Growth, dict[str, Any]]] = []
    for name, growth in zip(names, growths, strict=True):
        first, networks = merged[-1] if merged else (None, {})
        trigger = {each: getattr(growth, each) for each in (*KNOWN, *DECIDED)}
        is_same = all(getattr(first, each, None) == value for each, value in trigger.items())
        if is_same and name in networks and not growth.is_decided:
            raise ValueError(
                f"the network {name!r} has two growths at {growth.when}; give one, or each its own "
                "moment"
            )
        if first is None or not is_same or name in networks:
            merged.append((growth, {name: growth.to}))
            continue
        if (first.rate, first.data) != (growth.rate, growth.data):
            raise ValueError(
                f"{listed([*networks, name])} grow together at {growth.when}, with different rates "
                "or data; give all of these growths the same"
            )
        networks[name] = growth.to
    return [replace(one, to={NETWORKS: to}, attribute=None) for one, to in merged]


def check_choices(growths: list[Growth], early_stopping: str, on_failure: str) -> None:
    """Check the options of a growth callback that are words.

    Raises:
        ValueError: for an unknown word, and for a small network that would go on with the data of
            the large one.
    """
    for name, choice, choices in (
        ("early_stopping", early_stopping, get_args(Stopping)),
        ("on_failure", on_failure, get_args(OnFailure)),
    ):
        if choice not in choices:
            known = ", ".join(map(repr, choices))
            raise ValueError(f"got {name}={choice!r}, expected one of {known}")
    if on_failure == "continue" and any(growth.data for growth in growths):
        raise ValueError(
            "on_failure='continue' trains the small network on the data of the large one if a "
            "growth changes the data; leave out on_failure, or the data of the growths"
        )


def learning(method: str | Method, steps: int | None, learning_rate: float | None) -> Method:
    """Return the method with these steps and this learning rate, where they are given.

    Raises:
        ValueError: for an unknown method, settings of learning for a method that learns nothing,
            negative steps, and a learning rate that is not above 0.
    """
    method = method_named(method) if isinstance(method, str) else method
    if not method.learns and (steps or learning_rate):
        raise ValueError(
            f"method {method.name!r} learns nothing, got steps={steps} and "
            f"learning_rate={learning_rate}; leave them out, or use a method that learns"
        )
    steps = method.steps if steps is None else steps
    learning_rate = method.learning_rate if learning_rate is None else learning_rate
    if steps < 0 or (steps > 0 and not learning_rate > 0):
        raise ValueError(
            f"learning an operator needs 0 or more steps and a learning rate above 0, got "
            f"steps={steps} and learning_rate={learning_rate}"
        )
    return replace(method, steps=steps, learning_rate=learning_rate)
