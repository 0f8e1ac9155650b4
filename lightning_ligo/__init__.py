"""Grow a network while it trains, by linear maps of its weights, learned or not.

Names that need Lightning are imported when they are first asked for.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING

from lightning_ligo.axes.axes import Axes, Axis
from lightning_ligo.axes.calls import Call
from lightning_ligo.axes.proof import prove
from lightning_ligo.axes.trace import trace
from lightning_ligo.methods.catalog import METHODS
from lightning_ligo.methods.method import Depth, Method, Width
from lightning_ligo.networks.description import build, describe
from lightning_ligo.networks.libraries import check_extra
from lightning_ligo.networks.names import named
from lightning_ligo.networks.saving import save
from lightning_ligo.operator.cost import Cost, estimate
from lightning_ligo.operator.fit import Fit, fit
from lightning_ligo.operator.grow import grow
from lightning_ligo.operator.measure import Change, measure
from lightning_ligo.operator.operator import Operator
from lightning_ligo.operator.optimizer_state import grow_states
from lightning_ligo.operator.ramp import Ramp
from lightning_ligo.plan.pair import pair
from lightning_ligo.plan.plan import Plan
from lightning_ligo.schedule import Growth, Plateau, Rate, Slope

if TYPE_CHECKING:
    from lightning_ligo.callbacks.failure import GrowthFailedError
    from lightning_ligo.callbacks.growth import GrowthCallback
    from lightning_ligo.callbacks.offline import grow_checkpoint
    from lightning_ligo.tasks.digits import DigitPairsDataModule, DigitsDataModule
    from lightning_ligo.tasks.images import ImageFolderDataModule
    from lightning_ligo.tasks.modules import ImageClassifier, LanguageModel
    from lightning_ligo.tasks.text import PythonSourceDataModule, TextDataModule
    from lightning_ligo.tasks.text_dataset import TextDatasetDataModule
    from lightning_ligo.trainer.checkpoint import load, rebuild

__version__ = version("lightning-ligo")

_FOLDERS = ("callbacks", "cli", "compare", "tasks", "trainer")
_LAZY = {
    "DigitPairsDataModule": "tasks.digits",
    "DigitsDataModule": "tasks.digits",
    "GrowthCallback": "callbacks.growth",
    "GrowthFailedError": "callbacks.failure",
    "ImageClassifier": "tasks.modules",
    "ImageFolderDataModule": "tasks.images",
    "LanguageModel": "tasks.modules",
    "PythonSourceDataModule": "tasks.text",
    "TextDataModule": "tasks.text",
    "TextDatasetDataModule": "tasks.text_dataset",
    "grow_checkpoint": "callbacks.offline",
    "load": "trainer.checkpoint",
    "rebuild": "trainer.checkpoint",
}

__all__ = [
    "METHODS",
    "Axes",
    "Axis",
    "Call",
    "Change",
    "Cost",
    "Depth",
    "DigitPairsDataModule",
    "DigitsDataModule",
    "Fit",
    "Growth",
    "GrowthCallback",
    "GrowthFailedError",
    "ImageClassifier",
    "ImageFolderDataModule",
    "LanguageModel",
    "Method",
    "Operator",
    "Plan",
    "Plateau",
    "PythonSourceDataModule",
    "Ramp",
    "Rate",
    "Slope",
    "TextDataModule",
    "TextDatasetDataModule",
    "Width",
    "__version__",
    "build",
    "describe",
    "estimate",
    "fit",
    "grow",
    "grow_checkpoint",
    "grow_states",
    "load",
    "measure",
    "named",
    "pair",
    "prove",
    "rebuild",
    "save",
    "trace",
]


def __getattr__(name: str) -> object:
    if name in _FOLDERS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_extra(f"lightning_ligo.{name}")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
