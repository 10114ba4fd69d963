"""Fit of a posterior to a user-defined model: `fit_posterior` and its training settings."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ddvi_fast import _checks, rng
from ddvi_fast.inference.budget import fit_chain
from ddvi_fast.inference.loop import Fit
from ddvi_fast.inference.missing import chosen
from ddvi_fast.inference.model import (
    FlatModel,
    HasLogJoint,
    HasSimulate,
    Model,
    RowTarget,
    Simulations,
    Simulator,
    as_needed,
    offers,
    seeded,
    simulate,
)
from ddvi_fast.inference.networks import Architecture, build, require_effect
from ddvi_fast.inference.objective import EvidenceBound, FrameFit, Rows, Simulated
from ddvi_fast.inference.observation import Observation, column_names, observed_rows, require_apart, require_embedding
from ddvi_fast.inference.posterior import FittedPosterior
from ddvi_fast.inference.recorder import Recorder
from ddvi_fast.inference.sets import SetEmbedding, data_shape
from ddvi_fast.inference.start import gaussian_start, require_gradient, unfinished
from ddvi_fast.inference.stored import StoredModel, StoredSimulations
from ddvi_fast.inference.support import Support
from ddvi_fast.inference.whitening import Whitening, coarse, require_resolved
from ddvi_fast.inference.whitening import notices as spreads
from ddvi_fast.objectives import Objective
from ddvi_fast.posteriors import Diffusion, Posterior
from ddvi_fast.precision import without_callers_autocast
from ddvi_fast.rng import Draws
from ddvi_fast.standardization import listed, tell

OBJECTIVES = ("auto", "bound", "simulations", "both")
_STANDARDIZING = 4096  # simulations from which parameters and data are standardized
_FRAME_STEPS = 0.25  # steps of the preceding fit of the encoder's frame, as a fraction of the training steps
_CHECKED = 8  # rows of data, and samples for each, at which the gradient of a density is checked
_INFORMED_SHARE = 4  # batch size over the number of samples of the bound, for a chain with informed steps
_HISTORY = 20  # length of the history of losses
_SIZES = 15  # further sets of observations from which features are standardized
_POINTS = 16  # values by which a checkpoint knows a model


@dataclass(frozen=True)
class Training:
    """Training settings of `fit_posterior`.

    Args:
        steps: Number of steps of Adam (int). Default: 8000. For a fixed number n of simulations it is the largest number, for each chain of the
            ensemble, by default 3000 (n / 1000)^0.4, and at least 1000.
        batch_size: Simulations, or samples of the bound, per step (int). Default: 512, or 256 for up to 30,000 stored simulations. With informed
            steps the bound has a quarter of them. With frame updates there are as few simulations as rows of the bound, which have several
            samples each where there are many parameters.
        lr: Peak learning rate (float). Default: 5e-3, or 2e-3 for a fixed number of simulations. It rises linearly over the first 5% of the steps
            and falls to zero along a cosine.
        max_norm: Limit of the gradient's norm (float, default 10).

    Raises:
        InputError: If `steps` or `batch_size` is not a positive integer, or `lr` or `max_norm` not a positive number.
    """

    steps: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    max_norm: float = 10.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _checks.integer(getattr(self, name), name, 1))
        if self.lr is not None:
            object.__setattr__(self, "lr", _checks.number(self.lr, "lr", above=0))
        object.__setattr__(self, "max_norm", _checks.number(self.max_norm, "max_norm", above=0))

    def settled(self, stored: int | None = None) -> Training:
        """Return the settings with the defaults in place of None, those of a chain for `stored` simulations or of another fit."""
        own: dict[str, Any] = {"steps": 8000, "batch_size": 512, "lr": 5e-3}
        if stored is not None:
            own = {"steps": max(1000, round(3000 * (stored / 1000) ** 0.4)), "batch_size": 256 if stored <= 30_000 else 512, "lr": 2e-3}
        return dataclasses.replace(self, **{name: value for name, value in own.items() if getattr(self, name) is None})


def fit_posterior(
    model: HasLogJoint | HasSimulate | None = None,
    x: Any = None,
    *,
    simulations: Any = None,
    support: Support | Constraint | Mapping[str, Any] = constraints.real,
    dim: int | None = None,
    objective: str = "auto",
    architecture: Architecture = Architecture(),
    training: Training = Training(),
    num_simulations: int | None = None,
    embedding: nn.Module | None = None,
    missing: str | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
    checkpoint: str | Path | None = None,
) -> FittedPosterior:
    """Train a diffusion posterior of a user-defined model.

    For a model with `simulate` the posterior accepts any data of the simulations' shape. It is trained on simulations: first the Gaussian of
    the encoder for a quarter of the steps, then the chain in its frame (docs/method.md, section 7). If the model also has `log_joint`, the
    evidence bound at `x` (at simulated data if `x` is None) is trained at the same time.

    With `num_simulations` the simulator is called once. A chain without `log_joint`, without an embedding and without entries hidden at random is
    then made for few simulations, as it is with `simulations` of up to 256 MiB. A tenth of them is held out: its loss ends the training and
    chooses the weights, an average over the steps. The chain starts from a ridge regression, several chains are averaged into one, and sizes,
    rate and number of steps follow from the number of simulations.

    Rows of data `x` are what the posterior is for: its frame and its chain are trained by their evidence bound, on a random part of them in
    each step, and by default all steps of a short chain see the gradient of `log_joint` (`Architecture.informed_steps`). For up to 32 parameters
    that gradient also updates the frame of each row (`Architecture.frame_updates`), which costs most of the training. Such rows may lie outside
    of what the model simulates, as real images do for a fixed decoder.

    For a model with `log_joint` only the posterior is that of the single data set `x`. It is trained by the evidence bound, and from half of
    the steps on also by its own importance-weighted samples, which widen it where the bound (reverse KL) leaves it too narrow. Modes without
    any sample remain missing, and `importance_sample` cannot detect them.

    Args:
        model: Object with `log_joint(x, z)`, `simulate(n)` or both (see `Model`, `HasLogJoint`, `HasSimulate`). None is enough with `simulations`.
        x: Observed data. For a model with `simulate`, one data set [...] in the shape of a simulation, rows of them [M, ...], or None;
            otherwise the argument of its `log_joint`.
        simulations: Simulations that were made before, in place of those of `simulate`: a folder with `z.npy` and `x.npy`, or a pair `(z, x)` of
            arrays, see `StoredSimulations`. They may be larger than memory. Each is used once before any is used again. Default: None.
        support: Constraints of the parameters, see `Support`. Default: real numbers.
        dim: Length of the parameter vector (int), for parameters without names. Default: that of the simulations.
        objective: ``bound``, ``simulations`` or ``both``. Default: ``auto``, everything that the model allows.
        architecture: Posterior family and sizes of the networks. Default: `Architecture()`.
        training: Number of steps, batch size and learning rate. Default: `Training()`.
        num_simulations: Number of simulations, drawn once in one call (int, at least 2). Default: new simulations at every step.
        embedding: Network from data [N, ...] to features [N, P], trained with the posterior. Default: data are flattened. `SetEmbedding` is one
            for several independent observations, in any number.
        missing: Which entries of the data may be missing, that is NaN: ``random`` for any of them, whose absence says nothing about the
            parameters, or ``simulated`` for those that `simulate` makes NaN. With ``random`` the training hides entries of the simulations: none
            in a quarter of them, and in the others a random share between none and all. Such a fit is one to simulations. An embedding gets data
            [N, C, ...] as [N, 2 C, ...]: the values, 0 where one is missing, then 1 where one is missing. Default: None, and NaN is refused.
        seed: Seed of initial weights and all random numbers (int, default 0).
        device: Device of the training (default CPU).
        progress: Show the progress on standard error (bool, default False): a bar on a terminal (with rich) or in a notebook, lines elsewhere.
        checkpoint: Folder in which the state of the training is kept, written twenty times in each stage. A call with the same arguments and
            folder goes on from there, and returns bit for bit what a call without interruption would; one that has ended returns at once.
            Simulations of `num_simulations` are kept too. Default: None, and nothing is written.

    Returns:
        The fitted posterior, in evaluation mode.

    Raises:
        InputError: If the model lacks a method that the objective needs, if shapes do not fit, if values are not finite, if a setting of the
            architecture would have no effect, or if `checkpoint` is the folder of a fit with other arguments.

    Example:
        >>> from ddvi_fast.inference import Model
        >>> def simulate(n):  # a coin of unknown bias, tossed 10 times
        ...     bias = torch.rand(n, 1)
        ...     return bias, torch.binomial(torch.full((n, 1), 10.0), bias)
        >>> posterior = fit_posterior(
        ...     Model(simulate=simulate), torch.tensor([7.0]), support=constraints.unit_interval, training=Training(steps=20, batch_size=64)
        ... )
        >>> posterior.sample(5).shape, posterior.sample(5, x=torch.tensor([[2.0], [9.0]])).shape
        (torch.Size([5, 1]), torch.Size([5, 2, 1]))
    """
    missing, device, seed = chosen(missing), _checks.device(device), _checks.integer(seed, "seed")
    stored = None if simulations is None else StoredSimulations(simulations)
    if stored is not None:
        _checks.require(num_simulations is None, "num_simulations", "None, for simulations that were made before", num_simulations)
        model = StoredModel(stored, model if offers(model, "log_joint") else None)
        dim = stored.dim if dim is None and not stored.named and not isinstance(support, (Mapping, Support)) else dim
    objective = _chosen("simulations" if missing and objective == "auto" else objective, model)
    alone = "simulations, for data with missing entries, which log_joint does not describe"
    _checks.require(missing is None or objective == "simulations", "objective", alone, objective)
    sets = isinstance(embedding, SetEmbedding)
    _checks.require(missing is None or not sets, "missing", "None, for sets of observations", missing, "leave out observations")
    for argument, value, kind in (("architecture", architecture, Architecture), ("training", training, Training)):
        _checks.instance(value, kind, argument, f"an {kind.__name__}" if kind is Architecture else "a Training")
    require_embedding(embedding)
    _check_methods(model, objective)
    used = "log_joint of any data" if objective == "bound" else "log_joint"
    for name, number in architecture.looks().items():
        _checks.require(number == 0 or objective == "both", "architecture", f"{name}=0 for a fit without {used}", number)
    if objective == "bound":
        for argument, value in (("num_simulations", num_simulations), ("embedding", embedding)):
            _checks.require(value is None, argument, "None, for a fit to log_joint alone", value)
    require_effect(architecture, for_any_data=objective != "bound")
    settings = {"objective": objective, "architecture": dataclasses.asdict(architecture), "training": dataclasses.asdict(training), "seed": seed}
    folder = None if checkpoint is None else _checks.path(checkpoint, "checkpoint")
    recorder = Recorder(_checks.flag(progress, "progress"), folder, {**settings, "num_simulations": num_simulations, "missing": missing})
    request = _Request(model, _checks.out_of_inference(x), architecture, training, seed, device, recorder)
    # Simulators, embeddings and densities may draw from global generators, and the caller may be inside torch.no_grad, inference_mode or
    # autocast.
    with torch.inference_mode(False), torch.enable_grad(), without_callers_autocast(), seeded(Draws(seed).lane("looked_at").importance(1), device):
        if objective == "bound":
            fitted = request.for_one_data_set(_support_to_save(_support(support, dim)))
        else:
            _checks.require(stored is None or not sets, "simulations", "None, for sets of observations", simulations)
            once = "None, for sets of observations: all simulations of one call have the same number of them"
            _checks.require(not sets or num_simulations is None, "num_simulations", once, num_simulations)
            budget = None if num_simulations is None else _checks.integer(num_simulations, "num_simulations", 2)
            source = model if budget is None else _drawn_once(model, budget, seed, device, recorder)
            simulator = Simulator(source, _support_to_save(_support(support, dim, source)), budget, seed, device, sets, missing)
            fitted = request.for_any_data(simulator, embedding, with_bound=objective == "both")
    for notice in fitted.notices:
        tell(notice)
    return fitted


def _drawn_once(model: HasSimulate, count: int, seed: int, device: torch.device, recorder: Recorder) -> Model:
    """A model with `count` simulations, drawn in one call, of which `simulate(n)` returns the first n: the simulator is not called again."""
    z, x = _kept(recorder, lambda: simulate(model, count, Draws(seed), device))

    def first(value: Any, n: int) -> Any:
        if isinstance(value, Mapping):
            return {name: first(part, n) for name, part in value.items()}
        return value[:n] if isinstance(value, Tensor) and n < count else value  # what is no tensor is refused where it is used

    return Model(simulate=lambda n: (first(z, n), first(x, n)))


def _kept(recorder: Recorder, draw: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
    """The simulations of `draw`, or those that the recorder has kept."""

    def make() -> dict[str, Tensor]:
        z, x = draw()
        return {"x": x, **({f"z.{name}": part for name, part in z.items()} if isinstance(z, Mapping) else {"z": z})}

    parts = recorder.kept("simulations", make)
    if "z" in parts:
        return parts["z"], parts["x"]
    return {name.removeprefix("z."): part for name, part in parts.items() if name != "x"}, parts["x"]


def _support_to_save(support: Support) -> Support:
    """The support, with a warning if `save` will refuse it."""
    try:
        support.state()
    except _checks.InputError as error:
        tell(f"{str(error).split(':')[0]}: cannot be saved, so that save will refuse the posterior")
    return support


def _chosen(objective: str, model: Any) -> str:
    """Resolve ``auto`` and require the methods that the objective needs."""
    _checks.choice(objective, OBJECTIVES, "objective")
    density, simulations = offers(model, "log_joint"), offers(model, "simulate")
    _checks.require(density or simulations, "model", "an object with log_joint(x, z) or simulate(n)", type(model).__name__)
    if objective == "auto":
        return "both" if density and simulations else "bound" if density else "simulations"
    _checks.require(density or objective == "simulations", "model", f"log_joint(x, z), for objective={objective}", "none")
    _checks.require(simulations or objective == "bound", "model", f"simulate(n), for objective={objective}", "none")
    return objective


def _check_methods(model: Any, objective: str) -> None:
    """Require that the methods that the objective needs take their arguments."""
    for name, arguments, needed in (("log_joint", "x, z", objective != "simulations"), ("simulate", "n", objective != "bound")):
        try:
            if needed:
                signature = inspect.signature(getattr(model, name))
                signature.bind(*arguments.split(", "), **({"draws": None} if name == "simulate" and "draws" in signature.parameters else {}))
        except ValueError:  # a function in C without a signature
            continue
        except TypeError as error:
            _checks.fail("model", f"{name}({arguments})", str(error))


def _support(support: Any, dim: int | None, simulated: Any = None) -> Support:
    """Return the support, made from a constraint and a length if it is not one; the length can come from simulations of the model `simulated`."""
    if isinstance(support, Support):
        _checks.require(dim is None or dim == support.dim, "dim", f"{support.dim}, the length of the support's vector, or None", dim)
        return support
    if dim is None and simulated is not None and not isinstance(support, Mapping):
        z, _ = simulate(simulated, 2, Draws(0))
        if isinstance(z, Mapping):
            _checks.fail("support", f"a mapping with {', '.join(map(str, z))}, the parameters of simulate", support)
        _checks.require(_checks.tensor(z, "simulate, z").dim() == 2, "simulate, z", "parameters [2, D] of 2 simulations, or named ones", z)
        dim = z.shape[1]
    return Support(support, dim)


@dataclass(frozen=True)
class _Request:
    """Arguments of `fit_posterior` that both kinds of fits use."""

    model: Any
    x: Any
    architecture: Architecture
    training: Training
    seed: int
    device: torch.device
    recorder: Recorder

    def for_one_data_set(self, support: Support) -> FittedPosterior:
        whitening = self._start(support)
        architecture = self.architecture.settled()
        posterior = build(architecture, support.dim, None, self.seed).to(self.device)
        flat, names = FlatModel(self.model, support, whitening), support.coordinates()
        lost = unfinished(flat, self.x, self.seed)
        goal = EvidenceBound(posterior, flat, self.x, self.training.settled().batch_size)
        history = self._train(goal, "posterior")
        fitted = FittedPosterior(posterior, support, whitening, architecture, conditional=False, model=self.model, x=self.x)
        fitted.history = history
        if lost.any():
            fitted.notices = [f"log_joint: the Gaussian from which the fit starts did not find {listed(lost, names)}; bring parameters to order 1"]
        fitted.notices += coarse(support, fitted._unconstrained(_STANDARDIZING, fitted._rows(None)[0], self.seed)[:, 0], "log_joint")
        return fitted

    def _start(self, support: Support) -> Whitening:
        """The Gaussian approximation from which the fit to one data set starts."""
        correlated = self.architecture.family != "gaussian"  # the mean field has no correlations

        def make() -> dict[str, Tensor]:
            made = gaussian_start(self.model, self.x, support, self.seed, self.device, correlated)
            return {"shift": made.shift, "factor": made.factor}

        start = self.recorder.kept("start", make)
        whitening = Whitening(start["shift"].to(self.device), start["factor"].to(self.device))
        points = rng.normal(Draws(self.seed), (_POINTS, support.dim), rng.START, device=self.device)
        flat = FlatModel(self.model, support, whitening)
        with seeded(Draws(self.seed), self.device):
            self.recorder.require_same("density", lambda: {"log_joint": flat.log_joint(self.x, points)})
        return whitening

    def _train(self, objective: Objective, name: str, share: float = 1.0) -> list[float]:
        """Train for a share of the steps and return the mean loss over each twentieth of them."""
        settings = self.training.settled()
        fit = Fit(max(1, int(share * settings.steps)), settings.batch_size, settings.lr, settings.max_norm, self.seed)
        return twentieths(fit.train(objective, self.device, self.recorder, name))

    def for_any_data(self, simulator: Simulator, embedding: nn.Module | None, with_bound: bool) -> FittedPosterior:
        looked_at, may_miss = Draws(self.seed).lane("looked_at"), simulator.missing is not None
        support, first = simulator.support, simulator.look(_STANDARDIZING, looked_at)
        shape, names = data_shape(first.x, embedding), support.coordinates()
        if isinstance(embedding, SetEmbedding):
            embedding.standardize(first.x)
        observed, many = (None, False) if self.x is None else observed_rows(self.x, shape, may_miss)
        observed = None if observed is None else observed.to(self.device)
        self.recorder.require_same("looked at", lambda: {"parameters": first.u[:_POINTS], "data": first.x[:_POINTS]})
        if with_bound and observed is not None:
            self.recorder.require_same("observed", lambda: {"rows": observed})
        _checks.require(not with_bound or observed is None or len(observed) >= 1, "x", "at least one row, for the evidence bound", observed)
        many = many and with_bound
        # With an embedding, which is trained with the chain, or entries hidden at random there are no fixed features to start from.
        fixed = self.architecture.family == "diffusion" and embedding is None and not with_bound and simulator.missing != "random"
        few = isinstance(self.model, StoredModel) and self.model.stored.in_memory
        stored = (simulator.budget or (len(self.model.stored) if few else None)) if fixed else None
        members = self.architecture.ensemble
        one = stored is not None or members in (None, 1)
        _checks.require(
            one,
            "architecture",
            "ensemble=1 for a fit without a fixed number of simulations, or with log_joint, an embedding or missing=random",
            members,
        )
        architecture = self.architecture.settled(many, support.dim, stored)
        require_resolved(support, first.u)
        of_u, of_x = self.model.stored.moments(support, may_miss) if isinstance(self.model, StoredModel) else (None, None)
        # The features of sets change with the number of observations, which is one number in each call.
        sizes = [simulator.look(_STANDARDIZING, looked_at.importance(2 + place)).x for place in range(_SIZES if simulator.sets else 0)]
        observation = Observation.of(first.x, _in_training(embedding, self.device), observed if many else None, may_miss, of_x, sizes)
        if embedding is not None:
            require_apart(embedding, first.x, may_miss)
        whitening = Whitening.of(first.u, names, of_u)
        if stored is not None:
            return self._of_stored(simulator, stored, first, architecture, observation, whitening, shape)
        density = self._density(support, whitening, first, observed) if with_bound else None
        posterior = build(architecture, support.dim, observation, self.seed).to(self.device)
        if any(architecture.looks().values()):
            posterior.inform(RowTarget(density))
        rows = None if density is None or observed is None else self._rows_of_bound(observed, posterior)
        self._fit_frame(posterior, whitening, simulator, density if many else None, rows if many else None)
        fewer = _INFORMED_SHARE * _samples_of_a_row(posterior) if architecture.frame_updates else 1
        # The bound of a chain does not reach the encoder of an updated frame.
        training = self.training.settled()
        start = Rows(observed, training.batch_size) if many and architecture.frame_updates else None
        goal = Simulated(posterior, whitening, simulator, max(1, training.batch_size // fewer), density, rows, start)
        history = self._train(goal, "posterior")
        fitted = FittedPosterior(
            posterior, support, whitening, architecture, conditional=True, model=self.model, x=self.x, data_shape=shape, missing=simulator.missing
        )  # fmt: skip
        return self._with_notices(fitted, goal, first, history, observation, shape)

    def _with_notices(
        self, fitted: FittedPosterior, goal: Simulated, first: Simulations, history: list[float], observation: Observation,
        shape: tuple[int | None, ...],
    ) -> FittedPosterior:  # fmt: skip
        """The posterior with its history of losses, and with what there is to tell about it."""
        gained = goal.information(first, Draws(self.seed).lane("looked_at"))
        uninformed = f"loss: {history[-1]:.3f} nats, that of the prior: data do not narrow the posterior, or the training was too short for it"
        told = [*observation.notices(column_names(shape)), *spreads(fitted.support, first.u), *([] if gained > 0 else [uninformed])]
        fitted.history, fitted.information, fitted.notices = history, gained, told
        return fitted

    def _of_stored(
        self, simulator: Simulator, count: int, first: Simulations, architecture: Architecture, observation: Observation, whitening: Whitening,
        shape: tuple[int | None, ...],
    ) -> FittedPosterior:  # fmt: skip
        """The posterior that `count` simulations give."""
        support, training, stored = simulator.support, self.training.settled(count), simulator.all(count, Draws(self.seed))
        fit = Fit(training.steps, training.batch_size, training.lr, training.max_norm, self.seed)
        y = whitening.inverse(stored.u)
        posterior, whole, losses = fit_chain(architecture, support.dim, observation.to(self.device), y, stored.x, fit, self.device, self.recorder)
        fitted = FittedPosterior(
            posterior, support, whitening, whole, conditional=True, model=self.model, x=self.x, data_shape=shape, missing=simulator.missing
        )  # fmt: skip
        goal = Simulated(posterior, whitening, simulator, training.batch_size)
        return self._with_notices(fitted, goal, first, twentieths(losses), observation, shape)

    def _density(self, support: Support, whitening: Whitening, first: Simulations, observed: Tensor | None) -> FlatModel:
        """The density of the model, which is known to have a gradient."""
        rows = as_needed((first.x if observed is None else observed)[:_CHECKED])
        u = first.u[: len(rows) * _CHECKED].reshape(-1, len(rows), support.dim).to(rows.dtype)
        require_gradient(self.model, rows, support, u)
        return FlatModel(self.model, support, whitening)

    def _rows_of_bound(self, observed: Tensor, posterior: Posterior) -> Rows:
        """Rows and samples of the bound: fewer where each of them costs several passes of the model."""
        sees_model = isinstance(posterior, Diffusion) and posterior.sees_model
        return Rows(observed, max(1, self.training.settled().batch_size // (_INFORMED_SHARE if sees_model else 1)), _samples_of_a_row(posterior))

    def _fit_frame(self, posterior: Posterior, whitening: Whitening, simulator: Simulator, density: FlatModel | None, rows: Rows | None) -> None:
        """Fit the encoder's frame for a fraction of the steps; a chain that does not see the model is then trained in the frozen frame."""
        goal = FrameFit(posterior, whitening, simulator, self.training.settled().batch_size, density, rows)
        self._train(goal, "frame", _FRAME_STEPS)
        if isinstance(posterior, Diffusion) and not posterior.sees_model:
            posterior.encoder.requires_grad_(False).eval()


def _samples_of_a_row(posterior: Posterior) -> int:
    """Samples for each row of the bound: so many that the updates of its frame cost no more than about twice their steps."""
    if not isinstance(posterior, Diffusion) or not posterior.frame_updates:
        return 1
    return max(1, posterior.latent_dim * posterior.frame_updates // (1 + posterior.informed_steps))


def _in_training(embedding: nn.Module | None, device: torch.device) -> nn.Module | None:
    """The embedding on the device, in training mode; one without parameters to train keeps its mode."""
    if embedding is None:
        return None
    trained = any(parameter.requires_grad for parameter in embedding.parameters())
    return embedding.to(device).train(trained or embedding.training)


def twentieths(losses: Tensor) -> list[float]:
    """Return the means over the twentieths of all steps."""
    return [float(part.mean()) for part in losses.tensor_split(min(_HISTORY, len(losses)))]
