"""Rehearse a growth at the start of `fit`, on copies, and refuse there what crashes."""

from __future__ import annotations

import functools
import gc
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.data import extract_batch_size
from lightning_utilities.core.rank_zero import rank_zero_info
from torch.utils._pytree import tree_map

from lightning_ligo.axes.calls import Call
from lightning_ligo.callbacks.accounting import Accounting
from lightning_ligo.callbacks.companions import remember_groups
from lightning_ligo.callbacks.datamodule import DataStages, cut
from lightning_ligo.callbacks.failure import GrowthFailedError, alike
from lightning_ligo.callbacks.followers import others_of
from lightning_ligo.callbacks.grower import Grower, Grown
from lightning_ligo.callbacks.planner import Planner
from lightning_ligo.callbacks.settings import Settings
from lightning_ligo.operator.measure import measure, told
from lightning_ligo.plan.plan import Plan
from lightning_ligo.trainer.checkpoint import size_of
from lightning_ligo.trainer.lightning import dump_checkpoint, training_iteration, unwrapped
from lightning_ligo.trainer.rehearsal import (
    line_of_user,
    new_states,
    own_copy,
    rehearsing,
    resume,
    states_of,
    validate_one_batch,
)
from lightning_ligo.trainer.sharding import is_sharded
from lightning_ligo.trainer.steps import own_batches
from lightning_ligo.trainer.swap import restart_compression


class Rehearsal:
    """Tries the next growth before the first step, and undoes it.

    A training step of the small network, the growth with one step of learning at most, a training
    step and a validation batch of the large network with all hooks of the module, a checkpoint and
    its resume. States that steps keep between batches are found on the way, for the growth to drop.
    """

    def __init__(
        self, settings: Settings, stages: DataStages, grower: Grower, accounting: Accounting
    ) -> None:
        self._settings = settings
        self._stages = stages
        self._grower = grower
        self._accounting = accounting

    def run(self, trainer: Trainer, planner: Planner, batch: Any, batch_idx: int) -> None:
        """Rehearse the next growth, if there is one, at the start of a batch.

        Raises:
            ValueError: naming what crashes, the line of the user's code, and what to do; or that
                the large network returns what is not finite.
        """
        pl_module, spent = trainer.lightning_module, self._accounting.operator
        number = size_of(pl_module) + 1
        if number not in planner.plans:
            return
        plan, calls = planner.plans[number], planner.calls[number]
        name = f"The rehearsal of growth {number} of {len(self._settings.growths)}"
        try:
            with rehearsing(trainer, pl_module, self._settings.seed, others_of(trainer)):
                self._rehearse(trainer, plan, calls, batch, batch_idx)
        except (GrowthFailedError, MemoryError, torch.OutOfMemoryError) as error:
            rank_zero_info(f"{name} did not come to its end: {error}")
        else:
            rank_zero_info(f"{name} went well, from its learning to a resume, and is undone")
        finally:
            self._accounting.operator = spent
            remember_groups(trainer)
            restart_compression(trainer)
            gc.collect()  # the large network is held by cycles

    def _rehearse(
        self,
        trainer: Trainer,
        plan: Plan,
        calls: Sequence[Call],
        batch: Any,
        batch_idx: int,
    ) -> None:
        pl_module, grower = trainer.lightning_module, self._grower
        size, slot = size_of(pl_module), self._settings.slot(pl_module)
        growth, small = self._settings.growths[size], slot.network
        batches = self._stages.batches(trainer, pl_module, size, batch)
        before = states_of(pl_module, small)
        try:
            with alike(trainer):
                training_iteration(trainer, own_copy(batches[size]), batch_idx)
        except GrowthFailedError:
            raise
        except Exception as error:
            raise GrowthFailedError(  # ends the rehearsal, not the run
                f"a training step of the small network fails with {_words(error)}"
            ) from error
        after = states_of(pl_module, small)
        new = new_states(before, after)
        grower.hidden = list(new.values())
        large_batch = batches.get(size + 1, batches[size])
        again = (own_copy(large_batch) for _ in itertools.count())
        given = again if growth.data else own_batches(trainer, pl_module)
        steps = min(1, self._settings.method.steps)
        with self._refused(trainer, "growing the network"):
            made = grower.make(trainer, plan, (), steps, given)
        if calls:
            name = f"growth {size + 1} of {len(self._settings.growths)}"
            rank_zero_info(f"Before {name}: {self._measured(trainer, made, calls, batches[size])}")
        large, followers, plain = made.large, made.followers, made.small
        try:
            with self._refused(trainer, "putting the large network into the run"):
                grower.put(trainer, made)
                restart_compression(trainer)
            del made  # its operator holds generated weights
            with self._refused(trainer, "a training step of the large network"), unwrapped(trainer):
                training_iteration(trainer, own_copy(large_batch), batch_idx)
            last = states_of(pl_module, large)
            grower.hidden = [
                state
                for key, state in new.items()
                if key in last and last[key].shapes != after[key].shapes
            ]
            large_data = self._stages.of_size(trainer, size + 1)
            with self._refused(trainer, "a validation batch of the large network"), large_data:
                validate_one_batch(trainer)
            if not is_sharded(trainer):
                with self._refused(trainer, "a checkpoint of the large network, or its resume,"):
                    checkpoint = tree_map(_same, dump_checkpoint(trainer))  # its lists are live
                    followers.back()
                    resume(trainer, slot, small, checkpoint)
        finally:
            grower.back(trainer, followers, plain)

    def _measured(self, trainer: Trainer, made: Grown, calls: Sequence[Call], batch: Any) -> str:
        """Say by how much the growth changes the function, on an eighth of the items if it can be.

        Measuring takes several passes through both networks.
        """
        method, seed, plan = self._settings.method, self._settings.seed, made.operator.plan
        length = extract_batch_size(batch)
        few = functools.partial(cut, length=length, shortest=max(2, length // 8))
        shorter = [replace(call, args=few(call.args), kwargs=few(call.kwargs)) for call in calls]
        for given in (shorter, calls):  # some calls need all items
            with torch.no_grad():
                change = measure(plan, made.small, made.large, given, None, method, seed)
            if change.change is not None or method.takes_nothing:
                break
        return told(trainer.strategy.broadcast(change), method)

    @contextmanager
    def _refused(self, trainer: Trainer, stage: str) -> Iterator[None]:
        """Refuse what crashes inside the context; memory and numbers may differ at the growth."""
        try:
            with alike(trainer):
                yield
        except GrowthFailedError:
            raise
        except Exception as error:
            line, slot = line_of_user(error), self._settings.slot(trainer.lightning_module)
            if line is None and isinstance(error, ValueError):  # a check of this package
                raise
            what = (
                "use use_reentrant=False, as torch recommends, or a method that learns nothing"
                if "use_reentrant" in str(error)
                else f"let the code take sizes and parameters from {slot.words} "
                "when it needs them, and keep none between batches"
            )
            raise ValueError(
                f"the growth was rehearsed before the first step, and {stage} fails with "
                f"{_words(error)}{f', at {line}' if line else ''}; {what}; or switch the rehearsal "
                "off with GrowthCallback(rehearse=False)"
            ) from error


def _same(leaf: Any) -> Any:
    return leaf


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()}"
