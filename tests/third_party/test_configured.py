"""Projects that are configured by files: LightningCLI with links, and hydra's."""

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from projects import check, same, sizes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

pytestmark = [pytest.mark.third_party, pytest.mark.filterwarnings("ignore")]


class Blobs(LightningDataModule):
    def __init__(self, features: int = 6, classes: int = 3, batch_size: int = 8) -> None:
        super().__init__()
        self.features, self.classes, self.batch_size = features, classes, batch_size

    def train_dataloader(self) -> DataLoader:
        x = torch.randn(32, self.features, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, x[:, : self.classes].argmax(1)), self.batch_size)

    val_dataloader = test_dataloader = train_dataloader


class MLP(nn.Module):
    def __init__(self, features: int, classes: int, hidden: int = 8, depth: int = 1) -> None:
        super().__init__()
        self.first = nn.Linear(features, hidden)
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(depth))
        self.last = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        for layer in self.layers:
            x = x + F.relu(layer(x))
        return self.last(x)


class Classifier(LightningModule):
    """Makes its network from sizes, two of which the data decides."""

    def __init__(self, features: int, classes: int, hidden: int = 8, depth: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.net = MLP(features, classes, hidden, depth)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    test_step = validation_step

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"},
        }


class Linked(LightningCLI):
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.features", "model.features", apply_on="instantiate")
        parser.link_arguments("data.classes", "model.classes", apply_on="instantiate")


RUN = """
trainer:
  max_epochs: 4
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  default_root_dir: {folder}
  callbacks:
    - class_path: lightning_ligo.GrowthCallback
      init_args:
        growths:
          - fraction: 0.5
            hparams: {{hidden: 16, depth: 3}}
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {{dirpath: {folder}}}
"""


def test_a_command_line_with_links_grows_tests_and_opens(tmp_path):
    (tmp_path / "run.yaml").write_text(RUN.format(folder=tmp_path))
    command = Linked(Classifier, Blobs, args=["fit", "--config", f"{tmp_path}/run.yaml"])
    check(command.trainer, command.model, sizes(Classifier(6, 3, 16, 3)))
    path = command.trainer.checkpoint_callback.best_model_path
    assert same(Classifier.load_from_checkpoint(path, weights_only=False), command.model)
    command.trainer.test(command.model, command.datamodule, ckpt_path="best")
    again = ["test", "--config", f"{tmp_path}/run.yaml", "--ckpt_path", path]
    tested = Linked(Classifier, Blobs, args=again, save_config_callback=None)
    assert same(tested.model, command.model)


HYDRA = """
data: {_target_: test_configured.Blobs}
model: {_target_: test_configured.Classifier, features: 6, classes: 3, hidden: 8}
callbacks:
  growth:
    _target_: lightning_ligo.GrowthCallback
    growths:
      - {fraction: 0.5, hparams: {hidden: 16, depth: 3}}
  checkpoint: {_target_: lightning.pytorch.callbacks.ModelCheckpoint, dirpath: null}
trainer:
  _target_: lightning.pytorch.Trainer
  max_epochs: 4
  accelerator: cpu
  logger: false
  enable_progress_bar: false
"""


def test_a_project_of_hydra_grows_tests_and_opens(tmp_path):
    hydra = pytest.importorskip("hydra")
    (tmp_path / "train.yaml").write_text(HYDRA)
    with hydra.initialize_config_dir(str(tmp_path), version_base=None):
        config = hydra.compose("train", [f"callbacks.checkpoint.dirpath={tmp_path}"])
    make = hydra.utils.instantiate
    callbacks = [make(each) for each in config.callbacks.values()]
    module, data = make(config.model), make(config.data)
    run = make(config.trainer, callbacks=callbacks, default_root_dir=str(tmp_path))
    run.fit(module, datamodule=data)
    check(run, module, sizes(Classifier(6, 3, 16, 3)))
    run.test(module, datamodule=data, ckpt_path="best")
    path = run.checkpoint_callback.best_model_path
    assert same(Classifier.load_from_checkpoint(path, weights_only=False), module)
