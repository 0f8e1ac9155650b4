from pathlib import Path

import pytest
import torch

from lightning_ligo.tasks.text import MASK, TokenWindows, cut, split_files

TEXT = torch.tensor([*range(100, 256), 10], dtype=torch.uint8)


def test_windows_are_the_text_cut_in_order_without_the_rest():
    windows = TokenWindows(cut(TEXT, 10))
    assert len(windows) == 15
    items = [windows[item, 0] for item in range(15)]
    assert torch.equal(torch.cat([item["input_ids"] for item in items]), TEXT[:150].long())
    assert all(torch.equal(item["input_ids"], item["labels"]) for item in items)
    assert items[0]["labels"].dtype == torch.int64


def test_masked_bytes_are_the_labels_and_the_others_stay():
    windows = TokenWindows(cut(TEXT.repeat(20), 100), mask=0.25, seed=3)
    plain = TokenWindows(cut(TEXT.repeat(20), 100))
    shares = []
    for item in range(len(windows)):
        inputs, labels = windows[item, 1]["input_ids"], windows[item, 1]["labels"]
        tokens = plain[item, 1]["input_ids"]
        masked = inputs == MASK
        assert torch.equal(torch.where(masked, labels, inputs), tokens)
        assert (labels[~masked] == -100).all()
        shares.append(masked.float().mean())
    assert torch.stack(shares).mean().item() == pytest.approx(0.25, abs=0.04)


def test_a_mask_depends_on_seed_epoch_and_window_alone():
    windows = TokenWindows(cut(TEXT, 50), mask=0.5)
    first = windows[1, 2]["labels"]
    torch.manual_seed(9)
    assert torch.equal(windows[1, 2]["labels"], first)
    assert not torch.equal(windows[1, 3]["labels"] == -100, first == -100)
    other = TokenWindows(cut(TEXT, 50), mask=0.5, seed=1)[1, 2]["labels"]
    assert not torch.equal(other == -100, first == -100)


def test_files_are_split_the_same_way_every_time_into_parts_that_share_nothing():
    files = [Path(f"{number}.txt") for number in range(40)]
    train, val, test = split_files(files, validation=0.1, test=0.05)
    assert (len(train), len(val), len(test)) == (34, 4, 2)
    assert sorted(train + val + test) == sorted(files)
    assert (train, val, test) == split_files(files, validation=0.1, test=0.05)
    assert val != files[:4]


def test_a_share_is_one_file_at_least_and_none_when_it_is_zero():
    files = [Path(f"{number}.txt") for number in range(3)]
    assert [len(part) for part in split_files(files, 0.01, 0.01)] == [1, 1, 1]
    assert [len(part) for part in split_files(files, 0.01, 0.0)] == [2, 1, 0]


def test_too_few_files_are_refused():
    with pytest.raises(ValueError, match=r"2 files cannot be split by file .* give more files"):
        split_files([Path("a"), Path("b")], 0.1, 0.1)
