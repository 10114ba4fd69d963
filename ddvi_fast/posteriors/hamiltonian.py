"""Hamiltonian variational inference: a Gaussian start moved by leapfrog steps along the model's own gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddvi_fast import _backend, _checks, ops, rng
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import MLP
from ddvi_fast.posteriors.auxiliary import AuxiliaryPosterior
from ddvi_fast.posteriors.base import PosteriorSample, draw_start, split_top
from ddvi_fast.posteriors.flows import encode_with_context
from ddvi_fast.rng import Draws


class EncodedData(NamedTuple):
    """Mean and log-variance [N, D] of the start, the context [N, C], and the data themselves."""

    mean: Tensor
    log_var: Tensor
    context: Tensor
    x: Tensor


class Hamiltonian(AuxiliaryPosterior):
    """`z_0 ~ N(mean(x), diag exp(log_var(x)))`; then each step draws a momentum `v' ~ q(v' | z, x)` and moves both by leapfrog.

    A leapfrog keeps volumes, so with an auxiliary model `r(v | z, x)` of the momentum after it (Salimans et al. 2015)
    `log_ratio = -log q(z_0 | x) + sum_t [ log r(v_t | z_t, x) - log q(v_t' | z_{t-1}, x) ]`.

    Any force that depends on `z` alone leaves that true. The one taken is `d log p(x, z) / dz` with the prior blurred and the force's
    norm bounded: a thin prior would otherwise throw the particle out of the plane.

    Args:
        encoder: `encoder(x, draws)`, from x [N, ...] to [N, 2 D]: mean and log-variance of the start.
        context_encoder: `context_encoder(x, draws)`, from x to [N, C].
        model: gives the force. It is trained through it too, but saved in its own place, not with the posterior.
        latent_dim: D.
        context_dim: C.
        num_steps: draws of a momentum.
        num_leapfrog: moves for each momentum.
        hidden_dim: width of the networks of `q(v' | z, x)` and `r(v | z, x)`.
        step_size: of the leapfrog at first; learned for each step and dimension.
        blur: width by which the prior is blurred in the force.
        max_force: bound of the force's norm.
        draws: where the initial weights are drawn.

    Example:
        >>> from ddvi_fast import likelihoods, networks, priors
        >>> model = LatentVariableModel(priors.make("gaussian", dim=2), networks.MLP(2, [8], 5), likelihoods.make("bernoulli"))
        >>> posterior = Hamiltonian(networks.MLP(5, [8], 4), networks.MLP(5, [8], 3), model, latent_dim=2, context_dim=3)
        >>> posterior.sample(torch.zeros(6, 5), num_samples=7).log_ratio.shape
        torch.Size([7, 6])
    """

    def __init__(
        self,
        encoder: nn.Module,
        context_encoder: nn.Module,
        model: LatentVariableModel,
        latent_dim: int,
        context_dim: int = 10,
        num_steps: int = 2,
        num_leapfrog: int = 2,
        hidden_dim: int = 64,
        step_size: float = 0.1,
        blur: float = 0.1,
        max_force: float = 50.0,
        draws: Draws = Draws(0),
    ) -> None:
        super().__init__()
        for name, value in (("num_steps", num_steps), ("num_leapfrog", num_leapfrog)):
            _checks.require(value >= 1, name, "at least 1", value)
        for name, value in (("step_size", step_size), ("max_force", max_force)):
            _checks.require(value > 0, name, "a positive number", value)
        model.prior.require_density()
        self.encoder, self.context_encoder, self.model, self.latent_dim = encoder, context_encoder, model, latent_dim
        self.num_leapfrog, self.blur, self.max_force = num_leapfrog, blur, max_force
        self.log_step_sizes = nn.Parameter(torch.full((num_steps, latent_dim), step_size).log())
        widths = (latent_dim + context_dim, [hidden_dim], 2 * latent_dim)
        self.momentum = nn.ModuleList(MLP(*widths, draws=draws.importance(2 * step)) for step in range(num_steps))
        self.reverse = nn.ModuleList(MLP(*widths, draws=draws.importance(2 * step + 1)) for step in range(num_steps))
        self.register_state_dict_post_hook(_leave_out_model)
        self.register_load_state_dict_post_hook(_do_not_miss_model)

    def encode(self, x: Tensor, draws: Draws | None = None) -> EncodedData:
        return EncodedData(*encode_with_context(self, x, draws), x)

    def sample_encoded(self, encoded: EncodedData, num_samples: int, draws: Draws) -> PosteriorSample:
        """As in `Posterior`; the densities of the momenta come on the way, so that no leapfrog is reversed."""
        return PosteriorSample(*self._move(encoded, num_samples, draws)[1:])

    def latent_path(self, encoded: EncodedData, num_samples: int, draws: Draws) -> Tensor:
        """The momenta after each step and `z`, [S + 1, K, N, D]: one to one with all that is drawn, and of the same volume."""
        return self._move(encoded, num_samples, draws)[0]

    def path_log_prob(self, encoded: EncodedData, path: Tensor) -> Tensor:
        z, total = path[-1], torch.zeros_like(path[-1][..., 0])
        for step in reversed(range(len(self.momentum))):
            z, turned = self._leapfrog(encoded, step, z, -path[step])
            total = total + self._log_prob(self.momentum[step], encoded, z, -turned)
        return total + ops.gaussian_log_prob(z, encoded.mean, encoded.log_var)

    def reverse_log_prob(self, encoded: EncodedData, path: Tensor) -> Tensor:
        z, total = path[-1], torch.zeros_like(path[-1][..., 0])
        for step in reversed(range(len(self.momentum))):
            total = total + self._log_prob(self.reverse[step], encoded, z, path[step])
            if step > 0:
                z, _ = self._leapfrog(encoded, step, z, -path[step])
        return total

    def _move(self, encoded: EncodedData, num_samples: int, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """The path, its end `z`, and its log-ratio."""
        z = draw_start(encoded.mean, encoded.log_var, num_samples, draws)
        total, path = -ops.gaussian_log_prob(z, encoded.mean, encoded.log_var), []
        for step, net in enumerate(self.momentum):
            mean, log_var = split_top(net(_beside(encoded, z)))
            noise = rng.normal(draws, tuple(z.shape), rng.CHAIN + step, device=z.device, dtype=z.dtype)
            v = mean + torch.exp(0.5 * log_var) * noise
            total = total - ops.gaussian_log_prob(v, mean, log_var)
            z, v = self._leapfrog(encoded, step, z, v)
            total = total + self._log_prob(self.reverse[step], encoded, z, v)
            path.append(v)
        return torch.stack([*path, z]), z, total

    def _log_prob(self, net: MLP, encoded: EncodedData, z: Tensor, v: Tensor) -> Tensor:
        return ops.gaussian_log_prob(v, *split_top(net(_beside(encoded, z))))

    def _leapfrog(self, encoded: EncodedData, step: int, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Position and momentum after `num_leapfrog` moves; with the momentum turned round it is its own inverse."""
        size = self.log_step_sizes[step].exp()
        v = v + 0.5 * size * self.force(encoded.x, z)
        for move in range(self.num_leapfrog):
            z = z + size * v
            last = move == self.num_leapfrog - 1
            v = v + (0.5 if last else 1.0) * size * self.force(encoded.x, z)
        return z, v

    def force(self, x: Tensor, z: Tensor) -> Tensor:
        """The bounded gradient [K, N, D] of `log p(x, z)` at `z`, differentiable where gradients are on."""
        differentiable = torch.is_grad_enabled()
        # Fused backends have first derivatives only; this gradient must itself be differentiated.
        with torch.enable_grad(), _backend.use_backend("reference"):
            point = z if z.requires_grad and differentiable else z.detach().requires_grad_()
            log_joint = self.model.log_likelihood(x, point) + self.model.prior.blurred(self.blur).log_prob(point)
            (force,) = torch.autograd.grad(log_joint.sum(), point, create_graph=differentiable)
        return force / torch.sqrt(1 + force.square().sum(-1, keepdim=True) / self.max_force**2)


def _beside(encoded: EncodedData, z: Tensor) -> Tensor:
    """`z` [K, N, D] and the context, as the networks of the momenta see them."""
    return torch.cat((z, encoded.context.expand(*z.shape[:-1], -1)), -1)


def _leave_out_model(posterior: Hamiltonian, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}model.")]:
        del state[name]


def _do_not_miss_model(posterior: Hamiltonian, incompatible: Any) -> None:
    own = {f"model.{name}" for name in posterior.model.state_dict()}
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if not any(name.endswith(key) for key in own)]
