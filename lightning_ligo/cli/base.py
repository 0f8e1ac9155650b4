"""The command line: `lightning-ligo fit | validate | test | predict | plan | grow | ...`."""

import pydoc
from argparse import RawDescriptionHelpFormatter
from pathlib import Path

import torch
from jsonargparse import DefaultHelpFormatter
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningCLI, SaveConfigCallback

# imported so that a configuration can name them shortly
from lightning_ligo.callbacks.growth import GrowthCallback
from lightning_ligo.tasks.digits import DigitsDataModule
from lightning_ligo.tasks.images import ImageFolderDataModule
from lightning_ligo.tasks.modules import ImageClassifier, LanguageModel
from lightning_ligo.tasks.stdlib import PythonSourceDataModule
from lightning_ligo.tasks.text import TextDataModule
from lightning_ligo.trainer.integrity import intact

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
any two networks of timm and transformers: lightning-ligo plan --help. What a checkpoint holds grows
between two runs by lightning-ligo grow: lightning-ligo grow --help. The ways to grow are listed
by lightning-ligo methods, and compared with training from scratch, at equal FLOPs, by
lightning-ligo compare: lightning-ligo compare --help.

Growth is a callback of the Trainer; `to` holds what changes in the network:

    trainer:
      callbacks:
        - class_path: GrowthCallback
          init_args:
            growths:
              - fraction: 0.4
                to: {{init_args: {{embed_dim: 64, depth: 4, num_heads: 4}}}}

In place of the fraction of the run: step: 1000, epoch: 3, or what the run decides:

    plateau: {{monitor: val_loss, patience: 3}}           it has not got better for so long
    slope: {{monitor: val_loss, threshold: -0.0475}}      it falls too slowly for its FLOPs
    flops: 2e17                                         so many are spent
    file: grow.now                                      touched in the log folder, by hand

Classes with a short name: {", ".join(known.__name__ for known in SHORT_NAMES[:4])},
{", ".join(known.__name__ for known in SHORT_NAMES[4:])}, and Lightning's and PyTorch's.
Your own are named by their import path. Their options: lightning-ligo fit --model.help NAME,
--data.help NAME, --trainer.callbacks.help NAME.
"""

QUIET = {
    "strategy": "auto",
    "devices": 1,
    "num_nodes": 1,
    "plugins": None,
    "profiler": None,
    "logger": False,
    "barebones": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
"""Arguments of the Trainer, which is to write nothing and to use one device."""


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
        with intact(path):
            checkpoint = torch.load(path, weights_only=True, map_location="cpu")
        hparams = checkpoint.get("hyper_parameters")
        if not hparams or "_class_path" in hparams:
            super()._parse_ckpt_path()
            return
        hparams.pop("_instantiator", None)
        model = {"class_path": config["model"]["class_path"], "init_args": dict(hparams)}
        self.config = self.parser.parse_object(
            {self.config.subcommand: {"model": model}}, self.config
        )


def is_kind(class_path: str, *kinds: type) -> bool:
    """Whether a class path of a configuration names a class of one of these kinds."""
    found = pydoc.locate(class_path)
    return isinstance(found, type) and issubclass(found, kinds)
