"""Grow a network while it trains, by linear maps of its weights, learned or not."""

from lightning_ligo.axes import Axes, Axis
from lightning_ligo.callbacks.failing import GrowthFailedError
from lightning_ligo.callbacks.growth import GrowthCallback
from lightning_ligo.checkpoint import rebuild
from lightning_ligo.cost import Cost, estimate
from lightning_ligo.decision import Plateau, Slope
from lightning_ligo.fit import Fit, fit, grow
from lightning_ligo.growth import Operator
from lightning_ligo.method import Depth, Method, Width
from lightning_ligo.methods import METHODS
from lightning_ligo.modules import ImageClassifier, LanguageModel
from lightning_ligo.moments import grow_states
from lightning_ligo.named import named
from lightning_ligo.nets import build, describe
from lightning_ligo.offline import grow_checkpoint
from lightning_ligo.pairing import pair
from lightning_ligo.plan import Plan
from lightning_ligo.proof import prove
from lightning_ligo.ramp import Ramp
from lightning_ligo.rate import Rate
from lightning_ligo.schedule import Growth
from lightning_ligo.trace import trace

__all__ = [
    "METHODS",
    "Axes",
    "Axis",
    "Cost",
    "Depth",
    "Fit",
    "Growth",
    "GrowthCallback",
    "GrowthFailedError",
    "ImageClassifier",
    "LanguageModel",
    "Method",
    "Operator",
    "Plan",
    "Plateau",
    "Ramp",
    "Rate",
    "Slope",
    "Width",
    "build",
    "describe",
    "estimate",
    "fit",
    "grow",
    "grow_checkpoint",
    "grow_states",
    "named",
    "pair",
    "prove",
    "rebuild",
    "trace",
]
