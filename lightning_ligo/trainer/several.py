"""Several networks of a LightningModule that grow in one run, taken for one.

Their parameters have the names that they have in the module, and they are described by

    {"networks": {"encoder": {"class_path": ...}, "decoder": {"class_path": ...}}}

A network that the user's own code builds is None in it until it grows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

Description = dict[str, Any]

NETWORKS = "networks"
SEPARATOR = ", "
"""Joins the names of the networks."""


class Networks(nn.Module):
    """Holds networks under the names that they have in a LightningModule, which may be dotted."""

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, network in networks.items():
            owner: nn.Module = self
            *path, last = name.split(".")
            for each in path:
                if each not in dict(owner.named_children()):
                    owner.add_module(each, nn.Module())
                owner = owner.get_submodule(each)
            owner.add_module(last, network)


def parted(description: Description | None, attribute: str = "") -> dict[str, Description | None]:
    """Return the descriptions of several networks by name; of one network under this name."""
    if description is not None and NETWORKS in description:
        return dict(description[NETWORKS])
    return {attribute: description}


def whole(descriptions: Mapping[str, Description | None]) -> Description | None:
    """Return the description whose parts `parted` returns."""
    if len(descriptions) > 1:
        return {NETWORKS: dict(descriptions)}
    return next(iter(descriptions.values()))
