"""One place decides the backend: by call, by `with`, by environment; what is missing is an error."""

from __future__ import annotations

import pytest

import ddvi_fast
from ddvi_fast import InputError, _backend


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    monkeypatch.setattr(_backend, "_chosen", None)
    monkeypatch.delenv(_backend.ENVIRONMENT_VARIABLE, raising=False)


def test_default_is_auto():
    assert _backend.current() == "auto"


def test_with_block_puts_back_what_was():
    with ddvi_fast.use_backend("reference"):
        with ddvi_fast.use_backend("auto"):
            assert _backend.current() == "auto"
        assert _backend.current() == "reference"
    assert _backend.current() == "auto"


def test_with_block_puts_back_after_an_error():
    with pytest.raises(RuntimeError), ddvi_fast.use_backend("reference"):
        raise RuntimeError
    assert _backend.current() == "auto"


def test_function_stays():
    ddvi_fast.use_backend("reference")
    assert _backend.current() == "reference"


def test_environment_sets_the_default(monkeypatch):
    monkeypatch.setenv(_backend.ENVIRONMENT_VARIABLE, "reference")
    assert _backend.current() == "reference"
    monkeypatch.setenv(_backend.ENVIRONMENT_VARIABLE, "refrence")
    with pytest.raises(InputError, match=r"DDVI_FAST_BACKEND.*did you mean reference"):
        _backend.current()


def test_unknown_name_changes_nothing():
    with pytest.raises(InputError, match=r"backend: expected one of .*did you mean triton"):
        ddvi_fast.use_backend("tritn")
    assert _backend.current() == "auto"


@pytest.mark.parametrize("name", sorted(set(_backend.NAMES) - set(_backend._PACKAGES) - {"auto"}))
def test_missing_backend_is_an_error(name):
    with pytest.raises(InputError, match=f"backend: expected auto or one that this version has .*got '?{name}"):
        ddvi_fast.use_backend(name)
    assert _backend.current() == "auto"


@pytest.mark.parametrize("name", ["noise", "chain", "elbo", "kde", "mmd"])
def test_reference_has_every_operation(name):
    ddvi_fast.use_backend("reference")
    assert _backend.operation(name).__name__ == f"ddvi_fast.reference.{name}"
