"""The runs that a configuration is taken apart into."""

import copy
import json
from pathlib import Path

import pytest

import lightning_ligo.compare.trial
from lightning_ligo.callbacks.accounting import Point
from lightning_ligo.compare.command import _configuration
from lightning_ligo.compare.trial import Recipe, Result, Trial, failure, finished, seeded
from lightning_ligo.networks.description import merge

RECIPE = Path(__file__).parents[2] / "recipes" / "digits_vit.yaml"


@pytest.fixture(scope="module")
def config():
    return _configuration([str(RECIPE)], [])


def changed(config, part, **changes):
    """The configuration with other options of its GrowthCallback, Trainer or model."""
    config = copy.deepcopy(config)
    growing = config["trainer"]["callbacks"][-1]["init_args"]
    parts = {"growth": growing, "trainer": config["trainer"], "run": config,
             "checkpoint": config["trainer"]["callbacks"][0]["init_args"],
             "model": config["model"]["init_args"]}  # fmt: skip
    parts[part].update(changes)
    return config


def refused(config):
    with pytest.raises(ValueError) as refusal:
        Recipe(config)
    return str(refusal.value)


def names(config):
    return [each["class_path"].rpartition(".")[2] for each in config["trainer"]["callbacks"]]


def test_a_run_from_scratch_is_the_large_network_alone(config):
    recipe = Recipe(config)
    plain = recipe.plain(1, 200, every=10)
    assert names(plain) == ["CurveCallback"]
    small = config["model"]["init_args"]["network"]
    large = {"embed_dim": 64, "depth": 4, "num_heads": 4}
    assert plain["model"]["init_args"]["network"] == merge(small, {"init_args": large})
    assert recipe.plain(0, 200, every=10)["model"] == config["model"]
    assert plain["data"] == config["data"]


def test_every_run_is_quiet_and_has_a_complete_schedule(config):
    busy = changed(config, "trainer", min_steps=900, max_time="0:1:0", accumulate_grad_batches=2)
    for run in (Recipe(busy).plain(0, 200, 10), Recipe(busy).grown("lemon", [80], 200, 10)):
        trainer = run["trainer"]
        assert (trainer["max_steps"], trainer["max_epochs"], trainer["min_steps"]) == (
            200,
            -1,
            None,
        )
        assert trainer["val_check_interval"] == 20 and trainer["max_time"] is None
        assert trainer["logger"] is False and trainer["enable_checkpointing"] is False
        assert not {"ModelCheckpoint", "LearningRateMonitor"} & set(names(run))
        assert run["model"]["init_args"]["learning_rate"] == 4e-3


def test_a_run_whose_growth_fails_stops_whatever_the_configuration_says(config):
    recipe = Recipe(changed(config, "growth", on_failure="continue"))
    growing = recipe.grown("lemon", [80], 200, 10)["trainer"]["callbacks"][-1]
    assert growing["init_args"]["on_failure"] == "stop"


def test_settings_of_learning_are_for_the_method_they_stand_with(config):
    recipe = Recipe(changed(config, "growth", steps=7, learning_rate=0.5))
    own, other = (
        recipe.grown(name, [80], 200, 10)["trainer"]["callbacks"][-1]["init_args"]
        for name in ("ligo", "ligo-paper")
    )
    assert (own["steps"], own["learning_rate"]) == (7, 0.5)
    assert (other["steps"], other["learning_rate"]) == (None, None)
    assert [recipe.learning_steps(name) for name in ("ligo", "ligo-paper", "lemon")] == [7, 100, 0]
    (growth,) = other["growths"]
    assert (growth["step"], growth["fraction"]) == (80, None)


def test_a_seed_is_that_of_everything_and_a_rate_that_of_the_model(config):
    run = seeded(Recipe(config).grown("lemon", [80], 200, 10), 2, 0.01)
    assert run["seed_everything"] == 2
    assert run["data"]["init_args"]["seed"] == 2
    assert run["trainer"]["callbacks"][-1]["init_args"]["seed"] == 2
    assert run["model"]["init_args"]["learning_rate"] == 0.01
    assert config["seed_everything"] == 0
    del run["model"]["init_args"]["learning_rate"]
    with pytest.raises(ValueError, match=r"no argument learning_rate .*; leave .* out"):
        seeded(run, 0, 0.01)


def test_the_length_of_the_run_is_that_of_lightning(config):
    assert Recipe(config).steps(19) == 60 * 19
    assert Recipe(changed(config, "trainer", max_steps=100)).steps(19) == 100
    assert Recipe(changed(config, "trainer", max_steps=100, max_epochs=-1)).steps(19) == 100
    with pytest.raises(ValueError, match=r"no known end, .*; set trainer\.max_steps"):
        Recipe(changed(config, "trainer", max_epochs=None)).steps(19)
    with pytest.raises(ValueError, match="max_epochs for data of known length"):
        Recipe(config).steps(float("inf"))


def test_what_cannot_be_compared_is_refused(config):
    assert "has 0 callbacks of type GrowthCallback" in refused(
        changed(config, "trainer", callbacks=None)
    )
    twice = config["trainer"]["callbacks"][-1:] * 2
    assert "has 2 callbacks of type GrowthCallback; give one" in refused(
        changed(config, "trainer", callbacks=twice)
    )
    assert "no description of its network in its argument 'network', got None" in refused(
        changed(config, "model", network=None)
    )
    (growth,) = config["trainer"]["callbacks"][-1]["init_args"]["growths"]
    rule = {"monitor": "val_loss", "patience": 2, "min_delta": 0.0, "mode": "min"}
    decided = changed(config, "growth", growths=[growth | {"fraction": None, "plateau": rule}])
    assert "growth 1 is due when the run decides it" in refused(decided)
    other = {"attribute": "head", "step": 9, "to": {"init_args": {"depth": 4}}}
    words = "growth 1 is of the network 'head', and a comparison trains one network, 'network'"
    assert words in refused(changed(config, "growth", growths=[other]))
    assert "ckpt_path is 'a.ckpt'" in refused(changed(config, "run", ckpt_path="a.ckpt"))
    unmonitored = changed(changed(config, "growth", monitor=None), "checkpoint", monitor=None)
    assert "no metric is monitored" in refused(unmonitored)
    accuracy = changed(config, "growth", monitor="val_acc")
    accuracy = changed(accuracy, "checkpoint", monitor="val_acc", mode="max")
    assert "higher is better for the metric 'val_acc'" in refused(accuracy)


def test_another_configuration_has_another_folder(config, tmp_path):
    def trial(run):
        return Trial("lemon", 1.0, 0.01, 2, 200, run)

    assert trial(config).name == trial(copy.deepcopy(config)).name
    assert trial(config).name.startswith("lemon-budget-1-rate-0.01-seed-2-")
    other = changed(config, "model", weight_decay=0.3)
    assert trial(other).name != trial(config).name
    result = Result(2, [1], [3, 4], [5, 6], 7, [Point(2, 0.5, 14, 11, 0.1)], 19, "cpu")
    (tmp_path / trial(config).name).mkdir()
    path = tmp_path / trial(config).name / "result.json"
    path.write_text(json.dumps(vars(result)))
    assert finished(trial(config), tmp_path) == result
    assert finished(trial(other), tmp_path) is None
    assert (result.flops, result.flops_after_small, result.loss) == (25, 4 + 6 + 7, 0.5)


def test_a_failure_is_told_by_the_last_line_that_was_printed(config, tmp_path):
    trial = Trial("lemon", 1.0, None, 0, 200, config)
    assert "printed nothing (exit status -9" in failure(trial, tmp_path, -9)
    (tmp_path / trial.name).mkdir()
    (tmp_path / trial.name / "log.txt").write_text("Traceback\nValueError: too wide\n\n")
    assert failure(trial, tmp_path, 1).startswith("ValueError: too wide (exit status 1, ")


def test_a_diverged_metric_has_no_value():
    assert lightning_ligo.compare.trial._plain(Point(1, float("nan"), 2, 3, 4.0)) == Point(
        1, None, 2, 3, 4.0
    )
    assert lightning_ligo.compare.trial._plain(Point(1, 0.5, 2, 3, 4.0)) == Point(1, 0.5, 2, 3, 4.0)
