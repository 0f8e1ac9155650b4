"""Find the parameters that wrote a tensor last, so that a layer can be made to add nothing.

If these parameters are zero the tensor is zero. They are the weight and the bias of the last
product, or the gain and the shift of the last norm; of a sum or a concatenation, those of every
term. Operations that multiply a tensor, or move its entries, do not change its writers. A weight
that is divided by its own norm is never zero: its gain writes, or nothing does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_ligo.axes.graph import Graph
from lightning_ligo.axes.rules.recurrent import RECURRENT

PRODUCTS = {"_grouped_mm", "mm", "bmm", "mv", "dot", "addmm", "baddbmm", "addbmm", "convolution",
            *RECURRENT, "embedding", "_embedding_bag", "_trilinear"}  # fmt: skip
NORMS = {"native_layer_norm", "native_group_norm", "native_batch_norm", "_fused_rms_norm",
         "rms_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit",
         "_batch_norm_no_update", "cudnn_batch_norm", "miopen_batch_norm"}  # fmt: skip
SUMS = {"add", "sub", "rsub", "cat", "stack", "addcmul"}
FACTORS = {"mul", "div"}
BOUNDS = {"clamp", "clamp_min", "maximum"}  # not zero where their input is


def writers(
    graph: Graph, name: str, args: Sequence[Any], kwargs: Any, known: bool = True
) -> frozenset[str]:
    """Find the writers of the output of the operation ``name``.

    An operation that is not ``known`` is taken to write by its own parameters, as a product does.
    """
    name = name.rstrip("_") if name.endswith("_") else name
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    moving = [tensor for tensor in tensors if not graph.static(tensor)]
    fixed = [tensor for tensor in tensors if graph.static(tensor)]
    if name == "_weight_norm_interface":
        return graph.writers(args[1])
    if name == "div" and not moving and isinstance(args[1], Tensor):
        above, below = map(graph.writers, args[:2])
        return frozenset() if above & below else above
    if name in SUMS:
        terms = [*moving, *(tensor for tensor in fixed if graph.writers(tensor))]
        if moving and len(terms) > 1:
            graph.add(terms)
        return _union(graph, tensors)
    if name in NORMS:  # gain and shift, or else the writers of the input
        first = 2 if isinstance(args[1], (list, tuple)) else 1  # behind the shape of a layer norm
        affine = [t for t in args[first : first + 2] if isinstance(t, Tensor)]
        return _union(graph, affine) or _union(graph, moving)
    if name in PRODUCTS and fixed and moving:
        return _union(graph, fixed)
    if not known and moving and (own := _union(graph, fixed) & graph.shapes.keys()):
        return own
    if name in ("scaled_dot_product_attention", "flex_attention"):
        return graph.writers(args[2])
    if name in PRODUCTS and len(moving) > 1:
        return graph.writers(moving[-1])
    if name in BOUNDS and not moving:
        return frozenset()
    if name in ("mul", "mm", "bmm") and not moving:  # one factor of zero is enough
        factors = [tensor for tensor in tensors if graph.writers(tensor)]
        return graph.writers(min(factors, key=Tensor.numel)) if factors else frozenset()
    if name in FACTORS and moving:
        return graph.writers(max(moving, key=Tensor.numel))
    return _union(graph, values(moving) or values(tensors) or tensors)


def values(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Select the tensors that hold values, not indices or masks."""
    return [tensor for tensor in tensors if tensor.is_floating_point() or tensor.is_complex()]


def _union(graph: Graph, tensors: Sequence[Tensor]) -> frozenset[str]:
    return frozenset().union(*(graph.writers(tensor) for tensor in tensors))
