"""The whitening map: its inverse, and its log-determinant against the Jacobian."""

from __future__ import annotations

import torch

from ddvi_fast.inference.whitening import Whitening


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def plain() -> Whitening:
    factor = torch.tensor([[2.0, 0.0, 0.0], [0.5, 0.3, 0.0], [-1.0, 4.0, 1.5]]).double()
    return Whitening(torch.tensor([1.0, -2.0, 0.5]).double(), factor)


def test_a_map_goes_there_and_back_with_the_volume_of_its_jacobian() -> None:
    y = torch.randn(4, 5, 3, dtype=torch.float64, generator=generator())
    torch.testing.assert_close(plain().inverse(plain()(y)), y)
    jacobian = torch.autograd.functional.jacobian(plain(), y[0, 0])
    torch.testing.assert_close(plain().log_det(), torch.linalg.slogdet(jacobian)[1])


def test_standardised_rows_have_mean_zero_and_variance_one() -> None:
    u = torch.randn(1000, 3, generator=generator()) * torch.tensor([0.1, 5.0, 2.0]) + 7
    y = Whitening.of(u).inverse(u)
    torch.testing.assert_close(y.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(y.std(0), torch.ones(3))
