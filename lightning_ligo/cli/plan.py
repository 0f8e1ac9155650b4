"""The command `lightning-ligo plan`: what a growth would be, without training."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from typing import Any

from jsonargparse import get_loader
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from lightning.pytorch.loggers.logger import DummyLogger
from yaml import YAMLError

from lightning_ligo.callbacks.growth import GrowthCallback
from lightning_ligo.cli.base import QUIET, GrowthCLI, is_kind
from lightning_ligo.cli.planning import REAL, Planned, plan_pair, plan_run
from lightning_ligo.methods.catalog import DEFAULT, METHODS
from lightning_ligo.networks import named

USAGE = """\
lightning-ligo plan --small NAME --large NAME [--small.SETTING VALUE] [--large.SETTING VALUE]
                           [--method METHOD] [--override YAML] [--json]
       lightning-ligo plan --config FILE [options of lightning-ligo fit] [--json]"""

DESCRIPTION = """\
Show what a growth would be: the axes and stacks that become longer, what stays and why, what keeps
the function from being exactly the same, and what learning the operator costs. Nothing is trained,
downloaded or written.

  lightning-ligo plan --small timm:swin_tiny_patch4_window7_224 \\
                      --large timm:swin_base_patch4_window7_224
  lightning-ligo plan --small hf:gpt2 --small.n_layer 3 --small.n_embd 192 --small.n_head 3 \\
                      --large hf:gpt2
  lightning-ligo plan --config recipes/digits_vit.yaml
"""

EPILOG = f"""\
A name is timm:NAME, a network of timm's list_models(), or hf:MODEL_TYPE, a model type of
transformers with its default configuration. A setting is an argument of that network
(--small.depth 6) or of that configuration (--small.n_layer 3, --small.text_config.hidden_size 64);
its value is read as YAML. A network that timm has no classifier for gets one by num_classes.

With --config all growths of the run are planned, one after the other, on its own module and the
first batch of its own data, up to what `fit` would refuse at its start. One device of this machine
is used, whatever the run's own strategy; its loggers and other callbacks are left out. What its
module and data do when they are made and set up, such as a download, they do here too.

The cost is counted for the batch that is shown, in evaluation mode. FLOPs are of products and
convolutions, forward and backward. Memory is the most that all tensors hold at one time: weights,
gradients, AdamW's moments, activations. Not counted are the optimizer's step, what kernels use
within themselves, and what a run holds beside its network.

A network of more than {REAL // 10**6} million parameters is planned on the meta device: it takes no
memory, and whether the order of an axis means nothing is then not proved.

With --json there is {{"growths": [...]}}, and of each growth:
  small, large    descriptions of the networks (class_path, init_args); small may be null
  number, when    which growth of a run it is, and when it is due; else null
  step            the optimizer step of that, if it is known and not decided by the run; else null
  axes, stacks    those that grow, and all stacks: name -> [small, large] length or depth
  parameters      small, large: how many
  shared          heads of keys and values -> how many each of them becomes, as they were shared
  proofs          axis -> relative change of the output when it is permuted; null if not proved,
                  or if it needs no proof (entries that are added behind, single ones)
  fixed           axis that cannot grow -> its length, and the reason
  inexact         what keeps the large network from starting as exactly what the small one computes
  cost            coefficients, steps and method of the operator; batch: shapes of its tensors;
                  flops: learning (all of it), learning_step, generating_step (the part of it that
                  makes the weights), training_step (of the large network); training_steps: how
                  many of these cost as much as all the learning; bytes: learning, training; or null
  uncounted       why cost is null

It fails with the reason if a growth is not possible (exit status 1), or if an option is wrong (2).
"""


def plan(words: Sequence[str]) -> None:
    """Run the command with what stands behind `lightning-ligo plan`."""
    parser = _parser()
    options, rest = parser.parse_known_args(words)
    if options.config and (options.small or options.large or options.method or options.override):
        parser.error("--config brings the networks and the method: leave the other options out, or "
                     "change it by those of fit, as with --trainer.callbacks.method")  # fmt: skip
    if not options.config and not (options.small and options.large):
        parser.error("give --small and --large, or --config")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # whatever else is printed is no plan
            if options.config:
                configs = [word for config in options.config for word in ("--config", config)]
                planned = PlanCLI(["fit", *configs, *rest]).planned
            else:
                settings = _settings(parser, rest)
                small, large = (
                    named(name, **settings[which])
                    for which, name in (("small", options.small), ("large", options.large))
                )
                method, override = options.method or DEFAULT, options.override
                planned = [plan_pair(small, large, method, override)]
    except (ValueError, MisconfigurationException) as error:
        sys.exit(f"lightning-ligo plan: {error}")
    if options.json:
        print(json.dumps({"growths": [each.to_dict() for each in planned]}, indent=2))
    else:
        pair = f"{options.small} -> {options.large}"
        print("\n\n".join(f"{_moment(each) or pair}\n\n{each}" for each in planned))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-ligo plan",
        usage=USAGE,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--small", metavar="NAME", help="the network that grows")
    parser.add_argument("--large", metavar="NAME", help="the network that it becomes")
    parser.add_argument("--method", help=f"one of {', '.join(METHODS)} (default: {DEFAULT})")
    parser.add_argument(
        "--override", metavar="YAML", type=_yaml,
        help="axes that you name: '{blocks.*.mlp.fc1.weight: hidden embed}'; a number pins one",
    )  # fmt: skip
    parser.add_argument(
        "--config", metavar="FILE", action="append", help="the configuration of a run, as for fit"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else")
    return parser


def _yaml(text: str) -> Any:
    try:
        return get_loader("yaml")(text)
    except YAMLError as error:
        raise argparse.ArgumentTypeError(f"a value that is not YAML, {text!r}: {error}") from None


def _settings(parser: argparse.ArgumentParser, words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read `--small.key value` and `--large.key=value`; a key may itself have dots."""
    settings: dict[str, dict[str, Any]] = {"small": {}, "large": {}}
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
            found[path[-1]] = _yaml(text)
        except argparse.ArgumentTypeError as error:
            parser.error(f"{option} has {error}")
    return settings


def _moment(planned: Planned) -> str | None:
    """Which growth of a run it is, and when."""
    if planned.number is None:
        return None
    known = planned.step is not None and planned.when != f"step {planned.step}"
    step = f" (step {planned.step})" if known else ""
    return f"Growth {planned.number}, at {planned.when}{step}"


class PlanCLI(GrowthCLI):
    """Makes what a run is made of, but what writes or trains on many devices, and plans it."""

    planned: list[Planned]
    kept: tuple[type, ...] = (GrowthCallback,)  # of the run's callbacks

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """In place of Lightning's, which warns of the words that the process was called with."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]

    def before_instantiate_classes(self) -> None:
        self.save_config_callback = None
        trainer = self.config.fit.trainer
        callbacks = trainer.callbacks or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        trainer.callbacks = [
            callback for callback in callbacks if is_kind(callback.class_path, *self.kept)
        ]
        trainer.accelerator = "cpu" if trainer.accelerator == "cpu" else "auto"
        for name, value in QUIET.items():
            trainer[name] = value

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        return super().instantiate_trainer(logger=DummyLogger(), **kwargs)

    def fit(self, model: LightningModule, **options: Any) -> None:
        """In place of the Trainer's."""
        self.planned = plan_run(self.trainer, model, **options)
