"""Diffusion posterior as an automatic guide for stochastic variational inference in Pyro."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from ddvi_fast import _checks
from ddvi_fast.inference.networks import Architecture, build
from ddvi_fast.inference.start import SCALE, Ellipsoid
from ddvi_fast.pyro.chain import GuideChain

_QUANTILE_SAMPLES = 1 << 14  # samples, in antithetic pairs, of medians and quantiles


def _quantiles(samples: Tensor, places: Tensor) -> Tensor:
    """Quantiles [Q, D] of samples [N, D] by column; torch limits the size of one call."""
    return torch.stack([torch.quantile(column, places) for column in samples.unbind(1)], 1)


@functools.cache
def guide_class() -> type:
    """Return the class `AutoDDVI`; raise `InputError` if Pyro is not installed."""
    try:
        from pyro.distributions import TorchDistribution
        from pyro.infer.autoguide import AutoContinuous
        from pyro.infer.autoguide.initialization import init_to_median
    except ImportError as error:
        _checks.fail("ddvi_fast.pyro", "Pyro", " ".join(str(error).split()), "pip install 'ddvi-fast[pyro]'")

    class Chain(TorchDistribution):
        """Distribution of a chain's samples. `log_prob` is that of the path of the last sample and fails for other values."""

        arg_constraints = {}  # noqa: RUF012 - torch's name
        support = constraints.real_vector
        has_rsample = True

        def __init__(self, chain: GuideChain, batch_shape: tuple[int, ...] = ()) -> None:
            self.chain, self.last = chain, None
            super().__init__(torch.Size(batch_shape), torch.Size((chain.latent_dim,)), validate_args=False)

        def expand(self, batch_shape: Any, _instance: Any = None) -> Chain:
            return Chain(self.chain, tuple(batch_shape))

        def rsample(self, sample_shape: Any = ()) -> Tensor:
            shape = self._extended_shape(torch.Size(sample_shape))
            path = self.chain.path(math.prod(shape[:-1]))
            value = self.chain.value(path)
            self.last = value.reshape(shape), path
            return self.last[0]

        def log_prob(self, value: Tensor) -> Tensor:
            _checks.require(self.last is not None and value is self.last[0], "value", "the last sample, the only one whose density is known", value)
            return self.chain.log_prob(self.last[1]).reshape(value.shape[:-1])

        @property
        def mean(self) -> Tensor:
            """Mean of the samples, estimated as the guide's median is."""
            return (self.chain.ellipsoid.shift + self.chain.deviations(_QUANTILE_SAMPLES).mean(0)).expand(self._extended_shape())

        @property
        def variance(self) -> Tensor:
            """Variances of the samples, estimated as the guide's median is."""
            return self.chain.deviations(_QUANTILE_SAMPLES).var(0).expand(self._extended_shape())

    class AutoDDVI(AutoContinuous):
        """Automatic guide for `pyro.infer.SVI`: a diffusion posterior over all continuous latents of a Pyro model.

        The guide starts as a Gaussian around `init_loc_fn` and learns an affine map and a chain. Its loss under `Trace_ELBO` is the evidence
        bound of docs/method.md, section 2. Its gradient is that of the path (Roeder et al. 2017), without noise where the guide is exact. The
        guide does not depend on the model's arguments.

        Args:
            model: Pyro model with continuous latents.
            init_loc_fn: Initial location, as for Pyro's other guides.
            init_scale: Initial standard deviation of each unconstrained latent (float, default 0.1).
            architecture: Sizes of the chain, see `ddvi_fast.inference.Architecture`.
            seed: Seed of the initial weights (int, default 0). Samples follow `pyro.set_rng_seed`.

        Raises:
            InputError: If `init_scale` is not positive, or if the architecture is not a chain without informed steps.
        """

        def __init__(
            self, model: Any, init_loc_fn: Any = init_to_median, init_scale: float = SCALE, architecture: Architecture = Architecture(), seed: int = 0
        ) -> None:
            super().__init__(model, init_loc_fn=init_loc_fn)
            chain = architecture.family == "diffusion" and not any(architecture.looks().values())
            _checks.require(chain, "architecture", "family=diffusion without informed_steps", architecture)
            self.init_scale, self.architecture, self.seed = _checks.number(init_scale, "init_scale", above=0), architecture, seed

        def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
            super()._setup_prototype(*args, **kwargs)
            start = self._init_loc()
            posterior = build(self.architecture, self.latent_dim, None, self.seed).to(start)
            self.chain = GuideChain(posterior, Ellipsoid(start, correlated=True, scale=self.init_scale))

        def get_posterior(self, *args: Any, **kwargs: Any) -> Chain:
            return Chain(self.chain)

        def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            """Median and standard deviation [D] of the unconstrained latents."""
            deviations = self.chain.deviations(_QUANTILE_SAMPLES)
            return self.chain.ellipsoid.shift + _quantiles(deviations, deviations.new_tensor([0.5]))[0], deviations.std(0)

        @torch.no_grad()
        def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
            """Return the median of each latent, estimated with 16,384 samples of a fixed seed, by the name of its site."""
            return {name: values[0] for name, values in self.quantiles([0.5]).items()}

        @torch.no_grad()
        def quantiles(self, quantiles: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
            """Return quantiles of each latent, estimated as in `median`, by the name of its site.

            Args:
                quantiles: Probabilities between 0 and 1, a list or tensor [Q].

            Returns:
                Quantiles [Q, ...] of each unconstrained coordinate, in the latent's support.
            """
            deviations = self.chain.deviations(_QUANTILE_SAMPLES)
            places = torch.as_tensor(quantiles, dtype=deviations.dtype, device=deviations.device)
            found: dict[str, list[Tensor]] = {}
            for latent in self.chain.ellipsoid.shift + _quantiles(deviations, places):
                for site, value in self._unpack_latent(latent):
                    found.setdefault(site["name"], []).append(biject_to(site["fn"].support)(value))
            return {name: torch.stack(values) for name, values in found.items()}

    AutoDDVI.__module__, AutoDDVI.__qualname__ = "ddvi_fast.pyro", "AutoDDVI"
    return AutoDDVI
