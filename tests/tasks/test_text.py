import pytest
import torch

from lightning_ligo.tasks.text import TextDataModule
from tokens import a_tokenizer


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inner").mkdir()
    for number in range(10):
        place = tmp_path / "inner" if number % 2 else tmp_path
        (place / f"{number}.txt").write_text(str(number) * 50)
    (tmp_path / "other.md").write_text("m" * 50)
    return tmp_path


def loaders(data):
    data.setup("fit")
    return data.train_dataloader(), data.val_dataloader(), data.test_dataloader()


def text(loader):
    """What a loader holds, as one digit for each window of one file."""
    return [chr(row[0]) for batch in loader for row in batch["input_ids"]]


def test_a_folder_is_read_for_text_files_at_any_depth(folder):
    parts = loaders(TextDataModule(str(folder), window=25, batch_size=2, validation=0.2, test=0.1))
    train, val, test = map(text, parts)
    assert [len(train), len(val), len(test)] == [14, 4, 2]
    assert sorted(train + val + test) == sorted("0123456789" * 2)
    assert not set(train) & set(val)


def test_a_pattern_chooses_files(folder):
    data = TextDataModule(str(folder / "inner" / "*.txt"), window=25, batch_size=1)
    train, val, test = map(text, loaders(data))
    assert set(train + val + test) == set("13579")


def test_validation_windows_are_spaced_evenly_and_stay_the_same(folder):
    whole = TextDataModule(str(folder), window=5, validation=0.5, test=0.1, batch_size=4)
    some = TextDataModule(
        str(folder), window=5, validation=0.5, test=0.1, batch_size=4, validation_windows=10
    )
    _, every, _ = loaders(whole)
    _, chosen, _ = loaders(some)
    assert text(every)[::5] == text(chosen) == text(chosen)
    assert len(text(every)) == 50


def test_the_order_of_training_is_that_of_the_seed(folder):
    first, _, _ = loaders(TextDataModule(str(folder), window=5, seed=0))
    again, _, _ = loaders(TextDataModule(str(folder), window=5, seed=0))
    other, _, _ = loaders(TextDataModule(str(folder), window=5, seed=1))
    assert text(first) == text(again) != text(other)


def test_a_masked_model_gets_masked_bytes(folder):
    data = TextDataModule(str(folder), window=25, mask=0.3, batch_size=4)
    batch = next(iter(loaders(data)[0]))
    assert torch.equal(batch["input_ids"] == 256, batch["labels"] != -100)
    assert batch["input_ids"].shape == (4, 25)


def test_a_batch_larger_than_the_text_takes_all_there_is(folder):
    data = TextDataModule(str(folder), window=25, batch_size=1000)
    assert len(text(loaders(data)[0])) == 16


def test_no_text_is_an_error_that_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"no text file found at .*'; give a folder that has"):
        TextDataModule(str(tmp_path)).setup("fit")
    with pytest.raises(ValueError, match="no text file found at 'nowhere/"):
        TextDataModule("nowhere/*.txt").setup("fit")


def test_less_text_than_a_window_is_an_error(folder):
    with pytest.raises(ValueError, match="validation files hold 50 bytes, less than one window"):
        TextDataModule(str(folder), window=64).setup("fit")


def test_another_window_is_that_of_the_loaders_made_from_then_on(folder):
    data = TextDataModule(str(folder), window=8, batch_size=2)
    data.setup("fit")
    data.window = 16
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert next(iter(loader))["input_ids"].shape[-1] == 16


def test_a_tokenizer_of_transformers_makes_the_tokens(tmp_path):
    name = a_tokenizer(tmp_path / "tokenizer", mask_token="[MASK]")
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text("one two three four " * 10)
    options = {"window": 4, "batch_size": 3, "tokenizer": name}
    train, _, _ = loaders(TextDataModule(str(tmp_path / "*.txt"), **options))
    batch = next(iter(train))
    assert batch["input_ids"].tolist() == [[2, 3, 4, 0]] * 3
    masked, _, _ = loaders(TextDataModule(str(tmp_path / "*.txt"), mask=0.5, **options))
    batch = next(iter(masked))
    assert set(batch["input_ids"][batch["labels"] != -100].tolist()) == {1}


def test_a_tokenizer_that_does_not_fit_is_named(tmp_path):
    (tmp_path / "1.txt").write_text("one " * 300)
    (tmp_path / "2.txt").write_text("one " * 300)
    (tmp_path / "3.txt").write_text("one " * 300)
    with pytest.raises(ValueError, match=r"there is no tokenizer \./nowhere"):
        TextDataModule(str(tmp_path), tokenizer="./nowhere").setup("fit")
    name = a_tokenizer(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"has no mask token, .* give mask=0, got 0.2"):
        TextDataModule(str(tmp_path), tokenizer=name, mask=0.2).setup("fit")
