"""A network as plain data: describe one, change the description, build it.

A description is jsonargparse's notation for a class with its arguments:

    {"class_path": "timm.models.VisionTransformer", "init_args": {"embed_dim": 64, "depth": 4}}

It holds plain data only (dict, list, str, int, float, bool, None), so it fits in a YAML file, in
hyperparameters and in a checkpoint that is loaded with `weights_only=True`; a tuple becomes a list.
A value in `init_args` with a `class_path` is built first, such as the configuration of a Hugging
Face model. A string is never resolved; to pass a class as an argument, write a function that does
so.

A short name may stand for the class path, with settings under `init_args`, see `named`:

    {"class_path": "timm:vit_tiny_patch16_224", "init_args": {"depth": 4}}

A third key, `weights`, says where the trained weights of the network are, see `weights.py`.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_ligo.networks.names import spelled_out
from lightning_ligo.networks.pretrained import resolved, untrained
from lightning_ligo.networks.weights import load

M = TypeVar("M", bound=nn.Module)

_KEYS = {"class_path", "init_args", "weights"}


def is_description(value: object) -> bool:
    """Return whether `value` is a dict with a `class_path`."""
    return isinstance(value, Mapping) and isinstance(value.get("class_path"), str)


def describe(constructor: Callable[..., Any], **init_args: Any) -> dict[str, Any]:
    """Describe the call `constructor(**init_args)`; an argument may be a description itself.

    The constructor may be a class method, such as `GPT.from_name`.

    Raises:
        ValueError: for a constructor that cannot be imported by its name (local ones, lambdas,
            other methods), and for arguments that are not plain data.

    >>> describe(nn.Linear, in_features=2, out_features=3)["class_path"]
    'torch.nn.modules.linear.Linear'
    """
    owner = getattr(constructor, "__self__", None)
    named = owner if _is_class_method(constructor) else constructor
    class_path = f"{getattr(named, '__module__', None)}.{getattr(named, '__qualname__', None)}"
    if named is owner:  # which may have inherited its class method
        class_path += f".{constructor.__name__}"
    try:
        found = _import(class_path)
    except ValueError as error:
        raise ValueError(
            f"{constructor!r} cannot be described: a description is an import path and {error}; "
            "define it at the top of an importable module"
        ) from error
    if found != constructor:
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

    On `"meta"` its weights take no memory, or only briefly if its constructor reads values, and no
    trained weights are read. Elsewhere they are, and must fit.

    A description may come from an untrusted checkpoint, so only these are called: at the top a
    subclass of `nn.Module`, a class method `from_...` of one, or a function annotated to return
    one; in the arguments a subclass of `nn.Module`, a dataclass, or a class of the package of the
    network. Building still runs code of that package with the given arguments.

    Raises:
        ValueError: for a description that is malformed, cannot be imported or names something else,
            and for a constructor that fails; for weights that are not there or do not fit.

    >>> build(describe(nn.Linear, in_features=2, out_features=3))
    Linear(in_features=2, out_features=3, bias=True)
    """
    description = _checked(description)
    on_meta = device is not None and torch.device(device).type == "meta"
    description = spelled_out(resolved(description))
    description = untrained(description) if on_meta else description
    class_path = description["class_path"]
    constructor = _import(class_path)
    if not _makes_module(constructor):
        raise ValueError(
            f"{class_path} cannot be built: a network is a subclass of torch.nn.Module, a class "
            "method from_... of one, or a function annotated to return one, got "
            f"{constructor!r}"
        )
    package = class_path.partition(".")[0]

    def call() -> nn.Module:
        network = _call(constructor, description, package)
        if not isinstance(network, nn.Module):
            kind = type(network).__name__
            raise ValueError(f"{class_path} returned {kind}, not a torch.nn.Module")
        return network

    network = on_device(call, device)
    if description.get("weights") and not on_meta:
        load(network, description["weights"])
    return network


def on_device(make: Callable[[], M], device: torch.device | str | None) -> M:
    """Make a module on a device, if one is given; on `"meta"` its weights take no memory."""
    if device is None:
        return make()
    on_meta = torch.device(device).type == "meta"
    try:
        with torch.device(device):
            module = make()
    except ValueError:
        if not on_meta:
            raise
        module = make()  # many constructors read values, such as drop rates, and "meta" has none
    if on_meta:
        _to_meta(module)
    return module


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
    value = _checked(value)
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


def _is_class_method(constructor: Any) -> bool:
    return inspect.ismethod(constructor) and isinstance(constructor.__self__, type)


def _makes_module(constructor: Any) -> bool:
    if isinstance(constructor, type):
        return issubclass(constructor, nn.Module)
    if _is_class_method(constructor) and constructor.__name__.startswith("from_"):
        return issubclass(constructor.__self__, nn.Module)
    if not inspect.isfunction(constructor):
        return False
    try:
        returned = typing.get_type_hints(constructor).get("return")
    except (NameError, TypeError):  # an annotation that only a type checker can resolve
        return False
    return isinstance(returned, type) and issubclass(returned, nn.Module)


def _checked(description: object) -> dict[str, Any]:
    """Return a copy of a description as plain data, after a check of its keys."""
    if not isinstance(description, Mapping) or not is_description(description):
        raise ValueError(
            "a network description is a dict {'class_path': ..., 'init_args': {...}}, "
            f"got {description!r}"
        )
    if unknown := sorted(map(str, description.keys() - _KEYS)):
        raise ValueError(
            f"the description of {description['class_path']} has unknown keys {unknown}; "
            "only class_path, init_args and weights are read, write every argument under init_args"
        )
    if not isinstance(description.get("init_args", {}), Mapping):
        raise ValueError(
            f"the init_args of {description['class_path']} must be a dict of arguments by name, "
            f"got {description['init_args']!r}"
        )
    return dict(_plain(description, description["class_path"]))


def _plain(value: Any, where: str) -> Any:
    """Return a copy of plain data, with dicts and lists for other mappings and sequences.

    `where` names the place in an error.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if type(key) is not str:
                raise ValueError(f"{where}: keys must be strings, got {key!r}")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
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
