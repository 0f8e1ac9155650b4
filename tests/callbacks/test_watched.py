"""The network is used in other ways than by one call in each step, and grows whole.

The oracle is the module's own network: all that it computes is the same just before a growth by
``lemon`` and just after it.
"""

from dataclasses import dataclass, fields

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_ligo import Growth, GrowthCallback, describe
from runs import CLASSES, FEATURES, items, train_loader, trainer

X = torch.randn(5, FEATURES, generator=torch.Generator().manual_seed(2))


def mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, outputs))


class Module(pl.LightningModule):
    """Trains a network that has a trunk and two heads, as the kinds below do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def seen(self) -> Tensor:
        trunk = self.network.trunk(X)
        return torch.cat([self.network.first(trunk), self.network.second(trunk)], 1)


class Heads(nn.Module):
    """A trunk of features and two heads, of which ``forward`` uses the first."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(FEATURES, width), nn.GELU(), nn.Linear(width, width))
        self.first, self.second = nn.Linear(width, CLASSES), nn.Linear(width, CLASSES)

    def forward(self, x, second=False):
        return (self.second if second else self.first)(self.trunk(x))

    def encode(self, x):
        return self.trunk(x)

    def decode(self, features):
        return self.first(features) + self.second(features)


class TwoHeads(Module):
    """Each batch uses another head."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(batch[0], second=batch_idx % 2 == 1), batch[1])


class Forward(Module):
    """Calls ``forward`` itself, so that no hook of the network sees it."""

    def training_step(self, batch, batch_idx):
        out = self.network.forward(batch[0]) + self.network.forward(batch[0], second=True)
        return F.cross_entropy(out, batch[1])


class Methods(Module):
    """Calls methods, and hands what one returns to the other."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network.decode(self.network.encode(batch[0])), batch[1])


class Parts(Module):
    """Calls parts, with functions between them: a sum, an activation, another module."""

    def __init__(self, network):
        super().__init__(network)
        self.drop = nn.Dropout(0.5)

    def training_step(self, batch, batch_idx):
        features = F.relu(self.drop(self.network.trunk(batch[0]) + 1.0))
        out = self.network.first(features).flatten(1) + self.network.second(features[:, None])[:, 0]
        return F.cross_entropy(out, batch[1])


class InValidation(Module):
    """The second head is trained by a penalty that the step adds, and called in validation only."""

    def training_step(self, batch, batch_idx):
        penalty = (
            self.network.second.weight.square().sum() + self.network.second.bias.square().sum()
        )
        return F.cross_entropy(self.network(batch[0]), batch[1]) + penalty

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.network(batch[0], second=True), batch[1]))


class Skips(Module):
    """The first batches are skipped."""

    def training_step(self, batch, batch_idx):
        if batch_idx < 3:
            return None
        return F.cross_entropy(self.network(batch[0]) + self.network(batch[0], True), batch[1])


class JoinsLater(Module):
    """Another network trains alone in the first epoch."""

    def __init__(self, network):
        super().__init__(network)
        self.other = nn.Linear(FEATURES, CLASSES)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.other(x), y)
        if self.current_epoch == 0:
            return loss
        return loss + F.cross_entropy(self.network(x) + self.network(x, second=True), y)


class Auxiliary(Heads):
    """The second head is a help of the training only."""

    def forward(self, x):
        x = self.trunk(x)
        return (self.first(x), self.second(x)) if self.training else self.first(x)


class InTraining(Module):
    def training_step(self, batch, batch_idx):
        return sum(F.cross_entropy(out, batch[1]) for out in self.network(batch[0]))


@dataclass(frozen=True)
class Items:
    x: Tensor
    y: Tensor

    def to(self, device, **_):
        return Items(*(getattr(self, each.name).to(device) for each in fields(self)))


class Outputs:
    def __init__(self, first, second):
        self.first, self.second = first, [second]


class Objects(Heads):
    """Takes a batch and returns an object, neither of which torch knows."""

    def forward(self, items):
        x = self.trunk(items.x)
        return Outputs(self.first(x), self.second(x))


class WithObjects(Module):
    def training_step(self, batch, batch_idx):
        out = self.network(Items(*batch))
        return F.cross_entropy(out.first + out.second[0], batch[1])


class OwnModule(pl.LightningModule):
    """Reads its Trainer in the forward."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layers = Heads(width)

    def forward(self, x):
        out = self.layers(x) + self.layers(x, second=True)
        return out * min(1.0, 0.1 + self.trainer.global_step)


class Nested(Module):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def seen(self):
        return self.network(X)


class Lazy(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.LazyLinear(width), nn.GELU(), nn.LazyLinear(width))
        self.first, self.second = nn.LazyLinear(CLASSES), nn.LazyLinear(CLASSES)

    def forward(self, x, second=False):
        x = self.trunk(x)
        return self.first(x) + self.second(x)


class OfLazy(Nested):
    def __init__(self, network):
        network(X)
        super().__init__(network)


class Scripted(Heads):
    """Has a trunk that is scripted."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        self.trunk = torch.jit.script(self.trunk)


class ByHand(Module):
    """Two networks in turn, each with its optimizer and its schedule."""

    def __init__(self, network):
        super().__init__(network)
        self.automatic_optimization = False
        self.judge = mlp(CLASSES, 4, 1)

    def training_step(self, batch, batch_idx):
        (first, second), schedule = self.optimizers(), self.lr_schedulers()
        second.zero_grad()
        self.manual_backward(self.judge(F.one_hot(batch[1], CLASSES).float()).mean())
        second.step()
        first.zero_grad()
        out = self.network.decode(self.network.encode(batch[0]))
        self.manual_backward(self.judge(out).mean())
        first.step()
        schedule.step()

    def configure_optimizers(self):
        first = torch.optim.Adam(self.network.parameters(), lr=1e-3)
        second = torch.optim.SGD(self.judge.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.ExponentialLR(first, 0.99)
        return [first, second], [schedule]


class Probe(Callback):
    """What the module computes at a step."""

    def __init__(self, step: int) -> None:
        self.step, self.value, self.width = step, None, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step >= self.step and self.value is None:
            pl_module.eval()
            with torch.no_grad():
                self.value = pl_module.seen().clone()
            pl_module.train()
            self.width = next(p for p in pl_module.network.parameters()).shape[0]


def change(folder, kind, network, step=9, epochs=4, override=None):
    """The largest change of what a module computes by its growth to twice the width."""
    torch.manual_seed(0)
    before, after = Probe(step), Probe(step)
    growth = GrowthCallback(
        [Growth(describe(network, width=16), step=step)], method="lemon", override=override
    )
    run = trainer(folder, before, growth, after, epochs=epochs)
    valid = DataLoader(items(1), 16) if kind is InValidation else None
    run.fit(kind(network()), train_loader(shuffle=False), valid)
    assert (before.width, after.width) == (8, 16)
    return float((after.value - before.value).abs().max())


KINDS = [
    (TwoHeads, Heads),
    (Forward, Heads),
    (Methods, Heads),
    (Parts, Heads),
    (InValidation, Heads),
    (Skips, Heads),
    (JoinsLater, Heads),
    (InTraining, Auxiliary),
    (WithObjects, Objects),
    (Nested, OwnModule),
    (OfLazy, Lazy),
    (ByHand, Heads),
    (TwoHeads, Scripted),
]


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.:UserWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize(
    ("kind", "network"), KINDS, ids=[f"{kind.__name__}-{of.__name__}" for kind, of in KINDS]
)
def test_all_of_it_grows(tmp_path, kind, network):
    assert change(tmp_path, kind, network) < 1e-5


class Spare(Heads):
    """A table that no step uses in any call."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        self.spare = nn.Parameter(torch.full((width,), float(width)))
        self.scale = nn.Parameter(torch.tensor(2.0))


class UsesNoSpare(Forward):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * self.network.scale


def test_a_trained_parameter_that_no_call_uses_is_refused_at_the_start(tmp_path):
    module = UsesNoSpare(Spare())
    run = trainer(tmp_path, GrowthCallback([Growth(describe(Spare, width=16), step=9)]))
    with pytest.raises(ValueError, match=r"(?s)an optimizer trains spare, .*\{'spare': None\}"):
        run.fit(module, train_loader())
    assert run.global_step == 0


def test_the_override_of_the_message_lets_it_start_as_it_was_built(tmp_path):
    assert change(tmp_path, UsesNoSpare, Spare, override={"spare": None}) < 1e-5


def test_a_parameter_of_one_length_that_the_step_reads_itself_is_copied(tmp_path):
    module = UsesNoSpare(Spare())
    module.network.scale.data.fill_(3.0)
    growth = GrowthCallback(
        [Growth(describe(Spare, width=16), step=0)], method="lemon", override={"spare": None}
    )
    run = trainer(tmp_path, growth, max_steps=1, epochs=1)
    run.fit(module, train_loader())
    assert module.network.scale.item() == pytest.approx(3.0, abs=0.1)
    assert module.network.spare.tolist() == [16.0] * 16


def test_a_parameter_that_is_not_trained_and_not_used_may_stay_as_it_was_built(tmp_path):
    class Frozen(UsesNoSpare):
        def __init__(self, network):
            super().__init__(network)
            self.network.spare.requires_grad_(False)

        def configure_optimizers(self):
            return torch.optim.Adam([p for p in self.parameters() if p.requires_grad])

    assert change(tmp_path, Frozen, Spare) < 1e-5
