"""The table of what a run can be made of: its cells, and what a run of each writes down.

Started by torchrun for the cells of several ranks, once for all of them, as `ranks.py` is. Where
there are CUDA devices the cells run on them: with NCCL, inductor, fused AdamW and one rank or two.
"""

import functools
import hashlib
import json
import sys
import traceback
import warnings
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.plugins import MixedPrecision
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from lightning_ligo import Growth, GrowthCallback
from ranks import ddp, loader, sharding, whole
from runs import BATCH, MIDDLE, Net, trainer

EPOCHS, SCALE, INTERVAL = 3, 256.0, 4
CUDA = torch.cuda.is_available()
RANKS = min(2, torch.cuda.device_count()) if CUDA else 2
BACKEND = "inductor" if CUDA else "eager"  # of torch.compile
COMMUNICATION = "nccl" if CUDA else "gloo"


class Cell(NamedTuple):
    strategy: str
    precision: str
    accumulate: int
    optimizer: str
    compiled: str

    def __str__(self):
        return " ".join(map(str, self))


VALUES = Cell(
    ("single", "ddp", "fsdp2"),
    ("32-true", "bf16-mixed", "16-mixed", "bf16-true"),
    (1, 3),
    ("adamw", "sgd", "cli"),
    ("no", "wrapped", "in place"),
)
IMPOSSIBLE = {
    # by Lightning, which has no such precision for it
    ("fsdp2", "16-mixed"): "ValueError: The `ModelParallelStrategy` does not support",
    # by GrowthCallback: the command line makes the optimizer before configure_model shards, and
    # without a growth such a run trains nothing
    ("fsdp2", "cli"): "RuntimeError: every trainable parameter must be in exactly one optimizer gr",
    # by GrowthCallback: Lightning cannot load what it has saved, without _orig_mod in its names
    ("fsdp2", "wrapped"): "ValueError: torch.compile has wrapped 'network', and ModelParallelStra",
}
"""Pairs that cannot be, and how the error begins of those who refuse them."""


def pairs(cell):
    """The values of a cell, two by two, each with its place."""
    return set(combinations(enumerate(cell), 2))


def is_possible(cell):
    return not any((a, b) in IMPOSSIBLE for (_, a), (_, b) in pairs(cell))


CELLS = [
    Cell("single", "32-true", 1, "adamw", "no"),
    Cell("single", "32-true", 3, "sgd", "no"),
    Cell("single", "bf16-mixed", 1, "sgd", "no"),
    Cell("single", "bf16-mixed", 3, "cli", "no"),
    Cell("single", "16-mixed", 1, "cli", "no"),
    Cell("single", "16-mixed", 3, "adamw", "no"),
    Cell("single", "bf16-true", 1, "sgd", "no"),
    Cell("single", "bf16-true", 3, "adamw", "no"),
    Cell("single", "32-true", 1, "cli", "wrapped"),
    Cell("single", "bf16-mixed", 1, "sgd", "wrapped"),
    Cell("single", "bf16-true", 3, "adamw", "wrapped"),
    Cell("single", "16-mixed", 1, "adamw", "in place"),
    Cell("ddp", "32-true", 1, "cli", "no"),
    Cell("ddp", "32-true", 3, "adamw", "no"),
    Cell("ddp", "bf16-mixed", 1, "adamw", "no"),
    Cell("ddp", "bf16-mixed", 3, "sgd", "no"),
    Cell("ddp", "16-mixed", 1, "sgd", "no"),
    Cell("ddp", "16-mixed", 3, "cli", "no"),
    Cell("ddp", "bf16-true", 1, "adamw", "no"),
    Cell("ddp", "bf16-true", 3, "cli", "no"),
    Cell("ddp", "16-mixed", 3, "sgd", "wrapped"),
    Cell("ddp", "bf16-mixed", 3, "cli", "in place"),
    Cell("fsdp2", "32-true", 1, "sgd", "no"),
    Cell("fsdp2", "32-true", 3, "adamw", "no"),
    Cell("fsdp2", "bf16-mixed", 1, "adamw", "no"),
    Cell("fsdp2", "bf16-mixed", 3, "sgd", "no"),
    Cell("fsdp2", "bf16-true", 1, "adamw", "no"),
    Cell("fsdp2", "bf16-true", 3, "sgd", "no"),
    Cell("fsdp2", "32-true", 3, "sgd", "in place"),
    Cell("fsdp2", "bf16-true", 1, "adamw", "in place"),
]
REFUSED = {
    Cell("fsdp2", "16-mixed", 1, "adamw", "no"): IMPOSSIBLE["fsdp2", "16-mixed"],
    Cell("fsdp2", "32-true", 1, "cli", "no"): IMPOSSIBLE["fsdp2", "cli"],
    Cell("fsdp2", "32-true", 1, "adamw", "wrapped"): IMPOSSIBLE["fsdp2", "wrapped"],
}


class Module(LightningModule):
    """Its network is compiled, sharded and trained as the cell says."""

    def __init__(self, cell):
        super().__init__()
        self.network, self.optimizer = Net(), cell.optimizer
        if cell.compiled == "wrapped":
            self.network = torch.compile(self.network, backend=BACKEND)
        elif cell.compiled == "in place":
            self.network.compile(backend=BACKEND)
        if cell.optimizer == "cli":
            made, schedule = optimizer_of(self, cell.optimizer)
            self.configure_optimizers = functools.partial(
                LightningCLI.configure_optimizers, self, made, schedule
            )

    def configure_model(self):
        network = getattr(self.network, "_orig_mod", self.network)
        if self.device_mesh is not None and not isinstance(network, FSDPModule):
            mesh = self.device_mesh["data_parallel"]
            for block in network.blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(network, mesh=mesh)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(batch[0]).float(), batch[1])

    def configure_optimizers(self):
        made, schedule = optimizer_of(self, self.optimizer)
        return [made], [{"scheduler": schedule, "interval": "step"}]


def optimizer_of(module, kind):
    if kind == "sgd":
        made = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9)
    else:
        made = torch.optim.AdamW(module.parameters(), lr=2e-2, fused=CUDA)
    return made, LambdaLR(made, lambda step: 0.9**step)


class Watch(Callback):
    """What is seen of a run by a callback that stands after GrowthCallback."""

    def __init__(self):
        self.rates, self.widths, self.start = [], [], {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.widths.append(pl_module.network.head.in_features)
        if len(self.widths) == 1 or self.widths[-1] != self.widths[-2]:
            self.start = {name: whole(p).clone() for name, p in pl_module.named_parameters()}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.without = [
            name
            for name, p in pl_module.named_parameters()
            if p.grad is None or not whole(p.grad).any()
        ]

    def on_train_end(self, trainer, pl_module):
        parameters = {name: whole(p) for name, p in pl_module.named_parameters()}
        self.still = [name for name, p in parameters.items() if torch.equal(p, self.start[name])]
        digest = hashlib.sha256()
        for name, parameter in parameters.items():
            raw = parameter.detach().cpu().contiguous().view(-1).view(torch.uint8)
            digest.update(name.encode() + raw.numpy().tobytes())
        self.weights = digest.hexdigest()
        self.dtypes = sorted({str(p.dtype) for p in parameters.values()})


def fit(cell, folder, checkpoint=None):
    """Train a cell; what was seen of it."""
    seed_everything(0)
    ranks = 1 if cell.strategy == "single" else RANKS
    strategies = {
        "single": lambda: "auto",
        "ddp": lambda: ddp(process_group_backend=COMMUNICATION),
        "fsdp2": lambda: sharding(data_parallel_size=RANKS, process_group_backend=COMMUNICATION),
    }
    device = "cuda" if CUDA else "cpu"
    scaler = torch.amp.GradScaler(device, init_scale=SCALE, growth_interval=INTERVAL)
    if cell.precision == "16-mixed" and cell.strategy != "fsdp2":  # else bf16 on a CPU
        precision = {"plugins": [MixedPrecision("16-mixed", device, scaler)]}
    else:
        precision = {"precision": cell.precision}
    growing, watch = GrowthCallback([Growth(MIDDLE, fraction=0.5)], method="ligo", steps=2), Watch()
    saved = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    run = trainer(
        folder, growing, watch, saved, epochs=EPOCHS, accelerator=device, devices=ranks,
        strategy=strategies[cell.strategy](), accumulate_grad_batches=cell.accumulate,
        enable_checkpointing=True, **precision,
    )  # fmt: skip
    run.fit(Module(cell), loader(0, BATCH, ranks), ckpt_path=checkpoint)
    names = ("rates", "widths", "without", "still", "weights", "dtypes")
    seen = {name: getattr(watch, name) for name in names}
    return {**seen, "scale": scaler.state_dict(), "steps": run.global_step}


def tried(cell, folder):
    """A whole run, and what it becomes from its checkpoints before and after the growth."""
    try:
        ends = {"whole": fit(cell, folder)}
        for epoch in (0, 1):
            name, checkpoint = f"from {epoch}", folder / f"epoch={epoch}.ckpt"
            ends[name] = fit(cell, folder / name, checkpoint)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    return ends


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
    folder, asked = Path(sys.argv[1]), sys.argv[2:]
    for number, cell in enumerate([*CELLS, *REFUSED]):
        if str(cell) in asked:
            result = tried(cell, folder / str(number))
            rank = torch.distributed.get_rank()
            (folder / f"{cell}-{rank}.json").write_text(json.dumps(result))
