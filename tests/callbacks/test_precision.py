"""A growth in a run of low or high precision: computed in float32 or more, and rounded once."""

import pickle

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader

import lightning_ligo as ligo
import lightning_ligo.callbacks.grower
from lightning_ligo import Growth, GrowthCallback, build
from runs import BATCH, FEATURES, EpochOrder, fit, items, net, plain, trainer, val_loader

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
UNEVEN, AT = net(20, 2), 8


class Validation(Callback):
    """The network at the start of the step of the growth, as it is where this callback stands."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == AT:
            self._pickled = pickle.dumps(pl_module.network)  # a copy would grow with the network

    @property
    def network(self):
        return pickle.loads(self._pickled)


def lemon():
    return GrowthCallback([Growth(UNEVEN, step=AT)], method="lemon")


def assert_rounded(network, whole, dtype):
    for name, weight in whole.state_dict().items():
        assert torch.equal(network.state_dict()[name], weight.to(dtype)), name
    assert {weight.dtype for weight in network.parameters()} == {dtype}


def test_a_network_in_bf16_is_grown_in_float32_and_then_rounded(tmp_path):
    before, after, whole = Validation(), Validation(), build(UNEVEN)
    fit(plain(), tmp_path, before, lemon(), after, precision="bf16-true")
    ligo.grow(before.network.float(), whole, torch.randn(4, FEATURES), method="lemon")
    assert_rounded(after.network, whole, torch.bfloat16)


@pytest.mark.parametrize(
    ("precision", "learned", "held"),
    [("bf16-true", torch.float32, torch.bfloat16), ("64-true", torch.float64, torch.float64)],
)
def test_an_operator_is_learned_in_float32_or_more(tmp_path, monkeypatch, precision, learned, held):
    whole = build(UNEVEN).to(learned)

    def watched(operator, large, *args, on_step, **options):
        def on_step_too(*step):
            dtypes.append({coefficients.dtype for coefficients in operator.parameters()})
            on_step(*step)

        start = [p.detach().clone() for p in operator.parameters()]
        ligo.fit(operator, large, *args, on_step=on_step_too, **options)
        assert not any(map(torch.equal, start, operator.parameters()))
        whole.load_state_dict(large.state_dict())  # for the fresh parts
        operator.of(before.network.to(learned)).bake(whole)

    dtypes, before, after = [], Validation(), Validation()
    monkeypatch.setattr(lightning_ligo.callbacks.grower, "fit", watched)
    growing = GrowthCallback([Growth(UNEVEN, step=AT)], method="ligo", steps=3, rehearse=False)
    fit(plain(), tmp_path, before, growing, after, precision=precision)
    assert dtypes == [{learned}] * 3
    assert_rounded(after.network, whole, held)


def test_a_run_in_float64_keeps_the_function_and_is_resumed_and_tested_unrounded(tmp_path):
    def run(folder, *others, ckpt_path=None):
        module = plain().double()  # else Lightning loads a checkpoint into float32
        saves = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
        fitted = trainer(folder, *others, saves, precision="64-true", enable_checkpointing=True)
        loader = DataLoader(items(), BATCH, sampler=EpochOrder())
        fitted.fit(module, loader, val_loader(), ckpt_path=ckpt_path, weights_only=True)
        return module, fitted

    before, after = Validation(), Validation()
    whole, _ = run(tmp_path, before, lemon(), after)
    x = torch.randn(4, FEATURES, dtype=torch.float64)
    torch.testing.assert_close(before.network(x), after.network(x), rtol=1e-12, atol=1e-12)
    path = tmp_path / "epoch=1.ckpt"
    resumed, fitted = run(tmp_path / "again", lemon(), ckpt_path=path)
    assert_rounded(resumed.network, whole.network, torch.float64)
    path = tmp_path / "epoch=0.ckpt"
    fitted.test(resumed, val_loader(), ckpt_path=path, weights_only=True)
    held = torch.load(path)["state_dict"]
    assert torch.equal(resumed.network.embed.weight, held["network.embed.weight"])
