"""What a module holds beside its network, and a run without a logger, is left alone."""

import json

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import CatMetric
from torchmetrics.classification import MulticlassAccuracy

from lightning_ligo import Growth, GrowthCallback, describe
from runs import CLASSES, LARGE, Net, Plain, train_loader, trainer, val_loader


def growing(to: dict = LARGE, **options) -> GrowthCallback:
    return GrowthCallback([Growth(to, step=7)], **options)


def size(module: pl.LightningModule) -> int:
    return sum(parameter.numel() for parameter in module.network.parameters())


class WithJudge(Plain):
    """A network of the loss that is not trained, and that nobody has frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.judge = nn.Linear(CLASSES, 1)

    def loss(self, batch):
        logits, loss = super().loss(batch)
        return logits, loss + self.judge(logits).square().mean()

    def configure_optimizers(self):
        weights = [*self.network.parameters(), *self.stem.parameters()]
        return torch.optim.AdamW(weights, lr=1e-2)


@pytest.mark.parametrize("method", ["stack+copy", "ligo"])
def test_parameters_that_no_optimizer_has_stay_as_they_are(tmp_path, method):
    module = WithJudge()
    before, small = module.judge.weight.detach().clone(), size(module)
    run = trainer(tmp_path, growing(method=method))
    run.fit(module, train_loader(), val_loader())
    assert size(module) > small and torch.equal(module.judge.weight, before)
    assert module.judge.weight not in set(run.optimizers[0].param_groups[0]["params"])


class WithLazy(Plain):
    """A layer beside the network that has no shape before its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.skip = nn.LazyLinear(CLASSES)
        self.first: torch.Tensor | None = None

    def loss(self, batch):
        logits = super().loss(batch)[0] + self.skip(batch[0])
        return logits, F.cross_entropy(logits, batch[1])

    def on_train_batch_end(self, *args):
        if self.first is None:
            self.first = self.skip.weight.detach().clone()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_a_lazy_layer_beside_the_network_is_made_as_without_growth(tmp_path):
    firsts = []
    for callbacks in ((), (growing(),)):
        pl.seed_everything(0, verbose=False)
        module = WithLazy()
        run = trainer(tmp_path, *callbacks)
        run.fit(module, train_loader(), val_loader())
        firsts.append(module.first)
    assert size(module) > 1000 and type(module.skip) is nn.Linear
    assert torch.equal(*firsts)
    held = set(run.optimizers[0].param_groups[0]["params"])
    assert held == set(module.parameters())


class Counting(Net):
    """A network that counts its own classes."""

    def __init__(self, width: int = 8, depth: int = 1) -> None:
        super().__init__(width, depth)
        self.agreement = MulticlassAccuracy(CLASSES, average="micro")

    def forward(self, x):
        logits = super().forward(x)
        self.agreement.update(logits, logits.argmax(1))
        return logits


def test_a_metric_inside_the_network(tmp_path):
    module = Plain()
    module.network = Counting()
    growth = growing(describe(Counting, width=24, depth=4))
    trainer(tmp_path, growth).fit(module, train_loader(), val_loader())
    assert size(module) > 1000 and module.network.agreement.compute() == 1


class Keeping(Counting):
    """Its metric keeps a list of tensors, with the graph that made them."""

    def __init__(self, width: int = 8, depth: int = 1) -> None:
        super().__init__(width, depth)
        self.agreement = CatMetric()

    def forward(self, x):
        logits = super(Counting, self).forward(x)
        self.agreement.update(logits.mean())
        return logits


def test_a_metric_that_keeps_its_graph(tmp_path):
    module = Plain()
    module.network = Keeping()
    growth = growing(describe(Keeping, width=24, depth=4))
    trainer(tmp_path, growth).fit(module, train_loader(), val_loader())
    assert size(module) > 1000


@pytest.mark.parametrize("where", ["working folder", "root"])
def test_without_a_logger_files_are_written_only_where_the_trainer_says(
    tmp_path, monkeypatch, capsys, where
):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    folder = None if where == "working folder" else tmp_path / "root"
    trainer(folder, growing()).fit(Plain(), train_loader(), val_loader())
    assert not list((tmp_path / "work").iterdir())
    printed = capsys.readouterr().out
    if folder is None:
        assert "395 → 9,987" in printed and "Report: not written" in printed
    else:
        assert len(json.loads((folder / "growth_report.json").read_text())["growths"]) == 1
