"""Inputs for networks of timm and transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ligo.axes.calls import evaluating

BATCH, TOKENS, PIXELS, SAMPLES = 2, 8, 224, 16_000
"""Examples in a batch; length of a text, side of an image, samples in a second of sound."""

_Inputs = dict[str, Callable[[], Tensor]]


def inputs_of(
    description: Mapping[str, Any], network: nn.Module, names: Collection[str] = ()
) -> dict[str, Tensor]:
    """Return a small random batch, by name, for a network of timm or of transformers.

    The network is called with it, unless ``names`` holds the inputs of another network of the
    family.

    Raises:
        ValueError: if no inputs are found that the network takes.
    """
    if description["class_path"].startswith("timm."):
        known = _images(description["init_args"], network)
        main = next(iter(known))
    elif not hasattr(network, "main_input_name"):
        raise ValueError(
            f"the inputs of {type(network).__name__} are not known: it is neither of timm nor of "
            "transformers; give data, or plan a run of it, or pair it in Python"
        )
    else:
        known, main = _texts_and_more(network), network.main_input_name  # type: ignore[assignment]
    if names and known.keys() >= set(names):
        return {name: known[name]() for name in names}
    takes = [name for name in known if name in inspect.signature(network.forward).parameters]
    device = next(network.parameters()).device
    for tried in ([main], [main, *(name for name in takes if name != main)]):
        try:
            inputs = {name: known[name]() for name in tried}
            with evaluating(network), torch.no_grad():
                network(**{name: tensor.to(device) for name, tensor in inputs.items()})
            return inputs
        except Exception as error:  # a network may raise anything for a missing input
            reason = f"{type(error).__name__}: {error}"
    where = " on the meta device (it is large)" if device.type == "meta" else ""
    raise ValueError(
        f"{type(network).__name__} cannot be called: its inputs are not known, and with "
        f"{', '.join(tried)} it fails{where}: {reason}; plan a run of it, or pair it in Python"
    )


# timm ---------------------------------------------------------------------------------------------


def _images(settings: Mapping[str, Any], network: nn.Module) -> _Inputs:
    known: Any = getattr(network, "pretrained_cfg", None) or {}
    channels, *sides = known.get("input_size", (3, PIXELS, PIXELS))
    channels, sides = settings.get("in_chans", channels), settings.get("img_size", sides)
    first = next(iter(inspect.signature(network.forward).parameters))
    return {first: lambda: _noise(channels, *_pair(sides))}


# Hugging Face -------------------------------------------------------------------------------------


def _texts_and_more(network: Any) -> _Inputs:
    config = network.config
    return {
        "input_ids": lambda: _ids(config),
        "decoder_input_ids": lambda: _ids(config),
        "pixel_values": lambda: _pixels(config),
        "input_features": lambda: _noise(config.num_mel_bins, 2 * config.max_source_positions),
        "input_values": lambda: _noise(SAMPLES),
    }


def _ids(config: Any) -> Tensor:
    """Return token ids, without the first few of a vocabulary, which are special."""
    ids = torch.arange(BATCH * TOKENS).reshape(BATCH, TOKENS)
    return (4 + ids) % config.get_text_config().vocab_size


def _pixels(config: Any) -> Tensor:
    config = getattr(config, "vision_config", config)
    side = getattr(config, "image_size", None) or PIXELS
    return _noise(getattr(config, "num_channels", 3), *_pair(side))


# Both ---------------------------------------------------------------------------------------------


def _noise(*lengths: int) -> Tensor:
    return torch.randn(BATCH, *lengths, generator=torch.Generator().manual_seed(0))


def _pair(side: Any) -> list[int]:
    """Return height and width, of a square or as listed."""
    return [side, side] if isinstance(side, int) else list(side)
