"""Averages of weights grow by the operator of the weights, and go on."""

import json

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader

from lightning_ligo import Growth, GrowthCallback
from lightning_ligo.callbacks.averaging import averages
from lightning_ligo.callbacks.checks import check_callbacks
from lightning_ligo.trainer.slot import Slot
from runs import (
    BATCH,
    LARGE,
    MIDDLE,
    EpochOrder,
    Plain,
    fit,
    items,
    plain,
    trainer,
    val_loader,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Swapping scheduler:UserWarning"),
    pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch:UserWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists:UserWarning"),
]
STEP = 8  # of the growth, in the second epoch


def growth(to=MIDDLE, method="stack+lemon", **settings):
    return GrowthCallback([Growth(to, step=STEP)], method=method, **settings)


def ema():
    return EMAWeightAveraging(decay=0.8)


def swa():
    return StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=2, annealing_epochs=1)


class Weights(Callback):
    """All parameters at the start of every batch, and after the step of it."""

    def __init__(self):
        self.before, self.after = {}, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before[trainer.global_step] = copies(pl_module)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.after[trainer.global_step] = copies(pl_module)


def copies(module):
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def grown(average, small, large):
    """The average times what every entry was multiplied by when the network grew.

    Both widths are twice the small ones and both layers come from the only one, so that every
    parameter is tiled, and every tile has a share of its own.
    """
    result = {}
    for name, weight in large.items():
        parent = name.replace("blocks.1", "blocks.0")
        tiles = [
            big // little for big, little in zip(weight.shape, small[parent].shape, strict=True)
        ]
        result[name] = average[parent].repeat(tiles) * (weight / small[parent].repeat(tiles))
    return result


def by_hand(small, large, share):
    """The average over the steps of a run, of which `share(n)` is the weight of the n-th model."""
    models = {**small.after, **large.after}
    average = models[1]
    for step in range(2, max(models) + 1):
        if step == STEP + 1:
            average = grown(average, small.before[STEP], large.before[STEP])
        average = {
            name: value + share(step) * (models[step][name] - value)
            for name, value in average.items()
        }
    return average


@pytest.mark.parametrize(
    ("averaging", "share"), [(ema, lambda n: 0.2), (WeightAveraging, lambda n: 1 / n)]
)
def test_an_average_of_every_step_is_that_of_the_grown_models(tmp_path, averaging, share):
    module, averaging = plain(), averaging()

    class Small(Weights):
        """Stands before the growth."""

    small, large = Small(), Weights()
    fit(module, tmp_path, small, growth(), large, averaging)
    expected = by_hand(small, large, share)
    assert module.network.head.in_features == 16 and large.before[STEP].keys() == expected.keys()
    for name, weight in module.named_parameters():  # which has the average at the end
        torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-3, atol=1e-5)
    assert int(averaging._average_model.n_averaged) == 18


@pytest.mark.parametrize("starts", [2, 3], ids=["before", "after"])
def test_the_average_of_epochs_is_that_of_the_grown_models(tmp_path, starts):
    """From the start of the second epoch, before the growth, or of the third, after it."""

    class Small(Weights):
        """Stands before the growth."""

    small, large, module = Small(), Weights(), plain()
    averaging = StochasticWeightAveraging(1e-2, swa_epoch_start=starts, annealing_epochs=1)
    fit(module, tmp_path, small, growth(), large, averaging, epochs=4)
    second = grown(small.before[6], small.before[STEP], large.before[STEP])
    models = [second, large.before[12], large.before[18]][starts - 2 :]
    for name, weight in module.network.named_parameters():
        expected = torch.stack([model[f"network.{name}"] for model in models]).mean(0)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-3, atol=1e-5)


def test_the_epoch_for_batch_norms_is_no_part_of_the_run(tmp_path):
    callback = GrowthCallback([Growth(MIDDLE, fraction=0.5)], method="lemon")
    fit(plain(), tmp_path, callback, swa(), epochs=3)
    report = json.loads((tmp_path / "growth_report.json").read_text())
    assert report["growths"][0]["step"] == 9  # of 18


def test_a_growth_in_the_epoch_for_batch_norms_never_comes(tmp_path):
    class Late(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 3:
                (tmp_path / "grow.now").touch()

    module = plain()
    callback = GrowthCallback([Growth(MIDDLE, file="grow.now")], method="lemon")
    with pytest.warns(UserWarning, match="ended before growth 1 of 1"):
        fit(module, tmp_path, Late(), callback, swa(), epochs=3)
    assert module.network.head.in_features == 8


class Normed(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(6, width), nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.norm(self.layer(x)).relu())


def test_averaged_buffers_grow_too(tmp_path):
    class Buffers(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            (average,) = averages(trainer)
            means[trainer.global_step] = average.network.norm.running_mean.clone()

    class After(Buffers):
        """Stands after the growth."""

    means = {}
    module = plain()
    module.network = Normed()
    large = {"class_path": "test_averaging.Normed", "init_args": {"width": 16}}
    fit(module, tmp_path, growth(large, "lemon"), After(), ema(), epochs=2)
    before = means[STEP - 1].numel()
    assert (before, means[STEP].numel()) == (8, 16)
    assert torch.equal(means[STEP][:8], means[STEP][8:])


def test_the_metric_of_a_growth_is_that_of_the_average(tmp_path):
    class Worst(Plain):
        """Validated by a weight, which tells the average from the module."""

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.stem.weight.detach().sum())

    class Average(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == STEP:
                self.value = float(averages(trainer)[0].stem.weight.detach().sum())
                self.other = float(pl_module.stem.weight.detach().sum())

    average, module = Average(), Worst()
    fit(module, tmp_path, growth(), average, ema())
    (record,) = json.loads((tmp_path / "growth_report.json").read_text())["growths"]
    assert record["metric"]["before"] == record["metric"]["after"] == pytest.approx(average.value)
    assert average.value != pytest.approx(average.other)


def resumable(folder, module, averaging, **options):
    saves = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    callback = growth(method="ligo", to=LARGE, steps=2)
    run = trainer(folder, callback, averaging(), saves, epochs=4, enable_checkpointing=True)
    loader = DataLoader(items(), BATCH, sampler=EpochOrder())
    plain_data = averaging is not swa or torch.__version__ >= "2.10"  # before, it saves a method
    run.fit(module, loader, val_loader(), weights_only=plain_data, **options)
    return run


@pytest.mark.parametrize(
    ("averaging", "epoch"), [(WeightAveraging, 1), (ema, 0), (ema, 2), (swa, 0), (swa, 1), (swa, 2)]
)
def test_a_resumed_run_ends_with_the_same_average(tmp_path, averaging, epoch):
    whole, resumed = plain(), plain(1)
    resumable(tmp_path, whole, averaging)
    run = resumable(
        tmp_path / "again", resumed, averaging, ckpt_path=tmp_path / f"epoch={epoch}.ckpt"
    )
    assert resumed.network.head.in_features == 24
    (average,) = averages(run)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    for (name, weight), other in zip(average.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(weight, other), name


def test_a_checkpoint_holds_the_average_of_its_size(tmp_path):
    run = resumable(tmp_path, plain(), ema)
    for epoch, width in ((0, 8), (1, 24), (3, 24)):
        checkpoint = torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)
        for kind in ("state_dict", "current_model_state"):
            assert checkpoint[kind]["network.head.weight"].shape == (3, width)
    (average,) = averages(run)
    assert torch.equal(checkpoint["state_dict"]["network.head.weight"], average.network.head.weight)
    loader = DataLoader(items(2), BATCH)
    for epoch, width in ((0, 8), (3, 24)):
        other = trainer(tmp_path, growth(LARGE))
        module = plain()
        path = tmp_path / f"epoch={epoch}.ckpt"
        other.test(module, loader, ckpt_path=path, weights_only=True)
        held = torch.load(path, weights_only=True)["state_dict"]["network.head.weight"]
        assert held.shape == (3, width) and torch.equal(module.network.head.weight, held)


def test_an_average_of_other_weights_is_not_cut_short(tmp_path):
    class Partial(WeightAveraging):
        def setup(self, trainer, pl_module, stage):
            super().setup(trainer, pl_module, stage)
            del self._average_model.module.network.head

    with pytest.raises(RuntimeError, match=r"other weights than .*: network.head.bias, network.he"):
        fit(plain(), tmp_path, growth(), Partial())


def test_an_average_in_another_order_is_not_paired(tmp_path):
    class Reordered(WeightAveraging):
        def setup(self, trainer, pl_module, stage):
            super().setup(trainer, pl_module, stage)
            parts = self._average_model.module._modules
            parts["stem"] = parts.pop("stem")

    with pytest.raises(RuntimeError, match="other weights than the module itself: their order; le"):
        fit(plain(), tmp_path, growth(), Reordered())


def test_an_average_of_sharded_weights_is_refused(tmp_path):
    run = trainer(tmp_path, growth(), WeightAveraging())
    run.strategy.__class__ = ModelParallelStrategy  # a real one would start processes
    with pytest.raises(ValueError, match="WeightAveraging keeps an average of whole parameters"):
        check_callbacks(run, Slot(plain(), "network"))
