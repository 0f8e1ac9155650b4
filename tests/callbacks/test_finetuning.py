"""Finetuning callbacks: what they have frozen, and the groups that they add, go on."""

import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    Callback,
    ModelCheckpoint,
)
from torch import nn
from torch.utils.data import DataLoader

from lightning_ligo import Growth, GrowthCallback, describe
from runs import BATCH, FEATURES, EpochOrder, Net, Plain, items, trainer, val_loader

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists:UserWarning"),
]


class Backbone(Net):
    """With a norm of batches, which may stay trainable while all else is frozen."""

    def __init__(self, width: int = 8, depth: int = 1) -> None:
        super().__init__(width, depth, classes=FEATURES)
        self.batch_norm = nn.BatchNorm1d(width)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.batch_norm(self.embed(x)))))


class Transfer(Plain):
    def __init__(self):
        super().__init__()
        self.backbone = Backbone()
        self.network = nn.Sequential(nn.ReLU(), nn.Linear(FEATURES, 3))

    def loss(self, batch):
        logits = self.network(self.backbone(self.stem(batch[0])))
        return logits, nn.functional.cross_entropy(logits, batch[1])

    def configure_optimizers(self):
        trained = [*self.network.parameters(), *self.stem.parameters()]
        return torch.optim.AdamW(trained, lr=1e-2)


class Watch(Callback):
    """Trainable parameters of the backbone and those in each group, at every batch."""

    def __init__(self):
        self.trainable, self.groups, self.tracked, self.width = {}, {}, {}, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step = trainer.global_step
        trained = [p.requires_grad for p in pl_module.backbone.parameters()]
        self.trainable[step] = (sum(trained), len(trained))
        self.groups[step] = [len(g["params"]) for g in trainer.optimizers[0].param_groups]
        self.tracked[step] = pl_module.backbone.batch_norm.track_running_stats
        self.width[step] = pl_module.backbone.embed.out_features


def growth(step):
    large = describe(Backbone, width=16, depth=2)
    return GrowthCallback([Growth(large, step=step)], attribute="backbone", method="ligo", steps=2)


def finetune(module, folder, step, *more, callback=None, **options):
    callback = callback or BackboneFinetuning(2, train_bn=False)
    run = trainer(folder, growth(step), callback, *more, epochs=4, enable_checkpointing=True)
    loader = DataLoader(items(), BATCH, sampler=EpochOrder())
    run.fit(module, loader, val_loader(), weights_only=True, **options)
    return run


def module(seed=0):
    torch.manual_seed(seed)
    return Transfer()


SMALL, LARGE = (len(list(Backbone(8, depth).parameters())) for depth in (1, 2))


def test_a_frozen_backbone_grows_frozen_and_is_unfrozen_when_its_time_comes(tmp_path):
    watch = Watch()
    finetune(module(), tmp_path, 8, watch)  # in the second epoch; unfrozen in the third
    assert watch.width[7] == 8 and watch.width[8] == 16
    assert watch.trainable[7] == (2, SMALL) and watch.trainable[11] == (2, LARGE)
    assert watch.trainable[12] == (LARGE, LARGE)
    assert watch.groups[11] == [4] and watch.groups[12] == [4, LARGE - 2]


@pytest.mark.parametrize("train_bn", [False, True])
def test_batch_norms_that_train_meanwhile_are_given_to_the_optimizer_later(tmp_path, train_bn):
    watch = Watch()
    finetune(module(), tmp_path, 8, watch, callback=BackboneFinetuning(2, train_bn=train_bn))
    assert watch.groups[12] == [4, LARGE - (0 if train_bn else 2)]


def test_an_unfrozen_backbone_keeps_its_group(tmp_path):
    watch, model = Watch(), module()
    run = finetune(model, tmp_path, 14, watch)
    assert watch.groups[13] == [4, SMALL - 2] and watch.groups[14] == [4, LARGE - 2]
    names = {p: name for name, p in model.named_parameters()}
    first, second = ([names[p] for p in g["params"]] for g in run.optimizers[0].param_groups)
    assert not any(name.startswith("backbone") for name in first)
    assert all(name.startswith("backbone") for name in second)
    head, backbone = (group["lr"] for group in run.optimizers[0].param_groups)
    assert 0 < backbone < head


class FreezeAll(BaseFinetuning):
    """Freezes batch norms too, which stops their statistics."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.backbone, train_bn=False)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 3:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer)


def test_frozen_batch_norms_stay_so(tmp_path):
    watch = Watch()
    finetune(module(), tmp_path, 8, watch, callback=FreezeAll())
    assert watch.trainable[8] == (0, LARGE) and watch.trainable[18] == (LARGE, LARGE)
    assert [watch.tracked[step] for step in (7, 8, 17, 18)] == [False, False, False, True]


@pytest.mark.parametrize(("step", "epoch"), [(8, 1), (8, 2), (14, 2)])
@pytest.mark.parametrize("kind", [FreezeAll, lambda: BackboneFinetuning(2, train_bn=False)])
def test_a_resumed_run_has_the_groups_it_had(tmp_path, kind, step, epoch):
    whole, resumed, first, second = module(), module(1), Watch(), Watch()
    saves = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    finetune(whole, tmp_path, step, first, saves, callback=kind())
    path = tmp_path / f"epoch={epoch}.ckpt"
    finetune(resumed, tmp_path / "again", step, second, callback=kind(), ckpt_path=path)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    assert second.tracked == {at: first.tracked[at] for at in second.tracked}
    for at, groups in second.groups.items():
        assert groups == first.groups[at] and second.trainable[at] == first.trainable[at]
