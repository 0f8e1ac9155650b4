"""Networks as plain data: describe one, change the description, build it.

A description is jsonargparse's notation for a class with its arguments:

    {"class_path": "timm.models.VisionTransformer", "init_args": {"embed_dim": 64, "depth": 4}}

It holds plain data only (dict, list, str, int, float, bool, None), so it fits in a YAML file, in
hyperparameters and in a checkpoint that is loaded with `weights_only=True`. A value in `init_args`
with a `class_path` is built first, such as the configuration of a Hugging Face model. A string is
never resolved; to pass a class as an argument, write a function that does so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ligo.axes.calls import evaluating

_KEYS = {"class_path", "init_args"}


def is_description(value: object) -> bool:
    """Return whether `value` is a dict with a `class_path`."""
    return isinstance(value, Mapping) and isinstance(value.get("class_path"), str)


def describe(constructor: Callable[..., Any], **init_args: Any) -> dict[str, Any]:
    """Describe the call `constructor(**init_args)`; an argument may be a description itself.

    Raises:
        ValueError: for a constructor that cannot be imported by its name (local ones, lambdas,
            methods), and for arguments that are not plain data.

    >>> describe(nn.Linear, in_features=2, out_features=3)["class_path"]
    'torch.nn.modules.linear.Linear'
    """
    module = getattr(constructor, "__module__", None)
    name = getattr(constructor, "__qualname__", None)
    class_path = f"{module}.{name}"
    try:
        found = _import(class_path)
    except ValueError as error:
        raise ValueError(
            f"{constructor!r} cannot be described: a description is an import path and {error}; "
            "define it at the top of an importable module"
        ) from error
    if found is not constructor:
        raise ValueError(
            f"{constructor!r} cannot be described: {class_path!r} imports {found!r} instead; "
            "define it at the top of an importable module under its own name"
        )
    return {"class_path": class_path, "init_args": _plain(init_args, f"{class_path}: init_args")}


def merge(description: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description updated with `changes`, dict by dict; both arguments stay as they are.

    Changes with a `class_path`, at the top or in an argument, replace the whole dict.

    Raises:
        ValueError: for changes that do not fit a description.

    >>> small = describe(nn.Linear, in_features=2, out_features=3)
    >>> merge(small, {"init_args": {"out_features": 6}})["init_args"]
    {'in_features': 2, 'out_features': 6}
    """
    merged: dict[str, Any] = _plain(description, "description")
    changes = _plain(changes, "changes")
    if is_description(changes):
        return dict(changes)
    if is_description(description) and (unknown := sorted(changes.keys() - _KEYS)):
        raise ValueError(
            f"changes to {description['class_path']} have unknown keys {unknown}; "
            "write arguments under init_args: {'init_args': {name: value}}"
        )
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def build(description: Mapping[str, Any], device: torch.device | str | None = None) -> nn.Module:
    """Build the network of a description, on `device` if one is given.

    On `"meta"` its weights take no memory, or only briefly if its constructor reads values.

    A description may come from an untrusted checkpoint, so only these are called: at the top a
    subclass of `nn.Module` or a function annotated to return one; in the arguments a subclass of
    `nn.Module`, a dataclass, or a class of the package of the network. Building still runs code of
    that package with the given arguments.

    Raises:
        ValueError: for a description that is malformed, cannot be imported or names something else,
            and for a constructor that fails.

    >>> build(describe(nn.Linear, in_features=2, out_features=3))
    Linear(in_features=2, out_features=3, bias=True)
    """
    _check_description(description)
    class_path = description["class_path"]
    constructor = _import(class_path)
    if not _makes_module(constructor):
        raise ValueError(
            f"{class_path} cannot be built: a network is a subclass of torch.nn.Module or a "
            f"function annotated to return one, got {constructor!r}"
        )
    package = class_path.partition(".")[0]
    on_meta = device is not None and torch.device(device).type == "meta"
    try:
        with torch.device(device) if device is not None else contextlib.nullcontext():
            network = _call(constructor, description, package)
    except ValueError:
        if not on_meta:
            raise
        # many constructors read values, such as drop rates, and "meta" has none
        network = _call(constructor, description, package)
    if not isinstance(network, nn.Module):
        raise ValueError(f"{class_path} returned {type(network).__name__}, not a torch.nn.Module")
    if on_meta:
        _to_meta(network)
    return network


def _to_meta(network: nn.Module) -> None:
    """Move all tensors to the meta device; unlike `Module.to`, keep tied weights tied."""
    moved: dict[Tensor, Tensor] = {}
    for module in network.modules():
        held: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in held:
            for name, tensor in tensors.items():
                if tensor is None or tensor.is_meta:
                    continue
                if tensor not in moved:
                    empty = tensor.detach().to("meta")
                    if isinstance(tensor, nn.Parameter):
                        empty = nn.Parameter(empty, tensor.requires_grad)
                    moved[tensor] = empty
                tensors[name] = moved[tensor]


def _call(constructor: Callable[..., Any], description: Mapping[str, Any], package: str) -> Any:
    arguments = {
        name: _build_argument(value, package)
        for name, value in description.get("init_args", {}).items()
    }
    try:
        return constructor(**arguments)
    except Exception as error:
        raise ValueError(
            f"{description['class_path']} cannot be built from its init_args "
            f"{description.get('init_args', {})}: {type(error).__name__}: {error}"
        ) from error


def _build_argument(value: Any, package: str) -> Any:
    if isinstance(value, list):
        return [_build_argument(item, package) for item in value]
    if not isinstance(value, Mapping):
        return value
    if not is_description(value):
        return {key: _build_argument(item, package) for key, item in value.items()}
    _check_description(value)
    class_path = value["class_path"]
    constructor = _import(class_path)
    if not isinstance(constructor, type) or not (
        issubclass(constructor, nn.Module)
        or dataclasses.is_dataclass(constructor)
        or constructor.__module__.partition(".")[0] == package
    ):
        raise ValueError(
            f"{class_path} cannot be built as an argument: it must be a subclass of "
            f"torch.nn.Module, a dataclass, or a class of {package}, got {constructor!r}"
        )
    return _call(constructor, value, package)


def _makes_module(constructor: object) -> bool:
    if isinstance(constructor, type):
        return issubclass(constructor, nn.Module)
    if not inspect.isfunction(constructor):
        return False
    try:
        returned = typing.get_type_hints(constructor).get("return")
    except (NameError, TypeError):  # an annotation that only a type checker can resolve
        return False
    return isinstance(returned, type) and issubclass(returned, nn.Module)


def _check_description(description: object) -> None:
    if not isinstance(description, Mapping) or not is_description(description):
        raise ValueError(
            "a network description is a dict {'class_path': ..., 'init_args': {...}}, "
            f"got {description!r}"
        )
    if unknown := sorted(map(str, description.keys() - _KEYS)):
        raise ValueError(
            f"the description of {description['class_path']} has unknown keys {unknown}; "
            "only class_path and init_args are read, write every argument under init_args"
        )
    if not isinstance(description.get("init_args", {}), Mapping):
        raise ValueError(
            f"the init_args of {description['class_path']} must be a dict of arguments by name, "
            f"got {description['init_args']!r}"
        )
    _plain(description, description["class_path"])


def _plain(value: Any, where: str) -> Any:
    """Return a copy of plain data; `where` names the place in an error."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if type(key) is not str:
                raise ValueError(f"{where}: keys must be strings, got {key!r}")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if type(value) is list:
        return [_plain(item, f"{where}[{position}]") for position, item in enumerate(value)]
    raise ValueError(
        f"{where} must be plain data (dict, list, str, int, float, bool or None), "
        f"got {value!r} of type {type(value).__name__}"
    )


def _import(class_path: str) -> Any:
    """Import `package.module.Name`; names may be nested, as in `package.module.Outer.Inner`."""
    parts = class_path.split(".")
    for split in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:split])
        try:
            found = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
                continue
            raise ValueError(f"{class_path!r} cannot be imported: {error}") from error
        except Exception as error:
            raise ValueError(
                f"{class_path!r} cannot be imported: {type(error).__name__}: {error}"
            ) from error
        for name in parts[split:]:
            if not hasattr(found, name):
                raise ValueError(
                    f"{class_path!r} cannot be imported: {found!r} has no attribute {name!r}"
                )
            found = getattr(found, name)
        return found
    raise ValueError(f"{class_path!r} cannot be imported: no module named {parts[0]!r}")


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
    or else the bare model. Weights are random.

    Raises:
        ValueError: for an unknown name, with the nearest known ones; for an override that the
            configuration does not have; if timm or transformers is not installed.

    >>> named("timm:vit_tiny_patch16_224", depth=6)["init_args"]
    {'model_name': 'vit_tiny_patch16_224', 'depth': 6}
    >>> named("hf:gpt2", n_layer=3)["class_path"]
    'transformers.GPT2LMHeadModel'
    """
    source, _, rest = name.partition(":")
    if source == "timm" and rest:
        return _timm(rest, overrides)
    if source == "hf" and rest:
        return _hugging_face(rest, overrides)
    raise ValueError(
        f"{name!r} is not the short name of a network; write timm:NAME, such as "
        "timm:vit_tiny_patch16_224, or hf:MODEL_TYPE, such as hf:gpt2"
    )


def inputs_of(
    description: Mapping[str, Any], network: nn.Module, names: Collection[str] = ()
) -> dict[str, Tensor]:
    """Return a small random batch, by name, for a network that `named` has described.

    The network is called with it, unless ``names`` holds the inputs of another network of the
    family.

    Raises:
        ValueError: if no inputs are found that the network takes.
    """
    if description["class_path"] == "timm.create_model":
        known = _images(description["init_args"], network)
        main = next(iter(known))
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
    timm = _installed("timm")
    if not timm.is_model(name):
        raise ValueError(f"timm has no network {name!r}{_nearest(name, timm.list_models())}")
    if "pretrained" in overrides:
        raise ValueError(f"timm:{name} has random weights; leave pretrained out")
    return {"class_path": "timm.create_model", "init_args": {"model_name": name, **overrides}}


def _images(settings: Mapping[str, Any], network: nn.Module) -> _Inputs:
    channels, *sides = network.pretrained_cfg["input_size"]  # type: ignore[index]
    channels, sides = settings.get("in_chans", channels), settings.get("img_size", sides)
    first = next(iter(inspect.signature(network.forward).parameters))
    return {first: lambda: _noise(channels, *_pair(sides))}


# Hugging Face -------------------------------------------------------------------------------------


def _hugging_face(model_type: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    transformers = _installed("transformers")
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    known = auto.MODEL_MAPPING_NAMES
    if model_type not in known:
        raise ValueError(
            f"transformers has no model type {model_type!r} (the model_type of a configuration, "
            f"not a name on the hub){_nearest(model_type, known)}"
        )
    mappings = [getattr(auto, f"MODEL_FOR_{task}_MAPPING_NAMES") for task in _PREFERRED]
    model = next(found[model_type] for found in (*mappings, known) if model_type in found)
    config = transformers.AutoConfig.for_model(model_type)
    for key in overrides:
        if not hasattr(config, key):
            there = {*vars(config), *config.attribute_map}
            raise ValueError(
                f"{type(config).__name__} has no setting {key!r}{_nearest(key, there)}"
            )
    configuration = {"class_path": f"transformers.{type(config).__name__}", "init_args": overrides}
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


def _installed(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"networks of {package} need the package {package}, which is not installed: "
            f"pip install {package}"
        ) from error


def _nearest(name: str, known: Collection[str]) -> str:
    """Return the end of a message: known names that a misspelled one may mean."""
    longer = [other for other in known if other.startswith(name)]
    shorter = sorted((other for other in known if name.startswith(other)), key=len)
    near = longer[:3] or difflib.get_close_matches(name, list(known), n=3) or shorter[-1:]
    return f"; did you mean {' or '.join(near)}?" if near else ""
