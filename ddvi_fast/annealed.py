"""Annealed importance sampling: an estimate of the evidence log p(x) for any number of latent dimensions (Neal 2001, Wu et al. 2017)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ddvi_fast import _checks, rng
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.posteriors.placing import standard_log_prob
from ddvi_fast.precision import as_float64, without_callers_autocast
from ddvi_fast.rng import Draws

__all__ = ["AnnealedEvidence", "log_evidence_annealed"]

_TARGET = 0.65  # acceptance rate at which Hamiltonian steps are most efficient
_FIRST_STEP = 0.5  # first step size, in standard deviations of the prior's noise
_GAIN = 0.3  # change of the logarithm of a step size for a difference of 1 between the rate and its target
_EDGE = 4.0  # the exponents are a logistic curve between -4 and 4


class AnnealedEvidence(NamedTuple):
    """Evidence of each row of data by annealed importance sampling.

    Attributes:
        log_evidence: Logarithm of the mean weight of the chains, nats [N]. The mean weight is unbiased, so that its logarithm is at most
            log p(x) in expectation.
        effective_samples: Effective number of chains, from 1 to `num_samples`, [N].
        acceptance: Mean acceptance rate of the Hamiltonian steps, [N].
    """

    log_evidence: Tensor
    effective_samples: Tensor
    acceptance: Tensor


@_checks.outside_inference_mode
@without_callers_autocast()
@torch.no_grad()
def log_evidence_annealed(
    model: LatentVariableModel, x: Tensor, num_samples: int = 16, num_temperatures: int = 1000, num_leapfrog: int = 10, draws: Draws = Draws(0)
) -> AnnealedEvidence:
    """Estimate `log p(x)` by chains that anneal from the prior to the posterior, for models with more latents than quadrature can take.

    A chain starts at a sample of the prior, and each Hamiltonian step has the target `p(z) p(x | z)^b` for the next larger exponent `b`. It
    runs in the prior's noise where the prior has one, and keeps its class. A first run, with other random numbers, chooses the step size
    of every exponent and row, which the second holds fixed: adaptation within a run would bias the estimate.

    Args:
        model: The latent-variable model, of which `prior`, `decoder` and `likelihood` are used.
        x: Data [N, ...].
        num_samples: Number of chains of each row, K (int, default 16).
        num_temperatures: Number of exponents from 0 to 1 (int, default 1,000). Cost and accuracy rise with it.
        num_leapfrog: Number of leapfrog steps of a Hamiltonian step (int, default 10). The decoder runs forward and backward in each.
        draws: Position of the first row in the random stream (default seed 0).

    Returns:
        Estimate [N] in nats, with the effective number of chains and the acceptance rate.

    Raises:
        InputError: If an argument is out of range, or if the prior has neither noise nor a density.

    Example:
        >>> from ddvi_fast import likelihoods, networks, priors
        >>> model = LatentVariableModel(priors.make("gaussian", dim=20), networks.MLP(20, [4], 3, zero_output=True), likelihoods.make("bernoulli"))
        >>> [round(value, 4) for value in log_evidence_annealed(model, torch.ones(1, 3), 4, 10).log_evidence.exp().tolist()]
        [0.125]
    """
    _checks.tensor(x, "x")
    _checks.require(x.dim() >= 2, "x", "shape [N, ...]", x)
    _checks.at_least(1, num_samples=num_samples, num_leapfrog=num_leapfrog)
    _checks.at_least(2, num_temperatures=num_temperatures)
    if model.prior.noise_dim == 0:
        model.prior.require_density()
    grid = torch.sigmoid(torch.linspace(-_EDGE, _EDGE, num_temperatures, **as_float64))
    exponents = ((grid - grid[0]) / (grid[-1] - grid[0])).tolist()
    pilot = _Chains(model, x, num_samples, draws.lane("annealing_pilot"))
    sizes = pilot.anneal(exponents, num_leapfrog, None)
    chains = _Chains(model, x, num_samples, draws.lane("annealing"))
    chains.anneal(exponents, num_leapfrog, sizes)
    weights = chains.log_weights.double()
    effective = torch.exp(-torch.logsumexp(2 * weights.log_softmax(0), 0))
    log_evidence = torch.logsumexp(weights, 0) - math.log(num_samples)
    return AnnealedEvidence(log_evidence.to(x), effective.to(x), chains.accepted / max(1, num_temperatures - 2))


class _State(NamedTuple):
    """A position [K, N, U], log prior and log-likelihood there [K, N], and their gradients [K, N, U]."""

    position: Tensor
    log_prior: Tensor
    log_likelihood: Tensor
    prior_force: Tensor
    likelihood_force: Tensor

    def log_target(self, exponent: float) -> Tensor:
        return self.log_prior + exponent * self.log_likelihood

    def force(self, exponent: float) -> Tensor:
        return self.prior_force + exponent * self.likelihood_force


class _Chains:
    """K chains of every row: their state, log-weights [K, N] and accepted steps [N]."""

    def __init__(self, model: LatentVariableModel, x: Tensor, num_samples: int, draws: Draws) -> None:
        self.model, self.x, self.draws = model, x, draws
        sets = [model.prior.draw(len(x), draws.importance(k), dtype=x.dtype, device=x.device) for k in range(num_samples)]
        self.labels = None if sets[0].labels is None else torch.stack([one.labels for one in sets])
        self.state = self.at(torch.stack([one.noise if self.pushes else one.z for one in sets]))
        self.log_weights = torch.zeros_like(self.state.log_prior)
        self.accepted = self.log_weights.new_zeros(len(x))

    @property
    def pushes(self) -> bool:
        return self.model.prior.noise_dim > 0

    def at(self, position: Tensor) -> _State:
        """The state at positions [K, N, U]; gradients that are not finite are zero, and such a step is hardly ever accepted."""
        with torch.enable_grad():
            point = position.detach().requires_grad_()
            z = self.model.prior.push(point, self.labels) if self.pushes else point
            log_prior = standard_log_prob(point) if self.pushes else self.model.prior.log_prob(point)
            log_likelihood = self.model.log_likelihood(self.x, z)
            (likelihood_force,) = torch.autograd.grad(log_likelihood.sum(), point, retain_graph=not self.pushes)
            prior_force = -point if self.pushes else torch.autograd.grad(log_prior.sum(), point)[0]
        forces = [force.detach().nan_to_num(0.0, 0.0, 0.0) for force in (prior_force, likelihood_force)]
        return _State(position, log_prior.detach(), log_likelihood.detach(), *forces)

    def anneal(self, exponents: list[float], num_leapfrog: int, sizes: Tensor | None) -> Tensor:
        """Run the chains with step sizes [exponents, N], or find them if None; returns the step sizes."""
        size = self.accepted.new_full((len(self.x),), _FIRST_STEP)
        used = []
        for number in range(1, len(exponents)):
            self.log_weights += (exponents[number] - exponents[number - 1]) * self.state.log_likelihood
            used.append(size if sizes is None else sizes[number - 1])
            if number < len(exponents) - 1:  # a step at the last exponent changes no weight
                rate = self.step(number, exponents[number], used[-1], num_leapfrog)
                size = size * torch.exp(_GAIN * (rate - _TARGET))
        return torch.stack(used)

    def step(self, number: int, exponent: float, size: Tensor, num_leapfrog: int) -> Tensor:
        """Move by one Hamiltonian step of the target with `exponent`; returns the mean acceptance probability [N]."""
        shape = tuple(self.state.position.shape)
        momentum = rng.normal(self.draws, shape, rng.CHAIN + number, device=self.x.device, dtype=self.x.dtype)
        uniform = rng.uniform(self.draws, (*shape[:-1], 1), rng.TIME + number, device=self.x.device, dtype=self.x.dtype).squeeze(-1)
        proposal, end = self.leapfrog(momentum, exponent, size.unsqueeze(-1), num_leapfrog)
        energy = standard_log_prob(end) - standard_log_prob(momentum)
        log_ratio = (proposal.log_target(exponent) - self.state.log_target(exponent) + energy).nan_to_num(-math.inf)
        taken = uniform.log() < log_ratio
        pairs = zip(proposal, self.state, strict=True)
        self.state = _State(*(torch.where(taken.unsqueeze(-1) if new.dim() > taken.dim() else taken, new, old) for new, old in pairs))
        rate = log_ratio.clamp(max=0).exp().mean(0)
        self.accepted += rate
        return rate

    def leapfrog(self, momentum: Tensor, exponent: float, size: Tensor, num_leapfrog: int) -> tuple[_State, Tensor]:
        """State and momentum after the leapfrog steps."""
        state = self.state
        for _ in range(num_leapfrog):
            momentum = momentum + 0.5 * size * state.force(exponent)
            state = self.at(state.position + size * momentum)
            momentum = momentum + 0.5 * size * state.force(exponent)
        return state, momentum
