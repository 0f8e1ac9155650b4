"""What each tensor operation does to the factors of its dimensions: one rule per operation."""

from lightning_ligo.rules import elementwise, lookup, norms, products, shape, space
from lightning_ligo.rules.elementwise import bend, pointwise
from lightning_ligo.rules.table import RULES, unread, untouched
from lightning_ligo.rules.writers import writers

__all__ = ["RULES", "bend", "elementwise", "lookup", "norms", "pointwise", "products", "shape",
           "space", "unread", "untouched", "writers"]  # fmt: skip
