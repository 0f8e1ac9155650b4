"""Networks whose forwards need values, which the meta device does not have, grow in a run."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_ligo import Growth, GrowthCallback, describe
from runs import CLASSES, FEATURES, Block, trainer

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists:UserWarning")


class Lengths(nn.Module):
    """Reads sequences of several lengths; means over a mask that it makes on the CPU."""

    def __init__(self, width: int = 8, depth: int = 1) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x, lengths):
        return self.head(self.pooled(self.rnn(self.blocks(self.embed(x)))[0], lengths))

    def pooled(self, x, lengths):
        mask = torch.arange(x.shape[1]) < lengths[:, None].cpu()
        return (x * mask[..., None].to(x)).sum(1)


class Packed(Lengths):
    def forward(self, x, lengths):
        x = self.blocks(self.embed(x))
        options = {"batch_first": True, "enforce_sorted": False}
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), **options)
        x, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(x.sum(1))


class Numpy(Lengths):
    def pooled(self, x, lengths):
        mask = np.arange(x.shape[1])[None] < lengths.cpu().numpy()[:, None]
        return (x * torch.as_tensor(mask)[..., None].to(x)).sum(1)


class Repeated(Lengths):
    def pooled(self, x, lengths):
        long = x[:, 0].repeat_interleave(lengths, 0)
        index = torch.arange(len(x), device=x.device).repeat_interleave(lengths)
        return torch.zeros_like(x[:, 0]).index_add(0, index, long)


class Item(Lengths):
    def pooled(self, x, lengths):
        x = x[:, : lengths.max().item()]
        return x.mean(1) if x.detach().abs().mean() < 1e3 else x.sum(1)


class Split(Lengths):
    def pooled(self, x, lengths):
        return torch.stack([each[:n].sum(0) for each, n in zip(x, lengths.tolist(), strict=True)])


class Selected(Lengths):
    def pooled(self, x, lengths):
        mask = torch.arange(x.shape[1]) < lengths[:, None]
        return torch.zeros_like(x[:, 0]).index_add(0, mask.nonzero()[:, 0], x[mask])


KINDS = {kind.__name__: kind for kind in (Lengths, Packed, Numpy, Repeated, Item, Split, Selected)}


class Built(pl.LightningModule):
    """Builds its network itself."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = KINDS[kind]()

    def forward(self, *args):
        return self.network(*args)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(*batch[:2]), batch[2])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Held(Built):
    """Makes it from its hyperparameters."""

    def __init__(self, kind: str, width: int = 8, depth: int = 1) -> None:
        super().__init__(kind)
        self.save_hyperparameters()
        torch.manual_seed(0)
        self.network = KINDS[kind](width, depth)


class Itself(Built):
    """Is the network."""

    def __init__(self, kind: str, width: int = 8, depth: int = 1) -> None:
        super().__init__(kind)
        self.save_hyperparameters()
        del self.network
        torch.manual_seed(0)
        for name, part in KINDS[kind](width, depth).named_children():
            self.add_module(name, part)

    def forward(self, *args):
        return KINDS[self.hparams.kind].forward(self, *args)

    def pooled(self, *args):
        return KINDS[self.hparams.kind].pooled(self, *args)


def batches():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 6, FEATURES, generator=generator)
    lengths = torch.randint(1, 7, (32,), generator=generator)
    lengths[::8] = 6
    return DataLoader(TensorDataset(x, lengths, lengths % CLASSES), 8)


class Outputs(Callback):
    def __init__(self):
        self.batch, self.seen = next(iter(batches())), []

    def on_train_batch_start(self, trainer, pl_module, *_):
        pl_module.eval()
        with torch.no_grad():
            self.seen.append(pl_module(*self.batch[:2]))
        pl_module.train()


def fit(module, kind, folder, ckpt_path=None):
    rate = {"factor": 0.5, "rewarm": 6}
    sizes = {"width": 12, "depth": 2}, {"width": 12, "depth": 3}
    growths = [
        Growth(hparams=size, step=step, rate=rate)
        if isinstance(module, (Held, Itself))
        else Growth(describe(KINDS[kind], **size), step=step, rate=rate)
        for size, step in zip(sizes, (3, 7), strict=True)
    ]
    before, after = Outputs(), Outputs()
    saves = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    run = trainer(
        folder, before, GrowthCallback(growths, method="lemon"), after, saves,
        enable_checkpointing=True,
    )  # fmt: skip
    run.fit(module, batches(), ckpt_path=ckpt_path)
    return before.seen, after.seen


@pytest.mark.parametrize("owner", [Built, Held, Itself])
@pytest.mark.parametrize("kind", KINDS)
def test_it_grows_twice_and_resumes_while_new_entries_are_re_warmed(tmp_path, kind, owner):
    module = owner(kind)
    before, after = fit(module, kind, tmp_path)
    for step in (3, 7):
        torch.testing.assert_close(after[step], before[step], rtol=1e-5, atol=1e-5)
    assert len(module.get_submodule("" if owner is Itself else "network").blocks) == 3
    for epoch in (0, 1) if owner is Built else (0,):  # after the first growth, after the second
        resumed = owner(kind)
        fit(resumed, kind, tmp_path / "again", tmp_path / f"epoch={epoch}.ckpt")
        for name, weight in module.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], weight), name
