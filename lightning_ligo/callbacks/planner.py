"""What a run will grow to, seen before it trains: the large networks, and all plans."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lightning_ligo.callbacks.checks import check_outputs
from lightning_ligo.callbacks.datamodule import DataStages
from lightning_ligo.callbacks.sharding import Sharding
from lightning_ligo.methods.method import Method
from lightning_ligo.networks import build
from lightning_ligo.operator.limits import refuse
from lightning_ligo.operator.ramp import check_ramp
from lightning_ligo.plan.pair import pair
from lightning_ligo.plan.plan import Plan
from lightning_ligo.schedule import Growth
from lightning_ligo.trainer.checkpoint import size_of, sizes_of
from lightning_ligo.trainer.sandbox import sandboxed
from lightning_ligo.trainer.sharding import is_sharded
from lightning_ligo.trainer.slot import Slot
from lightning_ligo.trainer.snapshot import isolated_random
from lightning_ligo.trainer.steps import called_with, training_loss


class Planner:
    """Plans all growths that are to come, on what the run's first batch calls the network with.

    Args:
        attribute: where the network is in the module.
        growths: those of the run.
        method: of all growths.
        steps: of learning an operator.
        seed: of what is random in a network that is built.
        override: names axes that tracing cannot find.
        sharding: what the network is like where it is not sharded.
        stages: the data at every size.
    """

    def __init__(
        self,
        attribute: str,
        growths: Sequence[Growth],
        method: Method,
        steps: int,
        seed: int,
        override: Mapping[str, str] | None,
        sharding: Sharding,
        stages: DataStages,
    ) -> None:
        self._attribute = attribute
        self._growths = growths
        self._method = method
        self._steps = steps
        self._seed = seed
        self._override = override
        self._sharding = sharding
        self._stages = stages
        self._larger: dict[int, nn.Module] = {}  # to be planned, on the meta device
        self.plans: dict[int, Plan] = {}  # of every growth, by its number from 1
        self.is_done = False

    @property
    def has_more(self) -> bool:
        """Whether there are growths without a plan."""
        return bool(self._larger)

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build all networks that are to come, and shard them where the run does.

        Raises:
            ValueError: naming the growth whose network cannot be built or sharded.
        """
        self._larger, self.is_done = {}, False
        for number, description in self.coming(pl_module):
            with isolated_random(self._seed), of_growth(number, self._growths[number - 1]):
                self._larger[number] = build(description, device="meta")
                if is_sharded(trainer):
                    trial = build(description, device="meta")
                    self._sharding.try_out(trainer, pl_module, self._attribute, trial)

    def leave_out(self, done: int) -> None:
        """Plan no growths up to this number: the run was resumed after them, or grows no more."""
        self._larger = {n: large for n, large in self._larger.items() if n > done}

    def examine(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        before: nn.Module | None = None,
    ) -> Plan | None:
        """Pair the network with all that it will become.

        Args:
            trainer, pl_module, batch, batch_idx: of the run, at the start of a batch.
            before: the network that this one has grown from, if that growth is to be planned again;
                the plan is returned.

        Raises:
            ValueError: naming the growth that cannot be.
        """
        network = Slot(pl_module, self._attribute).network
        network = smaller = self._sharding.plain(pl_module, network)
        with sandboxed(trainer, pl_module, self._seed):
            Slot(pl_module, self._attribute).set(network)
            batches = self.batches(trainer, pl_module, batch)
            first = batches[size_of(pl_module)]
            args, kwargs = at_first = self.called_with(trainer, pl_module, first, batch_idx)
            scalars_read: Sequence[Any] = ()
            for number, larger in self._larger.items():
                with of_growth(number, self._growths[number - 1]):
                    inputs = None
                    if number in batches:
                        inputs = self.large_inputs(trainer, pl_module, number, batches[number])
                    plan = self.paired(smaller, larger, args, kwargs, inputs, scalars_read)
                self.plans[number], smaller, scalars_read = plan, larger, plan.scalars_read
                args, kwargs = (args, kwargs) if inputs is None else ((), inputs)
            again = None
            if before is not None:
                args, kwargs = at_first
                again = pair(before, network, *args, override=self._override, **kwargs)
        self._larger, self.is_done = {}, True
        return again

    def coming(self, pl_module: LightningModule) -> list[tuple[int, dict[str, Any]]]:
        """The growths that are still to come: the number, from 1, and the large network of each."""
        numbered = enumerate(sizes_of(pl_module, self._growths))
        done = size_of(pl_module)
        return [(number, to) for number, to in numbered if number > done and to is not None]

    def batches(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> dict[int, Any]:
        """See `DataStages.batches`."""
        return self._stages.batches(trainer, pl_module, size_of(pl_module), batch)

    def large_inputs(
        self, trainer: Trainer, pl_module: LightningModule, number: int, batch: Any
    ) -> dict[str, Any]:
        """What training calls the large network of a growth with, on a batch of changed data.

        To be used within `sandboxed`, which takes that network off again.

        Raises:
            ValueError: if a training step of the network fails on it.
        """
        description = sizes_of(pl_module, self._growths)[number]
        assert description is not None
        large = trainer.precision_plugin.convert_module(build(description))
        Slot(pl_module, self._attribute).set(large.to(trainer.strategy.root_device))
        try:
            args, kwargs = self.called_with(trainer, pl_module, batch, 0)
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(
                f"{type(large).__name__} cannot be trained on this data: a training step fails "
                f"with {type(error).__name__}: {error}; change the data or the network"
            ) from error
        return dict(inspect.signature(large.forward).bind(*args, **kwargs).arguments)

    def paired(
        self,
        small: nn.Module,
        large: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        large_inputs: dict[str, Any] | None = None,
        scalars_read: Sequence[Any] = (),
    ) -> Plan:
        """How a growth of this run goes; refuses one that the run's own module cannot follow."""
        plan = pair(
            small, large, *args, large_inputs=large_inputs, override=self._override,
            scalars_read=scalars_read, **kwargs,
        )  # fmt: skip
        check_outputs(plan)
        refuse(plan, self._method)
        if self._method.ramp:
            check_ramp(plan, small)
        return plan

    def called_with(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What training calls the network with; refuses a step that no operator is learned on."""
        slot = Slot(pl_module, self._attribute)
        args, kwargs, output = called_with(trainer, slot, batch, batch_idx)
        if self._steps > 0:
            training_loss(output)
        return args, kwargs


@contextmanager
def of_growth(number: int, growth: Growth) -> Iterator[None]:
    """Say in an error which growth it is about."""
    try:
        yield
    except ValueError as error:
        data = f", on data of {growth.data}" if growth.data else ""
        where = f"growth {number} (at {growth.when}, to {growth.to}{data})"
        raise ValueError(f"{where}: {error}") from error
