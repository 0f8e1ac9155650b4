"""Descriptions with trained weights: those of timm, torchvision and Hugging Face.

Trained weights belong to the small network alone. `untrained` leaves them out, and a large network
is described by that. What `from_pretrained` of transformers loads is written as a class, its
configuration and a folder with weights.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_ligo.networks.libraries import installed, with_own_names
from lightning_ligo.networks.weights import adapter_refused, read_checkpoint

_ARGUMENTS = {
    "timm": ("pretrained", "checkpoint_path"),
    "torchvision": ("weights", "weights_backbone", "pretrained"),
}
"""By library, the arguments that have its networks load trained weights."""

_FROM = ".from_pretrained"
_OF_A_CONFIG = ("model_type", "architectures", "transformers_version", "_name_or_path", "dtype")
_NEEDED = ["*.json", "*.txt", "*.model", "*.safetensors"]


def loads_weights(description: Mapping[str, Any]) -> list[str]:
    """List the parts of a description by which its network would load trained weights.

    >>> loads_weights({"class_path": "timm.create_model", "init_args": {"pretrained": True}})
    ['pretrained']
    """
    found = ["weights"] if description.get("weights") else []
    class_path, arguments = str(description.get("class_path")), description.get("init_args") or {}
    names = _ARGUMENTS.get(re.split("[.:]", class_path)[0], ())
    found += [name for name in names if arguments.get(name)]
    found += [_FROM[1:]] if class_path.endswith(_FROM) else []
    return found + ([class_path] if folder_of(class_path) else [])


def folder_of(name: str) -> str | None:
    """Return the folder, or the name on the hub, of a short name `hf:FOLDER`; None of any other."""
    source, _, rest = name.partition(":")
    return rest if source == "hf" and ("/" in rest or (rest and Path(rest).is_dir())) else None


def untrained(description: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the same network without trained weights.

    Raises:
        ValueError: if the configuration of a `from_pretrained` cannot be found.

    >>> small = {"class_path": "timm.create_model", "init_args": {"pretrained": True, "depth": 2}}
    >>> untrained(small)["init_args"]
    {'depth': 2}
    """
    loads = loads_weights(description)
    if not loads:
        return dict(description)
    plain = {name: value for name, value in resolved(description).items() if name != "weights"}
    arguments = plain.get("init_args") or {}
    kept = {name: value for name, value in arguments.items() if name not in loads}
    return plain | {"init_args": kept} if "init_args" in plain else plain


def resolved(description: Mapping[str, Any]) -> dict[str, Any]:
    """Describe what `from_pretrained` or `hf:FOLDER` loads: a class, its configuration and weights.

    `from_config` of an `AutoModel` is the class that it chooses. Every other description is
    returned as it is.

    Raises:
        ValueError: if there is no configuration, for code from elsewhere, and for arguments that
            are no settings of the configuration.
    """
    class_path = description.get("class_path", "")
    if class_path.startswith("transformers.") and class_path.endswith(".from_config"):
        return _of_config(description)
    if folder := folder_of(class_path):
        return from_folder(folder, description.get("init_args") or {})
    if not class_path.endswith(_FROM):
        return dict(description)
    if not class_path.startswith("transformers.") or description.get("weights"):
        raise ValueError(
            f"{class_path} cannot be used: from_pretrained is known of classes of transformers "
            "only, and brings its own weights"
        )
    arguments = dict(description.get("init_args") or {})
    name = arguments.pop("pretrained_model_name_or_path", None)
    if not isinstance(name, str):
        raise ValueError(
            f"{class_path} needs the argument pretrained_model_name_or_path, a folder or a name on "
            f"the hub, got {name!r}"
        )
    return from_folder(name, arguments, class_path.removesuffix(_FROM))


def from_folder(
    name: str, settings: Mapping[str, Any], class_path: str | None = None
) -> dict[str, Any]:
    """Describe a trained network of transformers, from a folder or from the hub.

    Args:
        name: a folder of `save_pretrained`, or a name on the hub, which is downloaded.
        settings: settings of the configuration to replace.
        class_path: its class, or an `AutoModelFor...`; by default the one that was saved.

    Raises:
        ValueError: if there is no configuration, or it does not have a setting.
    """
    transformers = installed("transformers")
    folder = _folder(name)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(adapter_refused(folder))
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"the folder {folder} has no config.json, so the shape of its network is not known; "
            "give a folder that save_pretrained has written"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise ValueError(f"{folder / 'config.json'} cannot be used: {error}") from error
    settings = with_own_names(config, settings)
    plain = json.loads(config.to_json_string())
    plain = {key: value for key, value in plain.items() if key not in _OF_A_CONFIG} | settings
    configuration = {"class_path": f"transformers.{type(config).__name__}", "init_args": plain}
    return {
        "class_path": _class(transformers, config, class_path, folder),
        "init_args": {"config": configuration},
        "weights": str(folder),
    }


def from_checkpoint(path: Path) -> tuple[str, dict[str, Any]]:
    """Describe the trained network of a Lightning checkpoint, from the module's hyperparameters.

    Returns:
        The name of the hyperparameter, and the description with its weights.

    Raises:
        ValueError: for a file that cannot be read, or without a description.
    """
    hparams = read_checkpoint(path).get("hyper_parameters") or {}
    for name, value in hparams.items():
        if isinstance(value, Mapping) and isinstance(value.get("class_path"), str):
            return name, {**untrained(value), "weights": {"path": str(path), "prefix": f"{name}."}}
    raise ValueError(
        f"the hyperparameters of {path} have no description of a network, only "
        f"{', '.join(hparams) or 'none'}; describe the network and give the file as its weights"
    )


def _of_config(description: Mapping[str, Any]) -> dict[str, Any]:
    """Describe what `AutoModel.from_config` makes from a configuration that is described."""
    transformers, arguments = installed("transformers"), description.get("init_args") or {}
    path = str((arguments.get("config") or {}).get("class_path"))
    kind = getattr(transformers, path.rpartition(".")[2], None)
    if not isinstance(kind, type) or not issubclass(kind, transformers.PretrainedConfig):
        raise ValueError(
            f"{description['class_path']} needs the argument config, a description of a "
            f"configuration of transformers, got {arguments.get('config')}"
        )
    auto = "transformers." + description["class_path"].split(".")[-2]
    return {**description, "class_path": _class(transformers, kind(), auto, Path())}


def _class(transformers: Any, config: Any, class_path: str | None, folder: Path) -> str:
    """Return the class of a network: an `AutoModel` is the one that it would choose."""
    if class_path is None:
        saved = (config.architectures or [None])[0]
        if saved is None or not hasattr(transformers, saved):
            raise ValueError(
                f"{folder / 'config.json'} names no class of transformers in its architectures, "
                f"got {saved!r}; describe the network by its class and from_pretrained"
            )
        return f"transformers.{saved}"
    name = class_path.rpartition(".")[2]
    known = getattr(getattr(transformers, name, None), "_model_mapping", None)
    if not name.startswith("AutoModel") or known is None:
        return class_path
    if type(config) not in known:
        raise ValueError(f"{name} knows no network of type {config.model_type!r}")
    found = known[type(config)]
    chosen = found if isinstance(found, type) else found[0]
    return f"transformers.{chosen.__name__}"


def _folder(name: str) -> Path:
    """Return the folder of a network, downloaded if it is a name on the hub."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"there is no folder {name}")
    hub = importlib.import_module("huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=_NEEDED))
    except Exception as error:
        raise ValueError(
            f"there is no folder {name}, and it cannot be downloaded from the hub: "
            f"{type(error).__name__}: {error}"
        ) from error
