"""Comparisons: at equal FLOPs, kept, and told honestly."""

import json
import os
import re
import signal
from itertools import pairwise
from pathlib import Path

import pytest

import lightning_ligo.compare.comparison
from lightning_ligo.__main__ import main
from lightning_ligo.callbacks.accounting import Point
from lightning_ligo.compare.budget import Costs
from lightning_ligo.compare.command import _configuration
from lightning_ligo.compare.comparison import (
    Budget,
    Entry,
    budget_of,
    costs_of,
    entries_of,
    rehearsal,
    run_all,
    saved,
    trials_of,
    worth,
)
from lightning_ligo.compare.report import Comparison, facts, markdown, parts, plot, rows
from lightning_ligo.compare.trial import Recipe, Result, Trial

RECIPE = Path(__file__).parents[2] / "recipes" / "digits_vit.yaml"
COSTS = {
    "ligo": Costs((1, 8), (0, 0), operator=1520),
    "lemon": Costs((1, 8), (0, 0)),
    "msg": Costs((1, 8), (0, 0)),
}


@pytest.fixture(scope="module")
def recipe():
    return Recipe(_configuration([str(RECIPE)], []))


def result(loss, flops=100, grew_at=()):
    """A run of three parts that are 1/10, 2/10 and 6/10 of it, and as many validations."""
    training = [flops // 10, 6 * flops // 10] if grew_at else [9 * flops // 10]
    evaluation = [flops // 20, flops // 20] if grew_at else [flops // 10]
    operator = 2 * flops // 10 if grew_at else 0
    curve = [Point(1, 2.0, 10, 2, 1.0), Point(2, loss, flops - 2, 2, 3.0)]
    return Result(2, list(grew_at), training, evaluation, operator, curve, 19, "cpu")


def entry(method, share, *losses, rate=None, flops=None):
    spent = int(1000 * share) if flops is None else flops
    grew_at = () if method in ("scratch", "small-only") else (1,)
    return Entry(method, share, rate, tuple(result(loss, spent, grew_at) for loss in losses))


def scratch(*seeds):
    """A frontier with loss 4 / FLOPs (in budgets), times a factor of the seed."""
    return [entry("scratch", share, *(seed * 4 / share for seed in seeds)) for share in (0.5, 1, 2)]


# What is run --------------------------------------------------------------------------------------


def test_the_budget_is_what_the_run_of_the_configuration_spends(recipe):
    budget = budget_of(recipe, COSTS, steps_per_epoch=19)
    assert budget.every == 1140 / 20
    assert budget.flops == 456 * 1 + 684 * 8 + 1520  # grown at 40 % of 1,140 steps


def test_all_methods_have_the_same_budget_and_complete_schedules(recipe):
    budget = budget_of(recipe, COSTS, 19)
    trials = trials_of(recipe, budget, ["lemon", "ligo"], 1, [None])
    steps = {(trial.method, trial.share): trial.steps for trial in trials}
    assert steps == {
        ("scratch", 0.5): 7448 // 16,
        ("scratch", 1.0): 7448 // 8,
        ("scratch", 2.0): 7448 // 4,
        ("small-only", 1.0): 7448,
        ("ligo", 1.0): 1140,
        ("lemon", 1.0): 1431,  # 572 of 1 and 859 of 8 are 7444; one more step would be 7452
    }
    for trial in trials:
        assert trial.config["trainer"]["max_steps"] == trial.steps
        assert trial.config["trainer"]["val_check_interval"] == 57
    (lemon,) = (trial for trial in trials if trial.method == "lemon")
    (growth,) = lemon.config["trainer"]["callbacks"][-1]["init_args"]["growths"]
    assert growth["step"] == 572  # 40 % of its own steps


def test_every_run_has_all_rates_and_the_same_seeds_and_data(recipe):
    trials = trials_of(recipe, budget_of(recipe, COSTS, 19), ["lemon"], 2, [0.001, 0.002])
    cells = {}
    for trial in trials:
        cells.setdefault((trial.rate, trial.seed), []).append(trial)
    assert cells.keys() == {(rate, seed) for rate in (0.001, 0.002) for seed in (0, 1)}
    for (rate, seed), same in cells.items():
        assert [(t.method, t.share) for t in same] == [
            ("scratch", 0.5), ("scratch", 1), ("scratch", 2), ("small-only", 1), ("lemon", 1),
        ]  # fmt: skip
        for trial in same:
            assert trial.config["seed_everything"] == seed
            assert trial.config["model"]["init_args"]["learning_rate"] == rate
            assert trial.config["data"] == same[0].config["data"]


def test_a_method_without_room_for_its_new_parts_is_refused(recipe):
    budget = Budget(800, COSTS, every=10, steps_per_epoch=19)
    with pytest.raises(ValueError, match="method 'msg' unmasks new parts over 100 steps"):
        trials_of(recipe, budget, ["msg"], 1, [None])


def test_a_rehearsal_grows_at_once_and_tells_what_each_part_costs(recipe):
    trial = rehearsal(recipe, "ligo")
    options = trial.config["trainer"]["callbacks"][-1]["init_args"]
    assert (trial.steps, options["steps"], options["growths"][0]["step"]) == (2, 1, 1)
    done = Result(2, [1], [3, 20], [5, 60], 7, [], 19, "cpu")  # large is validated twice
    assert costs_of(recipe, "ligo", done) == Costs((3, 20), (5, 30), 25 * 7)
    trial = rehearsal(recipe, "msg")
    assert trial.steps == 1 + 101 == trial.config["trainer"]["max_steps"]


class Process:
    """Ends at once, and leaves a result unless it is told to fail."""

    def __init__(self, trial, out, device):
        self.exitcode = 1 if trial.method == "fails" else 0
        folder = out / trial.name
        folder.mkdir(parents=True)
        (folder / "log.txt").write_text("ValueError: on purpose\n")
        if not self.exitcode:
            (folder / "result.json").write_text(json.dumps(vars(result(1.0))))

    def is_alive(self):
        return False


def test_a_run_that_fails_loses_no_other_and_what_is_finished_is_kept(tmp_path, monkeypatch):
    started, ended = [], []

    def start(trial, out, device):
        started.append((trial.method, device))
        return Process(trial, out, device)

    monkeypatch.setattr(lightning_ligo.compare.comparison, "start", start)
    trials = [Trial(name, 1.0, None, 0, 2, {}) for name in ("a", "fails", "b", "c")]
    results, failures = run_all(trials[:3], tmp_path, 2, 2, ended.append)
    assert started == [("a", 0), ("fails", 1), ("b", 0)] and set(ended) == set(trials[:3])
    assert [trial.method for trial in results] == ["a", "b"]
    ((failed, why),) = failures.items()
    assert failed.method == "fails" and why.startswith("ValueError: on purpose (exit status 1")
    started.clear()
    results, failures = run_all([trials[3], trials[0], trials[2]], tmp_path, 1, 0, ended.append)
    assert started == [("c", None)]
    assert [trial.method for trial in results] == ["c", "a", "b"] and not failures  # in order


def test_the_runs_are_ended_with_the_comparison(tmp_path, monkeypatch):
    ended = []

    class Endless:
        def is_alive(self):
            os.kill(os.getpid(), signal.SIGTERM)
            return True

        def terminate(self):
            ended.append("terminate")

        def join(self):
            ended.append("join")

    monkeypatch.setattr(lightning_ligo.compare.comparison, "start", lambda *_: Endless())
    before = signal.getsignal(signal.SIGTERM)
    trials = [Trial(name, 1.0, None, 0, 2, {}) for name in ("a", "b", "c")]
    with pytest.raises(SystemExit) as error:
        run_all(trials, tmp_path, 2, 0, lambda _: None)
    assert error.value.code == 128 + signal.SIGTERM
    assert ended == ["terminate", "join"] * 2
    assert signal.getsignal(signal.SIGTERM) is before


# What is told -------------------------------------------------------------------------------------


def test_the_rate_with_the_best_mean_is_taken_and_an_incomplete_one_is_not():
    runs = [(0.1, 0, 1.0), (0.1, 1, 3.0), (0.2, 0, 1.8), (0.2, 1, 1.8), (0.3, 0, 0.1)]
    results = {Trial("lemon", 1.0, rate, seed, 2, {}): result(loss) for rate, seed, loss in runs}
    (best,) = entries_of(results, seeds=2)
    assert (best.rate, best.losses, best.loss) == (0.2, [1.8, 1.8], 1.8)
    assert best.tried == ((0.1, 2.0), (0.2, 1.8))


def test_a_run_that_diverges_loses_to_one_that_does_not():
    results = {Trial("a", 1.0, rate, 0, 2, {}): result(loss) for rate, loss in ((1, None), (2, 9))}
    (best,) = entries_of(results, seeds=1)
    assert best.rate == 2


def test_savings_are_of_the_mean_and_of_every_seed_against_its_own_scratch():
    """Scratch has loss 4 c / f at f budgets: a loss of 3 needs 4/3 of one, of a seed c 4 c / 3."""
    entries = [*scratch(0.75, 1.25), entry("lemon", 1, 3.0, 3.0)]
    found = saved(entries[-1], entries, small_is_free=False)
    assert found.mean.share == pytest.approx(1 - 3 / 4)  # of a mean of 4 / f
    assert [each.share for each in found.seeds] == pytest.approx([1 - 1 / 1.0, 1 - 3 / 5])


def test_the_small_network_for_free_leaves_out_its_training_and_validation():
    entries = [*scratch(1.0), entry("lemon", 1, 4.0)]
    assert saved(entries[-1], entries, False).mean.share == pytest.approx(0)
    assert saved(entries[-1], entries, True).mean.share == pytest.approx(0.1 + 0.05)
    assert parts(entries[-1]) == {
        "all": 1000, "small": 100, "operator": 200, "large": 600, "evaluation": 100,
    }  # fmt: skip
    assert parts(entry("small-only", 1, 4.0))["small"] == 900
    assert parts(entry("scratch", 1, 4.0))["large"] == 900


def test_no_saving_is_told_without_the_whole_frontier():
    whole, lemon = scratch(1.0), entry("lemon", 1, 3.0)
    assert saved(lemon, [*whole[:2], lemon], False) is None
    assert saved(lemon, [*whole[:2], entry("scratch", 2, None), lemon], False) is None
    assert saved(lemon, [*whole, lemon], False) is not None


@pytest.mark.parametrize(
    ("small", "lemon", "says"),
    [
        ((5.0, 5.2), (3.0, 3.1), "was worth having at this budget, in every seed"),
        ((2.0, 2.1), (3.0, 3.1), "was not worth having at this budget"),
        ((3.05, 3.2), (3.0, 3.1), "is within the spread of the seeds"),
    ],
)
def test_the_summary_says_whether_the_large_network_was_worth_having(small, lemon, says):
    entries = [*scratch(1, 1), entry("small-only", 1, *small), entry("lemon", 1, *lemon)]
    assert says in worth(entries)
    assert "small-only ends at" in worth(entries) and "and scratch at 4.0000" in worth(entries)


def comparison(entries, failures=None):
    budget = Budget(1000, COSTS, 10, 19)
    results = {Trial("lemon", 1.0, None, 0, 2, {}): result(1.0)}
    return Comparison("lightning-ligo compare", "2026-01-01", "val_loss", len(entries[0].losses),
                      (None,), budget, tuple(entries), results, failures or {})  # fmt: skip


def test_the_table_says_everything_of_every_method():
    entries = [*scratch(0.75, 1.25), entry("small-only", 1, 5.0, 5.2), entry("lemon", 1, 1.0, 3.0)]
    told = comparison(entries, {Trial("ligo", 1.0, None, 1, 2, {}): "ValueError: no"})
    table = {row[0]: row[1:] for row in rows(told)}
    assert list(table) == [
        "scratch, 0.5 of it", "scratch, 1 of it", "scratch, 2 of it", "lemon", "small-only",
    ]  # fmt: skip
    assert table["lemon"] == [
        "own", "2", "2.0000 (1.0000 to 3.0000)", "1e+03", "100", "200", "600", "100", "+0.00 %",
        "50 % (40 % to > 50 %)", "57 % (49 % to > 57 %)", "3",
    ]  # fmt: skip
    text = markdown(told)
    assert "| small-only | own | 2 | 5.1000 (5.0000 to 5.2000) |" in text
    assert "Failed: ligo, 1 of the budget, seed 1: ValueError: no" in text
    assert "One seed only" not in text and "One seed only" in " ".join(
        facts(comparison(scratch(1.0)))
    )
    assert json.loads(json.dumps(told.to_dict(), allow_nan=False))["budget"] == 1000


def test_the_plot_has_a_named_curve_a_method_over_flops_and_the_savings_beside_it():
    figure = plot(comparison([*scratch(1, 1), entry("lemon", 1, 3.0, 3.5)]))
    left, right = figure.axes
    lines = {line.get_label(): line for line in left.lines}
    assert lines["scratch frontier"].get_xdata().tolist() == [500, 1000, 2000]
    assert lines["lemon"].get_xdata().tolist() == [12, 1000]
    assert lines["lemon"].get_ydata().tolist() == [2.0, 3.25]
    assert len(left.collections) == 2  # the spread of both methods
    assert [text.get_text() for text in left.texts] == [
        "scratch frontier", "scratch 4.000", "lemon 3.250",
    ]  # fmt: skip
    assert [text.get_text() for text in right.get_yticklabels()] == ["lemon"]
    counted, free = (
        bars.patches[0].get_width() for bars in right.containers if hasattr(bars, "patches")
    )
    assert counted == pytest.approx(100 * (1 - 3.25 / 4))
    assert free == pytest.approx(100 * (1 - 0.85 * 3.25 / 4))


def test_the_plot_has_the_eight_best_curves_whose_names_do_not_overlap():
    methods = [entry(f"method{number}", 1, 3.0 + number / 1000) for number in range(12)]
    figure = plot(comparison([*scratch(1), entry("small-only", 1, 5.0), *methods]))
    left, right = figure.axes
    named = [text for text in left.texts if text.get_text() != "scratch frontier"]
    assert len(named) == 8
    assert {text.get_text().split()[0] for text in named} == {
        "scratch", "small-only", *(f"method{number}" for number in range(6)),
    }  # fmt: skip
    places = sorted(text.xyann[1] for text in named)
    assert min(above - below for below, above in pairwise(places)) >= 0.05 - 1e-9
    assert places[0] >= 0
    assert len(right.get_yticklabels()) == 12


# The command --------------------------------------------------------------------------------------


def refused(*words):
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *words])
    return str(stopped.value.code)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--methods", "lemmon"], "unknown method 'lemmon'"),
        (["--trainer.callbacks", "null"], "has 0 callbacks of type GrowthCallback"),
        (["--trainer.callbacks.monitor", "val_acc", "--ckpt_path", "a"], "ckpt_path is 'a'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(words, says, tmp_path, monkeypatch):
    monkeypatch.setattr(lightning_ligo.compare.comparison, "start", None)
    assert says in refused("--config", str(RECIPE), "--out", str(tmp_path), *words)


@pytest.mark.parametrize(
    "words", [["--seeds", "0"], ["--learning_rates", "1e-3,no"], ["--jobs", "x"]]
)
def test_options_that_make_no_sense_are_refused(words, capsys):
    assert refused("--config", str(RECIPE), *words) == "2"
    assert words[0] in capsys.readouterr().err


CUT_DOWN = ["--trainer.max_epochs", "1", "--trainer.callbacks.steps", "3",
            "--data.init_args.batch_size", "32"]  # fmt: skip


def test_a_method_that_cannot_grow_the_plan_is_refused_before_anything_trains(tmp_path):
    wider = '[{"fraction": 0.4, "to": {"init_args": {"embed_dim": 48, "num_heads": 3}}}]'
    method = ["--trainer.callbacks.growths", wider, "--trainer.callbacks.method", "hypercloning"]
    said = refused("--config", str(RECIPE), "--out", str(tmp_path), *method)
    assert "nothing was trained, as methods fail" in said
    assert "hypercloning: ValueError: growth 1" in said and "embed grows from 32 to 48" in said
    assert all("rehearsal" in folder.name for folder in tmp_path.iterdir())


def test_digits_are_compared_from_end_to_end_and_once(tmp_path, monkeypatch, capsys):
    words = ["--config", str(RECIPE), "--methods", "ligo", "--out", str(tmp_path)]
    main(["compare", *words, *CUT_DOWN])
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "compare.json").read_text())
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    entries = {(each["method"], each["share"]): each for each in found["entries"]}
    assert entries.keys() == {
        ("scratch", 0.5), ("scratch", 1.0), ("scratch", 2.0), ("small-only", 1.0), ("ligo", 1.0),
    }  # fmt: skip
    assert found["failures"] == [] and found["metric"] == "val_loss"
    step = of_vit(32, 64, 4, training=True)
    for (method, share), each in entries.items():
        flops = each["flops"]
        spent = sum(flops[part] for part in ("small", "operator", "large", "evaluation"))
        assert flops["all"] == spent
        one = step + of_vit(270, 64, 4, training=False)  # a step and its validation
        assert -one <= spent - share * found["budget"] <= 0, method
        assert flops["large"] % step == 0
        assert flops["small"] % of_vit(32, 32, 2, training=True) == 0
    assert entries["ligo", 1.0]["flops"]["operator"] > 3 * step
    assert entries["scratch", 1.0]["flops"]["operator"] == 0
    assert entries["small-only", 1.0]["flops"]["large"] == 0
    for text in (printed, (tmp_path / "compare.md").read_text()):
        assert re.search(r"small-only.*\d\.\d{4}", text) and found["worth"].split(":")[0] in text
    monkeypatch.setattr(lightning_ligo.compare.comparison, "start", None)  # nothing is run again
    main(["compare", *words, *CUT_DOWN])
    assert json.loads((tmp_path / "compare.json").read_text())["entries"] == found["entries"]


def of_vit(images, width, depth, training):
    """Products of the digits' ViT, 16 patches of 4 pixels, as in test_flops; the patches' own
    weights have no gradient to pass on. Attention on a CPU computes its scores once more."""
    weights = depth * 24 * 16 * width**2 + 2 * width * 10
    scores, patches = depth * 2 * 16**2 * width, 2 * 16 * 4 * width
    forward = weights + 2 * scores + patches
    return images * (3 * forward - patches + scores if training else forward)
