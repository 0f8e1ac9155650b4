import sysconfig
from pathlib import Path

import pytest

from lightning_ligo.tasks.text import PythonSourceDataModule

LIBRARY = Path(sysconfig.get_paths()["stdlib"])


def test_the_library_of_the_running_python_is_found_without_packages_and_tests():
    files = PythonSourceDataModule().find_files()
    assert LIBRARY / "json" / "decoder.py" in files
    names = {part for file in files for part in file.relative_to(LIBRARY).parts}
    assert not names & {"site-packages", "test", "tests", "__pycache__"}
    assert files == sorted(files)


def test_a_window_is_source_code_and_no_file_is_in_two_parts():
    data = PythonSourceDataModule(window=128, batch_size=8, validation_windows=16)
    data.setup("fit")
    loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    sizes = [len(loader.dataset) for loader in loaders]
    total = sum(file.stat().st_size for file in data.find_files()) // 128
    assert total - 3 <= sum(sizes) <= total
    assert min(sizes) > 100
    source = b"".join(file.read_bytes() for file in data.find_files())
    batches = [batch["input_ids"] for batch in data.val_dataloader()]
    assert [batch.shape for batch in batches] == [(8, 128), (8, 128)]
    assert all(bytes(row.tolist()) in source for batch in batches for row in batch)


def test_its_own_tests_are_read_when_asked_for(tmp_path, monkeypatch):
    for name in ("code.py", "test/test_code.py", "site-packages/other.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("pass\n")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    names = [file.name for file in PythonSourceDataModule(tests=True).find_files()]
    assert names == ["code.py", "test_code.py"]
    assert [file.name for file in PythonSourceDataModule().find_files()] == ["code.py"]


def test_a_python_without_its_source_is_a_clear_error(tmp_path, monkeypatch):
    (tmp_path / "code.pyc").write_bytes(b"")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(ValueError, match=r"no Python source found .* use another Python, or "):
        PythonSourceDataModule().setup("fit")
