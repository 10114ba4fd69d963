"""Hamiltonian variational inference: a Gaussian moved by leapfrog steps along the gradient of the model (Salimans et al. 2015)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ddvi_fast import _backend, _checks, ops, rng
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import MLP
from ddvi_fast.posteriors.auxiliary import AuxiliaryPosterior
from ddvi_fast.posteriors.base import Encoded, draw_start, encode_with_context, require_encoders, split_mean_log_var, with_context
from ddvi_fast.posteriors.placing import standard_log_prob
from ddvi_fast.precision import as_float32
from ddvi_fast.priors import Prior
from ddvi_fast.rng import Draws


class Hamiltonian(AuxiliaryPosterior):
    """Hamiltonian posterior: a Gaussian `z_0`, then steps that draw a momentum `v' ~ q(v' | z, x)` and move both by leapfrog (Salimans et al. 2015).

    A leapfrog step preserves volume, so with an auxiliary model `r(v | z, x)` of the momentum after it
    `log_ratio = -log q(z_0 | x) + sum_t [ log r(v_t | z_t, x) - log q(v_t' | z_{t-1}, x) ]`. This holds for any force that depends on `z`
    only. The force is the gradient of `log p(x, z)` with a blurred prior and a bounded norm; the score of a narrow prior would move
    samples arbitrarily far.

    Args:
        encoder: Network called as `encoder(x, draws)`, from x [N, ...] to [N, 2 D]: mean, then log-variance of `z_0`.
        context_encoder: Network called as `context_encoder(x, draws)`, from x to [N, C]; None if the encoder's output ends with the
            context.
        model: The latent-variable model, whose prior must have a density. The posterior's loss trains it too, but its parameters are not
            in the posterior's state dict.
        latent_dim: Number of latent dimensions, D (int).
        context_dim: Size of the context, C (int, default 10).
        num_steps: Number of momenta that are drawn (int, default 2).
        num_leapfrog: Leapfrog steps per momentum (int, default 2).
        hidden_dim: Width of the hidden layers of `q(v' | z, x)` and `r(v | z, x)` (int, default 64).
        step_size: Initial step size (float, default 0.1), learned for each step and dimension.
        blur: Standard deviation of the prior's blur in the force, in units of z (float, default 0.1).
        max_force: Bound of the norm of the force, in nats per unit of z (float, default 50).
        draws: Position of the initial weights in the random stream (default `Draws(0)`).
        coordinates: Coordinates of the family, see `Posterior` (default ``latent``).
        prior: Prior of the latents, for the prior's coordinates.

    Raises:
        InputError: If the prior has no density, or if an argument is out of range.

    Example:
        >>> from ddvi_fast import likelihoods, networks, priors
        >>> model = LatentVariableModel(priors.make("gaussian", dim=2), networks.MLP(2, [8], 5), likelihoods.make("bernoulli"))
        >>> posterior = Hamiltonian(networks.MLP(5, [8], 4), networks.MLP(5, [8], 3), model, latent_dim=2, context_dim=3)
        >>> posterior.sample(torch.zeros(6, 5), num_samples=7).log_ratio.shape
        torch.Size([7, 6])
    """

    @_checks.typed
    def __init__(
        self, encoder: nn.Module, context_encoder: nn.Module | None, model: LatentVariableModel, latent_dim: int, context_dim: int = 10,
        num_steps: int = 2, num_leapfrog: int = 2, hidden_dim: int = 64, step_size: float = 0.1, blur: float = 0.1,
        max_force: float = 50.0, draws: Draws = Draws(0), coordinates: str = "latent", prior: Prior | None = None,
    ) -> None:  # fmt: skip
        _checks.at_least(1, latent_dim=latent_dim, context_dim=context_dim, hidden_dim=hidden_dim, num_leapfrog=num_leapfrog)
        super().__init__(coordinates, prior)
        for name, value in (("num_steps", num_steps), ("num_leapfrog", num_leapfrog)):
            _checks.require(value >= 1, name, "at least 1", value)
        for name, value in (("step_size", step_size), ("max_force", max_force)):
            _checks.require(value > 0, name, "a positive number", value)
        if not self.pushes:
            model.prior.require_density()
        require_encoders(encoder=encoder, context_encoder=context_encoder)
        self.encoder, self.context_encoder, self.model, self.latent_dim = encoder, context_encoder, model, latent_dim
        self.num_leapfrog, self.blur, self.max_force = num_leapfrog, blur, max_force
        self.log_step_sizes = nn.Parameter(torch.full((num_steps, latent_dim), step_size, **as_float32).log())
        widths = (latent_dim + context_dim, [hidden_dim], 2 * latent_dim)
        self.momentum = nn.ModuleList(MLP(*widths, draws=draws.importance(2 * step)) for step in range(num_steps))
        self.reverse = nn.ModuleList(MLP(*widths, draws=draws.importance(2 * step + 1)) for step in range(num_steps))
        self.register_state_dict_post_hook(_remove_model_from_state)
        self.register_load_state_dict_post_hook(_ignore_missing_model)

    def encode(self, x: Tensor, draws: Draws | None = None) -> Encoded:
        """Return mean, log-variance and context, and the data, on which the force depends."""
        return encode_with_context(self, x, draws)._replace(x=x)

    def draw(self, encoded: Encoded, num_samples: int, draws: Draws) -> tuple[Tensor, Tensor]:
        """Draw samples as in `Posterior`, without reversing the leapfrog steps."""
        return self._move(encoded, num_samples, draws)[1:]

    def latent_path(self, encoded: Encoded, num_samples: int, draws: Draws) -> Tensor:
        """Draw the momenta after each step, then `z`, [S + 1, K, N, D]: a volume-preserving bijection of the latent variables."""
        return self._move(encoded, num_samples, draws)[0]

    def path_log_prob(self, encoded: Encoded, path: Tensor) -> Tensor:
        z, total = path[-1], torch.zeros_like(path[-1][..., 0])
        for step in reversed(range(len(self.momentum))):
            z, turned = self._leapfrog(encoded, step, z, -path[step])
            total = total + self._log_prob(self.momentum[step], encoded, z, -turned)
        return total + ops.gaussian_log_prob(z, *self.start(encoded))

    def reverse_log_prob(self, encoded: Encoded, path: Tensor) -> Tensor:
        z, total = path[-1], torch.zeros_like(path[-1][..., 0])
        for step in reversed(range(len(self.momentum))):
            total = total + self._log_prob(self.reverse[step], encoded, z, path[step])
            if step > 0:
                z, _ = self._leapfrog(encoded, step, z, -path[step])
        return total

    def _move(self, encoded: Encoded, num_samples: int, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """The path [S + 1, K, N, D], its end `z` [K, N, D], and its log-ratio [K, N]."""
        z = draw_start(*self.start(encoded), num_samples, draws)
        total, path = -ops.gaussian_log_prob(z, *self.start(encoded)), []
        for step, net in enumerate(self.momentum):
            mean, log_var = split_mean_log_var(net(with_context(z, encoded.context)))
            noise = rng.normal(draws, tuple(z.shape), rng.CHAIN + step, device=z.device, dtype=z.dtype)
            v = mean + torch.exp(0.5 * log_var) * noise
            total = total - ops.gaussian_log_prob(v, mean, log_var)
            z, v = self._leapfrog(encoded, step, z, v)
            total = total + self._log_prob(self.reverse[step], encoded, z, v)
            path.append(v)
        return torch.stack([*path, z]), z, total

    def _log_prob(self, net: MLP, encoded: Encoded, z: Tensor, v: Tensor) -> Tensor:
        return ops.gaussian_log_prob(v, *split_mean_log_var(net(with_context(z, encoded.context))))

    def _leapfrog(self, encoded: Encoded, step: int, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Position and momentum [K, N, D] after `num_leapfrog` leapfrog steps. With the momentum negated it is its own inverse."""
        size = self.log_step_sizes[step].exp()
        v = v + 0.5 * size * self.force(encoded, z)
        for move in range(self.num_leapfrog):
            z = z + size * v
            last = move == self.num_leapfrog - 1
            v = v + (0.5 if last else 1.0) * size * self.force(encoded, z)
        return z, v

    @_checks.outside_inference_mode
    def force(self, encoded: Encoded, z: Tensor) -> Tensor:
        """Compute the force: the gradient of the log joint density with bounded norm, differentiable if gradients are enabled.

        Args:
            encoded: Output of `encode`.
            z: Positions [K, N, D] in the posterior's own coordinates.

        Returns:
            Forces [K, N, D] in nats per unit of z.
        """
        differentiable = torch.is_grad_enabled()
        # Fused backends have first derivatives only, and this gradient must be differentiated again.
        with torch.enable_grad(), _backend.use_backend("reference"):
            point = z if z.requires_grad and differentiable else z.detach().requires_grad_()
            log_joint = self._log_joint(encoded, self.unwhitened(encoded, point))
            (force,) = torch.autograd.grad(log_joint.sum(), point, create_graph=differentiable)
        return force / torch.sqrt(1 + force.square().sum(-1, keepdim=True) / self.max_force**2)

    def _log_joint(self, encoded: Encoded, u: Tensor) -> Tensor:
        """The log joint density [K, N] at `u`, noise in the prior's coordinates and latents, under the blurred prior, otherwise."""
        if self.pushes:
            return self.model.log_likelihood(encoded.x, self.prior.push(u)) + standard_log_prob(u)
        return self.model.log_likelihood(encoded.x, u) + self.model.prior.blurred(self.blur).log_prob(u)


def _remove_model_from_state(posterior: Hamiltonian, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}model.")]:
        del state[name]


def _ignore_missing_model(posterior: Hamiltonian, incompatible: Any) -> None:
    own = {f"model.{name}" for name in posterior.model.state_dict()}
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if not any(name.endswith(key) for key in own)]
