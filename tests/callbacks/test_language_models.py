"""Networks of transformers in a run: they read an attention mask to decide how to go on."""

from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_ligo import METHODS, Growth, GrowthCallback, LanguageModel, describe
from lightning_ligo.tasks.text import TextDataModule
from runs import trainer

SIZE = {"vocab_size": 11, "n_positions": 6, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
        "attn_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None}  # fmt: skip


def gpt2(width, heads, depth):
    config = describe(GPT2Config, **SIZE, n_embd=width, n_head=heads, n_layer=depth)
    return describe(GPT2LMHeadModel, config=config)


SMALL, MIDDLE, LARGE = gpt2(8, 2, 1), gpt2(12, 3, 2), gpt2(16, 4, 4)


def texts():
    tokens = torch.arange(240).mul(7).remainder(11).reshape(40, 6)
    mask = torch.ones_like(tokens)
    return [
        {"input_ids": one, "labels": one, "attention_mask": of}
        for one, of in zip(tokens, mask, strict=True)
    ]


def fit(folder, *callbacks, ckpt_path=None):
    torch.manual_seed(0)
    module = LanguageModel(SMALL)
    trainer = Trainer(
        default_root_dir=folder, accelerator="cpu", devices=1, max_epochs=2, logger=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks),
    )  # fmt: skip
    data = DataLoader(texts(), batch_size=4)
    trainer.fit(module, data, data, ckpt_path=ckpt_path)
    return module


def test_a_run_grows_twice(tmp_path):
    growths = [Growth(MIDDLE, step=5), Growth(LARGE, step=10)]
    module = fit(tmp_path, GrowthCallback(growths, method="lemon"), ModelCheckpoint(tmp_path))
    config = module.network.config
    assert (config.n_embd, config.n_head, config.n_layer) == (16, 4, 4)


def test_a_run_that_is_resumed_while_parts_are_let_in_ends_with_the_same_weights(tmp_path):
    def run(folder, ckpt_path=None):
        saves = ModelCheckpoint(folder, every_n_train_steps=5, save_top_k=-1, filename="{step}")
        method = replace(METHODS["msg"], ramp=8)
        growth = GrowthCallback([Growth(MIDDLE, step=6)], method=method)
        return fit(folder, growth, saves, ckpt_path=ckpt_path)

    whole = run(tmp_path / "whole")
    resumed = run(tmp_path / "resumed", tmp_path / "whole" / "step=10.ckpt")
    for (name, ours), theirs in zip(
        resumed.state_dict().items(), whole.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, msg=name)


BYTES = {"vocab_size": 256, "n_embd": 8, "n_head": 2, "n_layer": 1}
SHORT = describe(GPT2LMHeadModel, config=describe(GPT2Config, **SIZE | BYTES))
WIDER = {"n_embd": 16, "n_head": 4, "n_positions": 12}
LONG = describe(GPT2LMHeadModel, config=describe(GPT2Config, **SIZE | BYTES | WIDER))


class Positions(Callback):
    """The positions at the start of an epoch, their last gradient, the tokens of a batch."""

    def __init__(self):
        self.table, self.lengths = {}, set()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        epoch, table = trainer.current_epoch, pl_module.network.transformer.wpe.weight
        self.table.setdefault(epoch, table.detach().clone())
        self.lengths.add(("train", epoch, batch["input_ids"].shape[1]))

    def on_after_backward(self, trainer, pl_module):
        self.gradient = pl_module.network.transformer.wpe.weight.grad.clone()

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.lengths.add(("val", trainer.current_epoch, batch["input_ids"].shape[1]))


@pytest.fixture
def texts_on_disk(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text(f"the {number} quick brown foxes jump " * 5)
    return str(tmp_path)


def fit_longer(folder, files, *callbacks, **options):
    torch.manual_seed(0)
    module, saves = LanguageModel(SHORT), ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    growths = [Growth(LONG, epoch=1, data={"window": 12})]
    growing = GrowthCallback(growths, method="lemon")
    run = trainer(folder, growing, saves, *callbacks, enable_checkpointing=True)
    run.fit(module, datamodule=TextDataModule(files, window=6, batch_size=8), **options)
    return module


def test_texts_are_longer_from_the_epoch_of_the_growth_on(tmp_path, texts_on_disk):
    class Before(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                self.table = pl_module.network.transformer.wpe.weight.detach().clone()

    before, seen = Before(), Positions()
    fit_longer(tmp_path / "run", texts_on_disk, before, seen)
    lengths = ((0, 6), (1, 12), (2, 12))
    assert seen.lengths == {(kind, *each) for kind in ("train", "val") for each in lengths}
    begun = seen.table[1]  # a multiple of the width: its first columns are the small one's
    torch.testing.assert_close(begun[:6, :8], before.table)
    torch.testing.assert_close(begun[6:, :8], before.table.mean(0).expand(6, 8))
    *trained, last = seen.gradient.any(1).tolist()
    assert trained == [True] * 11 and not last  # from which nothing is predicted


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_run_with_longer_texts_is_resumed(tmp_path, texts_on_disk, epoch):
    whole = fit_longer(tmp_path / "run", texts_on_disk)
    path, seen = tmp_path / "run" / f"epoch={epoch}.ckpt", Positions()
    resumed = fit_longer(tmp_path / "again", texts_on_disk, seen, ckpt_path=path)
    assert {length for *_, length in seen.lengths} == {12}
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
