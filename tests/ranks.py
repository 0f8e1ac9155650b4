"""Runs on two processes: what each of them does, and what it writes down for the tests.

Started by torchrun, once for all cases; every case is tried even where another failed.
"""

import functools
import json
import math
import os
import resource
import subprocess
import sys
import traceback
import warnings
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import torch
from lightning.pytorch import LightningDataModule, LightningModule, seed_everything
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import (
    PowerSGDState,
    powerSGD_hook,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.utils.data import DataLoader, DistributedSampler

from lightning_ligo import (
    METHODS,
    Growth,
    GrowthCallback,
    Plateau,
    Rate,
    describe,
    rebuild,
)
from lightning_ligo.networks.description import build
from lightning_ligo.trainer import swap
from runs import (
    BATCH,
    CLASSES,
    FEATURES,
    ITEMS,
    LARGE,
    MIDDLE,
    SMALL,
    Net,
    Plain,
    items,
    net,
    trainer,
)  # fmt: skip

RANKS = 2
GLOO = {"process_group_backend": "gloo", "timeout": timedelta(seconds=60)}


class Even(Plain):
    """Without batch norm: the mean of the gradients of two half batches is that of the whole."""

    def __init__(self, rate: float = 1e-2) -> None:
        super().__init__()
        self.stem = nn.Identity()
        self.rate = rate

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch)[1], sync_dist=True)

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.loss(batch)[1], sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.rate, momentum=0.9)


class Itself(Even):
    """Is the network itself, made from its hyperparameters."""

    def __init__(self, width: int = 8, depth: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        del self.network
        for name, part in Net(width, depth).named_children():
            self.add_module(name, part)

    forward = Net.forward

    def loss(self, batch):
        logits = self(batch[0])
        return logits, nn.functional.cross_entropy(logits, batch[1])


class Several(Even):
    """Holds two networks that grow, and shards them if there is a mesh."""

    def __init__(self) -> None:
        super().__init__()
        del self.network
        self.encoder, self.head = Net(classes=4), nn.Linear(4, CLASSES)

    def configure_model(self):
        for part in (self.encoder, self.head) if self.device_mesh is not None else ():
            if not isinstance(part, FSDPModule):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])

    def loss(self, batch):
        logits = self.head(self.encoder(batch[0]).relu())
        return logits, nn.functional.cross_entropy(logits, batch[1])


BOTH = [
    Growth(net(16, 2, classes=10), step=4, attribute="encoder"),
    Growth(describe(nn.Linear, in_features=10, out_features=CLASSES), step=4, attribute="head"),
    Growth({"init_args": {"depth": 3}}, step=9, attribute="encoder"),
]
IN_TURN = [
    Growth(net(16, 2, classes=4), step=4, attribute="encoder"),
    Growth(net(16, 2, classes=10), step=9, attribute="encoder"),
    Growth(describe(nn.Linear, in_features=10, out_features=CLASSES), step=9, attribute="head"),
]


def fit(folder, kind=Even, *, ranks=RANKS, strategy=None, checkpoint=None, **options):
    """Train a network that grows, on one process or on all; the module and its Trainer."""
    seed_everything(0)
    module = kind()
    settings = {
        name: options.pop(name) for name in ("method", "steps", "on_failure") if name in options
    }
    growths = options.pop("growths", [Growth(LARGE, step=4)])
    shares = options.pop("shares", ranks)
    callback = GrowthCallback(growths, **settings)
    run = trainer(
        folder, callback, *options.pop("callbacks", []), epochs=options.pop("epochs", 2),
        devices=ranks,
        strategy="auto" if ranks == 1 else (strategy or ddp)(),
        **options,
    )  # fmt: skip
    run.fit(module, datamodule=Batches(shares), ckpt_path=checkpoint)
    return module, run


class Batches(LightningDataModule):
    """Batches whose size, of all ranks together, may change."""

    def __init__(self, shares):
        super().__init__()
        self.shares, self.batch = shares, BATCH

    def train_dataloader(self):
        return loader(0, self.batch, self.shares)

    def val_dataloader(self):
        return loader(1, ITEMS, self.shares)


def loader(seed, batch, shares):
    """Batches in order, each shared by the ranks; Lightning's own sampler would shuffle them."""
    data, rank = items(seed), int(os.environ.get("RANK", 0))
    sampler = DistributedSampler(data, shares, rank % shares, shuffle=False)
    return DataLoader(data, batch // shares, sampler=sampler)


def ddp(**options):
    return DDPStrategy(**{**GLOO, **options})


def sharding(**options):
    sizes = {"data_parallel_size": RANKS, "tensor_parallel_size": 1}
    return ModelParallelStrategy(**{**GLOO, **sizes, **options})


def weights(module):
    module = getattr(module, "_orig_mod", module)
    return {name: whole(tensor).tolist() for name, tensor in module.state_dict().items()}


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Wrapping(Callback):
    """How DDP's wrapper was made that is there at the end."""

    names = ("find_unused_parameters", "static_graph", "gradient_as_bucket_view")

    def on_train_end(self, trainer, pl_module):
        model = trainer.strategy.model
        self.flags = [name for name in self.names if getattr(model, name, False)]


def grown(folder, **options):
    """The final weights, and what the growth said."""
    wrapping = Wrapping()
    callbacks = [wrapping, *options.pop("callbacks", [])]
    module, run = fit(folder, callbacks=callbacks, **options)
    (callback,) = (c for c in run.callbacks if isinstance(c, GrowthCallback))
    return {
        "weights": weights(module),
        "steps": run.global_step,
        "records": [{**record, "seconds": 0} for record in callback.state_dict()["records"]],
        "flops": callback.accounting.training.totals,
        "flags": wrapping.flags,
    }


def resumed(folder, epoch=1, **options):
    """A run that is cut off after two epochs and goes on from the checkpoint of one of them."""
    saved = ModelCheckpoint(
        folder / "kept", filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True
    )
    fit(folder, method="lemon", enable_checkpointing=True, callbacks=[saved], **options)
    checkpoint = folder / "kept" / f"epoch={epoch}.ckpt"
    return grown(folder, epochs=3, method="lemon", checkpoint=checkpoint, **options)


def given_up(folder, **options):
    """A run that goes on after its growth has failed: its weights, and what it says of that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module, run = fit(folder, on_failure="continue", **options)
    (callback,) = (c for c in run.callbacks if isinstance(c, GrowthCallback))
    return {"weights": weights(module), "failed": callback.state_dict()["failed"]}


def given_up_in_the_swap(folder, **options):
    """The same, where one rank has no memory left once the large network is in its place."""
    last = int(os.environ["RANK"]) == RANKS - 1
    missing = torch.OutOfMemoryError("out of memory") if last else None
    with patch.object(swap, "check_every_parameter_once", side_effect=missing):
        return given_up(folder, **options)


def damaged(folder, strategy):
    """Resume from a folder of which a part is cut off."""
    _, run = fit(folder, Sharded, method="lemon", epochs=1, strategy=strategy)
    run.save_checkpoint(folder / "cut.ckpt")
    if run.is_global_zero:
        part = folder / "cut.ckpt" / "__0_0.distcp"
        part.write_bytes(part.read_bytes()[:-1000])
    run.strategy.barrier()
    return refused(folder, Sharded, checkpoint=folder / "cut.ckpt", strategy=strategy)


class Apart(Even):
    """Every rank logs a metric of its own; one process logs their mean: 3, 2.5, 3.5, 3."""

    def __init__(self):
        super().__init__()
        self.validations = 0

    def on_validation_epoch_end(self):
        each = [(4.0, 2.0), (3.0, 2.0), (2.0, 5.0), (1.0, 5.0)][min(self.validations, 3)]
        alone = self.trainer.world_size == 1
        value = sum(each) / 2 if alone else each[self.global_rank]
        self.log("apart", value, sync_dist=False)
        self.validations += 1


class Touch(Callback):
    """Makes a file after three steps."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 3 and trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "now").touch()


class Broken(Even):
    """Its loss is not a number on the last rank while the operator is learned."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        large = self.network.embed.out_features > 8
        return loss * math.nan if large and self.global_rank == RANKS - 1 else loss


class Infinite(Even):
    """Validation finds infinity in the large network on the last rank, and tells no other."""

    def validation_step(self, batch, batch_idx):
        worse = self.network.embed.out_features > 8 and self.global_rank == RANKS - 1
        self.log("val_loss", math.inf if worse else 1.0, sync_dist=False)


class Short(Even):
    """The last rank has no memory left while the operator is learned."""

    def training_step(self, batch, batch_idx):
        if self.network.embed.out_features > 8 and self.global_rank == RANKS - 1:
            raise torch.OutOfMemoryError("out of memory")
        return super().training_step(batch, batch_idx)


class Drifting(Even):
    """The last rank changes its momentum by itself."""

    def on_train_batch_end(self, *_):
        for state in self.optimizers().state.values():
            state["momentum_buffer"] += self.global_rank


class Compressing(DDPStrategy):
    """PowerSGD, which Lightning registers on GPUs only."""

    def _register_ddp_hooks(self):
        self.model.register_comm_hook(self._ddp_comm_state, powerSGD_hook)


def compressed(folder):
    """How often gradients were reduced by the state of a hook since the growth."""
    state = PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
    strategy = functools.partial(
        Compressing, ddp_comm_state=state, process_group_backend="gloo",
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    result = grown(folder, method="lemon", strategy=strategy)
    return {**result, "reduced": state.iter, "kept": len(state.error_dict)}


class Spare(Even):
    """Has a parameter that it does not use."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Parameter(torch.ones(3))


class Stemmed(Even):
    """Trains something besides its network."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(FEATURES, FEATURES)


class Sharded(Even):
    """Shards its network if there are ranks, and leaves one that is sharded."""

    def configure_model(self):
        if self.device_mesh is not None and not isinstance(self.network, FSDPModule):
            mesh = self.device_mesh["data_parallel"]
            for block in self.network.blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(self.network, mesh=mesh)


class ShardedBroken(Broken, Sharded):
    """The same of a network that is sharded."""


class ShardedAdamW(Sharded):
    configure_optimizers = Plain.configure_optimizers


class Split(ShardedAdamW):
    """Splits the products of its blocks besides."""

    def configure_model(self):
        if self.device_mesh is not None and not isinstance(self.network, FSDPModule):
            for block in self.network.blocks:
                plan = {"fc1": ColwiseParallel(), "fc2": RowwiseParallel()}
                parallelize_module(block, self.device_mesh["tensor_parallel"], plan)
        super().configure_model()


class ShardedDescribed(Sharded):
    """Describes its network; says in its checkpoints of which size it is."""

    def __init__(self, network=SMALL):
        super().__init__()
        self.save_hyperparameters()
        self.network = build(network)

    def on_load_checkpoint(self, checkpoint):
        rebuild(self, checkpoint)


class Once(Sharded):
    """Shards the network that it has at first and no other."""

    def configure_model(self):
        if not getattr(self, "is_configured", False):
            super().configure_model()
        self.is_configured = True


class Renames(Sharded):
    """Gives a part of its network another name."""

    def configure_model(self):
        super().configure_model()
        if "head" in self.network._modules:
            self.network.tail = self.network._modules.pop("head")


class Twice(Sharded):
    """Shards its stem each time, which can be done once."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(FEATURES, FEATURES)

    def configure_model(self):
        fully_shard(self.stem, mesh=self.device_mesh["data_parallel"])
        super().configure_model()


class Whole(Sharded):
    """Shards itself, with its network."""

    def configure_model(self):
        if not isinstance(self, FSDPModule):
            fully_shard(self, mesh=self.device_mesh["data_parallel"])


class Late(ShardedDescribed):
    """Makes its network where it shards it."""

    def __init__(self, network=SMALL):
        super().__init__(network)
        self.network = None

    def configure_model(self):
        if self.network is None:
            seed_everything(0)
            self.network = build(self.hparams.network)
        super().configure_model()


class LateAndUnknown(Late):
    """The same, and no one else can make it."""

    def __init__(self):
        super().__init__()
        self.hparams.pop("network")

    def configure_model(self):
        self.network = Net() if self.network is None else self.network
        super().configure_model()


class Uneven(Net):
    """Built with other weights on every rank."""

    def __init__(self, **options):
        super().__init__(**options)
        nn.init.constant_(self.head.bias, float(os.environ["RANK"]))


class Anchor(Callback):
    """Keeps whole weights by name as they were before the first step."""

    kept = staticmethod(whole)

    def on_train_start(self, trainer, pl_module):
        named = pl_module.named_parameters()
        self.anchor = {name: self.kept(p).detach().clone() for name, p in named}


class Parts(Anchor):
    """Keeps of each weight what this rank holds of it."""

    kept = staticmethod(lambda parameter: parameter)


def grown_anchor(folder, **options):
    anchor = Anchor()
    fit(folder, callbacks=[anchor], method="lemon", **options)
    return {"weights": {name: tensor.tolist() for name, tensor in anchor.anchor.items()}}


class Heads(nn.Module):
    """A trunk and two heads, of which a call uses one."""

    def __init__(self, width=8):
        super().__init__()
        self.trunk, self.norm = nn.Linear(FEATURES, width), nn.LayerNorm(width)
        self.first, self.second = nn.Linear(width, CLASSES), nn.Linear(width, CLASSES)

    def forward(self, x, second):
        return (self.second if second else self.first)(self.norm(self.trunk(x)).relu())


class Tasks(LightningModule):
    """Every batch uses one head, and the ranks use different ones."""

    def __init__(self):
        super().__init__()
        self.network, self.before, self.after = Heads(), None, None

    def is_second(self, batch_idx):
        return (batch_idx + self.global_rank) % 2 == 1

    def seen(self):
        x = items(3).tensors[0]
        with torch.no_grad():
            return torch.cat([self.network(x, second) for second in (False, True)]).tolist()

    def training_step(self, batch, batch_idx):
        out = self.network(batch[0], self.is_second(batch_idx))
        return nn.functional.cross_entropy(out, batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


class OneTaskEach(Tasks):
    """Every rank has one head for itself."""

    def is_second(self, batch_idx):
        return self.global_rank == 1


class LaterOnOne(OneTaskEach):
    """The first rank calls the network in its second epoch only, the other in none."""

    def training_step(self, batch, batch_idx):
        if self.current_epoch == 0 or self.global_rank == 1:
            return sum(p.sum() for p in self.parameters()) * 0
        out = self.network(batch[0], False) + self.network(batch[0], True)
        return nn.functional.cross_entropy(out, batch[1])


class Seen(Callback):
    """What the module computes in all its tasks before and after the growth."""

    def on_train_batch_start(self, trainer, pl_module, *_):
        if trainer.global_step == 12:
            self.values = pl_module.seen()


class SeenAfter(Seen):
    """Stands behind the growth."""


def tasks(folder, kind, **options):
    """What all heads compute just before a growth and just after it, and the final weights."""
    before, after = Seen(), SeenAfter()
    growing = GrowthCallback([Growth(describe(Heads, width=20), step=12)], method="lemon")
    seed_everything(0)
    module = kind()
    run = trainer(
        folder, before, growing, after, epochs=4, devices=RANKS,
        strategy=ddp(find_unused_parameters=True), limit_val_batches=0,
    )  # fmt: skip
    run.fit(module, datamodule=Batches(RANKS))
    return {"weights": weights(module), "before": before.values, "after": after.values}


def evaluated(folder, kind, strategy):
    """The validation loss of every epoch, and the test loss of its checkpoint, before and after."""
    saved = ModelCheckpoint(folder / "kept", save_top_k=-1, monitor="val_loss")
    module, run = fit(
        folder, kind, method="lemon", growths=[Growth(LARGE, epoch=1)], strategy=strategy,
        enable_checkpointing=True, callbacks=[saved],
    )  # fmt: skip
    data, pairs = loader(1, ITEMS, RANKS), []
    for path, loss in saved.best_k_models.items():
        for each in (module, kind()):
            (found,) = run.test(each, data, ckpt_path=path, verbose=False)
            pairs.append((loss.item(), found["test_loss"], each.network.embed.out_features))
    return {"pairs": pairs}


def unrecorded(folder, strategy):
    """Resume with one block from a checkpoint that has four, of a run that knew no growth."""
    module, run = (
        ShardedDescribed(DEEPER),
        trainer(folder, epochs=1, devices=RANKS, strategy=strategy()),
    )
    run.fit(module, loader(0, BATCH, RANKS))
    run.save_checkpoint(folder / "deeper.ckpt")
    return refused(folder, Sharded, checkpoint=folder / "deeper.ckpt", strategy=strategy)


def unwatched(folder):
    """Test, without GrowthCallback, one block on a checkpoint that has grown to four."""
    _, run = fit(
        folder, ShardedDescribed, growths=[Growth(DEEPER, step=4)], method="lemon",
        strategy=sharding,
    )  # fmt: skip
    run.save_checkpoint(folder / "deeper.ckpt")
    run = trainer(folder, devices=RANKS, strategy=sharding())
    try:
        run.test(ShardedDescribed(), loader(1, ITEMS, RANKS), ckpt_path=folder / "deeper.ckpt")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


STEP = 2 * BATCH * (3 * (2 * 8 * 16 + 8 * CLASSES) + 2 * 8 * FEATURES)
"""FLOPs of the small network on all ranks; nothing goes back to the features."""


def refused(folder, kind=Even, **options):
    try:
        fit(folder, kind, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


def compiled():
    return torch.compile(Even(), backend="eager")


class Wide(ShardedAdamW):
    """From 2 million parameters to 17."""

    def __init__(self, width=512, depth=2):
        super().__init__()
        self.network = build(net(width, depth))


def held(folder, method=None, steps=0):
    """The most memory that this process has held by the end of a run, in bytes.

    Of a growth, or of the large network alone if there is no method.
    """
    large = net(1024, 4)
    seed_everything(0)
    module = Wide() if method else Wide(1024, 4)
    callbacks = (
        [GrowthCallback([Growth(large, step=4)], method=method, steps=steps)] if method else []
    )
    run = trainer(folder, *callbacks, epochs=2, devices=RANKS, strategy=sharding())
    run.fit(module, datamodule=Batches(RANKS))
    assert module.network.embed.out_features == 1024
    return {
        "bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "parameters": sum(p.numel() for p in module.network.parameters()),
    }


DEEPER = net(8, 4)
WARMED = [Growth(MIDDLE, step=3), Growth(LARGE, step=7, rate=Rate(0.5, rewarm=4, peak=1.2))]
one_file = functools.partial(sharding, save_distributed_checkpoint=False)
UNEVEN = net(20, 2)
split = functools.partial(sharding, data_parallel_size=1, tensor_parallel_size=2)
TWO = [Growth(MIDDLE, step=3), Growth(LARGE, step=7)]
DOUBLED = [Growth(LARGE, epoch=1, data={"batch": 2 * BATCH})]
CASES = {
    "lemon": functools.partial(grown, method="lemon"),
    "ligo": functools.partial(grown, method="ligo", steps=5),
    "two growths": functools.partial(grown, method="lemon", growths=TWO),
    "hparams": functools.partial(
        grown, kind=Itself, method="ligo", steps=2,
        growths=[Growth(hparams={"width": 24, "depth": 4}, step=4)]),
    "several": functools.partial(grown, kind=Several, method="ligo", steps=2, growths=BOTH),
    "several, resumed": functools.partial(resumed, kind=Several, growths=IN_TURN),
    "several, uninterrupted": functools.partial(
        grown, kind=Several, method="lemon", growths=IN_TURN, epochs=3),
    "several, sharded": functools.partial(
        grown, kind=Several, method="lemon", growths=IN_TURN, strategy=sharding),
    "several, sharded, resumed": functools.partial(
        resumed, kind=Several, growths=IN_TURN, strategy=sharding),
    "several, sharded, uninterrupted": functools.partial(
        grown, kind=Several, method="lemon", growths=IN_TURN, epochs=3, strategy=sharding),
    "ramp": functools.partial(grown, method=replace(METHODS["msg"], ramp=5)),
    "plateau": functools.partial(
        grown, kind=Apart, method="lemon", val_check_interval=2,
        growths=[Growth(LARGE, plateau=Plateau("apart", patience=1))]),
    "flops": functools.partial(
        grown, method="lemon", growths=[Growth(LARGE, flops=4 * STEP + 1)]),
    "file": functools.partial(
        grown, method="lemon", growths=[Growth(LARGE, file="now")], callbacks=[Touch()]),
    "averaged": functools.partial(
        grown, method="stack+lemon", callbacks=[EMAWeightAveraging(decay=0.8)]),
    "accumulated": functools.partial(grown, method="lemon", accumulate_grad_batches=2),
    "other data": functools.partial(grown, method="ligo", steps=2, growths=DOUBLED, epochs=3),
    "other data, resumed": functools.partial(resumed, growths=DOUBLED),
    "other data, uninterrupted": functools.partial(
        grown, method="lemon", growths=DOUBLED, epochs=3),
    "other data, sharded": functools.partial(
        grown, kind=Sharded, method="lemon", growths=DOUBLED, epochs=3, strategy=sharding),
    "unused": functools.partial(
        grown, kind=Spare, method="ligo", steps=2,
        strategy=lambda: ddp(find_unused_parameters=True)),
    "static": functools.partial(
        grown, method="ligo", steps=2, strategy=lambda: ddp(static_graph=True)),
    "view": functools.partial(
        grown, method="ligo", steps=2, strategy=lambda: ddp(gradient_as_bucket_view=True)),
    "clipped": functools.partial(grown, method="lemon", gradient_clip_val=0.1),
    "compressed": compressed,
    "drifting": lambda folder: refused(folder, Drifting, method="lemon"),
    "bf16": functools.partial(grown, method="ligo", steps=2, precision="bf16-mixed"),
    "uninterrupted": functools.partial(grown, method="lemon", epochs=3),
    "resumed": functools.partial(resumed, growths=[Growth(LARGE, step=4)]),
    "not a number": lambda folder: refused(folder, Broken, method="ligo", steps=3),
    "infinite": functools.partial(given_up, kind=Infinite, method="lemon"),
    "sharded": functools.partial(grown, kind=Sharded, method="ligo", steps=5, strategy=sharding),
    "sharded, clipped": functools.partial(
        grown, kind=Sharded, method="lemon", gradient_clip_val=0.1, strategy=sharding),
    "sharded, made late": functools.partial(
        grown, kind=Late, method="stack+lemon", strategy=sharding),
    "sharded, bf16": functools.partial(
        grown, kind=functools.partial(Sharded, rate=0.0), method="lemon",
        growths=[Growth(UNEVEN, step=4)], precision="bf16-true", strategy=sharding),
    "sharded, uninterrupted": functools.partial(
        grown, kind=ShardedAdamW, method="lemon", growths=WARMED, epochs=3,
        num_sanity_val_steps=1, strategy=sharding),
    "split, uninterrupted": functools.partial(
        grown, kind=Split, method="lemon", growths=WARMED, shares=1, epochs=3, strategy=split),
    "split, resumed": functools.partial(
        resumed, kind=Split, growths=WARMED, shares=1, strategy=split),
    "sharded, resumed": functools.partial(
        resumed, kind=ShardedAdamW, growths=WARMED, strategy=sharding),
    "sharded, resumed from a file": functools.partial(
        resumed, kind=ShardedAdamW, growths=WARMED, strategy=one_file),
    "sharded, resumed between": functools.partial(
        resumed, epoch=0, kind=ShardedAdamW, growths=WARMED, strategy=sharding),
    "sharded, resumed between from a file": functools.partial(
        resumed, epoch=0, kind=ShardedAdamW, growths=WARMED, strategy=one_file),
    "tested": functools.partial(evaluated, kind=Sharded, strategy=sharding),
    "tested from files": functools.partial(evaluated, kind=ShardedDescribed, strategy=one_file),
    "unrecorded": functools.partial(unrecorded, strategy=sharding),
    "unrecorded file": functools.partial(unrecorded, strategy=one_file),
    "unwatched": unwatched,
    "damaged": functools.partial(damaged, strategy=sharding),
    "out of memory": functools.partial(given_up, kind=Short, method="ligo", steps=3),
    "out of memory, swapping": functools.partial(
        given_up_in_the_swap, kind=Stemmed, method="lemon"),
    "without a growth, stemmed": functools.partial(
        given_up, kind=Stemmed, method="lemon", growths=[Growth(LARGE, file="never")]),
    "not a number, sharded": functools.partial(
        given_up, kind=ShardedBroken, method="ligo", steps=3, strategy=sharding),
    "without a growth": functools.partial(
        given_up, kind=Sharded, method="lemon", growths=[Growth(LARGE, file="never")],
        strategy=sharding),
    "a task a batch": functools.partial(tasks, kind=Tasks),
    "a task a rank": functools.partial(tasks, kind=OneTaskEach),
    "called later on one": functools.partial(tasks, kind=LaterOnOne),
    "anchored": grown_anchor,
    "sharded, anchored": functools.partial(grown_anchor, kind=Sharded, strategy=sharding),
    "kept in parts": lambda folder: refused(
        folder, Sharded, strategy=sharding, callbacks=[Parts()]),
    "renames": lambda folder: refused(folder, Renames, strategy=sharding),
    "uneven": lambda folder: refused(
        folder, Sharded, method="random", strategy=sharding,
        growths=[Growth(describe(Uneven, width=24, depth=2), step=4)]),
    "once": lambda folder: refused(folder, Once, strategy=sharding),
    "twice": lambda folder: refused(folder, Twice, strategy=sharding),
    "around": lambda folder: refused(folder, Whole, strategy=sharding),
    "late": lambda folder: refused(folder, LateAndUnknown, strategy=sharding),
    "masked": lambda folder: refused(folder, Sharded, method="msg", strategy=sharding),
}  # fmt: skip
SLOW = {
    "compiled": functools.partial(grown, kind=compiled, method="ligo", steps=2),
    "memory, lemon": functools.partial(held, method="lemon"),
    "memory, ligo": functools.partial(held, method="ligo", steps=2),
    "memory, large alone": held,
}


def launched(script: Path, folder: Path, *words: str, ranks: int = RANKS) -> None:
    """Run a script on all ranks, and wait for it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    run = subprocess.run(
        [*command, "--standalone", str(script), str(folder), *words],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-5000:]


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # else torch's PowerSGD waits for a CUDA device
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for number, name in enumerate(sys.argv[2:]):
        try:
            result = (CASES | SLOW)[name](folder / str(number))
        except Exception:
            result = {"error": traceback.format_exc()}
        rank = torch.distributed.get_rank()
        (folder / f"{name}-{rank}.json").write_text(json.dumps(result))
