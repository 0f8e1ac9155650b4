import datasets
import pytest
import torch

from lightning_ligo.tasks.text_dataset import TextDatasetDataModule
from tokens import a_tokenizer

TEXTS = ["one two three four"] * 10 + ["three " * 7] * 10


@pytest.fixture
def tokenizer(tmp_path):
    return a_tokenizer(tmp_path / "tokenizer", mask_token="[MASK]")


def saved(folder, texts=TEXTS, column="text", **splits):
    made = datasets.Dataset.from_dict({column: texts, "title": ["a title"] * len(texts)})
    if splits:
        made = datasets.DatasetDict(train=made, **splits)
    made.save_to_disk(folder / "dataset")
    return str(folder / "dataset")


def module(dataset, tokenizer, **options):
    options = {"window": 4, "batch_size": 3, "num_workers": 0, **options}
    return TextDatasetDataModule(dataset, tokenizer, **options)


def loaders(data):
    data.prepare_data()
    data.setup("fit")
    return data.train_dataloader(), data.val_dataloader(), data.test_dataloader()


def rows(loader):
    return [row for batch in loader for row in batch["input_ids"].tolist()]


def test_texts_are_tokenized_joined_and_cut_into_windows(tmp_path, tokenizer):
    data = module(saved(tmp_path), tokenizer, validation=0.2, test=0.1, batch_size=1)
    parts = list(map(rows, loaders(data)))
    tokens = [token for part in parts for row in part for token in row]
    assert 110 - 3 * 3 <= len(tokens) <= 110  # a rest of up to 3 tokens a part is left out
    assert set(tokens) == {0, 2, 3, 4} and tokens.count(4) >= 70 - 9
    assert [len(part) > 0 for part in parts] == [True, True, True]
    again = list(map(rows, loaders(module(data.files, tokenizer, validation=0.2, test=0.1,
                                          batch_size=1))))  # fmt: skip
    assert parts == again


def test_splits_of_the_dataset_are_taken_as_they_are(tmp_path, tokenizer):
    others = {
        split: datasets.Dataset.from_dict({"text": [text] * count, "title": ["t"] * count})
        for split, text, count in (("validation", "one " * 4, 4), ("test", "two " * 4, 5))
    }
    data = module(saved(tmp_path, **others), tokenizer, validation_windows=3)
    train, val, test = map(rows, loaders(data))
    assert val == [[2] * 4] * 3 and test == [[3] * 4] * 5
    assert len(train) == 27  # of 110 tokens


def test_a_masked_model_gets_the_mask_of_the_tokenizer(tmp_path, tokenizer):
    train, _, _ = loaders(module(saved(tmp_path), tokenizer, mask=0.5, batch_size=20))
    batch = next(iter(train))
    assert set(batch["input_ids"][batch["labels"] != -100].tolist()) == {1}
    assert 0.3 < (batch["labels"] != -100).float().mean() < 0.7
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64


def test_the_order_of_training_is_that_of_the_seed(tmp_path, tokenizer):
    name = saved(tmp_path, texts=[f"{word} " * 4 for word in ("one", "two", "three", "x")] * 5)
    first, again, other = (
        rows(loaders(module(name, tokenizer, seed=seed))[0]) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_another_window_is_that_of_the_loaders_made_from_then_on(tmp_path, tokenizer):
    data = module(saved(tmp_path), tokenizer)
    loaders(data)
    data.window = 8
    assert next(iter(data.train_dataloader()))["input_ids"].shape == (3, 8)


def test_what_does_not_fit_is_named(tmp_path, tokenizer):
    name = saved(tmp_path)
    with pytest.raises(ValueError, match="has no column 'words'; it has: text, title"):
        module(name, tokenizer, column="words").prepare_data()
    with pytest.raises(ValueError, match=r"texts of .* hold less than one window of 4000 tokens"):
        module(name, tokenizer, window=4000).prepare_data()
    with pytest.raises(ValueError, match=r"there is no dataset \./nowhere: .*save_to_disk"):
        module("./nowhere", tokenizer).prepare_data()
    with pytest.raises(ValueError, match=r"there is no tokenizer \./nowhere"):
        module(name, "./nowhere").prepare_data()
    plain = a_tokenizer(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"has no mask token, .* give mask=0, got 0.2"):
        module(name, plain, mask=0.2).prepare_data()
    datasets.DatasetDict(test=datasets.Dataset.from_dict({"text": ["one"]})).save_to_disk(
        tmp_path / "only_test"
    )
    with pytest.raises(ValueError, match="has no split train; it has: test"):
        module(str(tmp_path / "only_test"), tokenizer).prepare_data()
