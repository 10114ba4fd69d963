"""Fixtures for tests of data sets."""

import pytest

from ddvi_fast.data import idx


@pytest.fixture
def fashion_system(monkeypatch):
    """``fashion_system(*folders)`` puts these folders in the place of those of the operating system, where Fashion-MNIST is looked for."""
    source = idx.SOURCES["fashion_mnist"]

    def replace(*folders):
        monkeypatch.setitem(idx.SOURCES, "fashion_mnist", idx.IdxSource(source.folders, source.class_names, folders, source.advice))

    return replace
