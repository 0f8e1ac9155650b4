"""Data of the source code of Python's standard library, about ten megabytes."""

import sysconfig
from pathlib import Path
from typing import Any

from lightning_ligo.tasks.text import TextDataModule

NOT_THE_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}
TESTS = {"test", "tests", "idle_test"}


class PythonSourceDataModule(TextDataModule):
    """Windows of bytes from the standard library of the running Python, split by file.

    Batches and options are those of TextDataModule. Versions of Python have different texts, so
    compare results of the same version only.

    Args:
        tests: whether to read the library's test folders too, which doubles the text.
        options: the options of TextDataModule, without its files.
    """

    def __init__(self, tests: bool = False, **options: Any) -> None:
        super().__init__(files=sysconfig.get_paths()["stdlib"], **options)
        self.tests = tests

    def find_files(self) -> list[Path]:
        """Return the source files, sorted; raise ValueError if Python has no source."""
        library = Path(self.files)
        unwanted = NOT_THE_LIBRARY if self.tests else NOT_THE_LIBRARY | TESTS
        found = sorted(
            file
            for file in library.rglob("*.py")
            if unwanted.isdisjoint(file.relative_to(library).parts)
        )
        if not found:
            raise ValueError(
                f"no Python source found in the standard library's folder {self.files!r}; some "
                "installations have it compiled or zipped only: use another Python, or "
                "TextDataModule with your own files"
            )
        return found
