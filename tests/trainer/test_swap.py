import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelSummary
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from lightning_ligo.networks.description import build
from lightning_ligo.trainer.optimizers import (
    check_every_parameter_once,
    check_optimizers_can_change,
    group_names,
    regroup,
)
from lightning_ligo.trainer.slot import Slot
from lightning_ligo.trainer.swap import conform, swap
from runs import MIDDLE, Plain, fit, plain

AT = 8  # the batch before which the network is swapped


def parents_of(large: nn.Module) -> dict[str, list[str]]:
    """Every layer comes from layer 0 of the small network; what does not grow, from itself."""
    names = [name for name, _ in large.named_parameters()]
    return {name: [name.replace("blocks.1", "blocks.0")] for name in names}


class Swap(Callback):
    """Swaps in a larger network and remembers what was there before and after."""

    def grown(self, states):
        """The state of what does not grow."""
        return {"head.bias": states["head.bias"]} if states else {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step != AT:
            return
        self.before = self.remember(trainer, pl_module)
        large = build(MIDDLE)
        parents = parents_of(large)
        large = conform(trainer, pl_module.network, large, parents)
        self.carried = swap(trainer, Slot(pl_module, "network"), large, parents, self.grown)
        self.after = self.remember(trainer, pl_module)

    def remember(self, trainer, pl_module):
        optimizer = trainer.optimizers[0]
        return {
            "optimizer": optimizer,
            "wrapper": trainer.strategy._lightning_optimizers[0],
            "scheduler": trainer.lr_scheduler_configs[0].scheduler,
            "groups": group_names(trainer, pl_module)[0],
            "modes": {name: module.training for name, module in pl_module.named_modules()},
            "weights": {n: p.detach().clone() for n, p in pl_module.named_parameters()},
            "state": {
                name: dict(optimizer.state[p])
                for name, p in pl_module.named_parameters()
                if p in optimizer.state
            },
        }


class Rates(Callback):
    def __init__(self):
        self.rates = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append([group["lr"] for group in optimizer.param_groups])


def swapped(tmp_path, module=None, callback=None, **options):
    callback = Swap() if callback is None else callback
    module = plain() if module is None else module
    fit(module, tmp_path, callback, **options)
    return module, callback


def test_optimizer_its_wrapper_and_scheduler_survive(tmp_path):
    _, swap_ = swapped(tmp_path)
    for what in ("optimizer", "wrapper", "scheduler"):
        assert swap_.before[what] is swap_.after[what]


def test_every_parameter_joins_the_group_of_its_parent_in_the_order_of_the_module(tmp_path):
    module, swap_ = swapped(tmp_path)
    named = list(module.named_parameters())
    matrices = [name for name, weight in named if weight.ndim > 1]
    vectors = [name for name, weight in named if weight.ndim < 2]
    assert swap_.after["groups"] == [matrices, vectors]
    assert any(name.startswith("network.blocks.1.") for name in matrices)


def test_what_is_made_of_the_optimizer_state_is_in_the_optimizer_and_nothing_else(tmp_path):
    _, swap_ = swapped(tmp_path)
    before, after = swap_.before["state"], swap_.after["state"]
    assert set(after) == {"stem.weight", "stem.bias", "network.head.bias"}
    for name, state in after.items():
        for key, value in state.items():
            assert value is before[name][key]
    assert swap_.carried == 1


def test_state_is_laid_out_in_memory_as_its_parameter_is(tmp_path):
    values = torch.arange(48.0).view(16, 3).t()  # of head.weight, column by column

    class Transposed(Swap):
        def grown(self, states):
            moments = {key: values for key in ("exp_avg", "exp_avg_sq")}
            return {"head.weight": {"step": torch.tensor(3.0), **moments}} if states else {}

        def remember(self, trainer, pl_module):
            state = trainer.optimizers[0].state[pl_module.network.head.weight]
            return state["exp_avg"].clone()

    _, swap_ = swapped(tmp_path, callback=Transposed())
    assert torch.equal(swap_.after, values) and swap_.after.is_contiguous()


def test_grown_parameters_count_their_own_steps(tmp_path):
    class Count(Callback):
        def on_train_end(self, trainer, pl_module):
            state = trainer.optimizers[0].state
            self.steps = {n: int(state[p]["step"]) for n, p in pl_module.named_parameters()}

    count = Count()
    fit(plain(), tmp_path, Swap(), count)
    assert count.steps["stem.weight"] == count.steps["network.head.bias"] == 18
    assert count.steps["network.head.weight"] == count.steps["network.blocks.1.fc1.bias"] == 18 - AT


def test_all_parameters_of_the_large_network_train(tmp_path):
    module, swap_ = swapped(tmp_path)
    for name, weight in module.named_parameters():
        assert not torch.equal(weight, swap_.after["weights"][name]), name


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: LambdaLR(o, lambda step: 0.9**step),
        lambda o: CosineAnnealingLR(o, 18),
        lambda o: OneCycleLR(o, 0.1, total_steps=18),
        lambda o: SequentialLR(
            o, [LambdaLR(o, lambda s: (s + 1) / 10), CosineAnnealingLR(o, 9)], [9]
        ),
    ],
    ids=["lambda", "cosine", "one cycle", "sequential"],
)
@pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")
def test_learning_rates_are_those_of_a_run_without_a_swap(tmp_path, schedule):
    class Scheduled(Plain):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            return [optimizer], [{"scheduler": schedule(optimizer), "interval": "step"}]

    with_swap, without = Rates(), Rates()
    fit(Scheduled(), tmp_path, Swap(), with_swap)
    fit(Scheduled(), tmp_path, without)
    assert with_swap.rates == without.rates


def test_a_plateau_scheduler_survives(tmp_path):
    class Scheduled(Plain):
        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters())
            schedule = {"scheduler": ReduceLROnPlateau(optimizer), "monitor": "val_loss"}
            return {"optimizer": optimizer, "lr_scheduler": schedule}

    _, swap_ = swapped(tmp_path, Scheduled())
    assert swap_.before["scheduler"] is swap_.after["scheduler"]


def test_what_is_frozen_and_in_evaluation_mode_stays_so_in_every_layer(tmp_path):
    module = plain()
    module.network.embed.requires_grad_(False)
    module.network.blocks[0].fc1.bias.requires_grad_(False)
    module.network.blocks[0].norm.eval()
    with pytest.warns(match="in eval mode"):
        module, swap_ = swapped(tmp_path, module)
    frozen = {name for name, p in module.network.named_parameters() if not p.requires_grad}
    biases = {f"blocks.{layer}.fc1.bias" for layer in (0, 1)}
    assert frozen == {"embed.weight", "embed.bias", *biases}
    resting = {name for name, training in swap_.after["modes"].items() if not training}
    assert resting == {"network.blocks.0.norm", "network.blocks.1.norm"}


def test_the_large_network_has_the_precision_of_the_run(tmp_path):
    class Double(Plain):
        def training_step(self, batch, batch_idx):
            assert {weight.dtype for weight in self.parameters()} == {torch.float64}
            return super().training_step(batch, batch_idx)

    module, _ = swapped(tmp_path, Double(), precision="64-true")
    assert module.network.head.weight.shape == (3, 16)


def test_names_that_an_optimizer_was_told_follow(tmp_path):
    class Named(Plain):
        def configure_optimizers(self):
            self.stem.requires_grad_(False)
            return torch.optim.SGD(self.network.named_parameters(), lr=0.1)

    class Names(Callback):
        def on_train_end(self, trainer, pl_module):
            self.names = trainer.optimizers[0].param_groups[0]["param_names"]

    class SwapWithout(Swap):
        def remember(self, trainer, pl_module):
            return {}

    names, module = Names(), Named()
    fit(module, tmp_path, SwapWithout(), names)
    assert names.names == [name for name, _ in module.network.named_parameters()]


def test_the_summary_is_printed_again(tmp_path):
    class Summary(ModelSummary):
        sizes: list[int] = []  # noqa: RUF012

        def on_fit_start(self, trainer, pl_module):
            self.sizes.append(self._summary(trainer, pl_module).total_parameters)

    fit(plain(), tmp_path, Swap(), Summary(), enable_model_summary=True)
    small, large = Summary.sizes
    assert large == sum(p.numel() for p in build(MIDDLE).parameters()) + 12 > small


def test_a_parameter_outside_the_optimizers_is_named(tmp_path):
    class Drop(Callback):
        def on_train_start(self, trainer, pl_module):
            check_every_parameter_once(trainer, pl_module, pl_module.network)
            trainer.optimizers[0].param_groups[0]["params"].pop()
            trainer.optimizers[0].param_groups[1]["params"].append(nn.Parameter(torch.zeros(1)))
            check_every_parameter_once(trainer, pl_module, pl_module.network)

    message = "network.head.weight is in 0 groups, 1 parameters in the optimizers are not the mod"
    with pytest.raises(RuntimeError, match=message):
        fit(plain(), tmp_path, Drop())


def test_groups_are_filled_by_name_whatever_their_order_was(tmp_path):
    class Reorder(Callback):
        def on_train_start(self, trainer, pl_module):
            self.groups = group_names(trainer, pl_module)
            for group in trainer.optimizers[0].param_groups:
                group["params"].reverse()
            assert group_names(trainer, pl_module) != self.groups
            regroup(trainer, pl_module, self.groups)
            assert group_names(trainer, pl_module) == self.groups

    fit(plain(), tmp_path, Reorder(), epochs=1)


def test_an_optimizer_with_a_parameter_list_of_its_own_is_refused():
    weights = [nn.Parameter(torch.zeros(2))]
    check_optimizers_can_change([torch.optim.AdamW(weights), torch.optim.SGD(weights)])
    with pytest.raises(ValueError, match="LBFGS keeps parameters in its own attribute '_params'"):
        check_optimizers_can_change([torch.optim.LBFGS(weights)])
    with pytest.raises(ValueError, match="Adagrad makes the state of its parameters when it is bu"):
        check_optimizers_can_change([torch.optim.Adagrad(weights)])
