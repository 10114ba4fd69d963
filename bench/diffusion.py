"""The operations of diffusion as problems: noising, the chain and its regression.

Counts per row and step of the denoiser, with widths D, C and H: 2 (H (D + C) + 3 H^2 + D H) floating-point operations forward, twice
that again backward.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bench.baselines import eager
from bench.operands import DRAWS, FLOAT, drawn_outside, normals, simple, tracked
from bench.problem import Operation, Side, Work
from ddvi_fast import ops, rng, schedules
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.reference import chain as reference_chain
from ddvi_fast.reference import noise as reference_noise

WEIGHTS = ("first", "hidden", "last", "last_bias", "bias", "embedding")


def network_flops(latent: int, context: int, hidden: int) -> float:
    """Floating-point operations of one row's way through the denoiser."""
    return 2.0 * (hidden * (latent + context) + 3 * hidden**2 + latent * hidden)


def copy_denoiser(source: ResidualMLP, target: eager.Denoiser, group: int | None = None) -> eager.Denoiser:
    """The weights of ours, or of one of its groups, in the baseline's network."""
    take = (lambda value: value) if group is None else (lambda value: value[group])
    with torch.no_grad():
        for layer in range(4):
            weight = take(source.first) if layer == 0 else take(source.hidden)[layer - 1]
            target.layers[layer].weight.copy_(weight)
            target.layers[layer].bias.copy_(take(source.bias)[layer])
            target.embeddings[layer].weight.copy_(take(source.embedding)[:, layer])
        target.last.weight.copy_(take(source.last))
        target.last.bias.copy_(take(source.last_bias))
    return target.to(source.first.device)


def denoiser_gradients(network: eager.Denoiser, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
    """Gradients of `network.parameters()` under the names of ours."""
    by_name = dict(zip((name for name, _ in network.named_parameters()), gradients, strict=True))
    weights = [by_name[f"layers.{layer}.weight"] for layer in range(4)]
    return {
        "first": weights[0],
        "hidden": torch.stack(weights[1:]),
        "last": by_name["last.weight"],
        "last_bias": by_name["last.bias"],
        "bias": torch.stack([by_name[f"layers.{layer}.bias"] for layer in range(4)]),
        "embedding": torch.stack([by_name[f"embeddings.{layer}.weight"] for layer in range(4)], dim=1),
    }


class Noise(Operation):
    """Forward noising of latents [N, D] with noise made on the way."""

    def __init__(self, device: torch.device, backward: bool, N: int, D: int, T: int = 40) -> None:
        super().__init__(device, backward, N)
        self.schedule = schedules.make("linear", T).to(device)
        self.inputs = {"x0": normals(0, N, D, device=device), "t": torch.arange(N, device=device) % T}
        self.row_axis = {"x0": 0, "t": 0, "x_t": 0, "noise": 0}
        # x0 and t in, x_t and noise out; backward the gradient of x_t and t in, that of x0 out.
        self.work = Work(bytes=N * (3 * D * FLOAT + 8) + (N * (2 * D * FLOAT + 8) if backward else 0))

    def _columns(self, like: Tensor) -> list[Tensor]:
        return [column.to(like) for column in (self.schedule.alpha_bars.sqrt(), self.schedule.noise_variances.sqrt())]

    def eager(self, inputs, compiled, checked):
        inputs, columns = tracked(inputs, ["x0"]), self._columns(inputs["x0"])
        function = torch.compile(eager.add_noise, dynamic=False) if compiled else eager.add_noise
        noise = rng.normal(DRAWS.advance(self.rows - self.kept), inputs["x0"].shape, rng.NOISE, device=self.device) if checked else None

        def outputs() -> dict[str, Tensor]:
            x_t, used = function(inputs["x0"], inputs["t"], *columns, drawn_outside(compiled, inputs["x0"]) if noise is None else noise)
            return {"x_t": x_t} if self.backward else {"x_t": x_t, "noise": used}

        return simple(outputs, inputs, ["x0"])

    def ours(self):
        inputs = tracked(self.inputs, ["x0"])

        def outputs() -> dict[str, Tensor]:
            x_t, used = ops.add_noise(inputs["x0"], inputs["t"], self.schedule, draws=DRAWS)
            return {"x_t": x_t} if self.backward else {"x_t": x_t, "noise": used}

        return simple(outputs, inputs, ["x0"])

    def exact(self, inputs):
        inputs, columns = tracked(inputs, ["x0"]), self._columns(inputs["x0"])

        def outputs() -> dict[str, Tensor]:
            x_t, used = reference_noise.add_noise(inputs["x0"], inputs["t"], *columns, None, DRAWS.advance(self.rows - self.kept))
            return {"x_t": x_t} if self.backward else {"x_t": x_t, "noise": used}

        return simple(outputs, inputs, ["x0"])


class _WithDenoiser(Operation):
    """What the chain and the sleep term share: one network, or G of them, in three dresses."""

    def _build(self, D: int, C: int, H: int, T: int, G: int | None) -> None:
        self.denoiser = ResidualMLP(D, C, T, H, groups=G).to(self.device)
        groups = [None] if G is None else range(G)
        self.baselines = [copy_denoiser(self.denoiser, eager.Denoiser(D, C, T, H), group) for group in groups]
        self.doubled = ResidualMLP(D, C, T, H, groups=G).to(self.device).double()
        self.doubled.load_state_dict(self.denoiser.state_dict())

    def _weight_bytes(self) -> int:
        return FLOAT * sum(parameter.numel() for parameter in self.denoiser.parameters())

    def _side(self, outputs, leaves: Sequence[Tensor], names: Sequence[str], denoiser: ResidualMLP) -> Side:
        parameters = [getattr(denoiser, name) for name in WEIGHTS]
        return Side(outputs, [*leaves, *parameters], lambda gradients: dict(zip((*names, *WEIGHTS), gradients, strict=True)))

    def _eager_side(self, outputs, leaves: Sequence[Tensor], names: Sequence[str]) -> Side:
        parameters = [list(network.parameters()) for network in self.baselines]
        count = len(parameters[0])

        def gather(gradients: Sequence[Tensor]) -> dict[str, Tensor]:
            rest = gradients[len(names) :]
            each = [denoiser_gradients(network, rest[i * count : (i + 1) * count]) for i, network in enumerate(self.baselines)]
            weights = each[0] if self.denoiser.groups is None else {name: torch.stack([one[name] for one in each]) for name in WEIGHTS}
            return {**dict(zip(names, gradients, strict=False)), **weights}

        return Side(outputs, [*leaves, *(parameter for network in parameters for parameter in network)], gather)


class Chain(_WithDenoiser):
    """All T steps from y_T [N, D], or [G, N, D] for class chains: ancestral with the path log-ratio, or deterministic."""

    def __init__(
        self, device: torch.device, backward: bool, N: int, T: int, D: int, C: int = 2, H: int = 128, G: int | None = None, kind: str = "ancestral"
    ) -> None:
        super().__init__(device, backward, N)
        self._build(D, C, H, T, G)
        lead = () if G is None else (G,)
        self.stochastic = kind == "ancestral"
        self.table = schedules.make("linear", T).coefficients("eps", eta=float(self.stochastic)).to(device)
        self.inputs = {"y_T": normals(0, *lead, N, D, device=device), "context": normals(1, *lead, N, C, device=device)}
        self.row_axis = {"y_T": -2, "context": -2, "z": -2, "path": -1}
        rows, passes = N * (G or 1), 3 if backward else 1
        states = rows * FLOAT * (2 * D + C + self.stochastic)
        self.work = Work(flops=passes * rows * T * network_flops(D, C, H), bytes=(2 if backward else 1) * (states + self._weight_bytes()))

    def _named(self, z: Tensor, path: Tensor | None) -> dict[str, Tensor]:
        return {"z": z, "path": path} if self.stochastic else {"z": z}

    def _noise(self, y: Tensor) -> Tensor | None:
        """The noise [T, .., kept, D] that the last rows draw."""
        if not self.stochastic:
            return None
        return reference_chain.chain_noise(DRAWS.advance(self.rows - self.kept), len(self.table), tuple(y.shape[:-1]), y.shape[-1], y)

    def eager(self, inputs, compiled, checked):
        leaves = [inputs[name].detach().clone().requires_grad_() for name in ("y_T", "context")]
        noise = self._noise(inputs["y_T"]) if checked else None
        step = torch.compile(eager.chain_step, dynamic=False) if compiled else eager.chain_step

        def outputs() -> dict[str, Tensor]:
            if self.denoiser.groups is not None:
                return self._named(*eager.sample_class_chains(self.baselines, *leaves, self.table, noise, step))
            return self._named(*eager.sample_chain(self.baselines[0], *leaves, self.table, noise, self.stochastic, step)[:2])

        return self._eager_side(outputs, leaves, ("y_T", "context"))

    def ours(self):
        leaves = [self.inputs[name].detach().clone().requires_grad_() for name in ("y_T", "context")]
        draws = DRAWS if self.stochastic else None

        def outputs() -> dict[str, Tensor]:
            return self._named(*ops.sample_chain(*leaves, self.denoiser, self.table, draws=draws)[:2])

        return self._side(outputs, leaves, ("y_T", "context"), self.denoiser)

    def exact(self, inputs):
        leaves = [inputs[name].detach().clone().requires_grad_() for name in ("y_T", "context")]
        noise, table = self._noise(inputs["y_T"]), self.table.double()

        def outputs() -> dict[str, Tensor]:
            weights = self.doubled.chain_weights()
            return self._named(*reference_chain.sample_chain(*leaves, weights, table, noise, self.doubled.residual)[:2])

        return self._side(outputs, leaves, ("y_T", "context"), self.doubled)


class Sleep(_WithDenoiser):
    """The sleep term's regression: noise x0 [N, D] to one step a row, predict, Huber error."""

    def __init__(self, device: torch.device, backward: bool, N: int, T: int, D: int, C: int = 2, H: int = 128) -> None:
        super().__init__(device, backward, N)
        self._build(D, C, H, T, None)
        self.schedule = schedules.make("linear", T).to(device)
        self.inputs = {
            "x0": normals(0, N, D, device=device),
            "context": normals(1, N, C, device=device),
            "t": torch.arange(N, device=device) * 7 % T,
        }
        self.row_axis = {"x0": 0, "context": 0, "t": 0, "loss": 0}
        states = N * (FLOAT * (D + C + 1) + 8)
        self.work = Work(flops=(3 if backward else 1) * N * network_flops(D, C, H), bytes=(2 if backward else 1) * (states + self._weight_bytes()))

    def _columns(self, like: Tensor) -> list[Tensor]:
        return [column.to(like) for column in (self.schedule.alpha_bars.sqrt(), self.schedule.noise_variances.sqrt())]

    def _noise(self, like: Tensor) -> Tensor:
        return rng.normal(DRAWS.advance(self.rows - self.kept), like.shape, rng.NOISE, device=like.device, dtype=like.dtype)

    def eager(self, inputs, compiled, checked):
        context, columns = inputs["context"].detach().clone().requires_grad_(), self._columns(inputs["x0"])
        noise = self._noise(inputs["x0"]) if checked else None
        function = torch.compile(eager.denoising_loss, dynamic=False) if compiled else eager.denoising_loss

        def outputs() -> dict[str, Tensor]:
            drawn = drawn_outside(compiled, inputs["x0"]) if noise is None else noise
            return {"loss": function(self.baselines[0], inputs["x0"], inputs["t"], context, *columns, drawn)}

        return self._eager_side(outputs, [context], ("context",))

    def ours(self):
        context, inputs = self.inputs["context"].detach().clone().requires_grad_(), self.inputs

        def outputs() -> dict[str, Tensor]:
            return {"loss": ops.denoising_loss(inputs["x0"], inputs["t"], context, self.denoiser, self.schedule, loss="huber", draws=DRAWS)}

        return self._side(outputs, [context], ("context",), self.denoiser)

    def exact(self, inputs):
        context, noise, columns = inputs["context"].detach().clone().requires_grad_(), self._noise(inputs["x0"]), self._columns(inputs["x0"])

        def outputs() -> dict[str, Tensor]:
            y, _ = reference_noise.add_noise(inputs["x0"], inputs["t"], *columns, noise, None)
            weights = self.doubled.chain_weights()
            output = reference_chain.denoise(y, context, weights, weights.time_table[inputs["t"]], self.doubled.residual)
            return {"loss": nn.functional.smooth_l1_loss(output, noise, reduction="none").mean(-1)}

        return self._side(outputs, [context], ("context",), self.doubled)


# What takes gradients in each of the bound's reductions.
