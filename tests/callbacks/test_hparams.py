"""Growths by the hyperparameters of the LightningModule."""

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torchmetrics import Metric

from lightning_ligo import Growth, GrowthCallback, grow_checkpoint
from lightning_ligo.cli.base import GrowthCLI
from lightning_ligo.cli.run import plan_configuration
from runs import CLASSES, FEATURES, Block, Net, Plain, train_loader, trainer, val_loader

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists:UserWarning"),
    pytest.mark.filterwarnings("ignore:Attribute 'loss' is an instance:UserWarning"),
]


class Scaled(nn.Module):
    """A loss that is no plain data, and has no parameters."""

    def forward(self, logits, y):
        return F.cross_entropy(logits, y)


class Held(Plain):
    """Makes its network, one attribute, from its hyperparameters."""

    def __init__(self, hidden: int = 8, layers: int = 1, lr: float = 1e-2, loss=None):
        super().__init__()
        self.save_hyperparameters()
        del self.network
        self.model = Net(hidden, layers)
        self.measure = loss or Scaled()

    def loss(self, batch):
        x, y = batch
        logits = self.model(self.stem(x))
        return logits, self.measure(logits, y)


class Deep(Held):
    """Changes sizes that are a tuple."""

    def __init__(self, sizes=(8, 1), lr: float = 1e-2):
        super().__init__(*sizes, lr=lr)
        assert isinstance(sizes, tuple)
        self.save_hyperparameters()
        for name in ("hidden", "layers", "loss"):
            del self.hparams[name]


class Whole(Plain):
    """Is the network itself: blocks, a parameter and a table of its own, sizes in attributes."""

    def __init__(self, hidden: int = 8, layers: int = 1, lr: float = 1e-2, loss=None):
        super().__init__()
        self.save_hyperparameters()
        del self.network, self.stem
        self.heads, self.width = hidden // 4, hidden
        self.embed = nn.Linear(FEATURES, hidden)
        self.start = nn.Parameter(torch.zeros(hidden))
        self.blocks = nn.Sequential(*(Block(hidden) for _ in range(layers)))
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, CLASSES)
        self.register_buffer("table", torch.ones(hidden))
        self.register_buffer("steps", torch.tensor(0))
        self.measure = loss or Scaled()

    def forward(self, x):
        x = (self.embed(x) + self.start) * self.table
        heads = x.view(len(x), self.heads, 4)
        x = self.blocks(heads.reshape(len(x), self.hparams.hidden))
        assert x.shape[1] == self.width
        return self.head(self.norm(x))

    def loss(self, batch):
        self.steps += 1
        logits = self(batch[0])
        return logits, self.measure(logits, batch[1])


class Parts(Whole):
    """Has no forward: its step calls parts, with a function between them."""

    def __init__(self, hidden: int = 8, layers: int = 1, lr: float = 1e-2):
        super().__init__(hidden, layers)
        self.save_hyperparameters()
        del self.start, self.table

    forward = None

    def loss(self, batch):
        x = self.blocks(self.embed(batch[0]).relu())
        logits = self.head(self.norm(x))
        return logits, self.measure(logits, batch[1])


class Unsaved(Plain):
    def __init__(self, hidden: int = 8):
        super().__init__()
        self.network = Net(hidden)


class Outputs(Callback):
    """The outputs of the network on fixed inputs, before and after the batch of a growth."""

    def __init__(self, call):
        self.call, self.seen = call, []

    def note(self, pl_module):
        mode = pl_module.training
        pl_module.eval()
        generator = torch.Generator().manual_seed(7)
        x = torch.randn(5, FEATURES, generator=generator)
        with torch.no_grad():
            self.seen.append(self.call(pl_module, x))
        pl_module.train(mode)


class Before(Outputs):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.note(pl_module)


class Once(Callback):
    """Counts in how many optimizer groups every parameter of the module is, at the end."""

    def on_train_end(self, trainer, pl_module):
        held = [id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]]
        own = [id(p) for p in pl_module.parameters()]
        self.is_true = sorted(held) == sorted(own)


def network_of(module):
    return module.model if isinstance(module, Held) else module


def growing(*growths, method="lemon", **options):
    growths = growths or (Growth(hparams={"hidden": 24, "layers": 3}, step=8),)
    return GrowthCallback(list(growths), method=method, **options)


def made(kind, seed=0, **options):
    torch.manual_seed(seed)
    return kind(**options)


def fit(module, folder, *callbacks, epochs=3, ckpt_path=None, **options):
    saves = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, monitor="val_loss")
    run = trainer(folder, *callbacks, saves, epochs=epochs, enable_checkpointing=True, **options)
    torch.manual_seed(0)
    run.fit(
        module, train_loader(shuffle=False), val_loader(), ckpt_path=ckpt_path, weights_only=False
    )
    return run


def test_a_growth_by_hparams_keeps_the_function_and_all_that_is_no_network(tmp_path):
    module = made(Held)
    stem, measure, outputs = module.stem, module.measure, module.outputs
    before = Before(lambda module, x: module.model(x))
    after, once = Before(lambda module, x: module.model(x)), Once()
    fit(module, tmp_path, before, growing(), after, once)
    torch.testing.assert_close(after.seen[8], before.seen[8], rtol=1e-5, atol=1e-5)
    assert module.model.embed.out_features == 24 and len(module.model.blocks) == 3
    assert module.stem is stem and module.measure is measure and module.outputs is outputs
    assert module.calls == 18 and once.is_true
    assert dict(module.hparams) == {"hidden": 24, "layers": 3, "lr": 1e-2, "loss": None}


@pytest.mark.parametrize("kind", [Held, Whole])
def test_checkpoints_of_all_sizes_open_by_themselves(tmp_path, kind):
    module = made(kind, loss=Scaled())
    run = fit(module, tmp_path, growing())
    small = kind.load_from_checkpoint(tmp_path / "epoch=0.ckpt", weights_only=False)
    large = kind.load_from_checkpoint(tmp_path / "epoch=2.ckpt", weights_only=False)
    assert small.hparams["hidden"] == 8 and network_of(small).embed.out_features == 8
    assert large.hparams["hidden"] == 24 and isinstance(large.measure, Scaled)
    for name, weight in module.state_dict().items():
        assert torch.equal(large.state_dict()[name], weight), name
    for epoch, width in ((0, 8), (2, 24)):
        path = tmp_path / f"epoch={epoch}.ckpt"
        other = kind.load_from_checkpoint(path, weights_only=False)
        wanted = trainer(tmp_path).test(other, val_loader(), verbose=False)
        found = run.test(module, val_loader(), ckpt_path=path, verbose=False, weights_only=False)
        assert found == wanted
        assert module.hparams["hidden"] == width == network_of(module).embed.out_features
    run.test(module, val_loader(), ckpt_path="best", verbose=False, weights_only=False)


@pytest.mark.parametrize("kind", [Held, Whole])
@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("size", [{}, {"hidden": 24, "layers": 3}])
def test_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path, kind, epoch, size):
    whole, resumed = made(kind), made(kind, 1, **size)
    fit(whole, tmp_path, growing())
    fit(resumed, tmp_path / "again", growing(), ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
    assert resumed.hparams == whole.hparams
    for name, weight in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight), name


@pytest.mark.parametrize("kind", [Held, Whole])
def test_several_growths_and_a_learned_method(tmp_path, kind):
    module = made(kind)
    growths = Growth(hparams={"layers": 2}, step=3), Growth(hparams={"hidden": 16}, step=9)
    callback = growing(*growths, method="ligo", steps=2)
    fit(module, tmp_path, callback)
    assert (module.hparams["hidden"], module.hparams["layers"]) == (16, 2)
    network = network_of(module)
    assert len(network.blocks) == 2 and network.embed.out_features == 16
    record = torch.load(tmp_path / "epoch=2.ckpt", weights_only=False)["lightning_ligo"]
    assert record["attribute"] == ("model" if kind is Held else "") and record["networks"] == [
        {"hparams": {"layers": 1, "hidden": 8}},
        {"hparams": {"layers": 2, "hidden": 8}},
        {"hparams": {"layers": 2, "hidden": 16}},
    ]
    again = growing(Growth(hparams={"layers": 3}, step=2))
    fit(module, tmp_path / "more", again)  # a second run
    assert len(network_of(module).blocks) == 3


def test_a_later_growth_may_be_added_to_a_resumed_run(tmp_path):
    fit(made(Held), tmp_path, growing(Growth(hparams={"hidden": 16}, step=8)), epochs=2)
    growths = Growth(hparams={"hidden": 16}, step=8), Growth(hparams={"layers": 2}, step=14)
    module = made(Held)
    fit(module, tmp_path, growing(*growths), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert (module.hparams["hidden"], module.hparams["layers"]) == (16, 2)


def test_tuples_stay_tuples(tmp_path):
    module = made(Deep)
    fit(module, tmp_path, growing(Growth(hparams={"sizes": [16, 2]}, step=8)))
    assert module.hparams["sizes"] == (16, 2)
    assert Deep.load_from_checkpoint(tmp_path / "epoch=2.ckpt").hparams["sizes"] == (16, 2)


@pytest.mark.parametrize(
    ("module", "hparams", "words"),
    [
        (Unsaved, {"hidden": 16}, r"self\.save_hyperparameters\(\)"),
        (Held, {"hiden": 16}, "has no hyperparameter 'hiden'.* did you mean hidden"),
        (Held, {"lr": 1e-3}, "no parameter of Held changes"),
        (Held, {"hidden": 8}, "no parameter of Held changes"),
        (Held, {"hidden": "wide"}, "cannot be made again"),
    ],
)
def test_what_cannot_grow_is_refused_at_the_start(tmp_path, module, hparams, words):
    with pytest.raises(ValueError, match=words):
        fit(made(module), tmp_path, growing(Growth(hparams=hparams, step=8)))


def test_a_network_that_the_hyperparameters_do_not_make_is_refused(tmp_path):
    module = made(Held)
    module.model = Net(12)
    with pytest.raises(ValueError, match=r"is not what its hyperparameters make.*24,"):
        fit(module, tmp_path, growing())


def test_to_and_hparams_are_not_mixed():
    for both in ({}, {"to": {"class_path": "A"}, "hparams": {"hidden": 2}}):
        with pytest.raises(ValueError, match="give one of them"):
            Growth(**both, step=1)
    growths = [Growth({"class_path": "A"}, step=1), Growth(hparams={"hidden": 2}, step=2)]
    with pytest.raises(ValueError, match="or none"):
        GrowthCallback(growths)
    with pytest.raises(ValueError, match="leave it out"):
        GrowthCallback(growths[1:], attribute="model")


# A module that is the network ---------------------------------------------------------------------


def logits(module, x):
    return module(x) if isinstance(module, Whole) else module.model(x)


def test_a_module_that_is_the_network_grows(tmp_path):
    module = made(Whole)
    measure, accuracy, outputs = module.measure, module.accuracy, module.outputs
    before, after, once = Before(logits), Before(logits), Once()
    fit(module, tmp_path, before, growing(), after, once)
    torch.testing.assert_close(after.seen[8], before.seen[8], rtol=1e-5, atol=1e-5)
    assert module.embed.out_features == 24 and len(module.blocks) == 3
    assert module.start.shape == module.table.shape == (24,)
    assert (module.heads, module.width, module.hparams["hidden"]) == (6, 24, 24)
    assert module.measure is measure and module.accuracy is accuracy
    assert module.outputs is outputs and module.calls == 18 and module.steps == 18 + 3
    assert once.is_true and not [name for name in vars(module) if "ligo" in name]


def test_a_module_whose_steps_call_its_parts_grows(tmp_path):
    module = made(Parts)
    call = Before(lambda module, x: module.head(module.norm(module.blocks(module.embed(x).relu()))))
    after = Before(call.call)
    fit(module, tmp_path, call, growing(), after)
    torch.testing.assert_close(after.seen[8], call.seen[8], rtol=1e-5, atol=1e-5)
    assert module.embed.out_features == 24 and len(module.blocks) == 3


class Configured(Held):
    """Saves the entries of a config, and takes it whole."""

    def __init__(self, config: dict):
        super().__init__(config["hidden"], config["layers"])
        self.hparams.clear()
        self.save_hyperparameters(config)


def test_the_entries_of_a_config_are_hyperparameters(tmp_path):
    module = Configured({"hidden": 8, "layers": 1, "seed": 3})
    fit(module, tmp_path, growing())
    opened = Configured.load_from_checkpoint(tmp_path / "epoch=2.ckpt")
    assert dict(opened.hparams) == {"hidden": 24, "layers": 3, "seed": 3}
    assert opened.model.embed.out_features == module.model.embed.out_features == 24


class Points(pl.LightningDataModule):
    def train_dataloader(self):
        return train_loader()

    def val_dataloader(self):
        return val_loader()


@pytest.mark.parametrize("kind", [Held, Whole])
def test_a_growth_in_yaml_is_planned(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    growth = {"hparams": {"hidden": 16, "layers": 2}, "step": 3}
    callback = {"class_path": "GrowthCallback", "init_args": {"growths": [growth]}}
    config = {
        "trainer": {"callbacks": [callback], "max_epochs": 1, "accelerator": "cpu"},
        "model": {"class_path": f"{__name__}.{kind.__name__}", "init_args": {"hidden": 8}},
        "data": {"class_path": f"{__name__}.Points"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    (planned,) = plan_configuration(["fit", "--config", "run.yaml"])
    assert planned.small == {"hparams": {"hidden": 8, "layers": 1}}
    assert planned.large == {"hparams": {"hidden": 16, "layers": 2}}
    (depth,) = planned.plan.to_dict()["stacks"].values()
    assert depth == [1, 2] and planned.change.is_finite
    cli = GrowthCLI(["fit", "--config", "run.yaml"])
    assert cli.model.hparams["hidden"] == 16
    opened = kind.load_from_checkpoint(cli.trainer.checkpoint_callback.best_model_path)
    assert len(network_of(opened).blocks) == 2


class Holder(Callback):
    """Keeps the module of the run."""

    def setup(self, trainer, pl_module, stage):
        self.module = pl_module


@pytest.mark.parametrize("kind", [Held, Whole])
def test_averages_grow_and_the_module_stays_one_object(tmp_path, kind):
    module, holder, average = made(kind), Holder(), EMAWeightAveraging(decay=0.5)
    fit(module, tmp_path, growing(), holder, average)
    assert holder.module is module
    averaged = network_of(average._average_model.module)
    assert averaged.embed.out_features == 24 and len(averaged.blocks) == 3


class Kept(Metric):
    """A loss that keeps what it was given, with its graph."""

    def __init__(self):
        super().__init__()
        self.add_state("losses", default=[])
        self.register_buffer("weight", torch.ones(CLASSES))

    def update(self, logits, y):
        self.losses = [F.cross_entropy(logits, y, self.weight)]

    def compute(self):
        return self.losses[0]


class Special(Whole):
    """Adds its loss to the hyperparameters when it is saved only, as pytorch-forecasting does."""

    def __init__(self, hidden: int = 8, layers: int = 1, *, loss):
        super().__init__(hidden, layers, loss=loss)
        del self.hparams["loss"], self.hparams["lr"]

    def on_save_checkpoint(self, checkpoint):
        checkpoint["hyper_parameters"]["loss"] = self.measure


def test_a_loss_that_is_saved_by_a_hook_and_keeps_its_graph(tmp_path):
    module = made(Special, loss=Kept())
    measure = module.measure
    fit(module, tmp_path, growing())
    assert module.measure is measure and measure.weight.device.type == "cpu"
    assert module.hparams == {"hidden": 24, "layers": 3}
    opened = Special.load_from_checkpoint(tmp_path / "epoch=2.ckpt", weights_only=False)
    assert opened.embed.out_features == 24 and isinstance(opened.measure, Kept)


@pytest.mark.parametrize("kind", [Held, Whole])
def test_a_growth_that_fails_leaves_the_module_as_it_was(tmp_path, monkeypatch, kind):
    def fails(*_):
        raise MemoryError("none left")

    small, module = made(kind), made(kind)
    parameters = dict(module.named_parameters())
    fit(small, tmp_path / "small")
    monkeypatch.setattr("lightning_ligo.callbacks.grower.check_averages", fails)
    callback = growing(on_failure="continue", rehearse=False)
    with pytest.warns(UserWarning, match="Growth 1 of 1 failed at step 8"):
        fit(module, tmp_path, callback)
    assert dict(module.named_parameters()).items() == parameters.items()
    assert module.hparams == small.hparams
    for name, weight in small.state_dict().items():
        assert torch.equal(module.state_dict()[name], weight), name


class Late(Held):
    """Makes its network in `configure_model`."""

    def __init__(self, hidden: int = 8, layers: int = 1, lr: float = 1e-2, loss=None):
        super().__init__(hidden, layers, lr, loss)
        self.model = None

    def configure_model(self):
        if self.model is None:
            self.model = Net(self.hparams.hidden, self.hparams.layers)


def test_a_network_that_is_made_late_grows(tmp_path):
    module = made(Late)
    fit(module, tmp_path, growing())
    opened = Late.load_from_checkpoint(tmp_path / "epoch=2.ckpt", weights_only=False)
    assert opened.model.embed.out_features == module.model.embed.out_features == 24


class Bare(Whole):
    """Has steps that compile in one piece."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        pass


def test_a_compiled_module_grows(tmp_path):
    plain, module = made(Bare), made(Bare)
    for each in (plain, torch.compile(module, backend="eager")):
        growth = growing(Growth(hparams={"hidden": 16}, step=2), rehearse=False)
        trainer(tmp_path, growth, epochs=1).fit(each, train_loader(shuffle=False), val_loader())
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], weight)


@pytest.mark.parametrize("kind", [Held, Whole])
def test_a_checkpoint_is_grown_between_two_runs(tmp_path, kind):
    fit(made(kind), tmp_path, epochs=1)
    run = trainer(tmp_path, growing(Growth(hparams={"hidden": 16}, step=1)))
    grow_checkpoint(
        run, made(kind), tmp_path / "epoch=0.ckpt", tmp_path / "large.ckpt", weights_only=False,
        train_dataloaders=train_loader(), val_dataloaders=val_loader(),
    )  # fmt: skip
    opened = kind.load_from_checkpoint(tmp_path / "large.ckpt", weights_only=False)
    assert opened.hparams["hidden"] == 16 == network_of(opened).embed.out_features
