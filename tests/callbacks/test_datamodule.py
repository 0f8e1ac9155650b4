"""Arguments of the datamodule that change with the size of the network."""

import functools
from typing import ClassVar

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import (
    Callback,
    LambdaCallback,
    ModelCheckpoint,
    RichProgressBar,
    TQDMProgressBar,
)
from timm.models import VisionTransformer
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_ligo import Growth, GrowthCallback, describe
from lightning_ligo.cli.run import plan_run
from lightning_ligo.schedule import Rate, Run, resolve
from runs import EpochOrder, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists:UserWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
]
SHAPE = {"patch_size": 4, "in_chans": 1, "num_classes": 3}
LARGE = describe(VisionTransformer, **SHAPE, img_size=16, embed_dim=32, depth=2, num_heads=2)
SAME = describe(VisionTransformer, **SHAPE, img_size=8, embed_dim=32, depth=2, num_heads=2)
DATA = {"image_size": 16, "batch_size": 12}


def images(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(48, 1, 16, 16, generator=generator)
    labels = images.mean((1, 2, 3)).sign().long() + 1
    return TensorDataset(F.adaptive_avg_pool2d(images, size), labels)


class Images(LightningDataModule):
    """48 images of a size that is asked for when loaders are made."""

    def __init__(self, image_size=8, batch_size=8):
        super().__init__()
        self.image_size, self.batch_size = image_size, batch_size

    def train_dataloader(self):
        return DataLoader(images(self.image_size), self.batch_size, sampler=EpochOrder())

    def val_dataloader(self):
        return DataLoader(images(self.image_size, 1), self.batch_size)


class InHparams(LightningDataModule):
    def __init__(self, image_size=8, batch_size=8):
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self):
        return Images(**self.hparams).train_dataloader()

    def val_dataloader(self):
        return Images(**self.hparams).val_dataloader()


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        self.network = VisionTransformer(**SHAPE, img_size=8, embed_dim=16, depth=1, num_heads=1)
        self.seen = []

    def step(self, batch, kind):
        images, labels = batch
        self.seen.append((kind, self.current_epoch, len(images), images.shape[-1]))
        return F.cross_entropy(self.network(images), labels)

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.step(batch, "val"))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - 0.5 * step / steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def growth(method="ligo", to=LARGE, **settings):
    steps = {"steps": 2} if method == "ligo" else {}
    growths = [Growth(to, **{"epoch": 1, "data": DATA, **settings})]
    return GrowthCallback(growths, method=method, **steps)


def module(seed=0):
    torch.manual_seed(seed)
    return Classifier()


def fit(model, folder, *callbacks, data=None, every=0, **options):
    saves = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    reload = {"reload_dataloaders_every_n_epochs": every}
    run = trainer(folder, *callbacks, saves, enable_checkpointing=True, **reload)
    run.fit(model, datamodule=data or Images(), weights_only=True, **options)
    return run


SEEN = {
    ("train", 0, 8, 8), ("val", 0, 8, 8),
    ("train", 1, 12, 16), ("val", 1, 12, 16), ("train", 2, 12, 16), ("val", 2, 12, 16),
}  # fmt: skip


@pytest.mark.parametrize("data", [Images, InHparams])
def test_images_and_batches_are_larger_from_the_epoch_of_the_growth_on(tmp_path, data):
    model = module()
    run = fit(model, tmp_path, growth(), data=data())
    assert set(model.seen) == SEEN
    assert run.global_step == 48 // 8 + 2 * 48 // 12
    assert model.network.pos_embed.shape == (1, 17, 32)


def test_a_growth_after_one_that_changed_the_data_has_its_own_trigger(tmp_path):
    class Widths(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            widths[trainer.global_step] = pl_module.network.embed_dim, batch[0].shape[-1]

    widths = {}
    wide = {"init_args": {"embed_dim": 48, "num_heads": 3}}
    more = {"data": {"batch_size": 16}, "epoch": 2}
    growths = [Growth(LARGE, epoch=1, data=DATA), Growth(wide, **more)]
    model = module()
    fit(model, tmp_path, GrowthCallback(growths, method="lemon"), Widths())
    assert [widths[step] for step in (5, 6, 9, 10)] == [(16, 8), (32, 16), (32, 16), (48, 16)]
    assert {seen[1:] for seen in model.seen if seen[1] == 2} == {(2, 16, 16)}


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_resumed_run_has_the_data_and_the_schedule_of_its_size(tmp_path, epoch):
    whole, resumed = module(), module(1)
    fit(whole, tmp_path, growth())
    fit(resumed, tmp_path / "again", growth(), ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
    assert set(resumed.seen) == {seen for seen in SEEN if seen[1] > epoch}
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


@pytest.mark.parametrize(("to", "data"), [(SAME, None), (LARGE, DATA)], ids=["same", "larger"])
def test_loaders_that_are_made_in_every_epoch_are_those_of_the_epoch(tmp_path, to, data):
    class Others(Images):
        """Other images in every epoch."""

        def train_dataloader(self):
            others = images(self.image_size, self.trainer.current_epoch)
            return DataLoader(others, self.batch_size, sampler=EpochOrder())

    class Sums(Callback):
        def __init__(self):
            self.sums = {}

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.sums.setdefault(trainer.current_epoch, []).extend(batch[0].sum((1, 2, 3)).tolist())

    whole, resumed, seen, again = module(), module(1), Sums(), Sums()
    growing = functools.partial(growth, "lemon", to, data=data)
    fit(whole, tmp_path, growing(), seen, data=Others(), every=1)
    for epoch, sums in seen.sums.items():
        size = 16 if data and epoch else 8
        expected = images(size, epoch).tensors[0].sum((1, 2, 3)).tolist()
        assert sorted(sums) == pytest.approx(sorted(expected))
    path = tmp_path / "epoch=0.ckpt"
    fit(resumed, tmp_path / "again", growing(), again, data=Others(), every=1, ckpt_path=path)
    assert again.sums == {epoch: seen.sums[epoch] for epoch in (1, 2)}
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


class Rehearsed(Classifier):
    """Says what was rehearsed, which the run itself forgets."""

    said: ClassVar[list[tuple[str, int, int]]] = []
    accepts = True

    def step(self, batch, kind):
        width, size = self.network.embed_dim, batch[0].shape[-1]
        self.said.append((kind, width, size))
        assert kind == "train" or size == 8 or self.accepts
        return super().step(batch, kind)


@pytest.mark.parametrize("method", ["lemon", "ligo"])
def test_a_growth_is_rehearsed_on_its_own_data_and_leaves_that_of_the_run(tmp_path, caplog, method):
    class Loaders(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            self.before = self.of(trainer)

        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            if trainer.global_step == 0:
                assert self.of(trainer) == self.before
                rehearsed.update(Rehearsed.said)

        def of(self, run):
            loops = run.fit_loop, run.fit_loop.epoch_loop.val_loop
            loaders = [id(loop._combined_loader) for loop in loops]
            return loaders, run.num_training_batches, vars(data)["image_size"], data.batch_size

    rehearsed, data = set(), Images()
    caplog.set_level("INFO")
    Rehearsed.said.clear()
    torch.manual_seed(0)
    whole, alone = Rehearsed(), module()
    fit(whole, tmp_path, growth(method), Loaders(), data=data)
    assert rehearsed >= {("train", 16, 8), ("train", 32, 16), ("val", 32, 16)}
    assert all(size == width // 2 for _, width, size in rehearsed)
    assert "The rehearsal of growth 1 of 1 went well" in caplog.text
    growing = growth(method)
    growing.rehearse = False
    fit(alone, tmp_path / "alone", growing)
    assert whole.seen == alone.seen
    for name, weight in alone.state_dict().items():
        assert torch.equal(weight, whole.state_dict()[name]), name


def test_a_validation_that_fails_on_the_data_to_come_is_refused_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(Rehearsed, "accepts", False)
    model = Rehearsed()
    with pytest.raises(ValueError, match="and a validation batch of the large network fails"):
        fit(model, tmp_path, growth(), data=Images())
    assert model.seen == [] and model.network.embed_dim == 16


@pytest.mark.parametrize("kind", [TQDMProgressBar, RichProgressBar])
@pytest.mark.parametrize("first", ["bar", "growth"])
def test_a_progress_bar_counts_the_batches_that_there_are(tmp_path, kind, first):
    totals, bar = {}, kind(refresh_rate=1)
    watch = LambdaCallback(
        on_train_batch_end=lambda run, *_: totals.setdefault(run.current_epoch, set()).add(
            bar.train_progress_bar.total
        )
    )
    callbacks = [bar, growth("lemon")] if first == "bar" else [growth("lemon"), bar]
    run = trainer(tmp_path, *callbacks, watch, enable_progress_bar=True)
    run.fit(module(), datamodule=Images())
    assert totals == {0: {48 // 8}, 1: {48 // 12}, 2: {48 // 12}}


def test_checkpoints_are_validated_on_data_of_their_size(tmp_path):
    model, data = module(), Images()
    run = fit(model, tmp_path, growth(), data=data)
    for epoch, size in ((0, 8), (2, 16), (0, 8)):
        model.seen.clear()
        path = tmp_path / f"epoch={epoch}.ckpt"
        run.validate(model, datamodule=data, ckpt_path=path, weights_only=True)
        assert {seen[-1] for seen in model.seen} == {size}


def test_another_run_begins_with_the_data_of_the_small_network(tmp_path):
    data, callback, second = Images(), growth(), module()
    fit(module(), tmp_path, callback, data=data)
    assert data.image_size == 16
    fit(second, tmp_path, callback, data=data)
    assert set(second.seen) == SEEN


def test_it_is_planned_on_the_data_to_come(tmp_path):
    run = trainer(tmp_path, growth())
    (planned,) = plan_run(run, module(), datamodule=Images())
    assert planned.plan.axes["embed"] == (16, 32)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Images, "changes 'image_siz' of the data, and Images has no such attribute; add it"),
        (None, "the growths change image_siz of the data, and the Trainer got loaders"),
    ],
)
def test_data_that_cannot_change_is_refused(tmp_path, data, message):
    model = module()
    options = (
        {"datamodule": data()}
        if data
        else {
            "train_dataloaders": Images().train_dataloader(),
            "val_dataloaders": Images().val_dataloader(),
        }
    )
    run = trainer(tmp_path, growth(data={"image_siz": 16}))
    with pytest.raises(ValueError, match=message):
        run.fit(model, **options)
    assert not model.seen


@pytest.mark.parametrize("planned", [False, True])
def test_a_size_that_does_not_fit_the_network_is_refused_at_the_start(tmp_path, planned):
    model = module()
    run = trainer(tmp_path, growth(data={"image_size": 12}))
    begin = functools.partial(plan_run, run) if planned else run.fit
    message = (
        r"growth 1 \(at epoch 1, to .*'img_size': 16.*, on data of \{'image_size': 12\}\): "
        r"VisionTransformer cannot be trained on this data: .* AssertionError: Input height \(12\)"
    )
    with pytest.raises(ValueError, match=message):
        begin(model, datamodule=Images())
    assert model.seen == [] and model.network.embed_dim == 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": 5}, "a growth at step 5 changes image_size of the data, and loaders are rebuilt"),
        ({"epoch": 1, "rate": Rate(rewarm=3)}, "re-warms new entries"),
    ],
)
def test_triggers_without_new_loaders_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Growth(LARGE, data={"image_size": 16}, **settings)


def test_masks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="method 'msg' unmasks new parts over many steps"):
        fit(module(), tmp_path, growth("msg"))


def test_what_the_length_of_epochs_is_counted_from_is_not_known():
    growths = [Growth(LARGE, epoch=1, data=DATA), Growth(LARGE, step=400), Growth(LARGE, epoch=9)]
    assert resolve(growths, Run(steps=100, epochs=10, steps_per_epoch=10)) == [None, 400, None]
    with pytest.raises(ValueError, match=r"fraction 0\.5 of the run, and this run has no known"):
        resolve([growths[0], Growth(LARGE, fraction=0.5)], Run(100, 10, 10))
