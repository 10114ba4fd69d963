"""A missing or unfitting library is one clear line, and unsuitable tensors are refused before any pointer is taken."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import InputError, schedules
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.native import chain, elbo, kde, loader, mmd


def test_missing_library_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "LIBRARY", tmp_path / "_native.so")
    loader._open.cache_clear()
    try:
        usable, reason = loader.available()
        assert not usable and "was not built" in reason and "\n" not in reason
        with pytest.raises(InputError, match="compiled extension"):
            loader.library()
        (tmp_path / "_native.so").write_bytes(b"no library")
        loader._open.cache_clear()
        assert "cannot be loaded" in loader.available()[1]
    finally:
        loader._open.cache_clear()


def test_float64_is_refused():
    with pytest.raises(InputError, match="float64"):
        kde.kde_log_density(torch.zeros(2, 1, dtype=torch.float64), torch.zeros(3, 1), torch.ones(1), None)
    with pytest.raises(InputError, match="float64"):
        elbo.gaussian_kl(torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.float64))


def test_gradients_that_do_not_exist_are_refused():
    x, widths = torch.zeros(2, 1), torch.ones(1, requires_grad=True)
    with pytest.raises(InputError, match="bandwidths"):
        kde.kde_log_density(x, x, widths, None)
    with pytest.raises(InputError, match="sigmas"):
        mmd.mmd(x, x, widths)
    with pytest.raises(InputError, match="counts"):
        elbo.binomial_log_likelihood(x, torch.ones(2, 1, requires_grad=True), 2)


def test_hidden_width_between_blocks_is_unsupported():
    denoiser = ResidualMLP(2, 0, 3, hidden_dim=96)
    table = schedules.make("cosine", 3).coefficients("v")
    reason = chain.unsupported(torch.zeros(1, 2), None, denoiser.chain_weights(), table)
    assert reason is not None and "96" in reason


def test_second_derivative_is_refused():
    mean = torch.zeros(2, 3, requires_grad=True)
    value = elbo.gaussian_kl(mean, torch.zeros(2, 3)).sum()
    with pytest.raises(InputError, match="first derivatives only"):
        torch.autograd.grad(value, mean, create_graph=True)
