"""Networks by short name, such as `timm:NAME` or `hf:FOLDER`, and inputs for them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ligo.axes.calls import evaluating
from lightning_ligo.networks.description import is_description, merge
from lightning_ligo.networks.libraries import installed, nearest, with_own_names
from lightning_ligo.networks.pretrained import from_folder, untrained

BATCH, TOKENS, PIXELS, SAMPLES = 2, 8, 224, 16_000
"""Examples in a batch; length of a text, side of an image, samples in a second of sound."""

_Inputs = dict[str, Callable[[], Tensor]]
_PREFERRED = (
    "MASKED_LM",  # before causal ones: encoders have causal versions too
    "SEQ_TO_SEQ_CAUSAL_LM",  # before causal ones: those are only the decoders
    "SPEECH_SEQ_2_SEQ",
    "CAUSAL_LM",
    "IMAGE_CLASSIFICATION",
    "CTC",
    "AUDIO_CLASSIFICATION",
    "SEQUENCE_CLASSIFICATION",
)
"""Tasks in the order in which models are looked for; a bare model would change its output."""


def named(name: str, /, **overrides: Any) -> dict[str, Any]:
    """Describe a network by its short name, with some of its settings replaced.

    `timm:NAME` is `timm.create_model(NAME, **overrides)`. `hf:MODEL_TYPE` is a configuration of
    transformers with `overrides`, and the first model class that exists for masked, sequence to
    sequence or causal language modelling, image classification, CTC, audio or text classification,
    or else the bare model. Weights of both are random. `hf:FOLDER` is what `save_pretrained` has
    written, with its weights, and so is `hf:OWNER/NAME` of the hub, which is downloaded.

    Raises:
        ValueError: for an unknown name, with the nearest known ones; for an override that the
            configuration does not have; if timm or transformers is not installed; for a folder
            without a configuration.

    >>> named("timm:vit_tiny_patch16_224", depth=6)["init_args"]
    {'model_name': 'vit_tiny_patch16_224', 'depth': 6}
    >>> named("hf:gpt2", n_layer=3)["class_path"]
    'transformers.GPT2LMHeadModel'
    """
    source, _, rest = name.partition(":")
    if source == "timm" and rest:
        return _timm(rest, overrides)
    if source == "hf" and ("/" in rest or Path(rest).is_dir()):
        return from_folder(rest, overrides)
    if source == "hf" and rest:
        return _hugging_face(rest, overrides)
    raise ValueError(
        f"{name!r} is not the short name of a network; write timm:NAME, such as "
        "timm:vit_tiny_patch16_224, hf:MODEL_TYPE, such as hf:gpt2, or hf:FOLDER, such as hf:./gpt2"
    )


def changed(description: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a network, without trained weights, with some of its settings replaced.

    Settings of a network of transformers are those of its configuration.

    Raises:
        ValueError: for a setting that the configuration does not have.
    """
    plain = untrained(description)
    config = plain.get("init_args", {}).get("config")
    if not is_description(config):
        return merge(plain, {"init_args": dict(settings)})
    transformers = installed("transformers")
    kind = getattr(transformers, config["class_path"].rpartition(".")[2])
    given = dict(config.get("init_args", {}))
    settings = with_own_names(kind(**given), settings)
    if kind.attribute_map.get("num_hidden_layers", "num_hidden_layers") in settings:
        given.pop("layer_types", None)  # one entry a layer; the configuration makes it anew
    arguments = merge(given, settings)
    return merge(plain, {"init_args": {"config": {**config, "init_args": arguments}}})


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


def _timm(name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    timm = installed("timm")
    if not timm.is_model(name):
        raise ValueError(f"timm has no network {name!r}{nearest(name, timm.list_models())}")
    return {"class_path": "timm.create_model", "init_args": {"model_name": name, **overrides}}


def _images(settings: Mapping[str, Any], network: nn.Module) -> _Inputs:
    known: Any = getattr(network, "pretrained_cfg", None) or {}
    channels, *sides = known.get("input_size", (3, PIXELS, PIXELS))
    channels, sides = settings.get("in_chans", channels), settings.get("img_size", sides)
    first = next(iter(inspect.signature(network.forward).parameters))
    return {first: lambda: _noise(channels, *_pair(sides))}


# Hugging Face -------------------------------------------------------------------------------------


def _hugging_face(model_type: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    transformers = installed("transformers")
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    known = auto.MODEL_MAPPING_NAMES
    if model_type not in known:
        raise ValueError(
            f"transformers has no model type {model_type!r} (the model_type of a configuration, "
            f"not a name on the hub without its owner){nearest(model_type, known)}"
        )
    mappings = [getattr(auto, f"MODEL_FOR_{task}_MAPPING_NAMES") for task in _PREFERRED]
    model = next(found[model_type] for found in (*mappings, known) if model_type in found)
    config = transformers.AutoConfig.for_model(model_type)
    settings = with_own_names(config, overrides)
    configuration = {"class_path": f"transformers.{type(config).__name__}", "init_args": settings}
    return {
        "class_path": f"transformers.{model if isinstance(model, str) else model[0]}",
        "init_args": {"config": configuration},
    }


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
