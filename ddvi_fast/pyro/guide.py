"""Diffusion posterior as an automatic guide for stochastic variational inference in Pyro."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ddvi_fast import _checks
from ddvi_fast.inference.networks import Architecture, build
from ddvi_fast.inference.start import Ellipsoid
from ddvi_fast.posteriors import Posterior
from ddvi_fast.rng import Draws


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
        """Distribution of `u = shift + factor y`, `y` from a chain. `log_prob` is that of the path of the last sample and fails for other values."""

        arg_constraints = {}  # noqa: RUF012 - torch's name
        support = constraints.real_vector
        has_rsample = True

        def __init__(self, posterior: Posterior, ellipsoid: Ellipsoid, batch_shape: tuple[int, ...] = ()) -> None:
            self.posterior, self.ellipsoid, self.last = posterior, ellipsoid, None
            super().__init__(torch.Size(batch_shape), torch.Size((posterior.latent_dim,)), validate_args=False)

        def expand(self, batch_shape: Any, _instance: Any = None) -> Chain:
            return Chain(self.posterior, self.ellipsoid, tuple(batch_shape))

        def rsample(self, sample_shape: Any = ()) -> Tensor:
            shape, like = self._extended_shape(torch.Size(sample_shape)), self.ellipsoid.shift
            # Pyro seeds torch's generator, from which each call draws its own seed.
            draws = Draws(int(torch.randint(1 << 62, (), device="cpu")))
            sample = self.posterior.sample(like.new_zeros(1, 1), math.prod(shape[:-1]), draws)
            value = (self.ellipsoid.shift + sample.z[:, 0] @ self.ellipsoid.factor().T).reshape(shape)
            self.last = value, (-sample.log_ratio[:, 0] - self.ellipsoid.log_scale.sum()).reshape(shape[:-1])
            return value

        def log_prob(self, value: Tensor) -> Tensor:
            _checks.require(self.last is not None and value is self.last[0], "value", "the last sample, the only one whose density is known", value)
            return self.last[1]

    class AutoDDVI(AutoContinuous):
        """Automatic guide for `pyro.infer.SVI`: a diffusion posterior over all continuous latents of a Pyro model.

        The guide starts as a Gaussian of standard deviation 0.1 around `init_loc_fn` and learns an affine map and a chain. Its loss under
        `Trace_ELBO` is the evidence bound of docs/method.md, section 2. It does not depend on the model's arguments.

        Args:
            model: Pyro model with continuous latents.
            init_loc_fn: Initial location, as for Pyro's other guides.
            architecture: Sizes of the chain, see `ddvi_fast.inference.Architecture`.
            seed: Seed of the initial weights (int, default 0). Samples follow `pyro.set_rng_seed`.
        """

        def __init__(self, model: Any, init_loc_fn: Any = init_to_median, architecture: Architecture = Architecture(), seed: int = 0) -> None:
            super().__init__(model, init_loc_fn=init_loc_fn)
            self.architecture, self.seed = architecture, seed

        def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
            super()._setup_prototype(*args, **kwargs)
            start = self._init_loc()
            self.ellipsoid = Ellipsoid(start, correlated=True)
            self.chain = build(self.architecture, self.latent_dim, None, self.seed).to(start.device)

        def get_posterior(self, *args: Any, **kwargs: Any) -> Chain:
            return Chain(self.chain, self.ellipsoid)

    AutoDDVI.__module__, AutoDDVI.__qualname__ = "ddvi_fast.pyro", "AutoDDVI"
    return AutoDDVI
