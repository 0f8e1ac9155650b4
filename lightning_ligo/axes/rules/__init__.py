"""What each tensor operation does to the factors of its dimensions: one rule per operation."""

from lightning_ligo.axes.rules import elementwise, lookup, norms, products, recurrent, shape, space
from lightning_ligo.axes.rules.elementwise import pointwise
from lightning_ligo.axes.rules.recurrent import RECURRENT
from lightning_ligo.axes.rules.table import RULES, unread, untouched
from lightning_ligo.axes.rules.writers import writers

__all__ = ["RECURRENT", "RULES", "elementwise", "lookup", "norms", "pointwise", "products",
           "recurrent", "shape", "space", "unread", "untouched", "writers"]  # fmt: skip
