"""The command line: `lightning-ligo fit | validate | test | predict --config FILE`."""

from pathlib import Path

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

DESCRIPTION = f"""
Train a network that grows while it trains. A run is a YAML file: see recipes/, or print one
with every option: lightning-ligo fit --model ImageClassifier --data DigitsDataModule --print_config

Growth is a callback:
  trainer:
    callbacks:
      - class_path: GrowthCallback
        init_args:
          growths:
            - fraction: 0.4
              to: {{init_args: {{embed_dim: 64, depth: 4, num_heads: 4}}}}

Known by their short names: {", ".join(known.__name__ for known in SHORT_NAMES)}.
Your own classes are named by import path, and so are Lightning's and PyTorch's.
"""


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
            parser_kwargs={"prog": "lightning-ligo", "description": DESCRIPTION},
            args=args,
            run=run,
        )


def main(args: ArgsType = None) -> None:
    """Run the command line with `args`, those of the process by default."""
    GrowthCLI(args)
