"""Twenty shapes of modules that people train: each grows in the middle of its run, and trains on.

No module knows of growth. Each has the network that grows in ``network``, and its own step. The
oracle is the module itself: ``seen`` returns the same just before a growth by ``lemon`` and after.
"""

import copy
import math

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

from lightning_ligo import Growth, GrowthCallback, describe
from runs import trainer

FEATURES, CLASSES, BATCH, GROWTH, STEPS = 12, 3, 8, 8, 18


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6 * BATCH, FEATURES, generator=generator)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 1).long()), BATCH)


X = torch.randn(5, FEATURES, generator=torch.Generator().manual_seed(2))


def mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, outputs))


class Shape(LightningModule):
    """What the modules share: an optimizer, and the output of their network for ``X``."""

    change = 1e-3  # of `seen` over the growth, at most
    network: nn.Module

    def seen(self) -> Tensor:
        return self.network(X)

    def configure_optimizers(self):
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=1e-3)


# 1 ----------------------------------------------------------------------------------------------


class Heads(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(FEATURES, width), nn.GELU())
        self.heads = nn.ModuleDict(
            {"class": nn.Linear(width, CLASSES), "depth": nn.Linear(width, 1)}
        )

    def forward(self, x, task):
        return self.heads[task](self.trunk(x))


class MultiTask(Shape):
    """One head in each batch."""

    def __init__(self):
        super().__init__()
        self.network = Heads()

    def training_step(self, batch, batch_idx):
        x, y = batch
        if batch_idx % 2:
            return F.mse_loss(self.network(x, "depth")[:, 0], x[:, 0])
        return F.cross_entropy(self.network(x, "class"), y)

    def seen(self):
        return torch.cat([self.network(X, "class"), self.network(X, "depth")], 1)


# 2 ----------------------------------------------------------------------------------------------


class Towers(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.image, self.text = mlp(6, width, 4), mlp(6, width, 4)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def encode_image(self, x):
        return F.normalize(self.image(x), dim=-1)

    def encode_text(self, x):
        return F.normalize(self.text(x), dim=-1)


class Clip(Shape):
    """Two towers that are called by methods, and a scale that the step reads."""

    def __init__(self):
        super().__init__()
        self.network = Towers()

    def training_step(self, batch, batch_idx):
        first, second = batch[0].split(6, 1)
        images, texts = self.network.encode_image(first), self.network.encode_text(second)
        logits = self.network.scale.exp() * images @ texts.T
        return F.cross_entropy(logits, torch.arange(len(logits)))

    def seen(self):
        return torch.cat([self.network.encode_image(X[:, :6]), self.network.encode_text(X[:, 6:])])


# 3, 4 -------------------------------------------------------------------------------------------


class Byol(Shape):
    """An online network, a predictor, and a target that is moved towards the network."""

    def __init__(self):
        super().__init__()
        self.network = mlp(FEATURES, 8, 4)
        self.predictor = mlp(4, 8, 4)
        self.target = copy.deepcopy(self.network).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        first, second = batch[0], batch[0] + 0.1 * torch.randn_like(batch[0])
        with torch.no_grad():
            aim = F.normalize(self.target(second), dim=-1)
        return (F.normalize(self.predictor(self.network(first)), dim=-1) - aim).square().mean()

    @torch.no_grad()
    def on_train_batch_end(self, outputs, batch, batch_idx):
        for slow, fast in zip(self.target.parameters(), self.network.parameters(), strict=True):
            slow.lerp_(fast, 0.05)

    def seen(self):
        return torch.cat([self.network(X), self.target(X)])


class Dino(Shape):
    """A student on several crops, a teacher, and a center of the teacher's outputs."""

    def __init__(self):
        super().__init__()
        self.network = mlp(FEATURES, 8, 4)
        self.teacher = copy.deepcopy(self.network).requires_grad_(False)
        self.register_buffer("center", torch.zeros(4))

    def training_step(self, batch, batch_idx):
        crops = [batch[0] + 0.1 * torch.randn_like(batch[0]) for _ in range(3)]
        with torch.no_grad():
            out = self.teacher(crops[0])
            aim = ((out - self.center) / 0.04).softmax(-1)
            self.center.lerp_(out.mean(0), 0.1)
        students = torch.stack([self.network(crop) for crop in crops[1:]])
        return -(aim * (students / 0.1).log_softmax(-1)).sum(-1).mean()

    @torch.no_grad()
    def on_before_zero_grad(self, optimizer):
        for slow, fast in zip(self.teacher.parameters(), self.network.parameters(), strict=True):
            slow.mul_(0.9).add_(fast, alpha=0.1)

    def seen(self):
        return torch.cat([self.network(X), self.teacher(X)])


# 5 ----------------------------------------------------------------------------------------------


class Gan(Shape):
    """Two optimizers, optimized by hand; the discriminator comes first in each step."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.network, self.discriminator = mlp(4, 8, FEATURES), mlp(FEATURES, 8, 1)

    def training_step(self, batch, batch_idx):
        generator, discriminator = self.optimizers()
        real = batch[0]
        fake = self.network(torch.randn(len(real), 4))
        judged = self.discriminator(torch.cat([real, fake.detach()]))[:, 0]
        truth = torch.arange(2 * len(real)).lt(len(real)).float()
        discriminator.zero_grad()
        self.manual_backward(F.binary_cross_entropy_with_logits(judged, truth))
        discriminator.step()
        generator.zero_grad()
        loss = F.softplus(-self.discriminator(fake)).mean()
        self.manual_backward(loss)
        generator.step()

    def configure_optimizers(self):
        parts = self.network, self.discriminator
        return [torch.optim.Adam(part.parameters(), lr=1e-3) for part in parts]

    def seen(self):
        return self.network(X[:, :4])


# 6, 7 -------------------------------------------------------------------------------------------


class Latent(nn.Module):
    """Returns a distribution, and samples also in evaluation mode."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.encoder, self.decoder = mlp(FEATURES, width, 8), mlp(4, width, FEATURES)

    def forward(self, x):
        mean, log_scale = self.encoder(x).chunk(2, -1)
        posterior = Normal(mean, log_scale.exp())
        return self.decoder(posterior.rsample()), posterior


class Vae(Shape):
    def __init__(self):
        super().__init__()
        self.network = Latent()

    def training_step(self, batch, batch_idx):
        out, posterior = self.network(batch[0])
        prior = kl_divergence(posterior, Normal(torch.tensor(0.0), torch.tensor(1.0)))
        return F.mse_loss(out, batch[0]) + 0.01 * prior.mean()

    def seen(self):
        return self.network.decoder(self.network.encoder(X)[:, :4])


class Codes(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.encoder, self.decoder = mlp(FEATURES, width, 4), mlp(4, width, FEATURES)
        self.codebook = nn.Embedding(6, 4)

    def forward(self, x):
        z = self.encoder(x)
        q = self.codebook(torch.cdist(z, self.codebook.weight).argmin(-1))
        loss = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        return self.decoder(z + (q - z).detach()), loss


class VqVae(Shape):
    """The nearest codes, with gradients that pass them by."""

    def __init__(self):
        super().__init__()
        self.network = Codes()

    def training_step(self, batch, batch_idx):
        out, loss = self.network(batch[0])
        return F.mse_loss(out, batch[0]) + loss

    def seen(self):
        return self.network(X)[0]


# 8 ----------------------------------------------------------------------------------------------


class LossesInside(nn.Module):
    """Returns a dict of losses in training mode, and detections in evaluation mode."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.trunk, self.boxes = mlp(6, width, width), nn.Linear(width, 4)
        self.scores = nn.Linear(width, CLASSES)

    def forward(self, x, targets=None):
        features = self.trunk(x)
        boxes, scores = self.boxes(features), self.scores(features)
        if not self.training:
            return [
                {"boxes": b, "scores": s.softmax(-1)} for b, s in zip(boxes, scores, strict=True)
            ]
        return {
            "boxes": F.smooth_l1_loss(boxes, targets["boxes"]),
            "scores": F.cross_entropy(scores, targets["labels"]),
        }


class Detector(Shape):
    def __init__(self):
        super().__init__()
        self.network = LossesInside()

    def training_step(self, batch, batch_idx):
        x, y = batch
        losses = self.network(x[:, :6], {"boxes": x[:, 6:10], "labels": y})
        return sum(losses.values())

    def seen(self):
        return torch.stack([each["boxes"] for each in self.network.eval()(X[:, :6])])


# 9 ----------------------------------------------------------------------------------------------


class Translator(nn.Module):
    """A GRU that reads, and one that writes; it is fed its own words where it is not taught."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.embed = nn.Embedding(10, width)
        self.encoder, self.decoder = (nn.GRU(width, width, batch_first=True) for _ in range(2))
        self.head = nn.Linear(width, 10)

    def forward(self, source, target=None, steps=4):
        state = self.encoder(self.embed(source))[1]
        if target is not None:
            return self.head(self.decoder(self.embed(target), state)[0])
        word, words = source[:, :1], []
        for _ in range(steps):
            out, state = self.decoder(self.embed(word), state)
            words.append(self.head(out))
            word = words[-1].argmax(-1)
        return torch.cat(words, 1)


class Seq2Seq(Shape):
    """Teacher forcing in most batches."""

    def __init__(self):
        super().__init__()
        self.network = Translator()

    def training_step(self, batch, batch_idx):
        words = (batch[0][:, :5] * 3).long().abs() % 10
        out = self.network(words, words[:, :-1] if batch_idx % 3 else None)
        return F.cross_entropy(out.flatten(0, 1), words[:, 1:].flatten())

    def seen(self):
        words = (X[:, :5] * 3).long().abs() % 10
        return self.network(words, words)


# 10 ---------------------------------------------------------------------------------------------


class Field(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
        )

    def forward(self, x):
        with torch.enable_grad():
            x = x.requires_grad_()
            u = self.layers(x)
            slope = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        return u, slope


class Pinn(Shape):
    """The network returns a derivative with respect to its input, and the step takes another."""

    def __init__(self):
        super().__init__()
        self.network = Field()

    def training_step(self, batch, batch_idx):
        x = batch[0][:, :1].clone()
        u, slope = self.network(x)
        curvature = torch.autograd.grad(slope.sum(), x, create_graph=True)[0]
        return (curvature + u).square().mean() + (
            self.network(torch.zeros(1, 1))[0] - 1
        ).square().mean()

    def seen(self):
        return torch.cat(self.network(X[:, :1].clone()), 1).detach()


# 11 ---------------------------------------------------------------------------------------------


class GraphNet(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, width), nn.Linear(width, CLASSES)

    def forward(self, x, adjacency):
        x = torch.sparse.mm(adjacency, self.first(x)).relu()
        return torch.sparse.mm(adjacency, self.second(x))


class Gnn(Shape):
    """A sparse adjacency of the vertices in a batch."""

    def __init__(self):
        super().__init__()
        self.network = GraphNet()

    @staticmethod
    def ring(vertices):
        here = torch.arange(vertices)
        edges = torch.stack([here, here.roll(1)]), torch.full((vertices,), 0.5)
        return (
            torch.sparse_coo_tensor(*edges, (vertices, vertices)) + torch.eye(vertices).to_sparse()
        )

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(batch[0], self.ring(len(batch[0]))), batch[1])

    def seen(self):
        return self.network(X, self.ring(len(X)))


# 12 ---------------------------------------------------------------------------------------------


class Denoiser(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, width), nn.SiLU(), nn.Linear(width, width))
        self.enter, self.out = nn.Linear(FEATURES, width), mlp(width, width, FEATURES)

    def forward(self, x, time):
        rates = torch.exp(-math.log(1e4) * torch.arange(4) / 4)
        angles = time[:, None] * rates
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        return self.out(self.enter(x) + time)


class Diffusion(Shape):
    """Random times, whose embedding is computed in the forward."""

    def __init__(self):
        super().__init__()
        self.network = Denoiser()

    def training_step(self, batch, batch_idx):
        time, noise = torch.randint(100, (len(batch[0]),)), torch.randn_like(batch[0])
        share = (time / 100)[:, None]
        return F.mse_loss(self.network((1 - share) * batch[0] + share * noise, time), noise)

    def seen(self):
        return self.network(X, torch.arange(len(X)) * 7)


# 13 ---------------------------------------------------------------------------------------------


class Ewc(Shape):
    """A penalty for moving away from weights that were kept by name."""

    def __init__(self):
        super().__init__()
        self.network = mlp(FEATURES, 8, CLASSES)
        self.anchors = {n: p.detach().clone() for n, p in self.network.named_parameters()}
        self.fisher = {n: torch.ones_like(p) for n, p in self.network.named_parameters()}

    def training_step(self, batch, batch_idx):
        penalty = sum(
            (self.fisher[name] * (p - self.anchors[name]).square()).sum()
            for name, p in self.network.named_parameters()
        )
        return F.cross_entropy(self.network(batch[0]), batch[1]) + 0.01 * penalty


# 14 ---------------------------------------------------------------------------------------------


class Rnn(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.rnn, self.head = nn.GRU(6, width, batch_first=True), nn.Linear(width, CLASSES)

    def forward(self, x, state=None):
        out, state = self.rnn(x, state)
        return self.head(out[:, -1]), state


class Truncated(Shape):
    """Truncated backpropagation: the state of the last batch enters the next one."""

    def __init__(self):
        super().__init__()
        self.network, self.state = Rnn(), None

    def on_train_epoch_start(self):
        self.state = None

    def training_step(self, batch, batch_idx):
        out, state = self.network(batch[0].reshape(-1, 2, 6), self.state)
        self.state = state.detach()
        return F.cross_entropy(out, batch[1])

    def seen(self):
        return self.network(X.reshape(-1, 2, 6))[0]


# 15 ---------------------------------------------------------------------------------------------


class LowRank(nn.Module):
    def __init__(self, inputs: int, outputs: int, rank: int = 2):
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.down, self.up = (
            nn.Linear(inputs, rank, bias=False),
            nn.Linear(rank, outputs, bias=False),
        )

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Lora(Shape):
    """Frozen layers with trained parts of low rank beside them."""

    def __init__(self):
        super().__init__()
        self.network = Adapted()

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(batch[0]), batch[1])


class Adapted(nn.Sequential):
    def __init__(self, width: int = 8):
        super().__init__(LowRank(FEATURES, width), nn.GELU(), LowRank(width, CLASSES))


# 16, 17 -----------------------------------------------------------------------------------------


class Normed(nn.Module):
    def __init__(self, width: int = 8, depth: int = 1, kind: str = "weight_norm"):
        super().__init__()
        norm = getattr(parametrizations, kind)
        self.enter, self.head = nn.Linear(FEATURES, width), nn.Linear(width, CLASSES)
        self.blocks = nn.ModuleList(norm(nn.Linear(width, width)) for _ in range(depth))

    def forward(self, x):
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x).relu()
        return self.head(x)


class WeightNorm(Shape):
    """Layers under weight_norm; deeper and wider."""

    kind, change = "weight_norm", 1.0

    def __init__(self):
        super().__init__()
        self.network = Normed(kind=self.kind)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(batch[0]), batch[1])


class SpectralNorm(WeightNorm):
    """Layers under spectral_norm; deeper and wider."""

    kind = "spectral_norm"


# 18 ---------------------------------------------------------------------------------------------


class Spectral(nn.Module):
    def __init__(self, width: int, modes: int = 3):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width, modes, dtype=torch.cfloat) / width)
        self.modes = modes

    def forward(self, x):
        waves = torch.fft.rfft(x)
        out = torch.zeros_like(waves)
        low = waves[..., : self.modes]
        out[..., : self.modes] = torch.einsum("bim,iom->bom", low, self.weight)
        return torch.fft.irfft(out, n=x.shape[-1])


class FourierOperator(nn.Module):
    def __init__(self, width: int = 4, depth: int = 1):
        super().__init__()
        self.lift, self.project = nn.Conv1d(1, width, 1), nn.Conv1d(width, 1, 1)
        self.spectral = nn.ModuleList(Spectral(width) for _ in range(depth))
        self.local = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(depth))

    def forward(self, x):
        x = self.lift(x)
        for spectral, local in zip(self.spectral, self.local, strict=True):
            x = F.gelu(spectral(x) + local(x))
        return self.project(x)


class Fno(Shape):
    """Complex weights on Fourier modes."""

    def __init__(self):
        super().__init__()
        self.network = FourierOperator()

    def training_step(self, batch, batch_idx):
        x = batch[0][:, None]
        return F.mse_loss(self.network(x), x.roll(1, -1))

    def seen(self):
        return self.network(X[:, None])


# 19 ---------------------------------------------------------------------------------------------


class Encoder(nn.Module):
    def __init__(self, width: int = 8, heads: int = 2, depth: int = 1):
        super().__init__()
        self.enter, self.head = nn.Linear(3, width), nn.Linear(width, CLASSES)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth)

    def forward(self, x, padding):
        x = self.encoder(self.enter(x), src_key_padding_mask=padding)
        return self.head(x[:, 0])


class Masked(Shape):
    """Torch's encoder with its defaults (norms behind the sums) and a mask of the padding."""

    def __init__(self):
        super().__init__()
        self.network = Encoder()

    def parts(self, x):
        lengths = 1 + torch.arange(len(x)) % 4
        padding = torch.arange(4) >= lengths[:, None]
        return x.reshape(-1, 4, 3), padding

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(*self.parts(batch[0])), batch[1])

    def seen(self):
        return self.network(*self.parts(X))


# 20 ---------------------------------------------------------------------------------------------


class FlexNet(nn.Module):
    def __init__(self, width: int = 16, heads: int = 2):
        super().__init__()
        self.enter, self.qkv = nn.Linear(3, width), nn.Linear(width, 3 * width)
        self.head, self.heads = nn.Linear(width, CLASSES), heads

    def forward(self, x):
        from torch.nn.attention.flex_attention import flex_attention

        x = self.enter(x)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if not x.is_cuda:  # torch has no backward of it on CPUs
            q, k, v = q.detach(), k.detach(), v.detach()
        return self.head(x + flex_attention(q, k, v).transpose(1, 2).flatten(2))[:, 0]


class Flex(Shape):
    """Attention by torch's flex_attention."""

    def __init__(self):
        super().__init__()
        self.network = FlexNet()

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(batch[0].reshape(-1, 4, 3)), batch[1])

    def seen(self):
        return self.network(X.reshape(-1, 4, 3))


# What each becomes ------------------------------------------------------------------------------


def wider(width, **changes):
    return lambda kind: describe(kind, width=width, **changes)


def mlp_of(inputs, outputs):
    return lambda _: describe(mlp, inputs=inputs, width=16, outputs=outputs)


SHAPES = {
    MultiTask: wider(16),
    Clip: wider(16),
    Byol: mlp_of(FEATURES, 4),
    Dino: mlp_of(FEATURES, 4),
    Gan: mlp_of(4, FEATURES),
    Vae: wider(16),
    VqVae: wider(16),
    Detector: wider(16),
    Seq2Seq: wider(16),
    Pinn: wider(16),
    Gnn: wider(16),
    Diffusion: wider(16),
    Ewc: mlp_of(FEATURES, CLASSES),
    Truncated: wider(16),
    Lora: wider(16),
    WeightNorm: wider(16, depth=2, kind="weight_norm"),
    SpectralNorm: wider(16, depth=2, kind="spectral_norm"),
    Fno: wider(8),
    Masked: wider(16, heads=4, depth=2),
    Flex: wider(32, heads=4),
}


class Probe(Callback):
    """Keeps what the module returns for ``X`` around the growth."""

    def __init__(self):
        self.outputs = []

    @torch.no_grad()
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step in (GROWTH, 2 * GROWTH) and len(self.outputs) < 2:
            pl_module.eval()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.outputs.append(pl_module.seen().clone())
            pl_module.train()


@pytest.mark.filterwarnings("ignore:.*promises to keep the function:UserWarning")
@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")
@pytest.mark.parametrize("kind", SHAPES, ids=lambda kind: kind.__name__)
def test_it_grows_in_the_middle_of_its_run_and_trains_on(kind, tmp_path):
    torch.manual_seed(0)
    module = kind()
    small = sum(p.numel() for p in module.network.parameters())
    steps = 2 * STEPS if kind is Gan else STEPS  # Lightning counts the steps of both optimizers
    growth = Growth(SHAPES[kind](type(module.network)), step=2 * GROWTH if kind is Gan else GROWTH)
    before, after = Probe(), Probe()
    run = trainer(tmp_path, before, GrowthCallback([growth], method="lemon"), after)
    run.fit(module, loader())
    assert run.global_step == steps
    assert sum(p.numel() for p in module.network.parameters()) > small
    assert all(p.isfinite().all() for p in module.parameters())
    change = float((after.outputs[0] - before.outputs[0]).norm() / before.outputs[0].norm())
    assert change <= kind.change
