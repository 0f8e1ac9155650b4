"""Grow a matrix by copies plus low-rank products, without a second gradient of full size.

With ``T = F + U V`` along every dimension, F fixed:
``T_1 T_2 = F_1 F_2 + U_1 V_1 T_2 + F_1 U_2 V_2``. The learned terms go through few entries, so a
weight of full size is written once, and its own gradient is the only one of that size.

Shapes: g layers of the large stack, r the rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_ligo.methods.forms import along, project
from lightning_ligo.operator.widths import Span, Widths
from lightning_ligo.plan.plan import Row


def is_low_rank(widths: Widths, row: Row) -> bool:
    """Whether a matrix, or more, grows by copies and low-rank products alone."""
    factors = [factor for product in row.dims for factor in widths.factors(product)]
    growing = [factor for factor in factors if len(set(widths.lengths(factor))) == 2]
    repeats = [widths.plan.length(product)[0] for product in row.dims] != list(row.small)
    return (
        len(row.dims) > 1
        and not repeats  # of heads
        and bool(growing)
        and all(isinstance(f, Span) and f"{f.name}:U" in widths.maps for f in growing)
    )


def add_low_rank(widths: Widths, fixed: Tensor, x: Tensor, row: Row) -> list[Tensor]:
    """Grow x, a tensor for each layer; ``fixed`` is x grown by the fixed parts alone."""
    spans = [factor for product in row.dims for factor in widths.factors(product)]
    x = x.reshape(len(x), *(widths.lengths(span)[0] for span in spans))
    shape = [widths.lengths(span)[1] for span in spans]
    growing = [(place, span) for place, span in enumerate(spans)
               if isinstance(span, Span) and widths.has_map(span)]  # fmt: skip
    growing.sort(key=lambda each: -each[1].small)  # the shortest saves least, by copies alone
    terms = []
    for number, (place, span) in enumerate(growing):
        right = project(widths.maps[f"{span.name}:V"], x, place + 1)
        right = right * widths.starts[span.key].scale ** span.power
        for other, (where, factor) in enumerate(growing):
            if other != number:
                widen = widths.widen if other > number else widths.widen_fixed
                right = widen(right, where + 1, factor)
        left = widths.maps[f"{span.name}:U"].to(x.dtype).expand(len(x), -1, -1)
        terms.append([(place, *each) for each in zip(left, right, strict=True)])
    layers = zip(fixed, *terms, strict=True)
    return [_add_products(layer.reshape(shape), of).reshape(row.large) for layer, *of in layers]


def _add_products(layer: Tensor, terms: Iterable[tuple[int, Tensor, Tensor]]) -> Tensor:
    """One layer plus, for every (dim, U, right), U, (L, r), times that dimension of (..., r, ...).

    Terms on the same rows and columns are one product, and so one pass over the layer.
    """
    products: dict[int, list[tuple[Tensor, Tensor]]] = {}  # by the number of rows
    for dim, left, right in terms:
        if math.prod(layer.shape[dim + 1 :]) == 1:
            pair = right.reshape(-1, right.shape[dim]), left.mT
        elif dim == 0:
            pair = left, right.reshape(len(right), -1)
        else:
            layer = layer + along(left, right.unsqueeze(0), dim + 1).squeeze(0)
            continue
        products.setdefault(len(pair[0]), []).append(pair)
    for rows, pairs in products.items():
        left, right = torch.cat([one for one, _ in pairs], 1), torch.cat([two for _, two in pairs])
        layer = torch.addmm(layer.reshape(rows, -1), left, right).reshape(layer.shape)
    return layer
