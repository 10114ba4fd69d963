"""Diffusion posterior: a conditional denoising chain in latent space (docs/method.md, section 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, ops, rng
from ddvi_fast._operands import ScheduleSpec
from ddvi_fast.denoisers import ResidualMLP, StepView
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import take_rows
from ddvi_fast.posteriors import frames
from ddvi_fast.posteriors.base import Encoded, encode_with_context, require_encoders, split_mean_log_var
from ddvi_fast.posteriors.chain import ChainPosterior
from ddvi_fast.posteriors.informed import HasLogJoint, Target, clipped
from ddvi_fast.posteriors.informed_chain import InformedSteps, joined
from ddvi_fast.posteriors.learned_tables import Tables, chain_table, fused_tables
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
        informed_steps: Number of steps, the last ones, that see the gradient of the model at the latents they predict (int, default 0, at most
            T). They need the encoder's frame. The denoiser has D inputs more, `context_dim = C + D`. See `inform`.
        frame_updates: Number of updates of the encoder's frame with the gradient of the model (int, default 0), each at 2 D points for each row
            of data: the frame of the chain then has the mean and the full covariance of (nearly) the best Gaussian. See `inform`.
        target: The model of informed steps and frame updates, see `inform`. Default: None, to be given before the first sample.

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
        informed_steps: int = 0, frame_updates: int = 0, target: LatentVariableModel | HasLogJoint | None = None,
    ) -> None:  # fmt: skip
        super().__init__(coordinates, prior)
        parametrisation = parametrisation or ("increment" if self.whitens else "v")
        learn_schedule = self.whitens if learn_schedule is None else learn_schedule
        possible = ("increment", "v") if self.whitens else ("eps", "x0", "v", "mean")
        _checks.require(parametrisation in possible, "parametrisation", f"{' or '.join(possible)} with coordinates={coordinates}", parametrisation)
        _checks.require(schedule.num_steps == denoiser.num_steps, "schedule", f"{denoiser.num_steps} steps, as the denoiser has", schedule.num_steps)
        self._check_informed(informed_steps, denoiser, eta)
        _checks.at_least(0, frame_updates=frame_updates)
        _checks.require(self.whitens or frame_updates == 0, "frame_updates", f"0 with coordinates={self.coordinates}", frame_updates)
        self.informed_steps, self.frame_updates, self.recordable = informed_steps, frame_updates, frame_updates == 0
        self.context_dim = denoiser.context_dim - (denoiser.latent_dim if informed_steps else 0)
        fits = context_encoder is None or self.context_dim > 0
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
        # Near the best Gaussian, 1 is the value of theory (docs/method.md, section 7).
        gains = torch.full((schedule.num_steps,), float(frame_updates > 0), **as_float32)
        self.direction_gains = nn.Parameter(gains) if informed_steps else None
        self.num_active_steps = schedule.num_steps
        self._target: Target | None = None
        if target is not None:
            self.inform(target)

    def _check_informed(self, number: int, denoiser: ResidualMLP, eta: float) -> None:
        """Refuse a number of informed steps that the chain cannot have."""
        name = "informed_steps"
        _checks.require(0 <= number <= denoiser.num_steps, name, f"from 0 to {denoiser.num_steps}, the denoiser's steps", number)
        _checks.require(self.whitens or number == 0, name, f"0 with coordinates={self.coordinates}", number, "they need the encoder's frame")
        _checks.require(eta == 1 or number == 0, name, "0 unless eta is 1", number)
        wide = number == 0 or denoiser.context_dim >= denoiser.latent_dim
        expected = f"one with a context of at least {denoiser.latent_dim} columns, those of the direction"
        _checks.require(wide, "denoiser", expected, f"context_dim = {denoiser.context_dim}")

    def inform(self, target: LatentVariableModel | HasLogJoint) -> Diffusion:
        """Give the informed steps their model (docs/method.md, section 7).

        An informed step has the mean `A_t v_t + B_t f(v_t, [c(x), d_t], t) + gamma_t sqrt(alpha_bar_{t-1}) beta_t d_t`, where `d_t` is the
        gradient of the log-weight of the encoder's Gaussian, in its frame, at the latents that `v_t` predicts: that of
        `log p(x | g(u)) + log p(u)`, or of `log p(x, z)` outside the prior's coordinates, less that of the Gaussian. Its norm is bounded row by
        row, the model is in evaluation mode, and no gradient passes through `d_t`, so that it costs the model one pass forward and backward.

        Each of the `frame_updates` moves the frame towards the Gaussian that minimizes `KL(q || p)` (`posteriors.frames.updated`), at the cost of
        2 D passes forward and backward for each row of data. No gradient passes through the updates: what they do to the frame, in its own
        coordinates, is a constant, so that the bound trains the encoder of the start as if they were a fixed map.

        The model is not a submodule: it is trained, moved and saved in its own place.

        Args:
            target: The model: a `LatentVariableModel`, or in `encoder` coordinates any object with `log_joint(x, z)`, which returns the
                log-densities [.., N] of data [N, ...] and latents [.., N, D].

        Returns:
            The posterior.

        Raises:
            InputError: If the posterior has neither informed steps nor frame updates, or if the model does not fit its coordinates.
        """
        _checks.require(self.sees_model, "informed_steps", "at least 1, for a posterior that is given a model", self.informed_steps)
        self._target = Target(target, self.prior)
        return self

    @property
    def sees_model(self) -> bool:
        """Whether the posterior needs a model, for informed steps or frame updates."""
        return self.informed_steps > 0 or self.frame_updates > 0

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
        return self.denoiser if self.num_active_steps == self.denoiser.num_steps else self._denoiser_at(slice(None))

    def _denoiser_at(self, part: slice) -> StepView:
        """The denoiser at a part of the active steps."""
        return StepView(self.denoiser, self._active()[part])

    def coefficients(self) -> Tensor:
        """Return the table of the chain, float32 [T, 5] (docs/method.md, section 1), with the learned variances."""
        fused = self._fused_tables()
        if fused is not None:
            return fused.chain
        factors = self.log_variance_factors
        if factors is not None and self.num_active_steps != self.denoiser.num_steps:
            factors = factors[self._active()]
        return chain_table(self.schedule, factors, self._spec)

    @property
    def _spec(self) -> ScheduleSpec:
        """What the tables are made of."""
        return ScheduleSpec(self.schedule_kind, self.parametrisation, self.eta, self.final_variance)

    def _fused_tables(self) -> Tables | None:
        """The tables of a learned schedule where one launch makes them all."""
        if self.learned_schedule is None or self.num_active_steps != self.denoiser.num_steps:
            return None
        return fused_tables(self.learned_schedule.raw, self.log_variance_factors, self._spec)

    def _divergence_tables(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Table [T, 5] and constants [T] of the step divergences."""
        fused = self._fused_tables() if dtype == torch.float32 else None
        if fused is not None:
            return fused.divergence, fused.constants
        return self.schedule.divergence_table(self.parametrisation, self.eta, self.coefficients()[:, 2], dtype=dtype)

    def encode(self, x: Tensor, draws: Draws | None = None) -> Encoded:
        """Return mean and log-variance [N, D] of `y_T`, and the context [N, C] or None."""
        return self.with_frame(self.with_data(self.encode_features(x, draws), x))

    def encode_features(self, features: Tensor, draws: Draws | None = None) -> Encoded:
        return encode_with_context(self, features, draws) if self.context_dim else Encoded(*self.encode_top(features, draws), None)

    def with_data(self, encoded: Encoded, x: Tensor, labels: Tensor | None = None) -> Encoded:
        return encoded._replace(x=x, labels=labels) if self.sees_model else encoded

    def with_frame(self, encoded: Encoded) -> Encoded:
        if not self.frame_updates:
            return encoded
        updated = Diffusion._updated  # a decorator would load the compiler when the class is made
        return torch.compiler.disable(updated)(self, encoded) if torch.compiler.is_compiling() else updated(self, encoded)

    @_checks.outside_inference_mode
    def _updated(self, encoded: Encoded) -> Encoded:
        target, x = self._known_target(), encoded.x
        mean, scale = encoded.mean.detach(), torch.exp(0.5 * encoded.log_var.detach())
        labels = None if encoded.labels is None else encoded.labels.expand(mean.shape[:-1])

        def of_rows(rows: slice) -> Callable[[Tensor], Tensor]:
            return target.at(x[rows], None if labels is None else labels[..., rows])

        frame = frames.updated(mean, scale, of_rows, self.frame_updates)
        moved, turned = (frame.mean - mean) / scale, frame.factor / scale.unsqueeze(-1)  # constants in the encoder's frame
        scale = torch.exp(0.5 * encoded.log_var)
        return encoded._replace(frame_mean=encoded.mean + scale * moved, frame_factor=scale.unsqueeze(-1) * turned)

    def _known_target(self) -> Target:
        if self._target is None:
            _checks.fail("target", "the model that the chain sees", None, "call posterior.inform(model)")
        return self._target

    def unwhitened(self, encoded: Encoded, y: Tensor) -> Tensor:
        frame = _updated_frame(encoded)
        return super().unwhitened(encoded, y) if frame is None else frame.place(y)

    def whitened(self, encoded: Encoded, u: Tensor) -> Tensor:
        frame = _updated_frame(encoded)
        return super().whitened(encoded, u) if frame is None else frame.undo(u)

    def log_scale(self, encoded: Encoded) -> Tensor:
        frame = _updated_frame(encoded)
        return super().log_scale(encoded) if frame is None else frame.log_det()

    def encode_top(self, x: Tensor, draws: Draws | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance [N, D] of `y_T` for data `x` [N, ...]."""
        return split_mean_log_var(self.encoder(x, draws if self.training else None), self.latent_dim)

    def encode_context(self, x: Tensor, draws: Draws | None = None) -> Tensor | None:
        """Return the context [N, C] of data `x` [N, ...], or None for an unconditional denoiser."""
        if self.context_encoder is None:
            return None
        # The dropout of the two encoders must not share its draws.
        return self.context_encoder(x, draws.lane("context") if self.training and draws is not None else None)

    def run(
        self, encoded: Encoded, start: Tensor, *, draws: Draws | None = None, noise: Tensor | None = None, return_trajectory: bool = False,
        groups: Tensor | None = None,
    ) -> ops.ChainSample:  # fmt: skip
        """Run the chain as in `ChainPosterior`; `groups` are the classes of the rows for a grouped denoiser, int64 [N] or [.., N]."""
        draws, table = draws if self.has_density else None, self.coefficients()
        if self.informed_steps:
            return self._run_informed(encoded, start, table.to(start), draws, noise, return_trajectory, groups)
        options = {"draws": draws, "noise": noise, "return_trajectory": return_trajectory, "groups": groups}
        return ops.sample_chain(start, encoded.context, Diffusion.active_denoiser(self), table, **options)

    def _run_informed(
        self, encoded: Encoded, start: Tensor, table: Tensor, draws: Draws | None, noise: Tensor | None, return_trajectory: bool,
        groups: Tensor | None,
    ) -> ops.ChainSample:  # fmt: skip
        """Run the first steps as one chain, then the informed ones, which draw from the last streams."""
        informed, count = self._num_informed(), len(table)
        v, path, states = start, start.new_zeros(start.shape[:-1]), start.unsqueeze(0)
        if informed < count:
            source = {"draws": draws, "noise": None if noise is None else noise[informed:]}
            blind = self._denoiser_at(slice(informed, None))
            options = {"return_trajectory": return_trajectory, "groups": groups}
            chain = ops.sample_chain(start, self._blind_context(encoded.context, start), blind, table[informed:], **source, **options)
            v, path, states = chain.z, chain.path, chain.trajectory
        if noise is None:
            stream = rng.CHAIN + count - informed
            noise = rng.normal(draws, tuple(v.shape), stream, planes=informed, device=v.device, dtype=v.dtype)
        signals, gains, last = self._signals(start), self._gains(start), slice(informed)
        directions = self.directions(encoded)
        steps = InformedSteps(self._denoiser_at(last), table[last], gains[last], lambda v, step: directions(v, signals[step]))
        chain = steps.run(v, encoded.context, noise[last], groups, return_trajectory)
        states = torch.cat((states, chain.trajectory[1:])) if return_trajectory else None
        return ops.ChainSample(chain.z, path + chain.path, states)

    def direction(self, encoded: Encoded, v: Tensor, signal: Tensor) -> Tensor:
        """Compute the directions of informed steps: the gradients of the log-weight of the encoder's Gaussian, in its frame.

        Args:
            encoded: Output of `encode`, with the data.
            v: States [.., N, D].
            signal: Square root of `alpha_bar_t`, which broadcasts to [.., N, 1].

        Returns:
            `d_t` [.., N, D] in nats, constants with bounded norm: the gradient of the target at `mean + scale signal v`, times the scale, less
            that of the Gaussian, `-signal v`. In an updated frame its factor takes the place of the scale.

        Raises:
            InputError: If the posterior was not given a model.
        """
        return self.directions(encoded)(v, signal)

    def directions(self, encoded: Encoded) -> Callable[[Tensor, Tensor], Tensor]:
        """Prepare `direction` for several states of the same data: a function of `v` and `signal`, for as long as the model does not change."""
        gradient, frame = self._known_target().at(encoded.x, encoded.labels), _updated_frame(encoded)
        frame = None if frame is None else frames.Frame(*(part.detach() for part in frame))
        mean, scale = encoded.mean.detach(), torch.exp(0.5 * encoded.log_var.detach())

        def direction(v: Tensor, signal: Tensor) -> Tensor:
            predicted = signal * v.detach()
            if frame is None:
                force = scale * gradient(mean + scale * predicted)
            else:
                force = frame.pull_back(gradient(frame.place(predicted)))
            return clipped(force + predicted).to(v)

        return direction

    def _num_informed(self) -> int:
        """Number of informed steps among the active ones."""
        return min(self.informed_steps, self.num_active_steps)

    def _signals(self, like: Tensor) -> Tensor:
        """Square roots of `alpha_bar_t` at the active steps, constants [T]."""
        return self.schedule.detach().alpha_bars.sqrt().to(like)

    def _gains(self, like: Tensor) -> Tensor:
        """The factors of the directions in the means of the active steps, `gamma_t sqrt(alpha_bar_{t-1}) beta_t`, [T]."""
        schedule = self.schedule.detach()
        return self.direction_gains[self._active()].to(like) * (schedule.posterior_mean_weights()[0] * schedule.noise_variances).to(like)

    def _blind_context(self, context: Tensor | None, like: Tensor) -> Tensor:
        """The context of steps that see no direction: zeros [.., N, D] behind c(x)."""
        return joined(context, like.new_zeros(like.shape[-2:]))

    def _path_log_ratio(self, encoded: Encoded, path: Tensor, table: Tensor) -> Tensor:
        if not self.informed_steps:
            return super()._path_log_ratio(encoded, path, table)
        informed, count = self._num_informed(), len(table)
        total = self._informed_log_ratio(encoded, path[count - informed :], table[:informed])
        if informed < count:
            context, blind = self._blind_context(encoded.context, path[0]), self._denoiser_at(slice(informed, None))
            total = total + ops.trajectory_log_ratio(path[: count - informed + 1], context, blind, table[informed:])
        return total - ops.gaussian_log_prob(path[0], *self.start(encoded))

    def _informed_log_ratio(self, encoded: Encoded, states: Tensor, table: Tensor) -> Tensor:
        """The log-ratio [K, N] of the informed steps, the rows of `table` [k, 5], along states [k + 1, K, N, D]."""
        total = states.new_zeros(states.shape[1:-1])
        for place, step in enumerate(reversed(range(len(table)))):
            total = total + self.step_log_ratio(encoded, states[place], states[place + 1], step, table)
        return total

    def step_mean(self, encoded: Encoded, v: Tensor, step: int, table: Tensor) -> Tensor:
        if not self.informed_steps:
            return super().step_mean(encoded, v, step, table)
        if step >= self._num_informed():
            blind = self._blind_context(encoded.context, v).expand(*v.shape[:-1], -1)
            return super().step_mean(encoded._replace(context=blind), v, step, table)
        direction = self.direction(encoded, v, self._signals(v)[step])
        mean = super().step_mean(encoded._replace(context=joined(encoded.context, direction)), v, step, table)
        return mean + self._gains(v)[step] * direction

    def frozen_log_ratio(self, x: Tensor, path: Tensor, draws: Draws | None = None) -> Tensor:
        """Compute the log-ratio as in `Posterior`.

        Raises:
            InputError: If the schedule is learned: its noising process belongs to the target and must not be held constant.
        """
        _checks.require(self.learned_schedule is None, "learn_schedule", "false with doubly reparametrised gradients", True)
        return super().frozen_log_ratio(x, path, draws)

    def denoising_loss(
        self, context: Tensor | None, z: Tensor, t: Tensor, draws: Draws, loss: str = "squared", encoded: Encoded | None = None
    ) -> Tensor:
        """Compute the regression loss of the denoiser (docs/method.md, section 3).

        Args:
            context: Context [N, C] of the data, or None.
            z: Latents [N, D].
            t: 0-based timesteps, int64 [N].
            draws: Position of the first row in the random stream.
            loss: ``squared`` (default), ``absolute`` or ``huber``.
            encoded: Output of `encode` for these rows, which informed steps need (default None).

        Returns:
            Losses [N], averaged over latent dimensions.
        """
        table = self.schedule.detach().regression_table(self.parametrisation, 1 / self.latent_dim, dtype=z.dtype)
        return self.regression(context, z, t, table, draws, loss, encoded)

    def step_divergence(self, context: Tensor | None, z: Tensor, t: Tensor, draws: Draws, encoded: Encoded | None = None) -> Tensor:
        """Compute `T KL( r(y_{t-1} | y_t, z) || q(y_{t-1} | y_t, x) )` minus the entropy of `r` (docs/method.md, section 3).

        Its average over uniform timesteps is the chain's part of the sleep term. At the first step, where `r` is a point mass, it is
        `-log q(z | y_1, x)`. A learned schedule takes no gradient from `r`.

        Args:
            context: Context [N, C] of the data, or None.
            z: Latents [N, D].
            t: 0-based timesteps, int64 [N].
            draws: Position of the first row in the random stream.
            encoded: Output of `encode` for these rows, which informed steps need (default None).

        Returns:
            Divergences [N] in nats.
        """
        table, constant = self._divergence_tables(z.dtype)
        error = self.regression(context, z, t, table, draws, "squared", encoded)
        return error + self.latent_dim * take_rows(constant.unsqueeze(1), t).squeeze(1)

    def regression(
        self, context: Tensor | None, z: Tensor, t: Tensor, table: Tensor, draws: Draws, loss: str, encoded: Encoded | None = None
    ) -> Tensor:
        """Compute `ops.regression` of the steps' outputs at latents `z` [N, D] and 0-based timesteps `t` [N]; returns [N]."""
        source: dict[str, Any] = {"draws": draws}
        if self.informed_steps:
            z, context, noise = self._informed_regression(context, z, t, table, draws, encoded)
            source = {"noise": noise}
        return ops.regression(z, t, context, Diffusion.active_denoiser(self), table, loss=loss, groups=self._groups_of(z), **source)

    def _groups_of(self, z: Tensor) -> Tensor | None:
        """The group of each row of the regression, for a grouped denoiser."""
        return None

    def _informed_regression(
        self, context: Tensor | None, z: Tensor, t: Tensor, table: Tensor, draws: Draws, encoded: Encoded | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, context and noise of a regression of the denoiser alone that is the one of its output with the direction.

        A step's mean with the direction is the one whose clean latent is moved by `e_t = gamma_t (1 - alpha_bar_t) d_t`. So the denoiser alone
        learns the latents `z - e_t`, at the same states: those of the noise `eps + signal / deviation e_t`.
        """
        _checks.require(encoded is not None and encoded.x is not None, "encoded", "the output of encode for these rows, for informed steps", encoded)
        noise = rng.normal(draws, tuple(z.shape), rng.NOISE, device=z.device, dtype=z.dtype)
        signal, deviation = take_rows(table.detach()[:, :2], t).split(1, -1)
        direction = self.direction(encoded, signal * z + deviation * noise, signal)
        direction = direction * (t < self._num_informed()).unsqueeze(1)
        gains = self.direction_gains[self._active()].to(z)
        shift = take_rows(gains.unsqueeze(1), t) * deviation.square() * direction
        return z - shift, joined(context, direction), noise + signal / deviation * shift

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

        Raises:
            InputError: If the chain has informed steps, which need more than the context.
        """
        _checks.require(self.informed_steps == 0, "informed_steps", "0, for the means of the released code's scale", self.informed_steps)
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
        counts = {"informed steps": self.informed_steps, "frame updates": self.frame_updates}
        informed = {name: count for name, count in counts.items() if count}
        chain = {"steps": self.denoiser.num_steps, **informed, "predicts": self.parametrisation, "schedule": self.schedule_kind, "learned": learned}
        return {**super().facts(), **chain}

    def extra_repr(self) -> str:
        informed = f", informed_steps={self.informed_steps}" if self.informed_steps else ""
        informed += f", frame_updates={self.frame_updates}" if self.frame_updates else ""
        return f"num_steps={self.denoiser.num_steps}, parametrisation={self.parametrisation}, eta={self.eta}{informed}"


def _updated_frame(encoded: Encoded) -> frames.Frame | None:
    """The updated frame in the output of the encoders, if there is one."""
    return None if encoded.frame_factor is None else frames.Frame(encoded.frame_mean, encoded.frame_factor)
