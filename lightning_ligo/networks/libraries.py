"""Libraries that are not required: import one, and name what it knows that is near to a name."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from types import ModuleType
from typing import Any

LIGHTNING = ("lightning", "torchmetrics", "jsonargparse", "matplotlib", "rich")
"""What the extra `lightning` installs."""


def check_extra(what: str) -> None:
    """Raise ModuleNotFoundError if a package of the extra `lightning` is not installed."""
    lacking = [package for package in LIGHTNING if find_spec(package) is None]
    if lacking:
        raise ModuleNotFoundError(
            f"{what} needs {lacking[0]}, which is not installed; "
            'run: pip install "lightning-ligo[lightning]"',
            name=lacking[0],
        )


def installed(package: str) -> ModuleType:
    """Import a library that is not required; raise ValueError if it is not installed."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"networks of {package} need the package {package}, which is not installed: "
            f"pip install {package}"
        ) from error


def of_recipes(module: str, what: str, package: str) -> ModuleType:
    """Import from a package of the extra `recipes`; raise ValueError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{what} needs {package}, which is not installed; run: pip install "
            '"lightning-ligo[recipes]"'
        ) from error


def nearest(name: str, known: Collection[str]) -> str:
    """Return the end of a message: known names that a misspelled one may mean."""
    longer = [other for other in known if other.startswith(name)]
    shorter = sorted((other for other in known if name.startswith(other)), key=len)
    near = longer[:3] or difflib.get_close_matches(name, list(known), n=3) or shorter[-1:]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def with_own_names(config: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by the names that a configuration of transformers itself uses.

    `num_hidden_layers` is `n_layer` of GPT-2. Raises ValueError for one that it does not have.
    """
    for name in settings:
        if not hasattr(config, name):
            there = {*vars(config), *config.attribute_map}
            raise ValueError(
                f"{type(config).__name__} has no setting {name!r}{nearest(name, there)}"
            )
    return {config.attribute_map.get(name, name): value for name, value in settings.items()}
