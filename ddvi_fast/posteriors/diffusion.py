"""Diffusion posterior: a conditional denoising chain in latent space (docs/method.md, section 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, ops
from ddvi_fast.denoisers import ResidualMLP, StepView
from ddvi_fast.networks import take_rows
from ddvi_fast.posteriors.base import Encoded, encode_with_context, require_encoders, split_mean_log_var
from ddvi_fast.posteriors.chain import ChainPosterior
from ddvi_fast.precision import as_float32
from ddvi_fast.priors import Prior
from ddvi_fast.rng import Draws
from ddvi_fast.schedules import LearnedSchedule, NoiseSchedule


class Diffusion(ChainPosterior):
    """Diffusion posterior: `q(y_T | x) = N(mean(x), diag exp(log_var(x)))`, then T denoising steps `q(y_{t-1} | y_t, x)` down to `z = y_0`.

    See docs/method.md, section 1, for the chain and section 2 for its log-ratio, which is exact for the joint density of the path. In the
    encoder's frame (section 7) the chain starts from N(0, I) and reverses a stationary process; with the denoiser's output at zero the
    posterior is the Gaussian of the encoder.

    Args:
        encoder: Network called as `encoder(x, draws)`, from x [N, ...] to [N, 2 D]: mean, then log-variance of `y_T`, or of the encoder's
            frame.
        denoiser: Network of the chain; its `num_steps` is T.
        schedule: Noising process `r` with T steps. With `learn_schedule` it is the initial value.
        context_encoder: Network called as `context_encoder(x, draws)`, from x to [N, C]; None (default) for a denoiser without a context, or
            if the encoder's output ends with the context, [N, 2 D + C].
        parametrisation: Quantity that the denoiser predicts: ``eps``, ``x0``, ``v`` or ``mean``. Default: ``v``, and ``increment`` in the
            encoder's frame. There ``v`` is the other choice, for long chains with little noise at first: with ``v`` at zero the means are
            those of a stationary process too.
        eta: Scale of the step noise: 1 (default) for ancestral sampling, 0 for a deterministic chain, which has no density.
        final_variance: Initial variance of the last step, `s_1^2` (float). Default: the schedule's posterior variance of step 2.
        learn_schedule: Train the betas through the bound (bool). Default: only in the encoder's frame.
        learn_variances: Train a factor `exp(delta_t)` of each step variance (bool, default True; False if `eta` is 0).
        coordinates: Coordinates of the chain, see `Posterior` (default ``latent``).
        prior: Prior of the latents, for the prior's coordinates.

    Raises:
        InputError: If the parts do not fit together, or if `eta` is 0 and the schedule or variances are learned.

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

    @_checks.typed
    def __init__(
        self, encoder: nn.Module, denoiser: ResidualMLP, schedule: NoiseSchedule, *, context_encoder: nn.Module | None = None,
        parametrisation: str | None = None, eta: float = 1.0, final_variance: float | None = None,
        learn_schedule: bool | None = None, learn_variances: bool = True, coordinates: str = "latent", prior: Prior | None = None,
    ) -> None:  # fmt: skip
        super().__init__(coordinates, prior)
        parametrisation = parametrisation or ("increment" if self.whitens else "v")
        learn_schedule = self.whitens if learn_schedule is None else learn_schedule
        possible = ("increment", "v") if self.whitens else ("eps", "x0", "v", "mean")
        _checks.require(parametrisation in possible, "parametrisation", f"{' or '.join(possible)} with coordinates={coordinates}", parametrisation)
        _checks.require(schedule.num_steps == denoiser.num_steps, "schedule", f"{denoiser.num_steps} steps, as the denoiser has", schedule.num_steps)
        fits = context_encoder is None or denoiser.context_dim > 0
        _checks.require(fits, "context_encoder", "None, for a denoiser without a context", context_encoder)
        learned, hint = learn_variances or learn_schedule, "pass learn_variances=False"
        _checks.require(eta > 0 or not learned, "eta", "above 0 to learn variances or a schedule", eta, hint)
        schedule.coefficients(parametrisation, eta, final_variance)
        require_encoders(encoder=encoder, context_encoder=context_encoder)
        self.encoder, self.context_encoder, self.denoiser = encoder, context_encoder, denoiser
        self.latent_dim, self.parametrisation, self.eta, self.final_variance = denoiser.latent_dim, parametrisation, eta, final_variance
        self.learned_schedule = LearnedSchedule(schedule) if learn_schedule else None
        self.schedule_kind = schedule.kind
        self.register_buffer("betas", schedule.betas.clone())
        self.log_variance_factors = nn.Parameter(torch.zeros(schedule.num_steps, **as_float32)) if learn_variances else None
        self.num_active_steps = schedule.num_steps

    @property
    def has_density(self) -> bool:
        return self.eta > 0

    @property
    def schedule(self) -> NoiseSchedule:
        """The current noising process at the active steps, with gradients if it is learned."""
        if self.learned_schedule is None:
            return self._fixed_schedule()
        return self._at_active_steps(self.learned_schedule())

    def _fixed_schedule(self) -> NoiseSchedule:
        """The schedule of the buffer `betas`, cached with its tables until the betas or the active steps change."""
        if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or self.betas.is_inference():
            return self._at_active_steps(NoiseSchedule(self.betas, self.schedule_kind))
        betas, *key = getattr(self, "_cache_key", (None,))
        if betas is not self.betas or key != [self.betas._version, self.num_active_steps]:
            self._cache_key = (self.betas, self.betas._version, self.num_active_steps)
            self._cached_schedule = self._at_active_steps(NoiseSchedule(self.betas, self.schedule_kind))
        return self._cached_schedule

    def _at_active_steps(self, whole: NoiseSchedule) -> NoiseSchedule:
        return whole if self.num_active_steps == self.denoiser.num_steps else whole.at(self._active())

    def use_steps(self, number: int) -> None:
        """Run the chain with a subset of its steps, for annealing of T.

        Args:
            number: Number of active steps, from 2 to T (int), evenly spaced; the noisiest step is always active.

        Raises:
            InputError: If `number` is out of range.
        """
        _checks.require(2 <= number <= self.denoiser.num_steps, "number", f"from 2 to {self.denoiser.num_steps}", number)
        self.num_active_steps = number

    def _active(self) -> Tensor:
        """The active steps, 0-based int64."""
        number = torch.arange(1, self.num_active_steps + 1, device=self.betas.device)
        return number * self.denoiser.num_steps // self.num_active_steps - 1

    def active_denoiser(self) -> ResidualMLP | StepView:
        """Return the denoiser at the active steps."""
        return self.denoiser if self.num_active_steps == self.denoiser.num_steps else StepView(self.denoiser, self._active())

    def coefficients(self) -> Tensor:
        """Return the table of the chain, float32 [T, 5] (docs/method.md, section 1), with the learned variances."""
        table = self.schedule.coefficients(self.parametrisation, self.eta, self.final_variance)
        if self.log_variance_factors is None:
            return table
        deviations = table[:, 2] * torch.exp(0.5 * self.log_variance_factors[self._active()])
        return torch.cat((table[:, :2], deviations.unsqueeze(1), table[:, 3:]), dim=1)

    def encode(self, x: Tensor, draws: Draws | None = None) -> Encoded:
        """Return mean and log-variance [N, D] of `y_T`, and the context [N, C] or None."""
        return encode_with_context(self, x, draws) if self.denoiser.context_dim else Encoded(*self.encode_top(x, draws), None)

    def encode_top(self, x: Tensor, draws: Draws | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance [N, D] of `y_T` for data `x` [N, ...]."""
        return split_mean_log_var(self.encoder(x, draws if self.training else None), self.latent_dim)

    def encode_context(self, x: Tensor, draws: Draws | None = None) -> Tensor | None:
        """Return the context [N, C] of data `x` [N, ...], or None for an unconditional denoiser."""
        if self.context_encoder is None:
            return None
        # The dropout of the two encoders must not share its draws.
        return self.context_encoder(x, draws.lane("context") if self.training and draws is not None else None)

    def frozen_log_ratio(self, x: Tensor, path: Tensor, draws: Draws | None = None) -> Tensor:
        """Compute the log-ratio as in `Posterior`.

        Raises:
            InputError: If the schedule is learned: its noising process belongs to the target and must not be held constant.
        """
        _checks.require(self.learned_schedule is None, "learn_schedule", "false with doubly reparametrised gradients", True)
        return super().frozen_log_ratio(x, path, draws)

    def denoising_loss(self, context: Tensor | None, z: Tensor, t: Tensor, draws: Draws, loss: str = "squared") -> Tensor:
        """Compute the regression loss of the denoiser (docs/method.md, section 3).

        Args:
            context: Context [N, C] of the data, or None.
            z: Latents [N, D].
            t: 0-based timesteps, int64 [N].
            draws: Position of the first row in the random stream.
            loss: ``squared`` (default), ``absolute`` or ``huber``.

        Returns:
            Losses [N], averaged over latent dimensions.
        """
        table = self.schedule.detach().regression_table(self.parametrisation, 1 / self.latent_dim, dtype=z.dtype)
        return self.regression(context, z, t, table, draws, loss)

    def step_divergence(self, context: Tensor | None, z: Tensor, t: Tensor, draws: Draws) -> Tensor:
        """Compute `T KL( r(y_{t-1} | y_t, z) || q(y_{t-1} | y_t, x) )` minus the entropy of `r` (docs/method.md, section 3).

        Its average over uniform timesteps is the chain's part of the sleep term. At the first step, where `r` is a point mass, it is
        `-log q(z | y_1, x)`. A learned schedule takes no gradient from `r`.

        Args:
            context: Context [N, C] of the data, or None.
            z: Latents [N, D].
            t: 0-based timesteps, int64 [N].
            draws: Position of the first row in the random stream.

        Returns:
            Divergences [N] in nats.
        """
        deviations = self.coefficients()[:, 2]
        table, constant = self.schedule.divergence_table(self.parametrisation, self.eta, deviations, dtype=z.dtype)
        error = self.regression(context, z, t, table, draws, "squared")
        return error + self.latent_dim * take_rows(constant.unsqueeze(1), t).squeeze(1)

    def regression(self, context: Tensor | None, z: Tensor, t: Tensor, table: Tensor, draws: Draws, loss: str) -> Tensor:
        """Compute `ops.regression` of the denoiser at latents `z` [N, D] and 0-based timesteps `t` [N]; returns [N]."""
        return ops.regression(z, t, context, self.active_denoiser(), table, loss=loss, draws=draws)

    def step_means(self, context: Tensor | None, y: Tensor, z: Tensor, t: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the means of `q(y_{t-1} | y_t, x)` and of `r(y_{t-1} | y_t, z)`.

        Args:
            context: Context [N, C] of the data, or None.
            y: States `y_t` [N, D].
            z: Latents [N, D].
            t: 0-based timesteps, int64 [N].
            coefficients: Table of the chain, [T, 5].

        Returns:
            Both means, [N, D] each.
        """
        weight_z, weight_y = (column[t].to(y).unsqueeze(1) for column in self.schedule.detach().posterior_mean_weights())
        weight_state, weight_output = take_rows(coefficients[:, :2], t).split(1, dim=1)
        return weight_state * y + weight_output * self.active_denoiser()(y, context, t), weight_z * z + weight_y * y

    def start_log_prob(self, encoded: Encoded, u: Tensor, draws: Draws) -> Tensor:
        """Compute the log-density [N] in nats of the encoder's Gaussian: at `u` [N, D] in its frame, otherwise at `y_T` noised from `u`."""
        if self.whitens:
            return ops.gaussian_log_prob(u, encoded.mean, encoded.log_var)
        return self.top_log_prob(encoded.mean, encoded.log_var, u, draws)

    def top_log_prob(self, mean: Tensor, log_var: Tensor, z: Tensor, draws: Draws) -> Tensor:
        """Compute `log N(y_T; mean, diag exp(log_var))` [N] in nats at states `y_T` of the noising process from latents `z` [N, D]."""
        schedule = self.schedule.detach()
        last = torch.full(z.shape[:1], schedule.num_steps - 1, device=z.device)
        y_T, _ = ops.add_noise(z, last, schedule, draws=draws.lane("top"))
        return ops.gaussian_log_prob(y_T, mean, log_var)

    def facts(self) -> dict[str, object]:
        parts = {"schedule": self.learned_schedule, "variances": self.log_variance_factors}
        learned = " and ".join(name for name, part in parts.items() if part is not None) or "nothing of the schedule"
        chain = {"steps": self.denoiser.num_steps, "predicts": self.parametrisation, "schedule": self.schedule_kind, "learned": learned}
        return {**super().facts(), **chain}

    def extra_repr(self) -> str:
        return f"num_steps={self.denoiser.num_steps}, parametrisation={self.parametrisation}, eta={self.eta}"
