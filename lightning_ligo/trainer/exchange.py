"""Let every rank know the calls that the others have seen, so that all plan alike."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.overrides import resolve_name

from lightning_ligo.axes.calls import Result, found
from lightning_ligo.trainer.watch import Seen, joined


def of_all_ranks(trainer: Trainer, seen: list[Seen]) -> list[Seen]:
    """Return the calls that any rank has seen, those that differ, alike on all ranks.

    Calls are sent only if the ranks have seen different ones; their tensors are then the same too.

    Raises:
        ValueError: if the ranks have seen different calls, and none can be sent.
    """
    facts = [_facts(each) for each in seen]
    if all(other == facts for other in _gathered(trainer, facts)):
        return seen
    sent, why = io.BytesIO(), ""
    try:
        torch.save(seen, sent)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
    every = _gathered(trainer, (b"" if why else sent.getvalue(), why))
    seen = joined([_loaded(trainer, raw) for raw, _ in every if raw])
    failed = [f"rank {rank}: {why}" for rank, (_, why) in enumerate(every) if why]
    if failed and not seen:
        raise ValueError(
            "the ranks call the network in different ways in their first batches, and their "
            f"calls cannot be sent to the others ({failed[0]}); let the steps of all ranks call "
            "the same parts, or hand the network what can be pickled"
        )
    return seen


def _gathered(trainer: Trainer, value: Any) -> list[Any]:
    return [trainer.strategy.broadcast(value, rank) for rank in range(trainer.world_size)]


def _loaded(trainer: Trainer, raw: bytes) -> Any:
    """Load what a rank has sent; what was on its device is put on this one's."""
    device = trainer.strategy.root_device

    def placed(storage: Any, location: str) -> Any:
        return storage if location == "cpu" else storage.to(device=device)

    return torch.load(io.BytesIO(raw), map_location=placed, weights_only=False)


def _facts(seen: Seen) -> Sequence[Any]:
    """Return what a plan depends on, besides the sizes of batches."""
    call, method = seen.call, seen.call.method
    name = method if isinstance(method, str) else resolve_name(method) or type(method).__name__
    results = found((call.args, call.kwargs), Result)
    return call.path, name, call.training, results, seen.parameters, seen.operations
