"""The command `lightning-ligo`, also `python -m lightning_ligo`."""

import importlib
import sys
from collections.abc import Sequence

from lightning_ligo.networks.libraries import LIGHTNING, check_extra

COMMANDS = {
    "plan": "cli.plan:plan",
    "grow": "cli.grow:grow_command",
    "methods": "cli.methods:methods",
    "compare": "compare.command:compare",
}
"""Commands of this package."""

PLAIN = ("plan", "grow", "methods")
"""Commands that need Lightning for runs alone."""

RUNS = ("fit", "validate", "test", "predict")
"""Commands of LightningCLI."""

HELP = """\
usage: lightning-ligo COMMAND [options]

Train a network that grows while it trains.

  fit        train a run and grow its network; a run is one YAML file, as in recipes/
  validate   evaluate a checkpoint on the validation data
  test       evaluate a checkpoint on the test data
  predict    predict with a checkpoint
  plan       show a growth and its cost without training, of a run or of two networks
  grow       grow trained weights into a larger file, or a checkpoint between two runs
  methods    list the ways to grow
  compare    compare methods with training from scratch, at equal FLOPs

lightning-ligo COMMAND --help prints the options of a command. This prints a run with every option
and its default:

    lightning-ligo fit --model ImageClassifier --data DigitsDataModule --print_config

Growth is a callback of the Trainer; `to` holds what changes in the network:

    trainer:
      callbacks:
        - class_path: GrowthCallback
          init_args:
            growths:
              - fraction: 0.4
                to: {init_args: {embed_dim: 64, depth: 4, num_heads: 4}}

Instead of `fraction`, a growth has `step: 1000` or `epoch: 3`, or the run decides:

    plateau: {monitor: val_loss, patience: 3}         it has not improved for so long
    slope: {monitor: val_loss, threshold: -0.0475}    it falls too slowly for its FLOPs
    flops: 2e17                                       so many are spent
    file: grow.now                                    touched by hand in the log folder

Classes with a short name: GrowthCallback, ImageClassifier, LanguageModel, DigitsDataModule,
DigitPairsDataModule, ImageFolderDataModule, PythonSourceDataModule, TextDataModule,
TextDatasetDataModule, and those of Lightning and PyTorch. Other classes are named by their import
path. Options of a class:
lightning-ligo fit --model.help NAME, --data.help NAME, --trainer.callbacks.help NAME.
"""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line with `args`, by default the arguments of the process."""
    words = list(sys.argv[1:] if args is None else args)
    if words and words[0] in ("-h", "--help"):
        print(HELP, end="")
        sys.exit(0)
    if words and not words[0].startswith("-") and words[0] not in (*RUNS, *COMMANDS):
        known = ", ".join((*RUNS, *COMMANDS))
        print(f"lightning-ligo: no command {words[0]!r}, expected one of {known}", file=sys.stderr)
        sys.exit(2)
    command = COMMANDS[words.pop(0)] if words and words[0] in COMMANDS else "cli.base:train"
    module, function = command.split(":")
    try:
        if command not in map(COMMANDS.get, PLAIN):
            check_extra("this command")
        getattr(importlib.import_module(f"lightning_ligo.{module}"), function)(words)
    except ModuleNotFoundError as error:
        if error.name not in LIGHTNING:
            raise
        sys.exit(f"lightning-ligo: {error}")


if __name__ == "__main__":
    main()
