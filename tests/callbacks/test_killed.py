"""Runs that are killed at any moment, and resumed, end as one that was not, bit for bit."""

import json
import multiprocessing
import random
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from killed import WORDS, run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork server")


@pytest.fixture(scope="module")
def processes():
    """Starts processes that have imported all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning.pytorch", "matplotlib.figure", "torchmetrics"])
    return context


class Process:
    """A run in a folder, and what it says."""

    def __init__(self, processes, folder: Path, within_epochs: bool) -> None:
        self.words, words = processes.Pipe(duplex=False)
        self.process = processes.Process(target=run, args=(folder, within_epochs, words))
        self.began = time.monotonic()
        self.process.start()
        words.close()
        self.said: Counter[str] = Counter()
        self.last = "began"

    def listen(self, seconds: float | None = None) -> bool:
        """Take in the next word, if it comes within so many seconds; False when none will come."""
        if not self.words.poll(seconds):
            return False
        try:
            self.last = self.words.recv()
        except EOFError:
            self.last = "ended"
            return False
        self.said[self.last] += 1
        return True

    def kill_at(self, word: str, count: int, delay: float) -> bool:
        """Kill it so many seconds after it has said the word so often; whether it was there."""
        while self.said[word] < count:
            if not self.listen():
                return self.ended()
        time.sleep(delay)
        return self.kill()

    def kill_after(self, seconds: float) -> bool:
        """Kill it after so many seconds; whether it was there."""
        end = self.began + seconds
        while self.listen(max(0.0, end - time.monotonic())):
            pass
        return self.ended() if self.last == "ended" else self.kill()

    def kill(self) -> bool:
        self.process.kill()
        self.process.join()
        return self.process.exitcode != 0  # it may have come to its end in the meantime

    def ended(self) -> bool:
        self.process.join()
        return self.process.exitcode != 0


def end_of(folder: Path):
    """How a run in the folder has ended, and its report without what is of no run alone."""
    report = json.loads((folder / "growth_report.json").read_text())
    del report["checkpoint"], report["seconds"]
    for growth in report["growths"]:
        growth.pop("seconds")
    return torch.load(folder / "end.pt", weights_only=True), report


def assert_equal(mine, other, where=()):
    assert type(mine) is type(other), where
    if isinstance(mine, dict):
        assert mine.keys() == other.keys(), where
        for name, value in mine.items():
            assert_equal(value, other[name], (*where, name))
    elif isinstance(mine, (list, tuple)):
        for number, (value, theirs) in enumerate(zip(mine, other, strict=True)):
            assert_equal(value, theirs, (*where, number))
    elif isinstance(mine, torch.Tensor):
        assert torch.equal(mine, other), where
    else:
        assert mine == other, where


def assert_whole(folder: Path):
    """Whatever has its name is whole, though the process was killed."""
    for path in folder.glob("*.ckpt"):
        torch.load(path, weights_only=True)
    for path in folder.glob("growth_report.json"):
        json.loads(path.read_text())


ANY_TIME = "any time"


def kill_and_resume(processes, folder: Path, within_epochs: bool, moments: list[str], seed: int):
    """Kill runs at these moments, each until it ends; what each had said last, and how many ended.

    A moment is one of the words, of which a run may say several, or any time.
    """
    whole = Process(processes, folder / "whole", within_epochs)
    assert not whole.kill_at("never", 1, 0.0)
    seconds, expected = time.monotonic() - whole.began, end_of(folder / "whole")
    assert set(whole.said) == set(WORDS) and len(expected[1]["growths"]) == 2
    draw, killed, runs, left = random.Random(seed), Counter(), 0, list(moments)
    while left:
        runs += 1
        each = folder / f"{runs}"
        while True:
            process = Process(processes, each, within_epochs)
            if not left:
                there = process.kill_at("never", 1, 0.0)
            elif left[0] == ANY_TIME:
                there = process.kill_after(draw.uniform(0.0, seconds))
            else:
                count = draw.randint(1, whole.said[left[0]])
                there = process.kill_at(left[0], count, draw.uniform(0.0, 0.01))
            if not there:
                break
            assert process.process.exitcode == -9, (each / "log.txt").read_text()[-3000:]
            killed[process.last] += 1
            left.pop(0)
            assert_whole(each)
        assert_equal(end_of(each), expected)
    return killed, runs


@pytest.mark.parametrize(
    ("within_epochs", "moments"),
    [(False, ["operator", "swap", "write"]), (True, ["grown", ANY_TIME])],
)
def test_a_killed_run_ends_as_the_whole_one(processes, tmp_path, within_epochs, moments):
    killed, _ = kill_and_resume(processes, tmp_path, within_epochs, moments, seed=0)
    assert killed.total() == len(moments)


@pytest.mark.slow
@pytest.mark.parametrize("within_epochs", [False, True])
def test_a_run_killed_fifty_times_ends_as_the_whole_one(processes, tmp_path, within_epochs):
    moments = [*WORDS] * 6 + [ANY_TIME] * 8
    random.Random(1).shuffle(moments)
    killed, runs = kill_and_resume(processes, tmp_path, within_epochs, moments, seed=1)
    print(f"\n{killed.total()} kills of {runs} runs, the last said by them: {dict(killed)}")
    assert killed.total() == 50
    assert killed.keys() >= {"step", "growing", "operator", "swap", "write", "written"}
