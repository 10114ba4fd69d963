"""The fused operations as problems.

Work per row and step of the denoiser is counted in `weights.network_flops`. The kernel density and MMD take one exponential for each pair and
bandwidth, and the kernel density as many again in its backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.baselines import eager
from bench.problem import FLOAT, Operation, Work, drawn_outside, normals
from bench.weights import copy_denoiser, denoiser_gradients, network_flops
from ddvi_fast import ops, rng, schedules
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.reference.chain import chain_noise


class _Noised(Operation):
    """Base of the operations that noise x0 [N, D] to timesteps t [N]."""

    def _schedule(self, T: int) -> None:
        self.schedule = schedules.make("linear", T).to(self.device)
        self.columns = [column.float() for column in (self.schedule.alpha_bars.sqrt(), self.schedule.noise_variances.sqrt())]

    def noise(self, inputs, draws):
        return rng.normal(draws, inputs["x0"].shape, rng.NOISE, device=self.device)


class Noise(_Noised):
    """Forward noising of latents [N, D] with noise that is drawn by the operation."""

    tracked = ("x0",)

    def __init__(self, device: torch.device, backward: bool, N: int, D: int, T: int = 40) -> None:
        super().__init__(device, backward, N)
        self._schedule(T)
        self.inputs = {"x0": normals(0, N, D, device=device), "t": torch.arange(N, device=device) % T}
        self.row_axis = {"x0": 0, "t": 0, "x_t": 0, "noise": 0}
        # x0 and t in, x_t and noise out; backward the gradient of x_t and t in, that of x0 out.
        self.work = Work(bytes=N * (3 * D * FLOAT + 8) + (N * (2 * D * FLOAT + 8) if backward else 0))

    def _named(self, x_t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        return {"x_t": x_t} if self.backward else {"x_t": x_t, "noise": noise}

    def eager(self, wrap, compiled):
        function = wrap(eager.add_noise)

        def outputs(inputs, noise):
            noise = drawn_outside(compiled, inputs["x0"]) if noise is None else noise
            return self._named(*function(inputs["x0"], inputs["t"], *self.columns, noise))

        return outputs

    def ours(self, inputs, draws, module):
        return self._named(*ops.add_noise(inputs["x0"], inputs["t"], self.schedule, draws=draws))


class _WithDenoiser(Operation):
    """Base of the operations with a denoiser, or with G of them."""

    def _denoiser(self, D: int, C: int, H: int, T: int, G: int | None) -> None:
        self.denoiser = ResidualMLP(D, C, T, H, groups=G).to(self.device)
        self.baselines = [copy_denoiser(self.denoiser, eager.Denoiser(D, C, T, H), group) for group in ([None] if G is None else range(G))]
        doubled = ResidualMLP(D, C, T, H, groups=G).to(self.device).double()
        doubled.load_state_dict(self.denoiser.state_dict())
        self.modules = {"float32": self.denoiser, "float64": doubled}

    def _weight_bytes(self) -> int:
        return FLOAT * sum(parameter.numel() for parameter in self.denoiser.parameters())

    def eager_parameters(self):
        return [parameter for network in self.baselines for parameter in network.parameters()]

    def named_gradients(self, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
        count = len(gradients) // len(self.baselines)
        each = [denoiser_gradients(network, gradients[i * count : (i + 1) * count]) for i, network in enumerate(self.baselines)]
        return each[0] if self.denoiser.groups is None else {name: torch.stack([one[name] for one in each]) for name in each[0]}


class Chain(_WithDenoiser):
    """All T steps from y_T [N, D], or [G, N, D] for class chains: ancestral with the path log-ratio, or deterministic.

    `indexed` chains take y_T [N, D] and the class of each row.
    """

    tracked = ("y_T", "context")

    def __init__(
        self,
        device: torch.device,
        backward: bool,
        N: int,
        T: int,
        D: int,
        C: int = 2,
        H: int = 128,
        G: int | None = None,
        kind: str = "ancestral",
        indexed: bool = False,
    ) -> None:
        super().__init__(device, backward, N)
        self._denoiser(D, C, H, T, G)
        lead = () if G is None or indexed else (G,)
        self.stochastic = kind == "ancestral"
        self.table = schedules.make("linear", T).coefficients("eps", eta=float(self.stochastic)).to(device)
        self.inputs = {"y_T": normals(0, *lead, N, D, device=device), "context": normals(1, *lead, N, C, device=device)}
        if indexed:
            self.inputs["groups"] = torch.arange(N, device=device) * 7 % G
        self.row_axis = {"y_T": -2, "context": -2, "groups": -1, "z": -2, "path": -1}
        rows, passes = N if indexed else N * (G or 1), 3 if backward else 1
        states = rows * FLOAT * (2 * D + C + self.stochastic)
        self.work = Work(flops=passes * rows * T * network_flops(D, C, H), bytes=(2 if backward else 1) * (states + self._weight_bytes()))

    def _named(self, z: Tensor, path: Tensor | None) -> dict[str, Tensor]:
        return {"z": z, "path": path} if self.stochastic else {"z": z}

    def noise(self, inputs, draws):
        y = inputs["y_T"]
        return chain_noise(draws, len(self.table), tuple(y.shape[:-1]), y.shape[-1], y) if self.stochastic else None

    def eager(self, wrap, compiled):
        step = wrap(eager.chain_step)

        def outputs(inputs, noise):
            start = (inputs["y_T"], inputs["context"], self.table, noise)
            if "groups" in inputs:
                return self._named(*eager.sample_indexed_chains(self.baselines, *start[:2], inputs["groups"], self.table, noise, step))
            if self.denoiser.groups is not None:
                return self._named(*eager.sample_class_chains(self.baselines, *start, step))
            return self._named(*eager.sample_chain(self.baselines[0], *start, self.stochastic, step)[:2])

        return outputs

    def ours(self, inputs, draws, module):
        given = {"draws": draws if self.stochastic else None, "groups": inputs.get("groups")}
        return self._named(*ops.sample_chain(inputs["y_T"], inputs["context"], module, self.table, **given)[:2])


class Sleep(_WithDenoiser, _Noised):
    """The sleep term's regression: noise x0 [N, D] to one step a row, predict, Huber error."""

    tracked = ("context",)

    def __init__(self, device: torch.device, backward: bool, N: int, T: int, D: int, C: int = 2, H: int = 128) -> None:
        super().__init__(device, backward, N)
        self._denoiser(D, C, H, T, None)
        self._schedule(T)
        self.inputs = {
            "x0": normals(0, N, D, device=device),
            "t": torch.arange(N, device=device) * 7 % T,
            "context": normals(1, N, C, device=device),
        }
        self.row_axis = {"x0": 0, "context": 0, "t": 0, "loss": 0}
        states = N * (FLOAT * (D + C + 1) + 8)
        self.work = Work(flops=(3 if backward else 1) * N * network_flops(D, C, H), bytes=(2 if backward else 1) * (states + self._weight_bytes()))

    def eager(self, wrap, compiled):
        function = wrap(eager.denoising_loss)

        def outputs(inputs, noise):
            noise = drawn_outside(compiled, inputs["x0"]) if noise is None else noise
            return {"loss": function(self.baselines[0], *inputs.values(), *self.columns, noise)}

        return outputs

    def ours(self, inputs, draws, module):
        return {"loss": ops.denoising_loss(*inputs.values(), module, self.schedule, loss="huber", draws=draws)}


class Elbo(Operation):
    """One of the bound's reductions over [N, P], or of [K, N] importance weights."""

    EAGER = {  # noqa: RUF012
        "bernoulli": eager.bernoulli_log_likelihood,
        "gaussian": lambda mean, x: eager.gaussian_log_likelihood(mean, x, 0.5),
        "binomial": lambda logits, counts: eager.binomial_log_likelihood(logits, counts, 2),
        "gaussian_kl": eager.gaussian_kl,
        "log_mean_exp": eager.log_mean_exp,
    }
    OURS = {  # noqa: RUF012
        "bernoulli": ops.bernoulli_log_likelihood,
        "gaussian": lambda mean, x: ops.gaussian_log_likelihood(mean, x, 0.5),
        "binomial": lambda logits, counts: ops.binomial_log_likelihood(logits, counts, 2),
        "gaussian_kl": ops.gaussian_kl,
        "log_mean_exp": lambda log_weights: ops.log_mean_exp(log_weights, 0),
    }

    def __init__(self, device: torch.device, backward: bool, kind: str, N: int, P: int) -> None:
        super().__init__(device, backward, N)
        self.kind = kind
        first, second = normals(0, N, P, device=device), normals(1, N, P, device=device)
        self.inputs = {
            "bernoulli": {"logits": first, "x": torch.sigmoid(second)},
            "gaussian": {"mean": first, "x": second},
            "binomial": {"logits": first, "counts": (second.abs() * 1.5).floor().clamp(max=2)},
            "gaussian_kl": {"mean": first, "log_var": second},
            "log_mean_exp": {"log_weights": (10 * first).T.contiguous()},
        }[kind]
        self.tracked = [name for name in self.inputs if name not in ("x", "counts")]
        self.row_axis = {**dict.fromkeys(self.inputs, -1 if kind == "log_mean_exp" else 0), "value": 0}
        numbers = sum(value.numel() for value in self.inputs.values())
        gradients = len(self.tracked) * N * P
        self.work = Work(bytes=FLOAT * (numbers + N + (numbers + gradients + N if backward else 0)))

    def eager(self, wrap, compiled):
        function = wrap(self.EAGER[self.kind])
        return lambda inputs, noise: {"value": function(*inputs.values())}

    def ours(self, inputs, draws, module):
        return {"value": self.OURS[self.kind](*inputs.values())}


class Kde(Operation):
    """Kernel density at [N, D] from [M, D] points, five bandwidths, clamped as in the recipe of the released code."""

    BANDWIDTHS, CLAMP = (0.005, 0.008, 0.01, 0.03, 0.05), 1000.0
    tracked = ("z",)

    def __init__(self, device: torch.device, backward: bool, N: int, M: int, D: int) -> None:
        super().__init__(device, backward, N)
        # Points at distances like those of a prior's samples, so that several bandwidths count.
        spread = 0.3 if D == 2 else 0.02
        self.inputs = {"z": spread * normals(0, N, D, device=device), "points": spread * normals(1, M, D, device=device)}
        self.row_axis = {"z": 0, "log_density": 0}
        pairs, passes = float(N) * M, 2 if backward else 1
        size = passes * FLOAT * (N * (D + 1) + M * D)
        self.work = Work(flops=passes * pairs * 3 * D, bytes=size, exponentials=passes * pairs * len(self.BANDWIDTHS))

    def eager(self, wrap, compiled):
        function = wrap(eager.kde_log_density)
        return lambda inputs, noise: {"log_density": function(*inputs.values(), self.BANDWIDTHS, self.CLAMP)}

    def ours(self, inputs, draws, module):
        return {"log_density": ops.kde_log_density(*inputs.values(), self.BANDWIDTHS, clamp=self.CLAMP)}


class Mmd(Operation):
    """MMD of [N, P] and [M, P] with six widths; all rows are checked, because every row depends on all others."""

    SIGMAS = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0)
    tracked = ("x", "y")

    def __init__(self, device: torch.device, backward: bool, N: int, M: int, P: int) -> None:
        super().__init__(device, backward, N)
        self.kept, self.row_axis = N, {}
        # Distances as large as the widths, and two different distributions.
        scale = (20.0 / P) ** 0.5
        self.inputs = {"x": scale * normals(0, N, P, device=device), "y": scale * (0.1 + normals(1, M, P, device=device))}
        # Each pair within a set once, each pair across once.
        pairs, passes = (N * (N - 1) + M * (M - 1)) / 2.0 + float(N) * M, 2 if backward else 1
        self.work = Work(flops=passes * 2 * P * pairs, bytes=passes * FLOAT * (N + M) * P, exponentials=passes * pairs * len(self.SIGMAS))

    def eager(self, wrap, compiled):
        function = wrap(eager.mmd)
        return lambda inputs, noise: {"mmd": function(*inputs.values(), self.SIGMAS)}

    def ours(self, inputs, draws, module):
        return {"mmd": ops.mmd(*inputs.values(), self.SIGMAS)}


OPERATIONS = {"noise": Noise, "chain": Chain, "sleep": Sleep, "elbo": Elbo, "kde": Kde, "mmd": Mmd}
