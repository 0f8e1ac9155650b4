"""Networks that torch.compile has compiled grow, and the large one runs compiled, too."""

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.nn import functional as F

from lightning_ligo import Growth, GrowthCallback
from runs import LARGE, MIDDLE, Net, fit, items, plain, train_loader, trainer, val_loader

# dynamo looks at the .grad of all that a graph takes
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


class Bare(LightningModule):
    """Logs nothing, so that the whole of it compiles fast."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = Net()

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Backend:
    """Runs graphs as they are, and counts how often."""

    def __init__(self):
        self.calls = 0

    def __call__(self, graph, inputs):
        def run(*args):
            self.calls += 1
            return graph.forward(*args)

        return run


def wrapped(module, **options):
    module.network = torch.compile(module.network, **options)
    return module


def in_place(module, **options):
    module.network.compile(**options)
    return module


def in_blocks(module, **options):
    for block in module.network.blocks:
        block.compile(**options)
    return module


class Calls(Callback):
    """How often compiled code has run in a training step, by the width of the network."""

    def __init__(self, backend):
        self.backend, self.calls = backend, {}

    def on_train_batch_start(self, *_):
        self.before = self.backend.calls

    def on_before_backward(self, trainer, pl_module, loss):
        width = pl_module.network.head.in_features
        self.calls.setdefault(width, []).append(self.backend.calls - self.before)


def growth(to=LARGE, method="lemon", step=8):
    learning = {"steps": 3} if method == "ligo" else {}
    return GrowthCallback([Growth(to, step=step)], method=method, **learning)


WAYS = {"wrapped": wrapped, "in place": in_place, "in blocks": in_blocks, "whole": torch.compile}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["lemon", "ligo"])
def test_a_compiled_run_is_the_run_that_is_not_compiled(tmp_path, way, method):
    backend, eager, module = Backend(), Bare(), Bare()
    calls = Calls(backend)
    for each, callback in (eager, growth(method=method)), (module, growth(method=method)):
        compiled = WAYS[way](each, backend=backend, fullgraph=True) if each is module else each
        trainer(tmp_path, callback, calls).fit(compiled, train_loader(shuffle=False))
    for weight, other in zip(module.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-4, atol=1e-5)
    # the first step of every size is counted in FLOPs, as it was written
    blocks = 4 if way == "in blocks" else 1
    assert calls.calls == {8: [0] * 8 + [0] + [1] * 7, 24: [0] * 10 + [0] + [blocks] * 9}


def test_every_growth_has_the_whole_recompile_limit(tmp_path):
    module, growths = (
        wrapped(Bare(), backend="eager"),
        [Growth(MIDDLE, step=3), Growth(LARGE, step=6)],
    )
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        run = trainer(tmp_path, GrowthCallback(growths, method="lemon"))
        run.fit(module, train_loader(shuffle=False))
    assert module.network.head.in_features == 24


@pytest.mark.parametrize("way", ["wrapped", "in place", "in blocks"])
def test_checkpoints_keep_their_keys_and_are_resumed_compiled(tmp_path, way):
    def run(folder, **options):
        torch.manual_seed(0)
        backend, module = Backend(), plain()
        WAYS[way](module, backend=backend)
        saved = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
        fitted = trainer(tmp_path, growth(), saved, enable_checkpointing=True)
        fitted.fit(module, train_loader(shuffle=False), val_loader(), **options)
        return module, backend

    whole, _ = run(tmp_path / "whole")
    prefix = "network._orig_mod." if way == "wrapped" else "network."
    for epoch in (0, 1):  # before the growth and after it
        path = tmp_path / "whole" / f"epoch={epoch}.ckpt"
        held = torch.load(path, weights_only=True)["state_dict"]
        names = {f"{prefix}{name}" for name in Net(depth=4 if epoch else 1).state_dict()}
        assert {name for name in held if name.startswith("network")} == names
        module, backend = run(tmp_path / f"from {epoch}", ckpt_path=path)
        calls = backend.calls
        module.network(items().tensors[0])
        assert backend.calls - calls == (4 if way == "in blocks" else 1)
        for weight, other in zip(module.parameters(), whole.parameters(), strict=True):
            assert torch.equal(weight, other)


def test_a_part_of_the_network_that_is_wrapped_is_refused(tmp_path):
    module = plain()
    module.network.blocks[0] = torch.compile(module.network.blocks[0], backend="eager")
    with pytest.raises(ValueError, match=r"torch.compile has wrapped blocks.0 of 'network'"):
        fit(module, tmp_path, growth())
    assert module.calls == 0


@pytest.mark.slow  # a C++ compiler makes the programs of both sizes
def test_inductor_trains_both_sizes(tmp_path):
    eager, module = Bare(), wrapped(Bare(), backend="inductor")
    for each in (eager, module):
        trainer(tmp_path, growth()).fit(each, train_loader(shuffle=False))
    for weight, other in zip(module.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-3, atol=1e-4)
