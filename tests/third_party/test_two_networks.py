"""Lightning's own examples with two networks: an autoencoder and a GAN; one grows, or both."""

import pytest
import torch
from lightning.pytorch import LightningModule
from projects import check, growing, opened, sizes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_ligo import Growth, describe

pytestmark = [pytest.mark.third_party, pytest.mark.filterwarnings("ignore")]


def mlp(inputs: int, hidden: int, outputs: int, depth: int = 1) -> nn.Module:
    layers = [nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU()) for _ in range(depth)]
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Sequential(*layers), nn.Linear(hidden, outputs)
    )


class Autoencoder(LightningModule):
    def __init__(self, hidden: int = 16, latent: int = 4, depth: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoder = mlp(12, hidden, latent, depth)
        self.decoder = mlp(latent, hidden, 12, depth)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self.decoder(self.encoder(batch)), batch)
        self.log("loss", loss)
        return loss

    test_step = training_step

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class GAN(LightningModule):
    """Two networks, two optimizers, manual optimization."""

    def __init__(self, hidden: int = 16, depth: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = mlp(4, hidden, 12, depth)
        self.discriminator = mlp(12, hidden, 1, depth)

    def loss(self, pictures: Tensor, real: bool) -> Tensor:
        logits = self.discriminator(pictures)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        for_generator, for_discriminator = self.optimizers()
        noise = torch.randn(len(batch), 4)
        self.step(for_generator, self.loss(self.generator(noise), True))
        fake = self.generator(noise).detach()
        self.step(for_discriminator, self.loss(batch, True) + self.loss(fake, False))

    def step(self, optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("real", self.loss(batch, True))

    def configure_optimizers(self):
        networks = self.generator, self.discriminator
        return [torch.optim.Adam(network.parameters(), lr=1e-3) for network in networks]


@pytest.fixture
def pictures() -> DataLoader:
    torch.manual_seed(0)
    return DataLoader(torch.randn(32, 12), 8)


@pytest.mark.parametrize(
    ("kind", "large"),
    [
        (Autoencoder, {"hidden": 32, "latent": 8, "depth": 2}),
        (GAN, {"hidden": 32, "depth": 2}),
    ],
)
def test_both_networks_grow_from_the_hyperparameters(tmp_path, pictures, kind, large):
    module = kind()
    growth = Growth(hparams=large, step=6)
    run = growing(tmp_path, [growth])
    run.fit(module, pictures)
    check(run, module, sizes(kind(**large)))
    run.test(module, pictures, ckpt_path="best")
    assert opened(module, run).hparams["hidden"] == 32


@pytest.mark.parametrize(("kind", "attribute"), [(Autoencoder, "decoder"), (GAN, "generator")])
def test_one_network_grows_from_a_description(tmp_path, pictures, kind, attribute):
    module, inputs = kind(), 4
    large = describe(mlp, inputs=inputs, hidden=32, outputs=12, depth=3)
    run = growing(tmp_path, [Growth(large, step=6)], attribute=attribute)
    run.fit(module, pictures)
    wanted = sizes(module) | {
        f"{attribute}.{n}": s for n, s in sizes(mlp(inputs, 32, 12, 3)).items()
    }
    check(run, module, wanted)
    run.test(module, pictures, ckpt_path="best")
    opened(module, run)


@pytest.mark.parametrize(
    ("kind", "larger"),
    [
        (Autoencoder, {"encoder": (12, 32, 8, 2), "decoder": (8, 24, 12, 3)}),
        (GAN, {"generator": (4, 32, 12, 2), "discriminator": (12, 24, 1, 3)}),
    ],
)
def test_both_networks_grow_from_descriptions_at_one_moment(tmp_path, pictures, kind, larger):
    module = kind()
    arguments = "inputs", "hidden", "outputs", "depth"
    growths = [
        Growth(describe(mlp, **dict(zip(arguments, given, strict=True))), step=6, attribute=name)
        for name, given in larger.items()
    ]
    run = growing(tmp_path, growths)
    run.fit(module, pictures)
    for name, given in larger.items():
        assert sizes(module.get_submodule(name)) == sizes(mlp(*given))
    check(run, module, sizes(module))
    run.test(module, pictures, ckpt_path="best")
    opened(module, run)
