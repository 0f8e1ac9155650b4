"""The networks of a command line: `--small`, `--large`, their settings, and `--weights`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_ligo.cli.parser import CommandParser
from lightning_ligo.methods.catalog import DEFAULT, METHODS
from lightning_ligo.networks.description import is_description, merge
from lightning_ligo.networks.libraries import installed, with_own_names
from lightning_ligo.networks.names import named
from lightning_ligo.networks.pretrained import from_checkpoint, untrained

NETWORKS = """\
A network is named by one of these:

  timm:NAME        from timm's list_models(); --small.pretrained true takes timm's own weights
  hf:FOLDER        what save_pretrained of transformers has written, with its weights
  hf:OWNER/NAME    the same from the hub, which is downloaded
  hf:MODEL_TYPE    a model type of transformers with its default configuration
  FILE.ckpt        the network that the hyperparameters of a Lightning checkpoint describe

--weights names a file of trained weights for the small network: .safetensors, .pt, .pth, .bin,
.ckpt, an index of shards, or a folder. --weights.key, --weights.prefix and --weights.leave_out
choose among what it holds. Without --large, the large network is the small one with the settings of
--large.SETTING. A SETTING is an argument of that network (--large.depth 6) or of its configuration
(--large.num_hidden_layers 12, --small.text_config.hidden_size 64). VALUE is read as YAML."""


def add_networks(parser: CommandParser) -> None:
    """Add the options that name two networks and say how one grows into the other."""
    parser.add_argument("--small", metavar="NAME", help="the small network")
    parser.add_argument("--large", metavar="NAME", help="the large network (default: the small "
                        "one, with the settings of --large.SETTING)")  # fmt: skip
    parser.add_argument("--weights", metavar="FILE", help="trained weights of the small network")
    parser.add_argument(
        "--method", help=f"one of {', '.join(METHODS)} or DEPTH+WIDTH (default: {DEFAULT})"
    )
    parser.add_argument(
        "--override", metavar="YAML", type=read_yaml,
        help="names for axes: '{blocks.*.mlp.fc1.weight: hidden embed}'; a number pins an axis",
    )  # fmt: skip


def described(
    options: argparse.Namespace, settings: dict[str, dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Describe the small and the large network of a command line.

    Raises:
        ValueError: for names, settings and files that are not known.
    """
    small, weights = options.small, settings["weights"]
    if small.endswith(".ckpt"):
        _, description = from_checkpoint(Path(small))
        if settings["small"]:
            raise ValueError(f"{small} says how its network is made; leave --small.SETTING out")
    else:
        description = named(small, **settings["small"])
    if options.weights or weights:
        path = {"path": options.weights} if options.weights else {}
        description = {**description, "weights": {**path, **weights}}
    if options.large:
        return description, untrained(named(options.large, **settings["large"]))
    return description, changed(description, settings["large"])


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


def read_settings(
    parser: argparse.ArgumentParser, words: Sequence[str], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Parse `--small.key value` and `--large.key=value`; a key may have dots."""
    settings: dict[str, dict[str, Any]] = {name: {} for name in names}
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        which, *path = option.removeprefix("--").split(".")
        if not option.startswith("--") or which not in settings or not all(path) or not path:
            parser.error(f"unrecognized argument: {word}")
        text = value if equals else next(rest, None)
        if text is None:
            parser.error(f"{option} needs a value")
        found = settings[which]
        for part in path[:-1]:
            found = found.setdefault(part, {})
            if not isinstance(found, dict):
                parser.error(f"{option} is within {found!r}, which has no settings")
        try:
            found[path[-1]] = read_yaml(text)
        except argparse.ArgumentTypeError as error:
            parser.error(f"{option} has {error}")
    return settings


class _Loader(yaml.SafeLoader):
    """Reads numbers as Python writes them: 1e-5 needs no point."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(text: str) -> Any:
    """Read a word of the command line as YAML."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"a value that is not YAML, {text!r}: {error}") from None
