"""The command line: `lightning-ligo fit | validate | test | predict | plan`."""

import sys
from argparse import RawDescriptionHelpFormatter
from pathlib import Path

import torch
from jsonargparse import DefaultHelpFormatter
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningCLI, SaveConfigCallback

# imported so that a configuration can name them shortly
from lightning_ligo.callbacks.growth import GrowthCallback
from lightning_ligo.data.digits import DigitsDataModule
from lightning_ligo.data.images import ImageFolderDataModule
from lightning_ligo.data.stdlib import PythonSourceDataModule
from lightning_ligo.data.text import TextDataModule
from lightning_ligo.modules import ImageClassifier, LanguageModel

SHORT_NAMES = (
    GrowthCallback,
    ImageClassifier,
    LanguageModel,
    DigitsDataModule,
    PythonSourceDataModule,
    ImageFolderDataModule,
    TextDataModule,
)

DESCRIPTION = f"""\
Train a network that grows while it trains. A run is one YAML file, as in recipes/;
this prints one with every option and its default:

    lightning-ligo fit --model ImageClassifier --data DigitsDataModule --print_config

What a growth would be and cost is shown, without training, by lightning-ligo plan, of a run or of
any two networks of timm and transformers: lightning-ligo plan --help.

Growth is a callback of the Trainer; `to` holds what changes in the network:

    trainer:
      callbacks:
        - class_path: GrowthCallback
          init_args:
            growths:
              - fraction: 0.4
                to: {{init_args: {{embed_dim: 64, depth: 4, num_heads: 4}}}}

Classes with a short name: {", ".join(known.__name__ for known in SHORT_NAMES[:4])},
{", ".join(known.__name__ for known in SHORT_NAMES[4:])}, and Lightning's and PyTorch's.
Your own are named by their import path. Their options: lightning-ligo fit --model.help NAME,
--data.help NAME, --trainer.callbacks.help NAME.
"""


class RawDescription(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of the description."""


class KeepConfig(SaveConfigCallback):
    """Saves the configuration as Lightning does; one that is already there is renamed, not lost."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = trainer.log_dir
        if folder is not None and trainer.is_global_zero and not self.already_saved:
            config = Path(folder, self.config_filename)
            if config.is_file():
                config.rename(_unused(config))
        super().setup(trainer, pl_module, stage)


def _unused(path: Path) -> Path:
    """The first of `config.0.yaml`, `config.1.yaml`, ... that does not exist."""
    number = 0
    while (candidate := path.with_suffix(f".{number}{path.suffix}")).exists():
        number += 1
    return candidate


class GrowthCLI(LightningCLI):
    """LightningCLI for any LightningModule and LightningDataModule."""

    def __init__(self, args: ArgsType = None, run: bool = True) -> None:
        super().__init__(
            save_config_callback=KeepConfig,
            seed_everything_default=0,
            parser_kwargs={
                "prog": "lightning-ligo",
                "description": DESCRIPTION,
                "formatter_class": RawDescription,
            },
            args=args,
            run=run,
        )

    def _parse_ckpt_path(self) -> None:
        """Take the hyperparameters of `--ckpt_path`, which say how large its network is.

        Lightning's own does so for a checkpoint of a command line, which names the module's class;
        one that a Python program wrote is taken to be of the configuration's class.
        """
        config = self.config[self.config.subcommand] if "subcommand" in self.config else {}
        path = config.get("ckpt_path")
        if path is None or not Path(path).is_file():
            return
        hparams = torch.load(path, weights_only=True, map_location="cpu").get("hyper_parameters")
        if not hparams or "_class_path" in hparams:
            super()._parse_ckpt_path()
            return
        hparams.pop("_instantiator", None)
        model = {"class_path": config["model"]["class_path"], "init_args": dict(hparams)}
        self.config = self.parser.parse_object(
            {self.config.subcommand: {"model": model}}, self.config
        )


def main(args: ArgsType = None) -> None:
    """Run the command line with `args`, those of the process by default."""
    words = sys.argv[1:] if args is None else args
    if isinstance(words, list) and words[:1] == ["plan"]:
        from lightning_ligo.plan_command import plan  # which is built on GrowthCLI

        plan(words[1:])
    else:
        GrowthCLI(args)
