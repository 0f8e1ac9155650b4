"""What a CUDA device does in its own way. The oracle is the same on a CPU.

The table of strategies, and the networks of plain torch and Hugging Face, are tried there too.
"""

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.nn import functional as F

import lightning_ligo as ligo
from lightning_ligo import Growth, GrowthCallback
from lightning_ligo.operator.flops import flop_counter
from networks import DEVICES, IMAGES, SEQUENCES, Recurrent, cast, randomised, vit
from runs import LARGE, Net, Plain, fit, train_loader, trainer, val_loader

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def weights(network):
    return {name: tensor.cpu() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("method", ligo.METHODS)
def test_every_method_grows_the_same(method):
    found = []
    for device in DEVICES:
        torch.manual_seed(0)
        small, large = randomised(vit(), torch.float64).to(device), vit(64, 4).double().to(device)
        ligo.grow(small, large, method=method, steps=0, **cast(IMAGES, torch.float64, device))
        assert {p.device.type for p in large.parameters()} == {device}
        found.append(weights(large))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def loss(network, batch):
    return F.cross_entropy(network(batch[0]).flatten(1), batch[1])


NETWORKS = {
    "vit": (vit, (), (64, 4), IMAGES),
    "lstm": (Recurrent, (nn.LSTM, 4, 2), (nn.LSTM, 7, 2), SEQUENCES),
}


@pytest.mark.parametrize("method", ["ligo", "ligo-paper", "ligo-low-rank"])
@pytest.mark.parametrize("name", NETWORKS)
def test_an_operator_learns_the_same(name, method):
    found, (build, small_size, large_size, inputs) = [], NETWORKS[name]
    for device in DEVICES:
        torch.manual_seed(0)
        small, large = randomised(build(*small_size), torch.float64), build(*large_size).double()
        small, large, x = small.to(device), large.to(device), inputs["x"].double().to(device)
        operator = ligo.Operator(ligo.pair(small, large, x), small, method)
        batches = [(x, torch.arange(3, device=device))] * 6
        learned = ligo.fit(operator, large, loss, batches, steps=6, learning_rate=1e-3)
        operator.bake(large)
        found.append((learned.losses, weights(large)))
    assert found[0][0][0] != found[0][0][-1]
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_counted_as_on_a_cpu(dtype):
    found = []
    for device in DEVICES:
        heads = torch.ones(2, 3, 64, 32, dtype=dtype, device=device, requires_grad=True)
        with flop_counter() as count:
            F.scaled_dot_product_attention(heads, heads, heads).sum().backward()
        found.append(count.get_total_flops())
    product = 2 * (2 * 3 * 64 * 64 * 32)
    assert found == [7 * product] * 2


class Dropping(Plain):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def loss(self, batch):
        logits = self.network(self.dropout(self.stem(batch[0])))
        return logits, F.cross_entropy(logits, batch[1])


class Drawn(Callback):
    """The state of the device's random numbers before every step."""

    def __init__(self):
        self.states = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.states.append(torch.cuda.get_rng_state().tolist())


def test_learning_draws_none_of_the_random_numbers_of_the_run(tmp_path):
    states = []
    for options in ({"method": "lemon"}, {"method": "ligo", "steps": 3}):
        torch.manual_seed(0)
        module, drawn = Dropping(), Drawn()
        growing = GrowthCallback([Growth(LARGE, step=4)], **options)
        fit(module, tmp_path, growing, drawn, accelerator="cuda", devices=1)
        assert module.network.head.in_features == 24
        states.append(drawn.states)
    assert len(set(map(tuple, states[0]))) == len(states[0])
    assert states[0] == states[1]


@pytest.mark.parametrize("first", ["cuda", "cpu"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_run_is_resumed_on_the_other_device(tmp_path, first, epoch):
    """A growth is due at the end of the first epoch."""

    def run(device, folder, checkpoint=None):
        torch.manual_seed(0)
        module, saved = Plain(), ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
        growing = GrowthCallback([Growth(LARGE, step=8)], method="lemon")
        fitted = trainer(
            folder, growing, saved, accelerator=device, devices=1, enable_checkpointing=True
        )
        loader = train_loader(shuffle=False)
        fitted.fit(module, loader, val_loader(), ckpt_path=checkpoint, weights_only=True)
        return module

    second = {"cuda": "cpu", "cpu": "cuda"}[first]
    whole = run(first, tmp_path / "whole")
    resumed = run(second, tmp_path / "resumed", tmp_path / f"whole/epoch={epoch}.ckpt")
    torch.testing.assert_close(
        weights(resumed.network), weights(whole.network), rtol=1e-3, atol=1e-3
    )


class Graphs(Plain):
    """Its network runs as CUDA graphs, whose memory is that of the weights they were made with."""

    def __init__(self):
        super().__init__()
        self.network = torch.compile(self.network, mode="reduce-overhead")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of inductor
def test_a_network_of_cuda_graphs_grows(tmp_path):
    found = []
    for kind in (Plain, Graphs):
        torch.manual_seed(0)
        module = kind()
        growing = GrowthCallback([Growth(LARGE, step=8)], method="lemon")
        fit(module, tmp_path, growing, accelerator="cuda", devices=1)
        network = getattr(module.network, "_orig_mod", module.network)
        assert network.head.in_features == 24
        found.append(weights(network))
    assert (type(module.network) is not Net) and module.network._orig_mod is network
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


class Held(Callback):
    """The bytes of the device that a run holds at its end, above those from before it."""

    def __init__(self):
        self.before = torch.cuda.memory_allocated()

    def on_train_end(self, trainer, pl_module):
        self.bytes = torch.cuda.memory_allocated() - self.before


def test_a_grown_run_holds_what_one_of_the_large_network_does(tmp_path):
    size = ligo.describe(Net, width=512, depth=4)
    growing = GrowthCallback([Growth(size, step=4)], method="ligo", steps=3)
    found = []
    for network, callbacks in (({}, [growing]), ({"width": 512, "depth": 4}, [])):
        module, held = Plain(), Held()
        module.network = Net(**network)
        fit(module, tmp_path, *callbacks, held, accelerator="cuda", devices=1)
        found.append(held.bytes)
    weights = sum(4 * p.numel() for p in module.network.parameters())
    assert abs(found[0] - found[1]) < weights / 4
