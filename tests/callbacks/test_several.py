"""Several networks grow in one run: at one moment or at several, with lengths that they share.

The oracle of a growth is a plain forward of the module before and after it.
"""

import copy
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn import functional as F

import lightning_ligo
from lightning_ligo import METHODS, Growth, GrowthCallback, describe, grow_checkpoint
from lightning_ligo.callbacks import grower
from lightning_ligo.cli.base import GrowthCLI
from lightning_ligo.cli.run import plan_configuration
from lightning_ligo.networks.description import build
from runs import FEATURES, Block, Net, train_loader, trainer, val_loader

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists:UserWarning"),
]


class Decoder(nn.Module):
    def __init__(self, latent: int = 4, width: int = 8, depth: int = 1) -> None:
        super().__init__()
        self.embed = nn.Linear(latent, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.head = nn.Linear(width, FEATURES)
        self.calls = 0

    def forward(self, z):
        self.calls += self.training
        return self.head(self.blocks(self.embed(z)))


def encoder(latent=4, width=8, depth=1):
    return describe(Net, width=width, depth=depth, classes=latent)


def decoder(latent=4, width=8, depth=1):
    return describe(Decoder, latent=latent, width=width, depth=depth)


class Autoencoder(pl.LightningModule):
    """Two networks with a sum between them, one optimizer with two groups over both."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = Net(classes=4), Decoder()

    def forward(self, x):
        z = self.encoder(x)
        return self.decoder(z + 0.1 * z.tanh())

    def training_step(self, batch, batch_idx):
        loss = F.mse_loss(self(batch[0]), batch[0])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.mse_loss(self(batch[0]), batch[0]))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", F.mse_loss(self(batch[0]), batch[0]))

    def configure_optimizers(self):
        groups = [{"params": list(net.parameters())} for net in (self.decoder, self.encoder)]
        optimizer = torch.optim.AdamW(groups, lr=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Described(Autoencoder):
    """Takes both networks as descriptions."""

    def __init__(self, encoder: dict = encoder(), decoder: dict = decoder()):  # noqa: B008
        super().__init__()
        self.save_hyperparameters()
        self.encoder, self.decoder = build(encoder), build(decoder)


class Nested(Autoencoder):
    """Holds its networks deeper."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        del self.encoder, self.decoder
        self.nets = nn.ModuleDict({"encoder": Net(classes=4), "decoder": Decoder()})

    def forward(self, x):
        return self.nets["decoder"](self.nets["encoder"](x))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.nets.parameters(), lr=1e-2)


class Gan(pl.LightningModule):
    """Optimizes by itself, each network with its own optimizer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.generator, self.discriminator = Decoder(), Net(classes=1)

    def forward(self, z):
        return self.discriminator(self.generator(z))

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        real = batch[0]
        fake, ones = self.generator(real[:, :4]), torch.ones(len(real), 1)
        judged = [self.discriminator(real), self.discriminator(fake.detach())]
        loss = sum(
            F.binary_cross_entropy_with_logits(each, truth)
            for each, truth in zip(judged, (ones, 0 * ones), strict=True)
        )
        second.zero_grad()
        self.manual_backward(loss)
        second.step()
        first.zero_grad()
        loss = F.binary_cross_entropy_with_logits(self.discriminator(fake), ones)
        self.manual_backward(loss)
        first.step()

    def configure_optimizers(self):
        return [
            torch.optim.AdamW(self.generator.parameters(), lr=1e-2),
            torch.optim.SGD(self.discriminator.parameters(), lr=1e-2, momentum=0.9),
        ], []


class Outputs(Callback):
    """Outputs on fixed inputs at the start of every batch, and whether all is optimized once."""

    def __init__(self, features=FEATURES):
        self.x = torch.randn(5, features, generator=torch.Generator().manual_seed(7))
        self.seen, self.once, self.rates = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.eval()
        with torch.no_grad():
            self.seen.append(pl_module(self.x))
        pl_module.train()
        held = [p for o in trainer.optimizers for g in o.param_groups for p in g["params"]]
        own = list(pl_module.parameters())
        self.once.append(sorted(map(id, held)) == sorted(map(id, own)))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def fit(module, folder, callback, *others, ckpt_path=None, epochs=3, **options):
    """Train, with a look at the outputs before and after the callback of growth."""
    features = FEATURES if hasattr(module, "encoder") or hasattr(module, "nets") else 4
    before, after = Outputs(features), Outputs(features)
    saves = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    run = trainer(
        folder, before, callback, after, saves, *others,
        epochs=epochs, enable_checkpointing=True, **options,
    )  # fmt: skip
    torch.manual_seed(0)
    loaders = train_loader(shuffle=False), val_loader()
    run.fit(module, *loaders[: 1 if isinstance(module, Gan) else 2], ckpt_path=ckpt_path)
    return run, before.seen, after


def growing(*growths, method="lemon", **options):
    return GrowthCallback(list(growths), method=method, **options)


def both(step=8, latent=10, **options):
    """A wider and deeper encoder and decoder, with a larger latent width in both."""
    return growing(
        Growth(encoder(latent, 16, 3), step=step, attribute="encoder"),
        Growth(decoder(latent, 24, 2), step=step, attribute="decoder"),
        **options,
    )


def in_turn():
    return growing(
        Growth(encoder(4, 16, 2), step=4, attribute="encoder"),
        Growth(decoder(4, 16, 3), step=8, attribute="decoder"),
        Growth(encoder(10, 24, 2), step=14, attribute="encoder"),
        Growth(decoder(10, 24, 3), step=14, attribute="decoder"),
    )


def sizes(module):
    return [
        (net.embed.in_features, net.embed.out_features, len(net.blocks), net.head.out_features)
        for net in (module.encoder, module.decoder)
    ]


def assert_kept(before, after, *steps):
    for step in steps:
        torch.testing.assert_close(after[step], before[step], rtol=1e-5, atol=1e-5)


def assert_same(module, other):
    for name, weight in other.state_dict().items():
        assert torch.equal(module.state_dict()[name], weight), name


@pytest.mark.parametrize("kind", [Autoencoder, Described])
def test_two_networks_grow_at_one_moment_and_share_a_length(tmp_path, kind):
    module, callback = kind(), both()
    _, before, after = fit(module, tmp_path, callback)
    assert_kept(before, after.seen, 8)
    assert sizes(module) == [(FEATURES, 16, 3, 10), (10, 24, 2, FEATURES)]
    assert all(after.once) and after.rates == pytest.approx([1e-2 * 0.9**n for n in range(18)])
    (record,) = callback.state_dict()["records"]
    assert [4, 10] in record["axes"].values() and record["change"]["change"] < 1e-5
    assert record["stacks"] == {"encoder.blocks": [1, 3], "decoder.blocks": [1, 2]}


@pytest.mark.parametrize("kind", [Autoencoder, Described])
def test_they_grow_at_several_moments(tmp_path, kind):
    module = kind()
    held = module.decoder
    _, before, after = fit(module, tmp_path, in_turn())
    assert_kept(before, after.seen, 4, 8, 14)
    assert sizes(module) == [(FEATURES, 24, 2, 10), (10, 24, 3, FEATURES)] and all(after.once)
    assert held.calls == 8  # until it grew itself, it was the same object


def test_names_may_be_dotted(tmp_path):
    module = Nested()
    callback = growing(
        Growth(encoder(10, 16, 2), step=8, attribute="nets.encoder"),
        Growth(decoder(10, 16, 2), step=8, attribute="nets.decoder"),
    )
    _, before, after = fit(module, tmp_path, callback)
    assert_kept(before, after.seen, 8)
    assert module.nets["decoder"].embed.in_features == 10 and all(after.once)


@pytest.mark.parametrize("moments", [(16, 16), (8, 20), (20, 8)])
def test_a_gan_grows_in_both_networks(tmp_path, moments):
    module = Gan()
    growths = [
        Growth(decoder(4, 24, 2), step=moments[0], attribute="generator"),
        Growth(encoder(1, 16, 3), step=moments[1], attribute="discriminator"),
    ]
    growths.sort(key=lambda growth: growth.step)
    run, before, after = fit(module, tmp_path, growing(*growths))
    assert_kept(before, after.seen, *(step // 2 for step in moments))
    assert module.generator.embed.out_features == 24 and len(module.discriminator.blocks) == 3
    assert all(after.once)
    networks = module.generator, module.discriminator
    for optimizer, net in zip(run.optimizers, networks, strict=True):
        assert set(optimizer.state) == set(net.parameters())
    for epoch in (0, 1):
        resumed, path = Gan(), tmp_path / f"epoch={epoch}.ckpt"
        fit(resumed, tmp_path / "again", growing(*growths), ckpt_path=path)
        assert_same(resumed, module)


def test_a_network_that_stays_keeps_the_state_of_its_optimizer(tmp_path):
    growth = Growth(encoder(4, 16, 2), step=4, attribute="encoder")
    later = Growth(decoder(4, 16, 2), file="never", attribute="decoder")
    module = Autoencoder()
    with pytest.warns(UserWarning, match="ended before growth 2"):
        run, *_ = fit(module, tmp_path, growing(growth, later, optimizer_state="reset"), epochs=1)
    state = run.optimizers[0].state
    assert {float(state[p]["step"]) for p in module.decoder.parameters()} == {6}
    assert float(state[module.encoder.embed.weight]["step"]) == 2


def test_a_module_of_the_size_of_the_checkpoint_resumes(tmp_path):
    whole, resumed = Described(), Described(encoder(4, 16, 2), decoder(4, 16, 3))
    fit(whole, tmp_path, in_turn())
    fit(resumed, tmp_path / "again", in_turn(), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert_same(resumed, whole)


@pytest.mark.parametrize("kind", [Autoencoder, Described])
@pytest.mark.parametrize("epoch", [0, 1, 2])  # after the first growth, the second and the third
def test_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path, kind, epoch):
    whole, resumed = kind(), kind()
    fit(whole, tmp_path, in_turn(), epochs=4)
    path = tmp_path / f"epoch={epoch}.ckpt"
    fit(resumed, tmp_path / "again", in_turn(), ckpt_path=path, epochs=4)
    assert_same(resumed, whole)


@pytest.mark.parametrize("kind", [Autoencoder, Described])
def test_checkpoints_of_all_sizes_open(tmp_path, kind):
    module = kind()
    run, *_ = fit(module, tmp_path, in_turn())
    losses = {}
    for epoch, widths in ((0, (16, 8)), (1, (16, 16)), (2, (24, 24))):
        path = tmp_path / f"epoch={epoch}.ckpt"
        other = lightning_ligo.load(kind, path)
        assert (other.encoder.embed.out_features, other.decoder.embed.out_features) == widths
        wanted = trainer(tmp_path).test(other, val_loader(), verbose=False)
        losses[epoch] = wanted[0]["test_loss"]
        if kind is Described:
            other = kind.load_from_checkpoint(path)
            assert trainer(tmp_path).test(other, val_loader(), verbose=False) == wanted
    for epoch in (0, 2, 1, 0):  # the networks of the run change their size for each
        path = tmp_path / f"epoch={epoch}.ckpt"
        found = run.test(module, val_loader(), ckpt_path=path, verbose=False)
        assert found[0]["test_loss"] == losses[epoch]


def test_a_network_may_be_added_to_a_resumed_run(tmp_path):
    first = Growth(encoder(4, 16, 2), step=4, attribute="encoder")
    fit(Autoencoder(), tmp_path, growing(first), epochs=1)
    module = Autoencoder()
    callback = growing(first, Growth(decoder(4, 16, 2), step=8, attribute="decoder"))
    fit(module, tmp_path / "again", callback, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert sizes(module) == [(FEATURES, 16, 2, 4), (4, 16, 2, FEATURES)]


def test_a_second_run_grows_them_on(tmp_path):
    module = Autoencoder()
    fit(module, tmp_path, both(step=2), epochs=1)
    changes = {"init_args": {"width": 32}}
    callback = growing(
        Growth(changes, step=2, attribute="encoder"), Growth(changes, step=2, attribute="decoder")
    )
    _, before, after = fit(module, tmp_path / "more", callback, epochs=1)
    assert_kept(before, after.seen, 2)
    assert sizes(module) == [(FEATURES, 32, 3, 10), (10, 32, 2, FEATURES)]


def test_a_learned_method_a_ramp_and_rates(tmp_path):
    module = Autoencoder()
    fit(module, tmp_path, both(method="ligo", steps=3))
    assert sizes(module) == [(FEATURES, 16, 3, 10), (10, 24, 2, FEATURES)]
    growths = [
        Growth(encoder(4, 16), step=4, attribute="encoder", rate={"factor": 0.5, "rewarm": 8}),
        Growth(decoder(4, 16), step=14, attribute="decoder"),
    ]
    runs = []
    for method in ("lemon", replace(METHODS["msg"], ramp=4)):
        whole, resumed = Autoencoder(), Autoencoder()
        folder = tmp_path / str(len(runs))
        fit(whole, folder, growing(*growths, method=method))
        fit(resumed, folder / "again", growing(*growths, method=method),
            ckpt_path=folder / "epoch=0.ckpt")  # fmt: skip
        for name, weight in whole.state_dict().items():
            torch.testing.assert_close(resumed.state_dict()[name], weight, msg=name)
        runs.append(whole)


def test_averages_and_teachers_follow_each_network(tmp_path):
    class Taught(Autoencoder):
        def __init__(self):
            super().__init__()
            self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)
            self.shadow = {n: p.detach().clone() for n, p in self.decoder.named_parameters()}

        def on_train_batch_end(self, *_):
            for mine, its in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
                mine.data.lerp_(its.data, 0.5)
            for name, weight in self.decoder.named_parameters():
                self.shadow[name].lerp_(weight.detach(), 0.5)

        def configure_optimizers(self):
            mine = [p for p in self.parameters() if p.requires_grad]
            return torch.optim.AdamW(mine, lr=1e-2)

    module, average = Taught(), EMAWeightAveraging(decay=0.5)
    run = trainer(tmp_path, in_turn(), average)
    run.fit(module, train_loader(shuffle=False), val_loader())
    assert module.teacher.embed.out_features == 24
    assert {n: p.shape for n, p in module.decoder.named_parameters()} == {
        n: p.shape for n, p in module.shadow.items()
    }
    assert average._average_model.module.decoder.embed.in_features == 10


def test_two_towers_of_one_class(tmp_path):
    class Towers(pl.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.query, self.key = Net(classes=4), Net(classes=4)

        def forward(self, x):
            return self.query(x) @ self.key(x.flip(1)).T

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0]), torch.arange(len(batch[0])))

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    module = Towers()
    growths = [
        Growth(encoder(4, 16, 2), step=8, attribute="query"),
        Growth(encoder(4, 24, 3), step=8, attribute="key"),
    ]
    before, after = Outputs(), Outputs()
    run = trainer(tmp_path, before, growing(*growths), after)
    run.fit(module, train_loader(shuffle=False))
    assert_kept(before.seen, after.seen, 8)
    assert (len(module.query.blocks), len(module.key.blocks)) == (2, 3) and all(after.once)


def test_backbone_and_head(tmp_path):
    class Classifier(Autoencoder):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = Net(classes=4), nn.Linear(4, FEATURES)

    module = Classifier()
    callback = growing(
        Growth(encoder(10), step=8, attribute="encoder"),
        Growth(describe(nn.Linear, in_features=10, out_features=FEATURES), step=8,
               attribute="decoder"),
    )  # fmt: skip
    _, before, after = fit(module, tmp_path, callback)
    assert_kept(before, after.seen, 8)


@pytest.mark.parametrize(
    ("growths", "words"),
    [
        (
            [Growth(encoder(4, 16), step=8, attribute="encoder"),
             Growth(encoder(4, 24), step=8, attribute="encoder"),
             Growth(decoder(4, 16), step=9, attribute="decoder")],
            "the network 'encoder' has two growths at step 8",
        ),
        (
            [Growth(encoder(4, 16), step=8, attribute="encoder"),
             Growth(encoder(4, 24), step=9, attribute="encoder.blocks")],
            r"'encoder\.blocks' is a part of 'encoder', and both have growths",
        ),
        (
            [Growth(encoder(4, 16), step=8, attribute="encoder"),
             Growth(decoder(4, 16), step=8, attribute="decoder", rate={"factor": 0.5})],
            "encoder, decoder grow together at step 8, with different rates",
        ),
        (
            [Growth(encoder(4, 16), step=8, attribute="encoder"),
             Growth(decoder(4, 16), step=8, attribute="decoderr")],
            "has no attribute 'decoderr' to grow; its modules are: encoder, decoder",
        ),
        (
            [Growth(encoder(10, 16), step=8, attribute="encoder"),
             Growth(decoder(4, 16), step=9, attribute="decoder")],
            "makes encoder larger, and decoder as before: a length .* the same trigger",
        ),
        (
            [Growth(encoder(10, 16), step=8, attribute="encoder"),
             Growth(decoder(4, 16), step=8, attribute="decoder")],
            "makes encoder, decoder larger: a length that one of them writes and another reads",
        ),
        (
            [Growth({"init_args": {"width": 16}}, step=8, attribute="encoder"),
             Growth(decoder(4, 16), step=8, attribute="decoder")],
            "has no description in the module's hyperparameters",
        ),
        (
            [Growth(hparams={"width": 16}, step=8, attribute="encoder")],
            "growths by hparams find the network, got attribute='encoder'",
        ),
        (
            [Growth(encoder(4, 16), step=12, attribute="encoder"),
             Growth(decoder(4, 16), epoch=2, attribute="decoder")],
            "are both due at step 12.* same trigger",
        ),
    ],
)  # fmt: skip
def test_what_is_refused_at_the_start(tmp_path, growths, words):
    with pytest.raises(ValueError, match=words):
        fit(Autoencoder(), tmp_path, growing(*growths))


def test_a_failed_growth_leaves_both_as_they_were(tmp_path, monkeypatch):
    def fails(*_):
        raise MemoryError("none left")

    callback = both(on_failure="continue", rehearse=False)
    monkeypatch.setattr(grower, "check_averages", fails)
    module, plain = Autoencoder(), Autoencoder()
    with pytest.warns(UserWarning, match="Growth 1 of 1 failed"):
        fit(module, tmp_path, callback)
    fit(plain, tmp_path / "plain", Callback())
    assert_same(module, plain)


YAML = """
trainer:
  max_epochs: 2
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
  - class_path: lightning_ligo.GrowthCallback
    init_args:
      method: lemon
      growths:
      - step: 4
        attribute: encoder
        to: {init_args: {width: 16, depth: 3, classes: 10}}
      - step: 4
        attribute: decoder
        to: {init_args: {latent: 10, width: 24}}
      - fraction: 0.75
        attribute: decoder
        to: {init_args: {depth: 2}}
"""


class Items(pl.LightningDataModule):
    def train_dataloader(self):
        return train_loader(shuffle=False)

    def val_dataloader(self):
        return val_loader()


def test_they_are_given_in_yaml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = {"model": {"class_path": f"{__name__}.Described"}}
    data = {"data": {"class_path": f"{__name__}.Items"}}
    Path("run.yaml").write_text(yaml.safe_dump(yaml.safe_load(YAML) | model | data))
    planned = plan_configuration(["fit", "--config", "run.yaml"])
    assert [list(each.large["networks"]) for each in planned] == [["encoder", "decoder"]] * 2
    cli = GrowthCLI(["fit", "--config", "run.yaml"])
    assert sizes(cli.model) == [(FEATURES, 16, 3, 10), (10, 24, 2, FEATURES)]
    (callback,) = [each for each in cli.trainer.callbacks if isinstance(each, GrowthCallback)]
    assert [record["step"] for record in callback.state_dict()["records"]] == [4, 9]
    assert cli.model.hparams["decoder"]["init_args"] == {"latent": 10, "width": 24, "depth": 2}


def test_a_checkpoint_is_grown_between_two_runs(tmp_path):
    module = Autoencoder()
    fit(module, tmp_path, both(step=11), epochs=2)
    module = lightning_ligo.load(Autoencoder, tmp_path / "epoch=0.ckpt")
    data = {"train_dataloaders": train_loader(), "val_dataloaders": val_loader()}
    out = tmp_path / "large.ckpt"
    run = trainer(tmp_path, both(step=11))
    grow_checkpoint(run, Autoencoder(), tmp_path / "epoch=0.ckpt", out, **data)
    opened = lightning_ligo.load(Autoencoder, out)
    assert sizes(opened) == [(FEATURES, 16, 3, 10), (10, 24, 2, FEATURES)]
    x = torch.ones(3, FEATURES)
    torch.testing.assert_close(opened(x), module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_they_are_compiled_as_they_were(tmp_path):
    module = Autoencoder()
    module.encoder = torch.compile(module.encoder, backend="eager")
    module.decoder.compile(backend="eager")
    _, before, after = fit(module, tmp_path, both())
    assert_kept(before, after.seen, 8)
    assert isinstance(module.encoder, OptimizedModule) and all(after.once)
    assert module.decoder._compiled_call_impl is not None


def test_a_parameter_of_both_is_refused(tmp_path):
    class Tied(Autoencoder):
        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    module = Tied()
    module.encoder.blocks[0].norm.weight = module.decoder.blocks[0].norm.weight
    words = r"encoder.blocks.0.norm.weight and decoder.blocks.0.norm.weight are one parameter"
    with pytest.raises(ValueError, match=words):
        fit(module, tmp_path, both())


def test_one_that_is_called_later_is_planned_later(tmp_path):
    class Warmed(Gan):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step > 20:
                return super().training_step(batch, batch_idx)
            first, _ = self.optimizers()
            first.zero_grad()
            self.manual_backward(F.mse_loss(self.generator(batch[0][:, :4]), batch[0]))
            first.step()

    growths = [
        Growth(decoder(4, 24, 2), step=12, attribute="generator"),
        Growth(encoder(1, 16, 3), step=30, attribute="discriminator"),
    ]
    module = Warmed()
    _, before, after = fit(module, tmp_path, growing(*growths), epochs=8)
    assert_kept(before, after.seen, 12, 25)
    assert len(module.generator.blocks) == 2 and len(module.discriminator.blocks) == 3
    with pytest.raises(ValueError, match="growth 1 is due, and training_step has never called"):
        early = replace(growths[1], step=10), replace(growths[0], step=30)
        fit(Warmed(), tmp_path, growing(*early), epochs=8)


class Byol(pl.LightningModule):
    """A backbone and a head with their teachers, and a predictor that stays."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = Net(classes=4), Decoder()
        self.teachers = nn.ModuleList(
            copy.deepcopy(net).requires_grad_(False) for net in (self.encoder, self.decoder)
        )
        self.predictor = nn.Linear(FEATURES, FEATURES)

    def forward(self, x):
        first, second = self.teachers
        return second(first(x))

    def training_step(self, batch, batch_idx):
        out = self.predictor(self.decoder(self.encoder(batch[0])))
        return F.mse_loss(out, self(batch[0].flip(1)))

    def on_train_batch_end(self, *_):
        for teacher, net in zip(self.teachers, (self.encoder, self.decoder), strict=True):
            for slow, fast in zip(teacher.parameters(), net.parameters(), strict=True):
                slow.data.lerp_(fast.data, 0.2)

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def test_teachers_of_both_grow_and_resume(tmp_path):
    def run(module, **options):
        before, after = Outputs(), Outputs()
        saves = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        fitting = trainer(tmp_path, before, in_turn(), after, saves, enable_checkpointing=True)
        fitting.fit(module, train_loader(shuffle=False), **options)
        return before.seen, after.seen

    whole, resumed = Byol(), Byol()
    before, after = run(whole)
    assert_kept(before, after, 4, 8, 14)
    assert [net.embed.out_features for net in whole.teachers] == [24, 24]
    run(resumed, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert_same(resumed, whole)
