"""Networks that compute activations again in the backward pass: the oracle is one that does not."""

import functools

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lightning_ligo import Growth, GrowthCallback, describe
from networks import gpt2, vit
from runs import trainer


class Images(LightningModule):
    large = describe(vit, width=48, depth=3)

    def __init__(self, again):
        super().__init__()
        torch.manual_seed(0)
        self.network = vit(depth=1)
        self.network.set_grad_checkpointing(again)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(batch.sin()[:, None]), batch[:, 0, 0].long() % 10)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def is_again(self):
        return [self.network.grad_checkpointing]


WITHOUT = {"use_cache": False, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


class Words(Images):
    large = describe(gpt2, width=48, depth=3, **WITHOUT)

    def __init__(self, again, use_reentrant=False):
        super().__init__(again)
        torch.manual_seed(0)
        self.network = gpt2(depth=1, **WITHOUT)
        if again:
            again = functools.partial(checkpoint, use_reentrant=use_reentrant)
            self.network._set_gradient_checkpointing(gradient_checkpointing_func=again)

    def training_step(self, batch, batch_idx):
        tokens = batch.flatten(1)[:, :16].long()
        return self.network(input_ids=tokens, labels=tokens).loss

    def is_again(self):
        return [block.gradient_checkpointing for block in self.network.transformer.h]


def run(folder, module, ckpt_path=None):
    batches = torch.arange(8 * 64).view(8, 8, 8) % 50
    growing = GrowthCallback(
        [Growth(module.large, step=2)], method="ligo", steps=3, learning_rate=0.05
    )
    saved = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    fitted = trainer(folder, growing, saved, epochs=2, enable_checkpointing=True)
    fitted.fit(module, DataLoader(batches.float(), 2), ckpt_path=ckpt_path)
    return module


@pytest.mark.parametrize("kind", [Images, Words])
def test_it_grows_to_the_same_weights_and_goes_on_to_compute_again(tmp_path, kind):
    plain, again = run(tmp_path / "plain", kind(False)), run(tmp_path / "again", kind(True))
    resumed = run(tmp_path / "resumed", kind(True), tmp_path / "again" / "epoch=0.ckpt")
    assert not any(plain.is_again()) and all(again.is_again()) and all(resumed.is_again())
    for mine in (again, resumed):
        for name, weight in plain.state_dict().items():
            torch.testing.assert_close(mine.state_dict()[name], weight, rtol=1e-4, atol=1e-6)


def test_the_old_way_is_refused_before_training_where_an_operator_is_learned(tmp_path):
    with pytest.raises(ValueError, match=r"transformer.h.0.* use_reentrant=True, .*'ligo'"):
        run(tmp_path, Words(True, use_reentrant=True))
