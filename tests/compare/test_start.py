"""Comparisons from one trained network: grown at step 0, at several budgets of the large one."""

import copy
import json
import re
from types import SimpleNamespace

import pytest
import timm
import torch
import yaml
from torch.nn.functional import cross_entropy

import lightning_ligo.compare.comparison
import lightning_ligo.compare.trial
from commands import RUN, VIT
from lightning_ligo import DigitsDataModule
from lightning_ligo.__main__ import main
from lightning_ligo.callbacks.accounting import Point
from lightning_ligo.compare.budget import Costs, saving
from lightning_ligo.compare.command import _configuration
from lightning_ligo.compare.comparison import Budget, Entry, budget_of, rehearsal, trials_of
from lightning_ligo.compare.report import Comparison, markdown, plot, rows
from lightning_ligo.compare.trial import Recipe, Result, Start, run

TO = {"init_args": {"embed_dim": 16, "depth": 2, "num_heads": 2}}
COSTS = {
    "ligo": Costs((1, 8), (0, 1), operator=1000),
    "lemon": Costs((1, 8), (0, 1)),
    "msg": Costs((1, 8), (0, 1)),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configuration(network=VIT, growths=({"fraction": 0.5, "to": TO},), steps=40, rehearse=True):
    """The configuration of a run that grows, as its file is read."""
    run = copy.deepcopy(RUN)
    run["seed_everything"] = 0
    run["model"]["init_args"]["network"] = network
    options = {"growths": list(growths), "monitor": "val_loss", "method": "ligo", "steps": 3}
    growing = {"class_path": "GrowthCallback", "init_args": options | {"rehearse": rehearse}}
    run["trainer"] |= {"max_epochs": -1, "max_steps": steps, "callbacks": [growing]}
    with open("run.yaml", "w") as file:
        yaml.safe_dump(run, file)
    return _configuration(["run.yaml"], [])


def trained(path="small.ckpt", weight=0.1, **arguments):
    """Weights under the names of a LightningModule, all of one value."""
    state = timm.models.VisionTransformer(**VIT["init_args"] | arguments).state_dict()
    state = {f"network.{name}": torch.full_like(tensor, weight) for name, tensor in state.items()}
    torch.save({"state_dict": state}, path)
    return path


def loss_of(path):
    """The loss of saved weights on the validation data, by plain torch."""
    network = timm.models.VisionTransformer(**VIT["init_args"])
    state = torch.load(path, weights_only=True)["state_dict"]
    network.load_state_dict({name.removeprefix("network."): t for name, t in state.items()})
    data = DigitsDataModule(batch_size=200)
    data.prepare_data()
    data.setup("fit")
    images, labels = map(torch.cat, zip(*data.val_dataloader(), strict=True))
    with torch.no_grad():
        return cross_entropy(network.eval()(images), labels).item()


# What is run --------------------------------------------------------------------------------------


def test_a_start_is_grown_at_step_0_at_three_budgets_of_the_large_network(folder):
    recipe = Recipe(configuration(steps=100), trained())
    budget = budget_of(recipe, COSTS, steps_per_epoch=7)
    assert (budget.flops, budget.every) == (100 * 8 + 20 * 1, 5)
    trials = trials_of(recipe, Budget(9000, COSTS, 9000, 7), ["lemon", "ligo"], 1, [None])
    steps = {(trial.method, trial.share): trial.steps for trial in trials}
    assert steps == {
        ("scratch", 0.5): 4499 // 8,  # one validation each, at the end
        ("scratch", 1.0): 8999 // 8,
        ("scratch", 2.0): 17999 // 8,
        ("small-only", 1.0): 9000,
        ("lemon", 0.25): (2250 - 2) // 8,  # another validation just after the growth
        ("lemon", 0.5): (4500 - 2) // 8,
        ("lemon", 1.0): (9000 - 2) // 8,
        ("ligo", 0.25): (1250 - 2) // 8,
        ("ligo", 0.5): (3500 - 2) // 8,
        ("ligo", 1.0): (8000 - 2) // 8,
    }
    for trial in trials:
        config = trial.config["trainer"]
        network = trial.config["model"]["init_args"]["network"]
        assert (config["max_steps"], config["val_check_interval"]) == (trial.steps, 9000)
        assert network.get("weights") == (None if trial.method == "scratch" else "small.ckpt")
        if trial.method in ("lemon", "ligo"):
            (growth,) = config["callbacks"][-1]["init_args"]["growths"]
            assert (growth["step"], growth["fraction"]) == (0, None)


def test_the_growth_of_the_configuration_may_be_anywhere_and_its_network_trained(folder):
    path = trained()
    for growth in ({"fraction": 0.5}, {"step": 90}, {"epoch": 2}):
        recipe = Recipe(configuration(VIT | {"weights": "no"}, [{"to": TO} | growth]), path)
        assert [growth.step for growth in recipe.growths] == [0] and recipe.start.name == path
        assert rehearsal(recipe, "lemon").config["model"]["init_args"]["network"]["weights"] == path


def test_a_configuration_whose_trained_network_grows_at_step_0_is_the_same_comparison(folder):
    small = VIT | {"weights": {"path": trained()}}
    recipe = Recipe(configuration(small, [{"step": 0, "to": TO}]))
    assert recipe.start == Recipe(configuration(), "small.ckpt").start
    assert Recipe(configuration(small)).start is None  # it is trained before it grows
    assert Recipe(configuration(VIT, [{"step": 0, "to": TO}])).start is None
    assert Recipe(configuration(small)).plain(0, 10, 5)["model"]["init_args"]["network"] == small
    assert "weights" not in Recipe(configuration(small)).networks[1]


def test_other_weights_in_the_file_are_other_runs_but_from_scratch(folder):
    def names(weight):
        recipe = Recipe(configuration(), trained(weight=weight))
        trials = trials_of(recipe, Budget(9000, COSTS, 9000, 7), ["lemon"], 1, [None])
        return {trial.method: trial.name for trial in [*trials, rehearsal(recipe, "ligo")]}

    first, second = names(0.1), names(0.2)
    assert names(0.1) == first
    assert [name for name in first if first[name] == second[name]] == ["scratch"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--start", "no.ckpt"], "there are no weights at no.ckpt"),
        (["--start", ""], "the folder . has no weights"),
        (["--start", "wide.ckpt"], r"wide.ckpt do not fit VisionTransformer.* of another shape"),
        (["--start", "small.ckpt", "--trainer.callbacks.growths+", json.dumps(
            {"step": 30, "to": {"init_args": {"depth": 3}}})],
         "has 2 growths, and a comparison from one trained network has one, at step 0; leave"),
    ],
)  # fmt: skip
def test_a_start_that_cannot_work_is_refused_before_anything_runs(words, says, folder, monkeypatch):
    configuration()
    trained()
    trained("wide.ckpt", embed_dim=12)
    monkeypatch.setattr(lightning_ligo.compare.comparison, "start", None)
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "--config", "run.yaml", *words])
    assert re.search(says, str(stopped.value.code), re.DOTALL)


def test_what_a_quarter_of_the_budget_does_not_pay_for_is_refused(folder):
    recipe = Recipe(configuration(), trained())
    with pytest.raises(ValueError, match=r"budget of 250 FLOPs does not pay .* operators, 1e\+03"):
        trials_of(recipe, Budget(1000, COSTS, 9000, 7), ["ligo"], 1, [None])
    with pytest.raises(ValueError, match=r"'msg' unmasks new parts over 100 steps .* step 0, and"):
        trials_of(recipe, Budget(2000, COSTS, 9000, 7), ["msg"], 1, [None])


# What is told -------------------------------------------------------------------------------------


def entry(method, share, loss):
    spent = int(1000 * share)
    grown = method == "lemon"
    training, evaluation = ([0, spent - 30], [10, 20]) if grown else ([spent - 30], [30])
    curve = [Point(0, 5.0, 0, 10, 0.1)] if grown else []
    curve.append(Point(9, loss, spent - 30, 30, 1.0))
    result = Result(9, [0] if grown else [], training, evaluation, 0, curve, 19, "cpu")
    return Entry(method, share, None, (result,))


def told(*others):
    entries = [entry("scratch", share, 4 / share) for share in (0.5, 1.0, 2.0)]
    entries += [entry("small-only", 1.0, 4.5), *others]
    budget = Budget(1000, COSTS, 10, 19)
    return Comparison("", "", "val_loss", 1, (None,), budget, tuple(entries), {}, {},
                      Start("small.ckpt", "1234"))  # fmt: skip


def test_every_budget_is_a_line_with_one_saving_in_which_only_the_start_is_free():
    grown = [entry("lemon", share, loss) for share, loss in ((0.25, 8.0), (0.5, 6.0), (1.0, 3.0))]
    comparison = told(*grown)
    assert comparison.heads[-3:] == ["off budget", "saved, small free", "seconds"]
    table = {row[0]: row[-2] for row in rows(comparison)}
    assert table == {
        "scratch, 0.5 of it": "-", "scratch, 1 of it": "-", "scratch, 2 of it": "-",
        "lemon, 0.25 of it": "50 %",  # scratch needs half of the budget for 8, 2/3 for 6
        "lemon, 0.5 of it": "25 %", "lemon, 1 of it": "25 %", "small-only": "-13 %",
    }  # fmt: skip
    text = markdown(comparison)
    assert "| lemon, 0.25 of it | own | 9 | 8.0000 |" in text
    assert "All grow at step 0 from small.ckpt, whose loss is 5.0000." in text
    facts = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert facts["start"] == {"name": "small.ckpt", "digest": "1234", "loss": 5.0}
    shares = [each["saved_small_free"] for each in facts["entries"] if each["method"] == "lemon"]
    assert [each["mean"]["share"] for each in shares] == pytest.approx([0.5, 0.25, 0.25])
    assert not any("saved" in each for each in facts["entries"])
    assert (
        "No better than the start itself, whatever is saved: lemon, 0.25 of it, lemon, 0.5" in text
    )
    assert "No better" not in markdown(told(grown[-1]))
    assert "whose loss is unknown: no run has grown" in markdown(told())


def test_the_plot_joins_the_budgets_of_a_method():
    grown = [entry("lemon", share, loss) for share, loss in ((0.25, 8.0), (0.5, 6.0), (1.0, 3.0))]
    left, right = plot(told(*grown)).axes
    ends = [line for line in left.lines if line.get_linestyle() == "-."]
    assert [line.get_xdata().tolist() for line in ends] == [[250, 500, 1000], [500, 1000, 2000]]
    assert ends[0].get_ydata().tolist() == [8, 6, 3]
    assert [text.get_text() for text in right.get_yticklabels()] == [
        "lemon, 0.25 of it", "lemon, 0.5 of it", "lemon, 1 of it",
    ]  # fmt: skip
    bars = [bar for group in right.containers for bar in getattr(group, "patches", [])]
    assert [bar.get_width() for bar in bars] == pytest.approx([50, 25, 25])
    assert [bar.get_y() + bar.get_height() / 2 for bar in bars] == pytest.approx([0, 1, 2])


# The command --------------------------------------------------------------------------------------


class InThisProcess:
    """Runs a trial without a process of its own: those are tested in test_compare.py."""

    exitcode = 0

    def __init__(self, target, args):
        self.folder, _ = args

    def start(self):
        run(self.folder)

    def is_alive(self):
        return False


def test_growths_of_a_network_that_fit_has_trained_are_compared_and_once(folder, monkeypatch):
    processes = SimpleNamespace(Process=InThisProcess)
    monkeypatch.setattr(lightning_ligo.compare.trial, "_processes", lambda: processes)
    configuration(rehearse=False)
    main(["fit", "--config", "run.yaml", "--trainer.callbacks", "null", "--trainer.max_steps",
          "14", "--trainer.default_root_dir", "small"])  # fmt: skip
    (small,) = folder.rglob("*.ckpt")
    words = ["compare", "--config", "run.yaml", "--start", str(small), "--methods",
             "lemon,stack+copy", "--jobs", "2", "--out", "out"]  # fmt: skip
    main(words)
    found = json.loads((folder / "out" / "compare.json").read_text())
    assert found["failures"] == []
    own = loss_of(small)
    assert own == pytest.approx(found["start"]["loss"], rel=1e-5)
    for each in found["runs"]:
        if each["method"] in ("lemon", "stack+copy"):
            before, after = (Point(*point) for point in each["curve"][:2])
            assert (each["grew_at"], before.step, after.step) == ([0], 0, 0)
            assert before.metric == pytest.approx(own, rel=1e-5)
            assert (after.metric == pytest.approx(own, rel=1e-4)) == (each["method"] == "lemon")
    entries = {(each["method"], each["share"]): each for each in found["entries"]}
    assert len(entries) == 3 + 1 + 2 * 3
    scratch = [entries["scratch", share] for share in (0.5, 1, 2)]
    assert scratch[1]["flops"]["all"] == found["budget"]
    assert {each["steps"] for each in found["runs"] if each["method"] == "scratch"} == {20, 40, 80}
    one = (scratch[1]["flops"]["large"] + scratch[1]["flops"]["evaluation"]) / 20
    ends = [(each["flops"]["all"], each["loss"]) for each in scratch]
    for (method, share), each in entries.items():
        spent = each["flops"]["all"]
        assert -one <= spent - share * found["budget"] <= 0, method
        if method != "scratch":
            mean = each["saved_small_free"]["mean"]
            assert mean == vars(saving(spent, each["loss"], ends))
    assert "lemon, 0.25 of it" in (folder / "out" / "compare.md").read_text()
    monkeypatch.setattr(lightning_ligo.compare.comparison, "start", None)  # nothing is run again
    main(words)
    assert json.loads((folder / "out" / "compare.json").read_text())["entries"] == found["entries"]
