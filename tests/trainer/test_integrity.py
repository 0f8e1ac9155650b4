"""Checkpoints that are damaged, or that would run code; in runs in callbacks/test_resume.py."""

import enum
import pickle
import struct
import warnings

import pytest
import torch
from torch.distributed import checkpoint as distributed

from lightning_ligo.trainer.integrity import intact
from payload import RAN, Payload


def file(folder):
    path = folder / "a.ckpt"
    torch.save({"state_dict": {"weight": torch.arange(4096.0)}, "epoch": 1}, path)
    return path


def sharded(folder, **more):
    """What `ModelParallelStrategy` writes: tensors and the optimizer's numbers, and the rest."""
    path = folder / "a.ckpt"
    state = {"state_dict.weight": torch.arange(4096.0), "optimizer_0.lr": 0.1, **more}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distributed.save(state, checkpoint_id=path, no_dist=True)
    torch.save({"epoch": 1}, path / "meta.pt")
    return path


def load(path, weights_only=None):
    with intact(path, weights_only):
        part = path / "meta.pt" if path.is_dir() else path
        return torch.load(part, weights_only=weights_only)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def empty(path):
    path.write_bytes(b"")


def change(path):
    """One bit of the weights, which torch does not see."""
    held = bytearray(path.read_bytes())
    held[held.index(torch.arange(4096.0).numpy().tobytes()) + 9] ^= 1
    path.write_bytes(held)


def change_number(path):
    """One bit of the rate of the optimizer."""
    held = bytearray(path.read_bytes())
    held[held.rindex(struct.pack(">d", 0.1)) + 2] ^= 1
    path.write_bytes(held)


def change_end(path):
    """One bit of where the last item of a part says what it holds."""
    held = bytearray(path.read_bytes())
    held[held.rindex(b"PK\x01\x02") + 1] ^= 1
    path.write_bytes(held)


@pytest.mark.parametrize("written", [file, sharded])
def test_what_is_whole_is_loaded(tmp_path, written):
    assert load(written(tmp_path))["epoch"] == 1


def test_torch_itself_loads_a_changed_weight(tmp_path):
    path = file(tmp_path)
    change(path)
    assert not torch.equal(torch.load(path)["state_dict"]["weight"], torch.arange(4096.0))


def test_torch_itself_loads_a_changed_weight_from_a_folder(tmp_path):
    path, state = sharded(tmp_path), {"state_dict.weight": torch.zeros(4096)}
    change(path / "__0_0.distcp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distributed.load(state, checkpoint_id=path, no_dist=True)
    assert not torch.equal(state["state_dict.weight"], torch.arange(4096.0))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"a\.ckpt is damaged: it is cut off, or no file of torch\.save; resume from another"),
        (empty, r"a\.ckpt is damaged: it is cut off, or no file of torch\.save"),
        (change, r"a\.ckpt is damaged: a/data/0 in it is not as it was written"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, damage, message):
    path = file(tmp_path)
    damage(path)
    with pytest.raises(ValueError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("meta.pt", lambda path: path.unlink(), r"a\.ckpt is damaged: it has no file meta\.pt, wh"),
        ("meta.pt", empty, r"meta\.pt is damaged: it is cut off"),
        (".metadata", lambda path: path.unlink(), r"it has no file \.metadata, which is written"),
        (".metadata", empty, r"its file \.metadata is cut off"),
        ("__0_0.distcp", lambda path: path.unlink(), r"it has no file __0_0\.distcp; resume from"),
        ("__0_0.distcp", cut, r"its file __0_0\.distcp is cut off"),
        ("__0_0.distcp", change, r"data/0 in state_dict\.weight of its file __0_0\.distcp is not"),
        ("__0_0.distcp", change_number, r"data\.pkl in optimizer_0\.lr of its file .* is not as"),
        ("__0_0.distcp", change_end, r"damaged: state_dict\.weight of its file .* is cut off, or"),
    ],
)
@pytest.mark.parametrize("weights_only", [None, False])
def test_a_damaged_folder_is_refused(tmp_path, name, damage, message, weights_only):
    path = sharded(tmp_path)
    damage(path / name)
    with pytest.raises(ValueError, match=message):
        load(path, weights_only)


@pytest.mark.parametrize("weights_only", [None, False])
def test_a_list_that_is_cut_off_anywhere_is_damaged_and_no_payload(tmp_path, weights_only):
    path = sharded(tmp_path)
    held = (path / ".metadata").read_bytes()
    for length in range(0, len(held), 50):
        (path / ".metadata").write_bytes(held[:length])
        with pytest.raises(ValueError, match=r"damaged: its file \.metadata is cut off.*; resume"):
            load(path, weights_only)


@pytest.mark.parametrize("held", [b"no pickle", pickle.dumps([]), pickle.dumps(3.0)[:-1]])
def test_a_list_of_something_else_is_damaged(tmp_path, held):
    path = sharded(tmp_path)
    (path / ".metadata").write_bytes(held)
    with pytest.raises(ValueError, match=r"its file \.metadata is cut off, or no list of tensors"):
        load(path)


def in_file(folder):
    path = folder / "a.ckpt"
    torch.save({"state_dict": {}, "callbacks": Payload()}, path)
    return path


def in_rest(folder):
    path = sharded(folder)
    torch.save({"epoch": Payload()}, path / "meta.pt")
    return path


def in_numbers(folder):
    return sharded(folder, **{"optimizer_0.betas": Payload()})


def in_list(folder):
    path = sharded(folder)
    (path / ".metadata").write_bytes(pickle.dumps([Payload()]))
    return path


@pytest.mark.parametrize("written", [in_file, in_rest, in_numbers, in_list])
def test_a_payload_is_named_and_not_run(tmp_path, written):
    path = written(tmp_path)
    RAN.clear()
    with pytest.raises(ValueError, match=r"a\.ckpt holds more .* \(payload\.run\); nothing of"):
        load(path)
    assert RAN == []


@pytest.mark.parametrize("name", ["eval", "load", "serialization.pickle.loads"])
def test_the_list_of_a_folder_may_name_nothing_that_acts(tmp_path, name):
    path = sharded(tmp_path)
    module = "builtins" if name == "eval" else "torch"
    words = b"\x80\x04" + b"".join(
        b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name)
    )
    (path / ".metadata").write_bytes(words + b"\x93.")
    with pytest.raises(ValueError, match=rf"\({module}\.{name}\)"):
        load(path)


@pytest.mark.parametrize("written", [in_file, in_rest])
def test_a_user_who_trusts_it_loads_it(tmp_path, written):
    path = written(tmp_path)
    RAN.clear()
    load(path, weights_only=False)
    assert RAN == ["was run"]


class ByName(pickle.Pickler):
    """Writes the members of enumerations as Python 3.11.0 to 3.11.3 do, or something else so."""

    other = None

    def reducer_override(self, value):
        if isinstance(value, enum.Enum):
            return getattr, self.other or (type(value), value.name)
        return NotImplemented


def test_a_folder_that_an_early_python_3_11_wrote_is_read(tmp_path, monkeypatch):
    path = sharded(tmp_path)
    listed = pickle.loads((path / ".metadata").read_bytes())
    with (path / ".metadata").open("wb") as file:
        ByName(file).dump(listed)
    assert b"getattr" in (path / ".metadata").read_bytes()
    assert load(path) == {"epoch": 1}
    monkeypatch.setattr(ByName, "other", (type(listed), "__init__"))
    with (path / ".metadata").open("wb") as file:
        ByName(file).dump(listed)
    with pytest.raises(ValueError, match=r"builtins\.getattr"):
        load(path)
