"""Networks of transformers in a run: they read an attention mask to decide how to go on."""

from dataclasses import replace

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_ligo import METHODS, Growth, GrowthCallback, LanguageModel, describe

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
