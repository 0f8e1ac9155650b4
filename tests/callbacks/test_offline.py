"""A checkpoint grown between two runs: the oracle is a run that grows while it goes on."""

import os
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch.utils.data import DataLoader

from commands import RUN, VIT
from lightning_ligo import Growth, GrowthCallback, grow_checkpoint
from lightning_ligo.__main__ import main
from lightning_ligo.networks.description import merge
from payload import RAN, Payload
from runs import (
    BATCH,
    ITEMS,
    LARGE,
    MIDDLE,
    EpochOrder,
    items,
    plain,
    trainer,
    val_loader,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists:UserWarning"),
]
EPOCH = ITEMS // BATCH  # steps


def loaders():
    return DataLoader(items(), BATCH, sampler=EpochOrder()), val_loader()


def growing(*growths, method="lemon", **options):
    return GrowthCallback(list(growths), method=method, **options)


def fit(module, folder, *callbacks, epochs=3, ckpt_path=None, **options):
    saves = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    run = trainer(folder, *callbacks, saves, epochs=epochs, enable_checkpointing=True, **options)
    run.fit(module, *loaders(), ckpt_path=ckpt_path, weights_only=True)
    return run


def grown(path, out, *callbacks, epochs=3, module=None, **options):
    train, val = loaders()
    run = trainer(out.parent, *callbacks, epochs=epochs, **options)
    return grow_checkpoint(
        run, module or plain(1), path, out, train_dataloaders=train, val_dataloaders=val
    )


def assert_same(one, other):
    """Two checkpoints, whatever they hold."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            if key not in ("seconds", "reason", "dirpath", "best_model_path"):
                assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == other


@pytest.mark.parametrize("options", [{"method": "lemon"}, {"method": "ligo", "steps": 3}])
def test_a_run_goes_on_as_if_it_had_grown_by_itself(tmp_path, options):
    averages = {"decay": 0.8}
    later = growing(Growth(LARGE, step=17), **options)
    fit(plain(), tmp_path, later, EMAWeightAveraging(**averages))
    out = tmp_path / "grown.ckpt"
    asked = growing(Growth(LARGE, fraction=0.9), **options)
    record = grown(tmp_path / "epoch=1.ckpt", out, asked, EMAWeightAveraging(**averages))
    assert (record["step"], record["reason"]) == (2 * EPOCH, f"step {2 * EPOCH}")
    assert asked.settings.growths[0].when == "fraction 0.9"

    ends = []
    for folder, start in (("by itself", tmp_path / "epoch=1.ckpt"), ("offline", out)):
        module = plain(2)
        here = growing(Growth(LARGE, step=2 * EPOCH), **options)
        fit(module, tmp_path / folder, here, EMAWeightAveraging(**averages), ckpt_path=start)
        ends.append(module.state_dict())
        assert module.network.embed.out_features == 24
    assert_same(*ends)


def test_all_that_does_not_grow_stays_in_the_checkpoint(tmp_path):
    fit(plain(), tmp_path, growing(Growth(LARGE, step=17)))
    before = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    grown(tmp_path / "epoch=1.ckpt", tmp_path / "grown.ckpt", growing(Growth(LARGE, step=17)))
    after = torch.load(tmp_path / "grown.ckpt", weights_only=True)
    assert after.keys() == before.keys()
    for name in ("epoch", "global_step", "loops", "lr_schedulers", "pytorch-lightning_version"):
        assert_same(after[name], before[name])
    kept = [name for name in before["callbacks"] if name.startswith("ModelCheckpoint")]
    assert kept and after["callbacks"][kept[0]] == before["callbacks"][kept[0]]


def test_a_run_that_has_ended_and_one_that_knew_no_growth(tmp_path):
    module = plain()
    fit(module, tmp_path, epochs=2)
    out = tmp_path / "grown.ckpt"
    grown(tmp_path / "epoch=1.ckpt", out, growing(Growth(LARGE, step=1)), epochs=2)
    ended = plain(2)
    run = fit(ended, tmp_path / "on", growing(Growth(LARGE, step=1)), epochs=3, ckpt_path=out)
    assert ended.network.embed.out_features == 24 and run.global_step == 3 * EPOCH
    x = items(1)[:][0]
    weights = torch.load(out, weights_only=True)["state_dict"]
    large = plain(3)
    fit(large, tmp_path / "none", growing(Growth(LARGE, step=1)), epochs=2, ckpt_path=out)
    for name, weight in large.state_dict().items():
        assert torch.equal(weight, weights[name]), name  # it had no step to do
    torch.testing.assert_close(large.eval().network(x), module.eval().network(x))


def test_one_growth_after_the_other(tmp_path):
    both = Growth(MIDDLE, step=17), Growth(LARGE, step=18)
    fit(plain(), tmp_path, epochs=1)
    first, second = tmp_path / "first.ckpt", tmp_path / "second.ckpt"
    grown(tmp_path / "epoch=0.ckpt", first, growing(*both))
    grown(first, second, growing(*both))
    record = torch.load(second, weights_only=True)["lightning_ligo"]
    assert (record["size"], record["networks"][1:]) == (2, [MIDDLE, LARGE])
    with pytest.raises(ValueError, match="after 2 growths, and the GrowthCallback has 2; give it"):
        grown(second, tmp_path / "third.ckpt", growing(*both))


def test_what_cannot_be_grown_is_refused_and_nothing_is_written(tmp_path):
    fit(plain(), tmp_path, epochs=1)
    path, out = tmp_path / "epoch=0.ckpt", tmp_path / "grown.ckpt"
    one = growing(Growth(LARGE, step=17))
    whole = torch.load(path, weights_only=True)
    torch.save({k: v for k, v in whole.items() if k != "optimizer_states"}, tmp_path / "weights")
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-99])
    data = growing(Growth(LARGE, epoch=1, data={"batch_size": 4}))
    bad = growing(Growth(MIDDLE | {"class_path": "torch.nn.Linear"}, step=17))
    for callback, start, end, message in (
        (None, path, out, "the run has no GrowthCallback among its callbacks"),
        (one, path, path, r"there is something at .*epoch=0\.ckpt; give another name"),
        (one, path, tmp_path / "no" / "folder", "the folder .*no for the new .* does not exist"),
        (one, tmp_path, out, "is a folder of shards; make one file with python -m"),
        (one, tmp_path / "none", out, "there is no checkpoint .*none"),
        (one, tmp_path / "weights", out, "has no optimizer_states, and no run can resume from it"),
        (one, tmp_path / "cut", out, "cut is damaged: it is cut off"),
        (data, path, out, "growth 1 changes batch_size of the data, which only a run can"),
        (
            growing(Growth(LARGE, step=17), method="msg"),
            path,
            out,
            "method 'msg' unmasks new parts",
        ),
        (bad, path, out, "growth 1 .*cannot be built"),
    ):
        with pytest.raises((ValueError, FileExistsError), match=message):
            grown(start, end, *([callback] if callback else []))
    with pytest.raises(ValueError, match="has 2 devices, and a checkpoint is grown on one"):
        grown(path, out, one, devices=2, strategy="ddp")
    with pytest.raises(ValueError, match="the run ends before its first batch, so nothing grows"):
        grown(path, out, one, limit_train_batches=0)
    assert not out.exists() and torch.load(path, weights_only=True)["global_step"] == EPOCH


@pytest.mark.parametrize("older", [None, b"of another"])
def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path, monkeypatch, older):
    """The disk is full; and another has written a file of that name meanwhile."""
    fit(plain(), tmp_path, epochs=1)
    out, save = tmp_path / "grown.ckpt", torch.save

    def fails(checkpoint, path):
        save(checkpoint, path)
        os.truncate(path, path.stat().st_size // 2)
        if older is not None:
            out.write_bytes(older)
        raise OSError("disk full")

    before = set(tmp_path.iterdir())
    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        grown(tmp_path / "epoch=0.ckpt", out, growing(Growth(LARGE, step=17)))
    if older is None:
        assert set(tmp_path.iterdir()) == before
    else:
        assert set(tmp_path.iterdir()) == {*before, out} and out.read_bytes() == older


def test_a_payload_is_not_run_unless_its_source_is_trusted(tmp_path):
    fit(plain(), tmp_path, epochs=1)
    path, out = tmp_path / "held.ckpt", tmp_path / "grown.ckpt"
    held = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    torch.save({**held, "more": Payload()}, path)
    train, val = loaders()
    RAN.clear()
    for weights_only in (None, True):
        run = trainer(tmp_path, growing(Growth(LARGE, step=17)))
        with pytest.raises(ValueError, match=r"held\.ckpt holds more .* \(payload\.run\); nothi"):
            grow_checkpoint(run, plain(1), path, out, weights_only, train_dataloaders=train)
    assert RAN == [] and not out.exists()
    run = trainer(tmp_path, growing(Growth(LARGE, step=17)))
    grow_checkpoint(run, plain(1), path, out, False, train_dataloaders=train, val_dataloaders=val)
    assert set(RAN) == {"was run"}
    assert torch.load(out, weights_only=True)["state_dict"]["network.head.weight"].shape[1] == 24


@pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before:UserWarning"
)
def test_gradients_that_are_accumulated_are_not_lost(tmp_path):
    path = tmp_path / "between.ckpt"

    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 2:
                trainer.save_checkpoint(path)

    run = trainer(tmp_path, Save(), accumulate_grad_batches=2, epochs=1)
    run.fit(plain(), *loaders())
    with pytest.raises(ValueError, match="was written while gradients were accumulated; use one"):
        grown(path, tmp_path / "grown.ckpt", growing(Growth(LARGE, step=5)), epochs=2,
              accumulate_grad_batches=2)  # fmt: skip


def test_the_command_runs_no_payload(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-ligo"])
    growth = {"step": 1, "to": {"init_args": {"embed_dim": 16, "num_heads": 2}}}
    callback = {"class_path": "GrowthCallback", "init_args": {"growths": [growth]}}
    Path("run.yaml").write_text(yaml.safe_dump(merge(RUN, {"trainer": {"callbacks": [callback]}})))
    torch.save({"state_dict": {}, "more": Payload()}, "held.ckpt")
    words = ["--config", "run.yaml", "--ckpt_path", "held.ckpt", "--out", "grown.ckpt"]
    RAN.clear()
    with pytest.raises(SystemExit, match=r"grow: .* held\.ckpt holds more .* \(payload\.run\)"):
        main(["grow", *words])
    assert RAN == [] and not Path("grown.ckpt").exists()


def test_the_command_grows_a_configured_run_and_fit_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-ligo"])
    wider = {"init_args": {"embed_dim": 16, "num_heads": 2}}
    callbacks = [
        {"class_path": "GrowthCallback",
         "init_args": {"growths": [{"fraction": 0.9, "to": wider}], "method": "lemon"}},
        {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "kept", "filename": "end"}},
    ]  # fmt: skip
    run = merge(RUN, {"trainer": {"callbacks": callbacks, "logger": False, "strategy": "fsdp"}})
    Path("run.yaml").write_text(yaml.safe_dump(run))
    small = [each for each in callbacks if each["class_path"] == "ModelCheckpoint"]
    trained = merge(run, {"trainer": {"callbacks": small, "strategy": "auto"}})
    Path("small.yaml").write_text(yaml.safe_dump(trained))
    main(["fit", "--config", "small.yaml"])
    words = ["--config", "run.yaml", "--ckpt_path", "kept/end.ckpt", "--out", "grown.ckpt"]
    main(["grow", *words])
    assert "grown.ckpt: 1,146 -> 3,818 parameters, at step 6" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"ligo grow: there is something at grown\.ckpt"):
        main(["grow", *words])
    main(["fit", "--config", "small.yaml", "--ckpt_path", "grown.ckpt", "--trainer.max_epochs=2"])
    end = torch.load("kept/end.ckpt", weights_only=True)
    assert end["epoch"] == 1
    assert end["hyper_parameters"]["network"] == merge(VIT, wider)
    assert end["state_dict"]["network.pos_embed"].shape[-1] == 16
