import subprocess
import sys
from collections import UserDict, UserList
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from lightning_ligo.networks.description import build, describe, is_description, merge

VIT = {
    "class_path": "timm.models.VisionTransformer",
    "init_args": {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
}
GPT2 = {
    "class_path": "transformers.GPT2LMHeadModel",
    "init_args": {
        "config": {
            "class_path": "transformers.GPT2Config",
            "init_args": {"vocab_size": 11, "n_embd": 8, "n_layer": 1, "n_head": 2},
        }
    },
}


@dataclass
class Width:
    width: int


class Sized(nn.Linear):
    @classmethod
    def from_size(cls, size):
        return cls(size, size)

    @classmethod
    def load_size(cls, size):
        return cls(size, size)


class Inherits(Sized):
    pass


class NoModule:
    @classmethod
    def from_size(cls, size):
        return nn.Linear(size, size)


def listed(parts: list[nn.Module]) -> nn.Module:
    return nn.Sequential(*parts)


class Outer:
    class Inner(nn.Linear):
        pass


def annotated(width: int = 3) -> nn.Linear:
    return nn.Linear(width, width)


def from_parts(width: Width, activation: nn.Module, rest: list[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(width.width, 1), activation, *rest)


def unannotated(width=3):
    return nn.Linear(width, width)


def annotated_wrongly() -> nn.Module:
    return "no module"  # type: ignore[return-value]


def test_a_timm_network_is_built_as_its_constructor_builds_it():
    torch.manual_seed(0)
    built = build(VIT)
    torch.manual_seed(0)
    called = timm.models.VisionTransformer(**VIT["init_args"])
    assert type(built) is type(called)
    expected = called.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in built.state_dict().items())


def test_a_hugging_face_network_is_built_with_its_configuration():
    network = build(GPT2)
    assert isinstance(network, GPT2LMHeadModel)
    assert isinstance(network.config, GPT2Config)
    assert network.transformer.wte.weight.shape == (11, 8)


@pytest.mark.parametrize("description", [VIT, GPT2], ids=["timm", "hugging face"])
def test_on_the_meta_device_no_weight_holds_memory(description):
    network = build(description, device="meta")
    assert {weight.device.type for weight in network.parameters()} == {"meta"}
    assert torch.empty(0).device.type == "cpu"


class ReadsValues(nn.Module):
    """As many networks do, its constructor computes with tensors; its weights are tied."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]
        self.embedding = nn.Embedding(5, width)
        self.head = nn.Linear(width, 5)
        self.head.weight = self.embedding.weight
        self.bare = nn.Parameter(torch.ones(width), requires_grad=False)
        self.register_buffer("scale", torch.ones(width))


def test_a_constructor_that_reads_values_is_built_on_meta_with_its_ties():
    network = build(describe(ReadsValues, width=4), device="meta")
    assert network.rates == [0.0, 0.5, 1.0]
    assert network.head.weight is network.embedding.weight
    kept = dict(network.state_dict(keep_vars=True))
    assert all(tensor.is_meta for tensor in kept.values())
    assert [name for name, tensor in kept.items() if not tensor.requires_grad] == ["bare", "scale"]


def test_a_function_annotated_to_return_a_module_is_called():
    assert build(describe(annotated, width=5)).weight.shape == (5, 5)
    assert isinstance(build({"class_path": "timm.models.resnet18"}), nn.Module)


def test_arguments_may_be_modules_dataclasses_and_classes_of_the_package():
    description = describe(
        from_parts,
        width=describe(Width, width=2),
        activation=describe(nn.LeakyReLU, negative_slope=0.5),
        rest=[describe(nn.ReLU)],
    )
    network = build(description)
    assert network[0].in_features == 2
    assert network[1].negative_slope == 0.5
    assert isinstance(network[2], nn.ReLU)


@pytest.mark.parametrize("device", [None, "meta"])
def test_a_class_method_is_called_on_the_class_it_is_taken_from(device):
    description = describe(Inherits.from_size, size=3)
    assert description["class_path"] == f"{__name__}.Inherits.from_size"
    network = build(description, device)
    assert type(network) is Inherits and network.in_features == 3


@pytest.mark.parametrize("device", [None, "meta"])
def test_from_config_of_an_auto_class_is_the_class_it_chooses(device):
    config = GPT2["init_args"]["config"]
    description = describe(AutoModelForCausalLM.from_config, config=config)
    chosen = AutoModelForCausalLM.from_config(GPT2Config(**config["init_args"]))
    for each in (description, {**description, "class_path": "transformers.AutoModel.from_config"}):
        network = build(each, device)
        is_whole = each is description
        assert type(network) is (type(chosen) if is_whole else type(chosen.transformer))
        held = chosen if is_whole else chosen.transformer
        shapes = [(name, weight.shape) for name, weight in held.named_parameters()]
        assert [(name, weight.shape) for name, weight in network.named_parameters()] == shapes


def test_from_config_needs_a_description_of_a_configuration():
    path = "transformers.AutoModel.from_config"
    for config in (None, {"class_path": "os.system"}, {"class_path": "transformers.Trainer"}):
        with pytest.raises(ValueError, match=r"from_config needs the argument config, a descript"):
            build({"class_path": path, "init_args": {"config": config}})


def test_a_class_within_a_class_is_described_and_built():
    description = describe(Outer.Inner, in_features=1, out_features=2)
    assert description["class_path"].endswith(".Outer.Inner")
    assert isinstance(build(description), Outer.Inner)


class Frozen(UserDict):
    """A mapping that is no dict, as OmegaConf's are."""


def test_other_mappings_and_sequences_become_dicts_and_lists():
    given = Frozen(a=(1, UserList([2, Frozen(b=())])))
    description = describe(nn.Linear, size=given)
    assert description["init_args"]["size"] == {"a": [1, [2, {"b": []}]]}
    assert type(description["init_args"]["size"]["a"][1][1]) is dict
    part = Frozen(class_path="torch.nn.LeakyReLU", init_args=Frozen(negative_slope=0.5))
    whole = Frozen(class_path=f"{__name__}.listed", init_args=Frozen(parts=UserList([part, part])))
    network = build(whole)
    assert [part.negative_slope for part in network] == [0.5, 0.5]
    assert merge(whole, Frozen(init_args=Frozen(parts=(part,))))["init_args"]["parts"] == [
        {"class_path": "torch.nn.LeakyReLU", "init_args": {"negative_slope": 0.5}}
    ]


def test_describing_copies_the_arguments():
    arguments = {"a": [1]}
    description = describe(nn.Linear, in_features=arguments)
    arguments["a"].append(2)
    assert description["init_args"]["in_features"] == {"a": [1]}


def test_only_a_dict_with_a_class_path_is_a_description():
    assert is_description(VIT)
    assert not any(map(is_description, [None, "a.b", {"init_args": {}}, {"class_path": 3}, 4]))


def test_changes_are_merged_at_every_depth_and_arguments_stay_as_they_are():
    changes = {"init_args": {"config": {"init_args": {"n_embd": 16, "n_layer": 2}}}}
    merged = merge(GPT2, changes)
    assert merged["init_args"]["config"] == {
        "class_path": "transformers.GPT2Config",
        "init_args": {"vocab_size": 11, "n_embd": 16, "n_layer": 2, "n_head": 2},
    }
    assert GPT2["init_args"]["config"]["init_args"]["n_embd"] == 8
    merged["init_args"]["config"]["init_args"]["n_embd"] = 99
    assert changes["init_args"]["config"]["init_args"]["n_embd"] == 16


def test_changes_with_a_class_path_replace_the_whole():
    other = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 1}}
    assert merge(VIT, other) == other
    config = {"class_path": "transformers.GPT2Config"}
    assert merge(GPT2, {"init_args": {"config": config}})["init_args"]["config"] == config


def test_arguments_forgotten_to_be_put_under_init_args_are_refused():
    with pytest.raises(ValueError, match=r"VisionTransformer have unknown keys \['embed_dim'\]"):
        merge(VIT, {"embed_dim": 64})


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({8}, r"init_args\.size must be plain data .* got \{8\} of type set"),
        (b"8", r"init_args\.size must be plain data .* of type bytes"),
        ({"a": [torch.float32]}, r"init_args\.size\.a\[0\] .* got torch.float32 of type dtype"),
        ({1: 2}, r"init_args\.size: keys must be strings, got 1"),
        (nn.ReLU, r"init_args\.size .* of type type"),
    ],
)
def test_data_that_is_not_plain_is_refused_with_its_place(value, found):
    with pytest.raises(ValueError, match=found):
        describe(nn.Linear, size=value)


def test_what_cannot_be_imported_by_name_cannot_be_described():
    class Local(nn.Linear):
        pass

    with pytest.raises(ValueError, match=r"Local'> cannot be described: .* importable module"):
        describe(Local)
    with pytest.raises(ValueError, match="cannot be described"):
        describe(lambda: nn.Linear(1, 1))


def test_a_name_that_imports_something_else_cannot_be_described():
    class Impostor(nn.Linear):
        pass

    Impostor.__qualname__, Impostor.__module__ = "Linear", "torch.nn"
    with pytest.raises(ValueError, match=r"'torch\.nn\.Linear' imports .* instead"):
        describe(Impostor)


@pytest.mark.parametrize(
    ("description", "found"),
    [
        ("timm.models.VisionTransformer", "a network description is a dict .* got 'timm"),
        ({"init_args": {}}, "a network description is a dict"),
        ({"class_path": "torch.nn.Linear", "args": {}}, r"unknown keys \['args'\]"),
        ({"class_path": "torch.nn.Linear", "init_args": [1]}, r"must be a dict .* got \[1\]"),
        ({"class_path": "no_such_package.Net"}, "no module named 'no_such_package'"),
        ({"class_path": "torch.nn.NoSuchLayer"}, "has no attribute 'NoSuchLayer'"),
        ({"class_path": "Linear"}, "'Linear' cannot be imported"),
        ({"class_path": ""}, "'' cannot be imported"),
        ({"class_path": ".nets"}, r"'\.nets' cannot be imported"),
        (
            {"class_path": "torch.nn.Linear", "init_args": {"width": 1}},
            r"torch\.nn\.Linear cannot be built from its init_args .* TypeError: .*width",
        ),
        ({"class_path": "subprocess.Popen"}, "a network is a subclass of torch.nn.Module"),
        ({"class_path": "os.system"}, "a network is a subclass of torch.nn.Module"),
        ({"class_path": f"{__name__}.unannotated"}, "a function annotated to return one"),
        ({"class_path": f"{__name__}.Sized.load_size"}, "a class method from_... of one"),
        ({"class_path": f"{__name__}.NoModule.from_size"}, "a class method from_... of one"),
        ({"class_path": f"{__name__}.Sized.forward"}, "a class method from_... of one"),
        ({"class_path": "torch.nn.Embedding.from_pretrained"}, "of classes of transformers only"),
        (
            {"class_path": "lightning.pytorch.LightningModule.load_from_checkpoint"},
            "a class method from_... of one",
        ),
        ({"class_path": f"{__name__}.annotated_wrongly"}, "returned str, not a torch.nn.Module"),
    ],
)
def test_a_description_that_cannot_be_built_says_why(description, found):
    with pytest.raises(ValueError, match=found):
        build(description)


@pytest.mark.parametrize("class_path", ["subprocess.Popen", "os.system", f"{__name__}.annotated"])
def test_an_argument_cannot_call_whatever_can_be_imported(class_path):
    description: Any = {
        "class_path": "transformers.GPT2LMHeadModel",
        "init_args": {"config": {"class_path": class_path, "init_args": {"args": ["true"]}}},
    }
    with pytest.raises(ValueError, match=rf"{class_path} cannot be built as an argument"):
        build(description)


def test_an_import_that_fails_inside_a_module_names_the_cause(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="No module named 'surely_not_installed'"):
        build({"class_path": "needs_more.Net"})


def test_a_description_opens_in_another_process():
    program = f"from lightning_ligo import build; print(type(build({VIT!r})).__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "VisionTransformer", done.stderr
