"""Networks by short name, such as `timm:NAME` or `hf:FOLDER`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from lightning_ligo.networks.libraries import installed, nearest, with_own_names
from lightning_ligo.networks.pretrained import folder_of, from_folder

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
    if folder := folder_of(name):
        return from_folder(folder, overrides)
    if source == "hf" and rest:
        return _hugging_face(rest, overrides)
    raise ValueError(
        f"{name!r} is not the short name of a network; write timm:NAME, such as "
        "timm:vit_tiny_patch16_224, hf:MODEL_TYPE, such as hf:gpt2, or hf:FOLDER, such as hf:./gpt2"
    )


def spelled_out(description: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a network by its class or function, if its `class_path` is a short name.

    Raises:
        ValueError: for an unknown name, and for a setting that its configuration does not have.

    >>> spelled_out({"class_path": "hf:gpt2", "init_args": {"n_layer": 3}})["class_path"]
    'transformers.GPT2LMHeadModel'
    """
    name, settings = description.get("class_path"), description.get("init_args") or {}
    if not isinstance(name, str) or ":" not in name:
        return dict(description)
    return {**description, **named(name, **settings)}


def _timm(name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    timm = installed("timm")
    if not timm.is_model(name):
        raise ValueError(f"timm has no network {name!r}{nearest(name, timm.list_models())}")
    return {"class_path": "timm.create_model", "init_args": {"model_name": name, **overrides}}


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
