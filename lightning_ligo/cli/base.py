"""The commands `lightning-ligo fit`, `validate`, `test` and `predict`."""

import pydoc
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)

# imported so that a configuration can use their short names
from lightning_ligo.callbacks.growth import GrowthCallback
from lightning_ligo.tasks.digits import DigitPairsDataModule, DigitsDataModule
from lightning_ligo.tasks.images import ImageFolderDataModule
from lightning_ligo.tasks.modules import ImageClassifier, LanguageModel
from lightning_ligo.tasks.text import PythonSourceDataModule, TextDataModule
from lightning_ligo.tasks.text_dataset import TextDatasetDataModule
from lightning_ligo.trainer.integrity import intact

SHORT_NAMES = (
    GrowthCallback,
    ImageClassifier,
    LanguageModel,
    DigitsDataModule,
    DigitPairsDataModule,
    PythonSourceDataModule,
    ImageFolderDataModule,
    TextDataModule,
    TextDatasetDataModule,
)
PATHS = {f"lightning_ligo.{known.__name__}" for known in SHORT_NAMES}

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
"""Arguments of a Trainer that writes nothing and uses one device."""

_REASON = re.compile(r"^  - (?!Expected a |Not a valid )(.*(?:\n    .*)*)", re.MULTILINE)
"""What a constructor said, among what jsonargparse says of the types that an argument may have."""


class Parser(LightningArgumentParser):
    """Names the new class path where a configuration has one of an earlier version."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        paths = re.findall(r"lightning_ligo(?:\.\w+)+", message)
        moved = {path: f"lightning_ligo.{path.rpartition('.')[2]}" for path in paths}
        new = [
            f"{path} is now {to}"
            for path, to in moved.items()
            if to in PATHS and path != to and pydoc.locate(path) is None
        ]
        super().error("\n".join([message, *new]), ex)


class KeepConfig(SaveConfigCallback):
    """Saves the configuration as Lightning does, after renaming one that exists."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = trainer.log_dir
        if folder is not None and trainer.is_global_zero and not self.already_saved:
            config = Path(folder, self.config_filename)
            if config.is_file():
                config.rename(_unused(config))
        super().setup(trainer, pl_module, stage)


def _unused(path: Path) -> Path:
    """Return the first of `config.0.yaml`, `config.1.yaml`, ... that does not exist."""
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
            parser_class=Parser,
            parser_kwargs={"prog": "lightning-ligo"},
            args=args,
            run=run,
        )

    def instantiate_classes(self) -> None:
        """Instantiate all classes, with the own words of a constructor that refuses its arguments.

        Raises:
            RefusedError: where jsonargparse says what else the value might have been.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            if words := _REASON.search(str(error)):
                raise RefusedError(words[1]) from error
            if isinstance(error.__cause__, ValueError):
                raise RefusedError(str(error.__cause__)) from error
            raise

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse without Lightning's warning about the arguments of the process."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]

    def _parse_ckpt_path(self) -> None:
        """Take the hyperparameters of `--ckpt_path`, which hold the size of its network.

        Lightning does so if the checkpoint names the class of the module. A checkpoint that a
        Python program wrote names none; the class of the configuration is taken then.
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


class RefusedError(ValueError):
    """A constructor has refused the arguments of the configuration."""


def train(words: Sequence[str]) -> None:
    """Run `lightning-ligo fit`, `validate`, `test` or `predict` with these arguments."""
    try:
        GrowthCLI(list(words))
    except RefusedError as error:
        sys.exit(f"lightning-ligo: {error}")


def is_kind(class_path: str, *kinds: type) -> bool:
    """Return whether a class path names a class of one of these kinds."""
    found = pydoc.locate(class_path)
    return isinstance(found, type) and issubclass(found, kinds)
