"""One growth, and whether what is told of it is what a program measures itself.

A program prints a line that begins with OK or FAIL for each thing that it asks.
"""

import io
import logging
import math
import re
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lightning_ligo as ligo
from runs import trainer

torch.set_num_threads(1)
torch.manual_seed(0)  # of what a program makes before its growth
warnings.filterwarnings("ignore")

LINES: list[str] = []
"""What has been logged since the start of the last run."""


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        LINES.append(record.getMessage())


for _name in ("lightning", "lightning.pytorch", "lightning_utilities", "lightning.fabric"):
    logging.getLogger(_name).handlers = []
    logging.getLogger(_name).propagate = True
logging.basicConfig(level=logging.INFO, handlers=[_Lines()], force=True)

LEMON: dict[str, Any] = {"method": "lemon"}
LIGO: dict[str, Any] = {"method": "ligo", "steps": 5, "learning_rate": 1e-12}  # all but unlearned


@dataclass
class Outcome:
    """What a growth has done to outputs of a network, and what was told of it."""

    told: str = ""
    before: Tensor | None = None
    after: Tensor | None = None
    error: Exception | None = None
    step: int = 0  # at which the run has ended
    control: str = ""  # how the run ends without its growth, if it failed
    module: Any = field(default=None, repr=False)

    @property
    def change(self) -> float:
        """Relative change of the outputs."""
        if self.before is None or self.after is None:
            return math.nan
        return float((self.after - self.before).norm() / self.before.norm())

    @property
    def grew(self) -> bool:
        return self.error is None and bool(self.told)

    @property
    def refused(self) -> bool:
        """Whether the run was refused at its start, and goes well without the growth."""
        return isinstance(self.error, ValueError) and self.step == 0 and self.control == "fine"

    def honest(self, bound: float = 1e-4) -> bool:
        """Whether "kept" is told if and only if the outputs are kept; NaN is no growth."""
        kept = self.told.startswith("the function is kept")
        return self.grew and math.isfinite(self.change) and kept == (self.change < bound)

    def kept(self, bound: float = 1e-4) -> bool:
        """Whether the outputs are kept, and told to be."""
        return self.honest(bound) and self.change < bound

    def __str__(self) -> str:
        if self.error is not None:
            words = f"{type(self.error).__name__} at step {self.step}: {str(self.error)[:700]}"
            return f"{words} | the same run without growth: {self.control or 'not tried'}"
        if self.before is None or self.before.shape != self.after.shape:
            return f"told: {self.told}"
        return f"changed by {self.change:.1e}; told: {self.told}"


class Probe(pl.Callback):
    """Looks at the module before a step, in evaluation mode."""

    def __init__(self, see: Callable, step: int) -> None:
        self.see, self.step, self.value = see, step, None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step and self.value is None:
            training = {module: module.training for module in pl_module.modules()}
            pl_module.eval()
            with torch.no_grad():
                self.value = self.see(pl_module)
            for module in pl_module.modules():
                module.training = training.get(module, module.training)


class Lit(pl.LightningModule):
    """Trains a network by its cross-entropy."""

    def __init__(self, model: nn.Module, optimizer: type = torch.optim.Adam, lr: float = 1e-3):
        super().__init__()
        self.model, self.how = model, (optimizer, lr)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer, lr = self.how
        return optimizer([p for p in self.parameters() if p.requires_grad], lr=lr)


def run(
    make: Callable[[], pl.LightningModule],
    data: DataLoader,
    to: dict,
    see: Callable = lambda module: None,
    step: int = 8,
    val: DataLoader | None = None,
    **growth: Any,
) -> Outcome:
    """Train what is made for two epochs, and grow its ``model`` at a step, by lemon."""
    grow = ligo.GrowthCallback([ligo.Growth(to, step=step)], attribute="model", **LEMON | growth)
    outcome = _fit(make, data, val, Probe(see, step), grow, Probe(see, step))
    if outcome.error is not None:
        control = _fit(make, data, val).error
        outcome.control = "fine" if control is None else f"{type(control).__name__}: {control}"
    return outcome


def _fit(make: Callable, data: DataLoader, val: DataLoader | None, *callbacks: Any) -> Outcome:
    LINES.clear()
    outcome = Outcome(module=make())
    torch.manual_seed(0)
    with redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        runner = trainer(folder, *callbacks, epochs=2)
        try:
            runner.fit(outcome.module, data, val)
        except Exception as error:
            outcome.error = error
    outcome.step, outcome.told = runner.global_step, told()
    if callbacks:
        outcome.before, outcome.after = callbacks[0].value, callbacks[-1].value
    return outcome


def told() -> str:
    """Return what the log says of the function, in the line of the growth."""
    words = (re.search(r"^Growth 1 of 1 .* at its start (.*?); ", line) for line in LINES)
    return next((found[1] for found in words if found), "")


def grown(
    small: nn.Module,
    large: nn.Module,
    *args: Any,
    method: str = "lemon",
    see: Callable | None = None,
    **kwargs: Any,
) -> Outcome:
    """Grow a network outside of a run; see the first output unless told what to see."""
    outcome, see = Outcome(), see or (lambda network: first(network(*args, **kwargs)))
    try:
        with torch.no_grad():
            outcome.before = see(small)
        plan = ligo.pair(small, large, *args, **kwargs)
        calls = [ligo.Call(args, kwargs)]
        outcome.told = ligo.measure(plan, small, large, calls, method=method).sentence
        ligo.grow(small, large, *args, method=method, **kwargs)
        with torch.no_grad():
            outcome.after = see(large)
    except Exception as error:
        outcome.error = error
    return outcome


def first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def noisy(network: nn.Module, scale: float) -> nn.Module:
    """The network with noise on its weights, so that no zero or one hides a fault."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += scale * torch.randn_like(parameter)
    return network


def vectors(items: int = 96, inputs: int = 6, classes: int = 3, batch: int = 8) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(items, inputs, generator=generator)
    return DataLoader(
        TensorDataset(x, torch.randint(classes, (items,), generator=generator)), batch
    )


def say(ok: object, *words: object) -> None:
    print("OK" if ok else "FAIL", *words, flush=True)
