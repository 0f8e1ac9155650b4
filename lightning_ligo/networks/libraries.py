"""Libraries of networks: import one, and name what it knows that is near to what was asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any


def installed(package: str) -> ModuleType:
    """Import a library that is not required; raise ValueError if it is not installed."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"networks of {package} need the package {package}, which is not installed: "
            f"pip install {package}"
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
