"""Densities and distances as problems. Exponentials: one for each pair and bandwidth, the same again in the backward pass of `kde`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bench.baselines import eager
from bench.operands import FLOAT, normals, simple, tracked
from bench.problem import Operation, Side, Work
from ddvi_fast import ops
from ddvi_fast.reference import elbo as reference_elbo
from ddvi_fast.reference import kde as reference_kde
from ddvi_fast.reference import mmd as reference_mmd

_GRADIENTS = {
    "bernoulli": ("logits",),
    "gaussian": ("mean",),
    "binomial": ("logits",),
    "gaussian_kl": ("mean", "log_var"),
    "log_mean_exp": ("log_weights",),
}


class Elbo(Operation):
    """One of the bound's reductions over [N, P], or of [K, N] importance weights."""

    def __init__(self, device: torch.device, backward: bool, kind: str, N: int, P: int) -> None:
        super().__init__(device, backward, N)
        self.kind, self.names = kind, _GRADIENTS[kind]
        first, second = normals(0, N, P, device=device), normals(1, N, P, device=device)
        data = {
            "bernoulli": {"logits": first, "x": torch.sigmoid(second)},
            "gaussian": {"mean": first, "x": second},
            "binomial": {"logits": first, "counts": (second.abs() * 1.5).floor().clamp(max=2)},
            "gaussian_kl": {"mean": first, "log_var": second},
            "log_mean_exp": {"log_weights": (10 * first).T.contiguous()},
        }
        self.inputs = data[kind]
        self.row_axis = {**dict.fromkeys(self.inputs, -1 if kind == "log_mean_exp" else 0), "value": 0}
        numbers = sum(value.numel() for value in self.inputs.values())
        gradients = len(self.names) * N * P
        self.work = Work(bytes=FLOAT * (numbers + N + (numbers + gradients + N if backward else 0)))

    def _with(self, inputs: Mapping[str, Tensor], functions: Mapping[str, object]) -> Side:
        inputs = tracked(inputs, self.names)
        return simple(lambda: {"value": functions[self.kind](*inputs.values())}, inputs, self.names)

    def eager(self, inputs, compiled, checked):
        functions = {
            "bernoulli": eager.bernoulli_log_likelihood,
            "gaussian": lambda mean, x: eager.gaussian_log_likelihood(mean, x, 0.5),
            "binomial": lambda logits, counts: eager.binomial_log_likelihood(logits, counts, 2),
            "gaussian_kl": eager.gaussian_kl,
            "log_mean_exp": eager.log_mean_exp,
        }
        if compiled:
            functions = {self.kind: torch.compile(functions[self.kind], dynamic=False)}
        return self._with(inputs, functions)

    def ours(self):
        functions = {
            "bernoulli": ops.bernoulli_log_likelihood,
            "gaussian": lambda mean, x: ops.gaussian_log_likelihood(mean, x, 0.5),
            "binomial": lambda logits, counts: ops.binomial_log_likelihood(logits, counts, 2),
            "gaussian_kl": ops.gaussian_kl,
            "log_mean_exp": lambda log_weights: ops.log_mean_exp(log_weights, 0),
        }
        return self._with(self.inputs, functions)

    def exact(self, inputs):
        functions = {
            "bernoulli": reference_elbo.bernoulli_log_likelihood,
            "gaussian": lambda mean, x: reference_elbo.gaussian_log_likelihood(mean, x, mean.new_tensor(0.5)),
            "binomial": lambda logits, counts: reference_elbo.binomial_log_likelihood(logits, counts, 2.0),
            "gaussian_kl": reference_elbo.gaussian_kl,
            "log_mean_exp": lambda log_weights: reference_elbo.log_mean_exp(log_weights, 0),
        }
        return self._with(inputs, functions)


class Kde(Operation):
    """Kernel density at [N, D] from [M, D] points, five bandwidths, clamped as the prior's density of the released recipe."""

    BANDWIDTHS, CLAMP = (0.005, 0.008, 0.01, 0.03, 0.05), 1000.0

    def __init__(self, device: torch.device, backward: bool, N: int, M: int, D: int) -> None:
        super().__init__(device, backward, N)
        # Points as far apart as a prior's samples are, so that several bandwidths count.
        spread = 0.3 if D == 2 else 0.02
        self.inputs = {"z": spread * normals(0, N, D, device=device), "points": spread * normals(1, M, D, device=device)}
        self.row_axis = {"z": 0, "log_density": 0}
        pairs, passes = float(N) * M, 2 if backward else 1
        self.work = Work(
            flops=passes * pairs * 3 * D,
            bytes=passes * FLOAT * (N * (D + 1) + M * D),
            exponentials=passes * pairs * len(self.BANDWIDTHS),
        )

    def _with(self, inputs: Mapping[str, Tensor], function) -> Side:
        inputs = tracked(inputs, ["z"])
        return simple(lambda: {"log_density": function(inputs["z"], inputs["points"])}, inputs, ["z"])

    def eager(self, inputs, compiled, checked):
        function = torch.compile(eager.kde_log_density, dynamic=False) if compiled else eager.kde_log_density
        return self._with(inputs, lambda z, points: function(z, points, self.BANDWIDTHS, self.CLAMP))

    def ours(self):
        return self._with(self.inputs, lambda z, points: ops.kde_log_density(z, points, self.BANDWIDTHS, clamp=self.CLAMP))

    def exact(self, inputs):
        widths = torch.tensor(self.BANDWIDTHS, dtype=torch.float64, device=self.device)
        return self._with(inputs, lambda z, points: reference_kde.kde_log_density(z, points, widths, self.CLAMP))


class Mmd(Operation):
    """Discrepancy between [N, P] and [M, P] with six widths; every row meets every other, so all of them are checked."""

    SIGMAS = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0)

    def __init__(self, device: torch.device, backward: bool, N: int, M: int, P: int) -> None:
        super().__init__(device, backward, N)
        self.kept = N
        # Distances of the size of the widths, and two different distributions.
        scale = (20.0 / P) ** 0.5
        self.inputs = {"x": scale * normals(0, N, P, device=device), "y": scale * (0.1 + normals(1, M, P, device=device))}
        self.row_axis = {}
        # Each pair within a set once, each pair across once.
        pairs, passes = (N * (N - 1) + M * (M - 1)) / 2.0 + float(N) * M, 2 if backward else 1
        self.work = Work(flops=passes * 2 * P * pairs, bytes=passes * FLOAT * (N + M) * P, exponentials=passes * pairs * len(self.SIGMAS))

    def _with(self, inputs: Mapping[str, Tensor], function) -> Side:
        inputs = tracked(inputs, ["x", "y"])
        return simple(lambda: {"mmd": function(inputs["x"], inputs["y"])}, inputs, ["x", "y"])

    def eager(self, inputs, compiled, checked):
        function = torch.compile(eager.mmd, dynamic=False) if compiled else eager.mmd
        return self._with(inputs, lambda x, y: function(x, y, self.SIGMAS))

    def ours(self):
        return self._with(self.inputs, lambda x, y: ops.mmd(x, y, self.SIGMAS))

    def exact(self, inputs):
        sigmas = torch.tensor(self.SIGMAS, dtype=torch.float64, device=self.device)
        return self._with(inputs, lambda x, y: reference_mmd.mmd(x, y, sigmas))
