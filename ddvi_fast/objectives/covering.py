"""Mass-covering term on latents of data from Langevin chains, for latents that prior samples do not hit (docs/method.md, section 7)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddvi_fast import _checks, rng
from ddvi_fast.langevin import ReplayMemory
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import evaluation, frozen
from ddvi_fast.objectives.base import Objective, Progress, Terms
from ddvi_fast.objectives.pairs import chain_loss, uniform_timesteps
from ddvi_fast.posteriors import Diffusion, Posterior
from ddvi_fast.rng import Draws


class Covering(Objective):
    """Forward KL on latents of data: minus `log q(z | x)`, or its bound along the noising process, at states of Langevin chains.

    A few rows of data take part in each step. The chain of a row starts at a sample of the posterior and is a few Metropolis-adjusted Langevin
    steps long at each visit; a replay memory holds its last state. As chains converge to `p(z | x)`, the term widens the posterior where the
    ELBO (reverse KL) leaves it too narrow.

    Terms, nats: `covering` (the chain's loss up to the entropy of the noising process, or `-log q(z | x)` for a tractable family), and
    `covering_frame`, minus the log-density of the frame's Gaussian, for a chain.

    Args:
        model: The model, which takes no gradient.
        posterior: A diffusion posterior or a tractable family, in the coordinates ``encoder`` or ``latent``.
        x: Data [M, ...].
        num_rows: Rows of data per step (int, default 32).
        num_steps: Langevin steps per visit (int, default 2). Each is one pass of the decoder, forward and backward.
        weight: Weight of both terms (float, default 1).

    Raises:
        InputError: If the posterior is in the prior's coordinates, or has no tractable density and no chain.
    """

    recordable = False  # which rows start a chain is read on the host

    @_checks.typed
    def __init__(
        self, model: LatentVariableModel, posterior: Posterior, x: Tensor, num_rows: int = 32, num_steps: int = 2, weight: float = 1.0
    ) -> None:
        super().__init__()
        _checks.require(not posterior.pushes, "posterior", "one in the coordinates latent or encoder", posterior.coordinates)
        known = posterior.tractable or isinstance(posterior, Diffusion)
        _checks.require(known, "posterior", "a chain or a family with a tractable density", type(posterior).__name__)
        _checks.tensor(x, "x")
        _checks.require(x.dim() >= 2 and len(x) >= 1, "x", "shape [N, ...] with N >= 1", x)
        _checks.at_least(1, num_rows=num_rows, num_steps=num_steps)
        _checks.number(weight, "weight", at_least=0)
        self.posterior, self.x, self.num_rows, self.num_steps, self.weight = posterior, x, min(num_rows, len(x)), num_steps, weight
        self._model = (model,)  # no submodule: it is not trained
        self.memory = ReplayMemory(len(x), posterior.latent_dim, x.device)

    def terms(self, x: Tensor, progress: Progress, draws: Draws) -> Terms:
        places = rng.permutation(draws, len(self.x), self.x.device)[: self.num_rows]
        rows = self.x[places]
        encoded = self.posterior.encode(rows, draws)
        values = self._fit(encoded, self._latents(places, rows, encoded, draws), draws)
        return Terms(values, dict.fromkeys(values, self.weight))

    def _latents(self, places: Tensor, x: Tensor, encoded: Any, draws: Draws) -> Tensor:
        """States [N, D] of the chains of rows `x` after this visit, constants."""
        (model,) = self._model
        with torch.no_grad(), evaluation(model), frozen(model):
            known = bool(self.memory.seen[places].all())  # then no chain starts
            start = self.memory.states[places] if known else self.posterior.sample_encoded(encoded, 1, draws.lane("candidates")).z[0]
            mean, scale = encoded.mean.detach(), torch.exp(0.5 * encoded.log_var.detach())
            return self.memory.move(places, start, mean, scale, lambda z: model.log_joint(x, z), self.num_steps, draws.lane("levels"))

    def _fit(self, encoded: Any, z: Tensor, draws: Draws) -> dict[str, Tensor]:
        if not isinstance(self.posterior, Diffusion):
            return {"covering": -self.posterior.log_density(encoded, z)}
        v = self.posterior.whitened(encoded, z).detach()
        t = uniform_timesteps(draws, len(v), self.posterior.schedule.num_steps, v.device)
        frame = -self.posterior.start_log_prob(encoded, z, draws)
        return {"covering": chain_loss(self.posterior, encoded, v, t, draws, "kl"), "covering_frame": frame}
