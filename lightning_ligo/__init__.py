"""Grow a network while it trains, by learned linear maps of its weights."""

from lightning_ligo.axes import Axes, Axis
from lightning_ligo.fit import Fit, fit, grow
from lightning_ligo.growth import Operator
from lightning_ligo.methods import METHODS, Method
from lightning_ligo.plan import Plan, pair
from lightning_ligo.proof import prove
from lightning_ligo.trace import trace

__all__ = [
    "METHODS",
    "Axes",
    "Axis",
    "Fit",
    "Method",
    "Operator",
    "Plan",
    "fit",
    "grow",
    "pair",
    "prove",
    "trace",
]
