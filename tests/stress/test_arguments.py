"""Every argument of the public constructors and functions: what has no sense is refused in one line, and NumPy's numbers are numbers.

A specimen is a callable with valid arguments. The tests replace one argument at a time by values of a fixed pool, so that a parameter that is
added to a public name is tested without a word here; a public name without a specimen fails a test.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import constraints

from ddvi_fast import (
    DDVI,
    InputError,
    denoisers,
    inference,
    likelihoods,
    metrics,
    models,
    networks,
    objectives,
    ops,
    posteriors,
    priors,
    rng,
    schedules,
)
from ddvi_fast.parity import free_table, normals
from ddvi_fast.rng import Draws
from tests.class_models import exact_posterior
from tests.linear_gaussian import make_model
from tests.posteriors import families
from tests.stress.public import classes_of, functions_of

MODULES = ("denoisers", "likelihoods", "metrics", "models", "networks", "objectives", "ops", "posteriors", "priors", "rng", "schedules")
WORDS = ("", "nothing of the kind")
# Values that no argument of a number, a flag, a word or a size can take.
POOL: dict[str, Any] = {
    "text": "x y",
    "none": None,
    "object": object(),
    "list": [1, 2],
    "mapping": {"a": 1},
    "function": lambda *_: None,
    "complex": 1j,
    "nan": math.nan,
    "infinity": math.inf,
    "negative": -3,
    "half": 0.5,
    "huge": 10**30,
    "flag": True,
    "zero": 0,
    "tensor": torch.zeros(3, 1, 2),
    "no rows": torch.zeros(0, 2),
    "scalar": torch.tensor(1.0),
    "halves": torch.zeros(4, 2, dtype=torch.float16),
    "complex tensor": torch.zeros(4, 2, dtype=torch.complex64),
    "sparse": torch.zeros(4, 2).to_sparse(),
    "meta": torch.zeros(4, 2, device="meta"),
    "array": np.zeros((4, 2)),
    "bytes": b"x",
    "set": {1},
    "class": nn.Identity,
    "empty": [],
    "negatives": [-1],
    "zeros": [0],
    "nan and one": (math.nan, 1.0),
    "nothing": np.int64(0),
    "integers": torch.zeros(4, 2, dtype=torch.int64),
    "doubles": torch.zeros(4, 2, dtype=torch.float64),
    "module": nn.Identity(),
}


class Specimen(NamedTuple):
    call: Callable[..., Any]
    given: dict[str, Any]
    # Arguments whose values are the caller's own affair: any object that does what is asked of it.
    free: tuple[str, ...] = ()


def _mlp(inputs: int, outputs: int) -> networks.MLP:
    return networks.MLP(inputs, [4], outputs)


def _posteriors() -> dict[str, Specimen]:
    model, chain = make_model(), denoisers.ResidualMLP(2, 3, 4, 8)
    flow = {"encoder": _mlp(3, 4), "context_encoder": _mlp(3, 3), "latent_dim": 2, "context_dim": 3}
    small = {"hidden_dim": 8, "num_steps": 2}
    diffusion = {"encoder": _mlp(3, 4), "denoiser": chain, "schedule": schedules.make("cosine", 4), "context_encoder": _mlp(3, 3)}
    drift = {"encoder": _mlp(3, 2), "denoiser": chain, "context_encoder": _mlp(3, 3)}
    return {
        "Adversarial": Specimen(posteriors.Adversarial, {"encoder": _mlp(3, 5), "latent_dim": 2, "context_dim": 3, "noise_dim": 2, "hidden_dim": 8}),
        "Diffusion": Specimen(posteriors.Diffusion, {**diffusion, "eta": 1.0, "parametrisation": "v", "learn_variances": False}),
        "FullGaussian": Specimen(posteriors.FullGaussian, {"encoder": _mlp(3, 4), "context_encoder": _mlp(3, 1), "latent_dim": 2}),
        "Gaussian": Specimen(posteriors.Gaussian, {"encoder": _mlp(3, 4), "latent_dim": 2, "coordinates": "latent"}),
        "Hamiltonian": Specimen(posteriors.Hamiltonian, {**flow, **small, "model": model, "num_leapfrog": 1, "step_size": 0.1, "max_force": 9.0}),
        "HierarchicalIAF": Specimen(posteriors.HierarchicalIAF, {**flow, **small, "num_levels": 2, "open_gates": True}),
        "IAF": Specimen(posteriors.IAF, {**flow, "num_steps": 2, "open_gates": True, "draws": Draws(1)}),
        "PathIntegral": Specimen(posteriors.PathIntegral, {**drift, "first_scale": 0.3}),
        "Planar": Specimen(posteriors.Planar, {**flow, "num_steps": 2}),
        "RealNVP": Specimen(posteriors.RealNVP, {**flow, **small}),
        "Spline": Specimen(posteriors.Spline, {**flow, **small, "num_bins": 4}),
        "Posterior": Specimen(posteriors.Posterior, {"coordinates": "latent", "prior": None}),
    }


def _objectives() -> dict[str, Specimen]:
    model = make_model()
    pair = {"model": model, "posterior": families.gaussian(model)}
    bound, sleep = objectives.ELBO(**pair), objectives.Sleep(top_weight=0.0)
    implicit = {"model": model, "posterior": families.gaussian(model)}
    return {
        "Adversarial": Specimen(objectives.Adversarial, {**implicit, "discriminator": _mlp(2, 1), "weight": 1.0}),
        "Covering": Specimen(objectives.Covering, {**pair, "x": normals(3, 6, 3), "num_rows": 2, "num_steps": 1, "weight": 1.0}),
        "DDVI": Specimen(objectives.DDVI, {"wake": bound, "sleep": sleep}),
        "ELBO": Specimen(objectives.ELBO, {**pair, "num_samples": 2, "reweighted": False}),
        "IWAE": Specimen(objectives.IWAE, {**pair, "num_samples": 2, "doubly_reparametrised": False}),
        "KLSchedule": Specimen(objectives.KLSchedule, {"kind": "linear", "weight": 1.0, "fraction": 0.4, "hold": 0.0, "whole_epochs": False}),
        "Objective": Specimen(objectives.Objective, {}),
        "PriorGuide": Specimen(objectives.PriorGuide, {"blur": 0.3, "fraction": 0.6}),
        "Sleep": Specimen(objectives.Sleep, {"weight": 0.2, "loss": "kl", "num_updates": 1, "batch_factor": 1, "timesteps": 1, "candidates": 4}),
        "WAE": Specimen(objectives.WAE, {**implicit, "weight": 10.0, "sigmas": (1.0, 2.0)}),
        "WakeSleep": Specimen(objectives.WakeSleep, {"wake": bound, "sleep": sleep}),
        "kl_weight": Specimen(objectives.kl_weight, {"kind": "linear", "epoch": 0, "epochs": 2, "weight": 1.0, "fraction": 0.4, "hold": 0.0}),
    }


def _ops() -> dict[str, Specimen]:
    rows, chain = normals(1, 4, 2), denoisers.ResidualMLP(2, 2, 3, 64)
    pair, t, schedule = {"mean": rows, "log_var": rows}, torch.zeros(4, dtype=torch.int64), schedules.make("cosine", 3)
    network = {"context": rows, "denoiser": chain, "coefficients": free_table(3)}
    step = {"x0": rows, "t": t, "context": rows, "denoiser": chain, "draws": Draws(0), "loss": "squared"}
    return {
        "add_noise": Specimen(ops.add_noise, {"x0": rows, "t": t, "schedule": schedule, "draws": Draws(0)}),
        "bernoulli_log_likelihood": Specimen(ops.bernoulli_log_likelihood, {"logits": rows, "x": rows}),
        "binomial_log_likelihood": Specimen(ops.binomial_log_likelihood, {"logits": rows, "counts": rows.abs().round(), "total": 2}),
        "denoising_loss": Specimen(ops.denoising_loss, {**step, "schedule": schedule, "parametrisation": "v"}),
        "gaussian_kl": Specimen(ops.gaussian_kl, pair),
        "gaussian_log_likelihood": Specimen(ops.gaussian_log_likelihood, {"mean": rows, "x": rows, "scale": 0.5}),
        "gaussian_log_prob": Specimen(ops.gaussian_log_prob, {"z": rows, **pair}),
        "kde_log_density": Specimen(ops.kde_log_density, {"z": rows, "points": rows, "bandwidths": (0.5,), "clamp": 6.0}),
        "log_mean_exp": Specimen(ops.log_mean_exp, {"log_weights": rows, "dim": 0}),
        "mmd": Specimen(ops.mmd, {"x": rows, "y": rows, "sigmas": (1.0,)}),
        "regression": Specimen(ops.regression, {**step, "table": schedule.regression_table("v")}),
        "sample_chain": Specimen(ops.sample_chain, {"y_T": rows, **network, "draws": Draws(0)}),
        "trajectory_log_ratio": Specimen(ops.trajectory_log_ratio, {"trajectory": normals(1, 4, 4, 2), **network}),
    }


def _metrics() -> dict[str, Specimen]:
    model = make_model()
    bound = {"model": model, "posterior": families.gaussian(model), "x": normals(1, 4, 3)}
    rows, labels, partition = normals(1, 4, 2), torch.tensor([0, 1, 0, 1]), {"labels": [0, 1, 1], "clusters": [1, 1, 0]}
    return {
        "accuracy": Specimen(metrics.accuracy, {"labels": labels, "predicted": labels}),
        **{name: Specimen(getattr(metrics, name), partition) for name in ("cluster_scores", "completeness", "nmi", "purity")},
        "elbo": Specimen(metrics.elbo, {**bound, "num_samples": 2, "draws": Draws(0)}),
        "elbo_released": Specimen(metrics.elbo_released, {**bound, "log_var_twice": False}),
        "encode": Specimen(metrics.encode, {"posterior": bound["posterior"], "x": bound["x"]}),
        "iwae_bound": Specimen(metrics.iwae_bound, {**bound, "num_samples": 2}),
        "knn_accuracy": Specimen(
            metrics.knn_accuracy, {"train_latents": rows, "train_labels": labels, "latents": rows, "labels": labels, "neighbours": 2}
        ),
        "latent_nll": Specimen(metrics.latent_nll, {"latents": rows, "prior_samples": rows, "bandwidths": (0.5,)}),
        "mmd": Specimen(metrics.mmd, {"samples": rows, "data": rows, "sigmas": (1.0,)}),
    }


@functools.cache
def specimens() -> dict[str, Specimen]:
    """A specimen of every public constructor and function, by ``module.name``."""
    model, mlp = make_model(), _mlp(2, 3)
    by_module = {
        "denoisers": {
            "ResidualMLP": Specimen(
                denoisers.ResidualMLP,
                {"latent_dim": 2, "context_dim": 0, "num_steps": 3, "hidden_dim": 8, "groups": 2, "residual": False, "time_features": 2},
            ),
        },
        "likelihoods": {
            "Bernoulli": Specimen(likelihoods.Bernoulli, {}),
            "Binomial": Specimen(likelihoods.Binomial, {"total": 2}),
            "Gaussian": Specimen(likelihoods.Gaussian, {"scale": 0.5, "learn_scale": True, "value_range": (0.0, 1.0), "width": 3}),
            "make": Specimen(likelihoods.make, {"name": "gaussian", "scale": 0.5}),
        },
        "metrics": _metrics(),
        "models": {
            "LatentVariableModel": Specimen(models.LatentVariableModel, {"prior": model.prior, "decoder": mlp, "likelihood": model.likelihood})
        },
        "networks": {
            "BatchNorm": Specimen(networks.BatchNorm, {"channels": 2, "momentum": 0.1}),
            "ConvDecoder": Specimen(networks.ConvDecoder, {"latent_dim": 2}),
            "ConvEncoder": Specimen(networks.ConvEncoder, {"outputs": 2, "hidden": (4,), "dropout": 0.1, "value_range": (0.0, 1.0)}),
            "MLP": Specimen(networks.MLP, {"inputs": 2, "hidden": (4,), "outputs": 2, "activation": "relu", "dropout": 0.1, "zero_output": False}),
            "NoisyInput": Specimen(networks.NoisyInput, {"network": mlp, "noise": 0.1, "dropout": 0.1}),
            "SigmoidVariances": Specimen(networks.SigmoidVariances, {"encoder": mlp, "latent_dim": 1}),
        },
        "objectives": _objectives(),
        "ops": _ops(),
        "posteriors": _posteriors(),
        "priors": {
            "Centres": Specimen(priors.Centres, {"base": priors.Gaussian(2), "num_centres": 3, "scale": 1.0, "learnable": True, "draws": Draws(0)}),
            "Gaussian": Specimen(priors.Gaussian, {"dim": 2, "scale": 1.0}),
            "Mixture": Specimen(priors.Mixture, {"means": torch.eye(2), "scale": 1.0, "num_classes": 2, "radius": 1.0, "learnable": False}),
            "OneHotGaussian": Specimen(priors.OneHotGaussian, {"style_dim": 2, "num_classes": 3}),
            "Pinwheel": Specimen(priors.Pinwheel, {"num_classes": 3, "radial_std": 0.1, "tangential_std": 0.1, "rate": 0.2}),
            "Pushforward": Specimen(priors.Pushforward, {"push": torch.sinh, "noise_dim": 2, "dim": 2, "num_classes": 3}, free=("push",)),
            "Square": Specimen(priors.Square, {"noise_level": 3.0, "num_classes": 3, "corner_width": 0.01}),
            "SwissRoll": Specimen(priors.SwissRoll, {"noise": 0.5, "num_classes": 3}),
            "make": Specimen(priors.make, {"name": "gaussian", "dim": 3}),
        },
        "rng": {
            "Draws": Specimen(rng.Draws, {"seed": 0, "first_index": 3}),
            **{name: Specimen(getattr(rng, name), {"draws": Draws(0), "shape": (2, 3), "stream": 1}) for name in ("normal", "uniform", "words")},
            "integers": Specimen(rng.integers, {"draws": Draws(0), "count": 3, "high": 5, "stream": 1}),
            "permutation": Specimen(rng.permutation, {"draws": Draws(0), "size": 3}),
        },
        "schedules": {"make": Specimen(schedules.make, {"name": "linear", "num_steps": 4, "kind": "vp", "rescale": False, "start": 0.1})},
    }
    return {f"{module}.{name}": specimen for module, found in by_module.items() for name, specimen in found.items()}


# Results of calls, base classes, and functions for files of this package that users have no need to call.
WITHOUT = {
    "denoisers.StepView",
    "likelihoods.Likelihood",
    "models.Fantasies",
    "networks.evaluation",
    "networks.fixed_statistics",
    "networks.frozen",
    "networks.linear",
    "networks.take_rows",
    "networks.uniform_",
    "networks.usual_defaults",
    "objectives.Progress",
    "objectives.Terms",
    "objectives.Update",
    "ops.ChainSample",
    "posteriors.PosteriorSample",
    "priors.Prior",
    "priors.PriorSample",
    "rng.DeviceDraws",
    "rng.Lane",
    "rng.Stream",
    "rng.formula",
    "rng.philox",
    "rng.samples",
    "rng.shuffled",
    "schedules.LearnedSchedule",
    "schedules.NoiseSchedule",
    "schedules.learned_betas",
}


def test_every_public_name_has_a_specimen():
    names = {f"{module}.{name}" for module in MODULES for name in (*classes_of(module), *functions_of(module))}
    assert names - WITHOUT == set(specimens())


def test_the_specimens_are_valid():
    for specimen in specimens().values():
        specimen.call(**specimen.given)


@pytest.mark.parametrize("name", sorted(set(specimens()) - {"likelihoods.Bernoulli", "objectives.Objective"}))
def test_nonsense_is_refused_in_one_line(name, forked_generator):
    specimen = specimens()[name]
    parameters = [argument for argument in inspect.signature(specimen.call).parameters if argument not in ("options", *specimen.free)]

    for argument, kind in itertools.product(sorted({*parameters, *specimen.given} - {"device", *specimen.free}), POOL):
        if kind == "huge" and isinstance(specimen.given.get(argument), int):
            continue
        try:
            specimen.call(**{**specimen.given, argument: POOL[kind]})
        except InputError as refused:
            assert "\n" not in str(refused) and len(str(refused)) < 600, refused
        except Exception as error:
            pytest.fail(f"{argument}, {kind}: {type(error).__name__}: {error}")
        else:
            numeric = kind == "nan" and isinstance(specimen.given.get(argument), float)
            assert kind not in ("object", "complex", "sparse", "bytes") and not numeric, f"{argument}, {kind}: accepted"


NUMBERS = sorted(
    (name, argument)
    for name, specimen in specimens().items()
    for argument, value in specimen.given.items()
    if isinstance(value, (int, float)) and not isinstance(value, bool)
)


@pytest.mark.parametrize(("name", "argument"), NUMBERS)
def test_numpy_numbers_are_numbers_and_flags_are_not(name, argument):
    specimen = specimens()[name]
    value = specimen.given[argument]
    specimen.call(**{**specimen.given, argument: np.asarray(value)[()]})
    with pytest.raises(InputError):
        specimen.call(**{**specimen.given, argument: np.asarray(value)[()] > -1})
    with pytest.raises(InputError):
        specimen.call(**{**specimen.given, argument: str(value)})


def test_class_conditional_posteriors_refuse_what_they_cannot_use(one_line):
    one_line(lambda: exact_posterior().sample(torch.zeros(2, 3), 1.5), "num_samples: expected an integer")


class _Coin:
    """A bias ~ U(0, 1), and its ten tosses."""

    def simulate(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        bias = torch.rand(n, 1)
        return bias, torch.binomial(torch.full((n, 1), 10.0), bias)


FITS = {
    "fit_posterior": Specimen(
        inference.fit_posterior,
        {"model": _Coin(), "x": torch.ones(1), "support": constraints.unit_interval, "training": inference.Training(1, 8),
         "architecture": inference.Architecture("gaussian", hidden=(4,)), "objective": "simulations", "dim": 1, "num_simulations": 64,
         "embedding": None, "seed": 0, "device": "cpu", "simulations": None, "missing": None, "progress": False,
         "checkpoint": None},
    ),
    "DDVI": Specimen(lambda **parameters: DDVI(**parameters).fit(_ROWS), {**DDVI(epochs=1, hidden=(4,), num_steps=2).get_params()}),
}  # fmt: skip
_ROWS = np.random.default_rng(0).normal(size=(8, 3))
# What an argument may be beside what it is in the specimen.
TAKEN = {
    ("fit_posterior", "x"): ("none", "half"), ("fit_posterior", "embedding"): ("none", "module"), ("fit_posterior", "dim"): ("none",),
    ("fit_posterior", "num_simulations"): ("none", "huge"), ("fit_posterior", "seed"): ("zero", "nothing"),
    ("fit_posterior", "simulations"): ("none",), ("fit_posterior", "missing"): ("none",), ("fit_posterior", "checkpoint"): ("none", "text"),
    ("fit_posterior", "progress"): ("flag",),
    ("DDVI", "random_state"): ("zero", "nothing", "none"), ("DDVI", "n_clusters"): ("none", "huge"), ("DDVI", "coordinates"): ("none",),
    ("DDVI", "num_steps"): ("none", "huge"), ("DDVI", "epochs"): ("none", "huge"), ("DDVI", "n_components"): ("huge",),
    ("DDVI", "n_principal"): ("huge",), ("DDVI", "n_samples"): ("huge",),
    ("DDVI", "batch_size"): ("none", "huge"), ("DDVI", "learning_rate"): ("none", "half", "huge", "scalar"),
    ("DDVI", "hidden"): ("list", "empty", "no rows"),
    ("DDVI", "settings"): ("empty", "no rows"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name, specimen in FITS.items() for argument in specimen.given if argument != "verbose"]
)
def test_arguments_of_fits(name, argument, forked_generator):
    """Everything but what an argument may be is refused in one line, before the fit."""
    specimen = FITS[name]
    assert specimen.given.keys() == {*(inspect.signature(inference.fit_posterior).parameters if name == "fit_posterior" else DDVI().get_params())}
    for kind in sorted(set(POOL) - set(TAKEN.get((name, argument), ()))):
        try:
            specimen.call(**{**specimen.given, argument: POOL[kind]})
        except InputError as refused:
            assert "\n" not in str(refused) and len(str(refused)) < 600, refused
        except Exception as error:
            pytest.fail(f"{kind}: {type(error).__name__}: {error}")
        else:
            pytest.fail(f"{kind}: accepted")


SETTINGS = {inference.Training: ("steps", "batch_size", "lr"), inference.Architecture: ("num_steps", "width", "context_dim", "start", "end")}


@pytest.mark.parametrize(("family", "argument"), [(family, argument) for family, arguments in SETTINGS.items() for argument in arguments])
def test_settings_of_a_fit(family, argument, one_line):
    for kind in ("text", "list", "nan", "negative", "flag", "zero", "complex", "object", *([] if getattr(family(), argument) is None else ["none"])):
        one_line(lambda kind=kind: family(**{argument: POOL[kind]}), argument)
    family(**{argument: np.asarray(getattr(family(), argument) or 3)[()]})
