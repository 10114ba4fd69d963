"""The diffusion posterior: a small conditional denoising chain in latent space (docs/method.md, section 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, ops
from ddvi_fast.denoisers import ResidualMLP, StepView
from ddvi_fast.networks import take_rows
from ddvi_fast.posteriors.base import Encoded, Posterior, PosteriorSample, draw_start, split_top
from ddvi_fast.rng import Draws
from ddvi_fast.schedules import LearnedSchedule, NoiseSchedule


class Diffusion(Posterior):
    """`q(y_T | x) = N(mean(x), diag exp(log_var(x)))`, then `T` denoising steps `q(y_{t-1} | y_t, x)` down to `z = y_0`.

    Args:
        encoder: `encoder(x, draws)`, from x [N, ...] to [N, 2 D]: mean and log-variance of `y_T`.
        denoiser: the network of the chain; its `num_steps` is T.
        schedule: the noising process `r`; where `learn_schedule` is set, only its start.
        context_encoder: `context_encoder(x, draws)`, from x to [N, C]; None for an unconditional denoiser.
        parametrisation: what the denoiser predicts: ``eps``, ``x0``, ``v`` or ``mean``.
        eta: 1 for ancestral sampling, 0 for the deterministic chain, which has no density.
        final_variance: `s_1^2` before any learning; the schedule's posterior variance of step 2 if not given.
        learn_schedule: train the betas through the bound.
        learn_variances: train a factor `exp(delta_t)` of each step variance.

    Raises:
        InputError: parts that do not fit together.

    Example:
        >>> from ddvi_fast import denoisers, networks, schedules
        >>> posterior = Diffusion(
        ...     encoder=networks.MLP(5, [8], 4),
        ...     context_encoder=networks.MLP(5, [8], 3),
        ...     denoiser=denoisers.ResidualMLP(latent_dim=2, context_dim=3, num_steps=10),
        ...     schedule=schedules.make("cosine", 10),
        ... )
        >>> sample = posterior.sample(torch.zeros(6, 5), num_samples=7)
        >>> sample.z.shape, sample.log_ratio.shape
        (torch.Size([7, 6, 2]), torch.Size([7, 6]))
    """

    why_no_density = "eta = 0 makes a deterministic chain, which has no log_ratio"

    def __init__(
        self,
        encoder: nn.Module,
        denoiser: ResidualMLP,
        schedule: NoiseSchedule,
        *,
        context_encoder: nn.Module | None = None,
        parametrisation: str = "v",
        eta: float = 1.0,
        final_variance: float | None = None,
        learn_schedule: bool = False,
        learn_variances: bool = True,
    ) -> None:
        super().__init__()
        _checks.require(schedule.num_steps == denoiser.num_steps, "schedule", f"{denoiser.num_steps} steps, as the denoiser has", schedule.num_steps)
        same = (context_encoder is None) == (denoiser.context_dim == 0)
        _checks.require(same, "context_encoder", "one exactly when the denoiser has a context", context_encoder)
        learned, hint = learn_variances or learn_schedule, "pass learn_variances=False"
        _checks.require(eta > 0 or not learned, "eta", "above 0 to learn variances or a schedule", eta, hint)
        schedule.coefficients(parametrisation, eta, final_variance)
        self.encoder, self.context_encoder, self.denoiser = encoder, context_encoder, denoiser
        self.latent_dim, self.parametrisation, self.eta, self.final_variance = denoiser.latent_dim, parametrisation, eta, final_variance
        self.learned_schedule = LearnedSchedule(schedule) if learn_schedule else None
        self.schedule_kind = schedule.kind
        self.register_buffer("betas", schedule.betas.clone())
        self.log_variance_factors = nn.Parameter(torch.zeros(schedule.num_steps)) if learn_variances else None
        self.num_active_steps = schedule.num_steps

    @property
    def has_density(self) -> bool:
        return self.eta > 0

    @property
    def schedule(self) -> NoiseSchedule:
        """The noising process in force, with gradients where it is learned, at the steps in use."""
        if self.learned_schedule is None:
            return self._fixed_schedule()
        return self._at_steps_in_use(self.learned_schedule())

    def _fixed_schedule(self) -> NoiseSchedule:
        """That of `betas`, made again only where they or the steps in use have changed, for the tables that it keeps."""
        if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or self.betas.is_inference():
            return self._at_steps_in_use(NoiseSchedule(self.betas, self.schedule_kind))
        betas, *key = getattr(self, "_kept_key", (None,))
        if betas is not self.betas or key != [self.betas._version, self.num_active_steps]:
            self._kept_key = (self.betas, self.betas._version, self.num_active_steps)
            self._kept_schedule = self._at_steps_in_use(NoiseSchedule(self.betas, self.schedule_kind))
        return self._kept_schedule

    def _at_steps_in_use(self, whole: NoiseSchedule) -> NoiseSchedule:
        return whole if self.num_active_steps == self.denoiser.num_steps else whole.at(self._active())

    def use_steps(self, number: int) -> None:
        """Run the chain with `number` evenly spread steps of its `T`, as annealing does; the last one is always among them."""
        _checks.require(2 <= number <= self.denoiser.num_steps, "number", f"from 2 to {self.denoiser.num_steps}", number)
        self.num_active_steps = number

    def _active(self) -> Tensor:
        """The 0-based steps in use."""
        number = torch.arange(1, self.num_active_steps + 1, device=self.betas.device)
        return number * self.denoiser.num_steps // self.num_active_steps - 1

    def active_denoiser(self) -> ResidualMLP | StepView:
        """The chain's network at the steps in use."""
        return self.denoiser if self.num_active_steps == self.denoiser.num_steps else StepView(self.denoiser, self._active())

    def coefficients(self) -> Tensor:
        """The chain's table, float32 [T, 5]."""
        table = self.schedule.coefficients(self.parametrisation, self.eta, self.final_variance)
        if self.log_variance_factors is None:
            return table
        deviations = table[:, 2] * torch.exp(0.5 * self.log_variance_factors[self._active()])
        return torch.cat((table[:, :2], deviations.unsqueeze(1), table[:, 3:]), dim=1)

    def encode(self, x: Tensor, draws: Draws | None = None) -> Encoded:
        return Encoded(*self.encode_top(x, draws), self.encode_context(x, draws))

    def encode_top(self, x: Tensor, draws: Draws | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [N, D] of `y_T` given `x` [N, ...]."""
        return split_top(self.encoder(x, draws if self.training else None))

    def encode_context(self, x: Tensor, draws: Draws | None = None) -> Tensor | None:
        """What the chain knows of `x` [N, ...]: its context [N, C], or None for an unconditional denoiser."""
        if self.context_encoder is None:
            return None
        # Dropout of the two encoders must not share its draws, or both would drop the same units.
        return self.context_encoder(x, draws.lane("context") if self.training and draws is not None else None)

    def sample_encoded(self, encoded: Encoded, num_samples: int, draws: Draws) -> PosteriorSample:
        """As `Posterior.sample_encoded`; the path log-ratio is added up on the way down the chain."""
        y_T = draw_start(encoded.mean, encoded.log_var, num_samples, draws)
        chain = self._chain(encoded, y_T, draws, return_trajectory=False)
        if chain.path is None:
            return PosteriorSample(chain.z, None)
        return PosteriorSample(chain.z, chain.path - ops.gaussian_log_prob(y_T, encoded.mean, encoded.log_var))

    def latent_path(self, encoded: Encoded, num_samples: int, draws: Draws) -> Tensor:
        """The trajectory [T + 1, K, N, D], `y_T` first."""
        y_T = draw_start(encoded.mean, encoded.log_var, num_samples, draws)
        return self._chain(encoded, y_T, draws, return_trajectory=True).trajectory

    def log_ratio(self, encoded: Encoded, path: Tensor) -> Tensor:
        self.require_density()
        along = ops.trajectory_log_ratio(path, encoded.context, self.active_denoiser(), self.coefficients())
        return along - ops.gaussian_log_prob(path[0], encoded.mean, encoded.log_var)

    def frozen_log_ratio(self, x: Tensor, path: Tensor, draws: Draws | None = None) -> Tensor:
        """As in `Posterior`; refused with a learned schedule, whose noising half must keep its gradient."""
        _checks.require(self.learned_schedule is None, "learn_schedule", "false with doubly reparametrised gradients", True)
        return super().frozen_log_ratio(x, path, draws)

    def denoising_loss(self, context: Tensor | None, z: Tensor, t: Tensor, draws: Draws, loss: str = "squared") -> Tensor:
        """Regression loss [N] of the denoiser on latents `z` [N, D] at steps `t` [N], given the context of their data (docs/method.md, section 3)."""
        table = self.schedule.detach().regression_table(self.parametrisation, 1 / self.latent_dim, dtype=z.dtype)
        return self.regression(context, z, t, table, draws, loss)

    def step_divergence(self, context: Tensor | None, z: Tensor, t: Tensor, draws: Draws) -> Tensor:
        """`T KL( r(y_{t-1} | y_t, z) || q(y_{t-1} | y_t, x) )` in nats, less the entropy of `r`, at steps `t` [N] -> [N].

        Averaged over uniform `t` this is the chain's part of the sleep term, exact in every weight (docs/method.md, section 3); the first
        step, where `r` is a point mass, gives `-log q(z | y_1, x)`. Like all sleep terms it fits the chain to the noising process, not
        the noising process to the chain: a learned schedule takes no gradient from `r`.
        """
        deviations = self.coefficients()[:, 2]
        table, constant = self.schedule.divergence_table(self.parametrisation, self.eta, deviations, dtype=z.dtype)
        error = self.regression(context, z, t, table, draws, "squared")
        return error + self.latent_dim * take_rows(constant.unsqueeze(1), t).squeeze(1)

    def regression(self, context: Tensor | None, z: Tensor, t: Tensor, table: Tensor, draws: Draws, loss: str) -> Tensor:
        """`ops.regression` of the chain's network at latents `z` [N, D] and steps `t` [N] -> [N]."""
        return ops.regression(z, t, context, self.active_denoiser(), table, loss=loss, draws=draws)

    def step_means(self, context: Tensor | None, y: Tensor, z: Tensor, t: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Means [N, D] of `q(y_{t-1} | y_t, x)` and of `r(y_{t-1} | y_t, z)` at states `y` [N, D] of steps `t` [N]; `coefficients` is the table."""
        weight_z, weight_y = (column[t].to(y).unsqueeze(1) for column in self.schedule.detach().posterior_mean_weights())
        weight_state, weight_output = take_rows(coefficients[:, :2], t).split(1, dim=1)
        return weight_state * y + weight_output * self.active_denoiser()(y, context, t), weight_z * z + weight_y * y

    def top_log_prob(self, mean: Tensor, log_var: Tensor, z: Tensor, draws: Draws) -> Tensor:
        """log N(y_T; mean, diag exp(log_var)) in nats, [N], at `y_T` noised from `z` [N, D]."""
        schedule = self.schedule.detach()
        last = torch.full(z.shape[:1], schedule.num_steps - 1, device=z.device)
        y_T, _ = ops.add_noise(z, last, schedule, draws=draws.lane("top"))
        return ops.gaussian_log_prob(y_T, mean, log_var)

    def _chain(self, encoded: Encoded, y_T: Tensor, draws: Draws, return_trajectory: bool) -> ops.ChainSample:
        source = draws if self.has_density else None
        return ops.sample_chain(y_T, encoded.context, self.active_denoiser(), self.coefficients(), draws=source, return_trajectory=return_trajectory)

    def facts(self) -> dict[str, object]:
        learned = " and ".join(
            name for name, part in (("schedule", self.learned_schedule), ("variances", self.log_variance_factors)) if part is not None
        )
        chain = {
            "steps": self.denoiser.num_steps,
            "predicts": self.parametrisation,
            "schedule": self.schedule_kind,
            "learned": learned or "nothing of the schedule",
        }
        return {**super().facts(), **chain}

    def extra_repr(self) -> str:
        return f"num_steps={self.denoiser.num_steps}, parametrisation={self.parametrisation}, eta={self.eta}"
