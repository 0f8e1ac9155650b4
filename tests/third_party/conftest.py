"""Tests in projects of others, which import a lot: collected only by `pytest -m third_party`."""

import pytest


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    asked = config.option.markexpr or ""
    return None if "third_party" in asked and "not third_party" not in asked else True
