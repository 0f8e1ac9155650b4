"""Plan every growth of a run on its first batch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from lightning_ligo.axes.calls import Call
from lightning_ligo.callbacks.checks import check_outputs, check_used
from lightning_ligo.callbacks.datamodule import DataStages
from lightning_ligo.callbacks.settings import Settings
from lightning_ligo.operator.limits import refuse
from lightning_ligo.operator.ramp import check_ramp
from lightning_ligo.plan.pair import CallFailed, pair_calls
from lightning_ligo.plan.plan import Plan
from lightning_ligo.schedule import Growth
from lightning_ligo.trainer.checkpoint import size_of, sizes_of
from lightning_ligo.trainer.hparams import built, check_made, note, unchanged
from lightning_ligo.trainer.optimizers import parameters_in
from lightning_ligo.trainer.sandbox import sandboxed
from lightning_ligo.trainer.several import SEPARATOR, parted
from lightning_ligo.trainer.sharding import Sharding, is_sharded
from lightning_ligo.trainer.slot import Slot, attached, listed
from lightning_ligo.trainer.snapshot import isolated_random
from lightning_ligo.trainer.steps import MOST, Watched, batches_ahead, training_loss, watch_steps
from lightning_ligo.trainer.watch import are_alike


class Pairing(NamedTuple):
    """A planned growth, with its number from 1 and the calls on which it was planned."""

    number: int
    small: nn.Module
    large: nn.Module
    plan: Plan
    calls: list[Call]  # of the small network
    large_calls: list[Call] | None  # of the large network, if it is called otherwise


class Planner:
    """Plans all growths to come, on the inputs that the run's first batch gives to the network."""

    def __init__(self, settings: Settings, sharding: Sharding, stages: DataStages) -> None:
        self._settings = settings
        self._sharding = sharding
        self._stages = stages
        self._larger: dict[int, nn.Module] = {}  # to be planned, on the meta device
        self._trained: dict[str, torch.Size] = {}  # shapes of parameters that an optimizer has
        self._wanted: set[str] = set()  # names of parameters that watched calls must use
        self._waiting: list[RemovableHandle] = []  # for the first call of the network
        self._waits = False  # until a rank has called it
        self.plans: dict[int, Plan] = {}  # by the number of the growth, from 1
        self.calls: dict[int, list[Call]] = {}  # of the small network of each growth
        self.is_done = False

    @property
    def has_more(self) -> bool:
        """Whether there are growths without a plan."""
        return bool(self._larger)

    def begin(self, trainer: Trainer) -> None:
        """Build all networks to come, and shard them where the run does.

        Raises:
            ValueError: naming the growth whose network cannot be built or sharded.
        """
        slot = self._settings.slot_of(trainer)
        self._larger, self.is_done = {}, False
        with isolated_random(self._settings.seed):
            check_made(slot, sizes_of(slot.module, self._settings.growths)[size_of(slot.module)])
        for number, description in self.coming(slot.module).items():
            with isolated_random(self._settings.seed), self._of_growth(number):
                forms = self._sharding.forms(slot, description)
                self._larger[number] = built(slot, description, "meta", forms)
                if is_sharded(trainer):
                    trial = built(slot, description, "meta", forms)
                    self._sharding.try_out(trainer, slot, trial)

    def skip(self, done: int) -> None:
        """Plan no growth up to this number."""
        self._larger = {n: large for n, large in self._larger.items() if n > done}

    def is_ready(self, trainer: Trainer) -> bool:
        """Whether no growth waits for a network that no rank has called yet."""
        if self._waits:
            if not trainer.strategy.reduce_boolean_decision(not self._waiting, all=False):
                return False
            _remove(self._waiting)
            self._waits = False
        return True

    def plan(
        self, trainer: Trainer, batch: Any, batch_idx: int, before: nn.Module | None = None
    ) -> Plan | None:
        """Plan all growths to come, at the start of a batch, whose networks are called.

        If the present network has grown from one ``before``, that growth is planned too, and its
        plan is returned.

        Raises:
            ValueError: naming the growth that is not possible.
        """
        settings, slot, again = self._settings, self._settings.slot_of(trainer), None
        pl_module = slot.module
        self.skip(size_of(pl_module))
        network = self._sharding.plain(pl_module, slot.network)
        larger = {number: lambda large=large: large for number, large in self._larger.items()}
        with sandboxed(trainer, pl_module, settings.seed):
            slot.set(network)
            batches, calls = self.first_batch(trainer, pl_module, batch, batch_idx, before)
            waiting, first = self._uncalled(slot, calls)
            ready = {number: large for number, large in larger.items() if number < first}
            for pairing in self.pairings(trainer, pl_module, ready, batches, calls):
                self.plans[pairing.number] = pairing.plan
                changes = settings.growths[pairing.number - 1].data
                self.calls[pairing.number] = [] if changes else pairing.calls
            if calls and before is not None:
                again = pair_calls(before, network, calls, override=settings.override)
        if waiting:
            self._wait(waiting)
        else:
            self._larger = {}
        self.is_done = bool(calls)
        return again

    def _uncalled(self, slot: Slot, calls: Sequence[Call]) -> tuple[list[Slot], float]:
        """Return the networks to grow that no call is of, and the number of their first growth."""
        if not calls:
            return [slot], 0
        starts = zip(slot.starts, slot.parts, strict=True)
        waiting = {
            part.attribute: part
            for start, part in starts
            if not any(f"{call.path}.".startswith(start) for call in calls)
        }
        found = {
            name: number
            for number in reversed(self._larger)
            for name in parted(self._settings.growths[number - 1].changes)
            if name in waiting
        }
        return [waiting[name] for name in found], min(found.values(), default=math.inf)

    def _wait(self, slots: Sequence[Slot]) -> None:
        """Plan at the batch behind the one that first calls one of these networks."""

        called = functools.partial(_remove, self._waiting)
        self._waits = True
        for slot in slots:
            for part in slot.network.modules():
                self._waiting.append(part.register_forward_pre_hook(called))
        words = listed([slot.words for slot in slots])
        rank_zero_info(
            f"training_step does not call {words} in the first {MOST} batches: its "
            "growths are planned when it does"
        )

    def planned(self, number: int) -> Plan:
        """Return the plan of a growth that is due.

        Raises:
            ValueError: if there is none, as nothing has called the network.
        """
        if number not in self.plans:
            raise ValueError(
                f"growth {number} is due, and training_step has never called "
                f"self.{self._settings.attribute or 'forward'}, so "
                "that nothing shows how the network is used; let it grow after its first use, or "
                "name the network that is used with the option attribute"
            )
        return self.plans[number]

    def coming(self, pl_module: LightningModule) -> dict[int, dict[str, Any]]:
        """Return the networks to come, by the number of their growth, from 1."""
        numbered = enumerate(sizes_of(pl_module, self._settings.growths))
        done = size_of(pl_module)
        return {number: to for number, to in numbered if number > done and to is not None}

    def first_batch(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        before: nn.Module | None = None,
    ) -> tuple[dict[int, Any], list[Call]]:
        """Return the batches of `DataStages.batches`, and the calls of the network in its steps.

        There are no calls if nothing calls the network in the batches that are watched.
        """
        size, network = size_of(pl_module), self._settings.slot(pl_module).network
        held = set(parameters_in(trainer.optimizers))
        self._trained = {
            name: parameter.shape
            for name, parameter in network.named_parameters()
            if parameter.requires_grad and (parameter in held or is_sharded(trainer))
        }
        self._wanted = {
            name
            for other in (*self._larger.values(), *([] if before is None else [before]))
            for name, parameter in other.named_parameters()
            if name in self._trained
            and (is_lazy(parameter) or self._trained[name] != parameter.shape)
        }
        batches = self._stages.batches(trainer, pl_module, size, batch)
        watched = self._watched(trainer, batches[size], batch_idx)
        return batches, self._checked(watched)

    def calls_of(self, trainer: Trainer, batch: Any, batch_idx: int) -> list[Call]:
        """Return the calls on which the next growth was planned, as the coming step makes them.

        They are as they were if the coming step makes others, and none if the growth changes data.
        """
        slot = self._settings.slot_of(trainer)
        planned = self.calls[size_of(slot.module) + 1]
        if not planned:
            return planned
        with sandboxed(trainer, slot.module, self._settings.seed):
            slot.set(self._sharding.plain(slot.module, slot.network))
            coming = self._watched(trainer, batch, batch_idx).calls
        alike = len(coming) == len(planned) and all(map(are_alike, planned, coming))
        return coming if alike else planned

    def _watched(self, trainer: Trainer, batch: Any, batch_idx: int) -> Watched:
        """Watch the steps on this batch, those behind it if need be, and a validation batch."""
        slot = self._settings.slot_of(trainer)
        ahead = batches_ahead(trainer, slot.module, batch)
        valid = self._stages.fits(size_of(slot.module))
        return watch_steps(trainer, slot, ahead, batch_idx, self._wanted, valid)

    def pairings(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        larger: Mapping[int, Callable[[], nn.Module]],
        batches: Mapping[int, Any],
        calls: list[Call],
    ) -> Iterator[Pairing]:
        """Pair every network with the next larger one; for use within `sandboxed`.

        ``larger`` are builders of these by the number of their growth; ``batches`` and ``calls``
        are from `first_batch`.

        Raises:
            ValueError: naming the growth that is not possible.
        """
        small = self._settings.slot(pl_module).network
        scalars_read: Sequence[Any] = ()
        for number, build_large in larger.items():
            with self._of_growth(number):
                large_calls = None
                if number in batches:
                    large_calls = self._large_calls(trainer, number, batches[number])
                given = calls, large_calls, self._settings.override, scalars_read
                try:
                    large = attached(build_large(), trainer)
                    plan = pair_calls(small, large, *given)
                except CallFailed:
                    large = self._built(trainer, number)
                    plan = pair_calls(small, large, *given)
                check_outputs(plan)
                check_used(plan, self._trained, self._settings.override)
                refuse(plan, self._settings.method)
                if self._settings.method.ramp:
                    check_ramp(plan, small)
            yield Pairing(number, small, large, plan, calls, large_calls)
            small, scalars_read = large, plan.scalars_read
            calls = large_calls or calls

    def _large_calls(self, trainer: Trainer, number: int, batch: Any) -> list[Call]:
        """Return the calls that training makes of a large network on changed data.

        Leaves that network in the module, for `sandboxed` to remove.

        Raises:
            ValueError: if a training step of the network fails on the batch.
        """
        large, slot = self._built(trainer, number), self._settings.slot_of(trainer)
        slot.set(large)
        note(slot, self.coming(slot.module)[number])
        try:
            return self._checked(watch_steps(trainer, slot, [batch], 0, (), False))
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(
                f"{type(large).__name__} cannot be trained on this data: a training step fails "
                f"with {type(error).__name__}: {error}; change the data or the network"
            ) from error

    def _built(self, trainer: Trainer, number: int) -> nn.Module:
        """Build a large network on the device of the run, in its precision."""
        slot = self._settings.slot_of(trainer)
        networks = sizes_of(slot.module, self._settings.growths)
        stays = unchanged(slot, slot.network, networks[size_of(slot.module)], networks[number])
        network = built(slot, networks[number], standing=stays)
        large = trainer.precision_plugin.convert_module(network)
        return attached(large, trainer).to(trainer.strategy.root_device)

    def _checked(self, watched: Watched) -> list[Call]:
        """Return the calls of the network; check the loss if an operator is learned."""
        if watched.calls and self._settings.method.steps > 0:
            training_loss(watched.output)
        return watched.calls

    @contextmanager
    def _of_growth(self, number: int) -> Iterator[None]:
        """Name the growth in errors."""
        growth: Growth = self._settings.growths[number - 1]
        try:
            yield
        except ValueError as error:
            data = f", on data of {growth.data}" if growth.data else ""
            where = f"growth {number} (at {growth.when}, to {growth.changes}{data})"
            shared = self._shared(growth) if isinstance(error, CallFailed) else ""
            raise ValueError(f"{where}: {error}{shared}") from error

    def _shared(self, growth: Growth) -> str:
        """Say which of several networks a growth leaves as they are, which may share a length."""
        grown = [name for name in parted(growth.changes) if name]
        if not grown:
            return ""
        stay = [name for name in self._settings.attribute.split(SEPARATOR) if name not in grown]
        left = f", and {listed(stay)} as before" if stay else ""
        return (
            f"; this growth makes {listed(grown)} larger{left}: a length that one of them writes "
            "and another reads must be the same in both; give both a growth with the same trigger "
            "in which it is"
        )


def _remove(hooks: list[RemovableHandle], *_: Any) -> None:
    while hooks:
        hooks.pop().remove()
