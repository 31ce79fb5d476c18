"""Open-I as torchxrayvision ships it, built once for all tests of data."""

from __future__ import annotations

import pytest

from cxrl.config import DataConfig
from cxrl.data.index import Index
from cxrl.data.sources import load_index


@pytest.fixture(scope="session")
def openi_config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """With a cache: whoever asks second reads it."""
    return DataConfig(source="openi", cache=str(tmp_path_factory.mktemp("openi")))


@pytest.fixture(scope="session")
def openi_index(openi_config: DataConfig) -> Index:
    return load_index(openi_config)
