"""Summarize the coefficients that an operator has learned, small enough for a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_ligo.operator.operator import Operator

MOST = 32
"""Rows and columns of a summary; a larger matrix is averaged over blocks."""


@torch.no_grad()
def learned(operator: Operator) -> dict[str, Any]:
    """Return matrices of the learned operator by title, as nested lists.

    The depth mix of a stack (large x small layers) is the mean over its parameters. Of all maps
    that are learned, the one with most entries is taken (large x small lengths), in the first
    layer if it has layers.
    """
    stacks: dict[str, list[Tensor]] = {}
    for row in operator.plan.rows:
        mix = operator.depths.mixes.get(row.pattern.replace(".", "/"))
        if mix is not None:
            stacks.setdefault(f"depth mix of {row.stack}", []).append(mix)
    matrices = {title: torch.stack(mixes).mean(0) for title, mixes in stacks.items()}
    maps = {name: form for name, form in operator.widths.maps.items() if form.requires_grad}
    whole = {name: form for name, form in maps.items() if not name.endswith((":U", ":V"))}
    for name in maps:
        if name.endswith(":U"):
            whole[name[:-2]] = maps[name] @ maps[f"{name[:-2]}:V"]
    if whole:
        name, form = max(whole.items(), key=lambda each: each[1].shape[-2:].numel())
        axis, kind = name.replace("/", ".").rsplit(":", 1)
        matrices[f"map of {axis} ({kind})"] = form[0] if form.dim() == 3 else form
    return {title: _summary(matrix) for title, matrix in matrices.items()}


def _summary(matrix: Tensor) -> dict[str, Any]:
    small = F.adaptive_avg_pool2d(
        matrix.float().cpu()[None], (min(MOST, matrix.shape[0]), min(MOST, matrix.shape[1]))
    )[0]
    rounded = [[float(f"{value:.3g}") for value in row] for row in small.tolist()]
    return {"shape": list(matrix.shape), "values": rounded}
