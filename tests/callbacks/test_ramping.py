"""Method msg in a run: new parts are masked at the growth and let in while training goes on."""

from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

import lightning_ligo as ligo
from lightning_ligo import GrowthCallback
from lightning_ligo.schedule import Growth
from runs import LARGE, MIDDLE, SMALL, Described, Net, fit, items, plain, trainer, val_loader

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists:UserWarning"),
]
MSG = replace(ligo.METHODS["msg"], ramp=6)


def growth(step=8, to=LARGE):
    return GrowthCallback([Growth(to=to, step=step)], method=MSG)


class Watch(Callback):
    """Outputs and hooks of the network before every step, and how much is let in."""

    def __init__(self, growing):
        self.growing, self.outputs, self.hooked, self.shares = growing, {}, {}, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        network, step = pl_module.network, trainer.global_step
        with torch.no_grad():
            self.outputs[step] = network(items(3).tensors[0])
        self.hooked[step] = bool(network._forward_hooks)
        ramp = self.growing._ramping._ramp
        self.shares[step] = ramp.c if ramp is not None else None


def test_new_parts_are_let_in_over_the_steps_of_the_ramp(tmp_path):
    growing = growth()
    before, after = Watch(growing), Watch(growing)
    module = plain()
    fit(module, tmp_path, before, growing, after)
    torch.testing.assert_close(before.outputs[8], after.outputs[8], rtol=1e-5, atol=1e-6)
    assert [after.shares[step] for step in range(7, 15)] == [
        None, 0.0, *(pytest.approx(step / 6) for step in range(1, 6)), None,
    ]  # fmt: skip
    assert [step for step, hooked in after.hooked.items() if hooked] == list(range(8, 14))
    (record,) = growing.state_dict()["records"]
    assert record["metric"]["after"] == pytest.approx(record["metric"]["before"], rel=1e-5)
    assert record["method"] == "msg" and record["change"]["change"] <= 1e-6


def test_after_the_ramp_the_network_is_plain(tmp_path):
    module = plain()
    fit(module, tmp_path, growth())
    twin = Net(24, 4)
    twin.load_state_dict(module.network.state_dict())
    x = items(3).tensors[0]
    assert torch.equal(twin(x), module.network(x))
    for (_, ours), (_, theirs) in zip(
        module.network.named_modules(), twin.named_modules(), strict=True
    ):
        assert set(vars(ours)) == set(vars(theirs))


def run(folder, callback, ckpt_path=None):
    """A run that saves a checkpoint at steps 12, in the ramp, and 18, behind it."""
    torch.manual_seed(0)
    saves = ModelCheckpoint(folder, every_n_train_steps=6, save_top_k=-1, filename="{step}")
    module = Described(SMALL)
    fitted = trainer(folder, callback, saves, epochs=4, enable_checkpointing=True)
    fitted.fit(module, DataLoader(items(), 8), val_loader(), ckpt_path=ckpt_path)
    return module


def test_a_run_that_is_resumed_while_parts_are_let_in_ends_with_the_same_weights(tmp_path):
    whole = run(tmp_path / "whole", growth())
    resumed = run(tmp_path / "resumed", growth(), tmp_path / "whole" / "step=12.ckpt")
    for (name, ours), theirs in zip(
        resumed.state_dict().items(), whole.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_it_goes_on_by_the_method_it_was_begun_by_until_all_parts_are_in(tmp_path):
    run(tmp_path / "msg", growth())
    lemon = GrowthCallback(growth().settings.growths, method="lemon")
    with pytest.raises(ValueError, match="method 'msg' unmasked the new parts of the growth at s"):
        run(tmp_path / "resumed", lemon, tmp_path / "msg" / "step=12.ckpt")
    run(tmp_path / "resumed", lemon, tmp_path / "msg" / "step=18.ckpt")
    whole = run(tmp_path / "lemon", lemon)
    resumed = run(tmp_path / "masked", growth(), tmp_path / "lemon" / "step=12.ckpt")
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)  # nothing was masked


def test_a_run_that_fails_meanwhile_leaves_a_plain_network(tmp_path):
    class Fails(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 10:
                assert pl_module.network._forward_hooks
                raise RuntimeError("stop")

    module = plain()
    with pytest.raises(RuntimeError, match="stop"):
        fit(module, tmp_path, growth(), Fails())
    assert not module.network._forward_hooks and "forward" not in vars(module.network.norm)


@pytest.mark.parametrize(
    ("growths", "message"),
    [
        ([(LARGE, 14)], "growth at step 14, and the run ends at step 18; leave more room"),
        ([(MIDDLE, 2), (LARGE, 6)], "growth at step 2, and the next growth is due at step 6"),
    ],
)
def test_too_short_a_time_for_the_ramp_is_refused(growths, message, tmp_path):
    growing = GrowthCallback([Growth(to, step=step) for to, step in growths], method=MSG)
    with pytest.raises(ValueError, match=message):
        fit(plain(), tmp_path, growing)


def test_a_norm_that_cannot_be_masked_is_refused_before_training(tmp_path):
    class Other(torch.nn.LayerNorm):
        def forward(self, x):
            return super().forward(x).tanh()

    module = plain()
    for block in module.network.blocks:
        block.norm = Other(8)
    with pytest.raises(ValueError, match="belongs to Other, which is neither"):
        fit(module, tmp_path, growth())
