"""The chain of a guide: a diffusion posterior inside a learned affine map, whose noise is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from ddvi_fast import ops, rng
from ddvi_fast._backend import use_backend
from ddvi_fast.inference.start import Ellipsoid
from ddvi_fast.posteriors import Diffusion
from ddvi_fast.rng import Draws

RATE = 0.02  # learning rate of the chain's weights, in units of that of the affine map


class GuideChain(nn.Module):
    """Samples `u = shift + factor y` of a chain `y`, and the log-densities of their paths.

    The rates of 0.01 to 0.05 that are usual for guides fit the affine map, but are too large for a network. The parameters are therefore
    fifty times the changes of the network's weights.

    Args:
        posterior: The chain, a posterior of one data set.
        ellipsoid: The affine map.
    """

    def __init__(self, posterior: Diffusion, ellipsoid: Ellipsoid) -> None:
        super().__init__()
        # The encoder's frame is an affine map too, and stays the identity.
        trained = [name for name, _ in posterior.named_parameters() if not name.startswith("encoder.")]
        self.changes = nn.ParameterDict({name.replace(".", "-"): torch.zeros_like(posterior.get_parameter(name)) for name in trained})
        self.posterior, self.ellipsoid = _constant(posterior), ellipsoid

    @property
    def latent_dim(self) -> int:
        """Number of unconstrained latents, D."""
        return self.posterior.latent_dim

    def path(self, count: int) -> Tensor:
        """Draw `count` paths [T + 1, count, 1, D], the noisiest state first, with noise from torch's generator."""
        like = self.ellipsoid.shift
        # A traced function draws it anew in each call, unlike noise that is a function of a number.
        noise = torch.randn(self.posterior.denoiser.num_steps + 1, count, 1, self.latent_dim, dtype=like.dtype, device=like.device)
        return self._run(noise, return_trajectory=True).trajectory

    def value(self, path: Tensor) -> Tensor:
        """Return the unconstrained latents [count, D] at the end of paths."""
        return self.ellipsoid(path[-1, :, 0])

    def log_prob(self, path: Tensor) -> Tensor:
        """Compute the log-density [count] of paths in nats, less that of their noising, with the chain's weights as constants.

        The gradient reaches these weights through the path alone. The rest of it has mean 0, and its noise would not vanish where the guide is
        exact (Roeder et al. 2017).
        """
        with self._changed(constant=True):
            ratio = self.posterior(self._nothing(), path)
        return -ratio[:, 0] - self.ellipsoid.log_scale.sum()

    @torch.no_grad()
    def deviations(self, count: int) -> Tensor:
        """Draw samples less `shift` [count, D], in antithetic pairs of a fixed seed: those of an untrained chain have the median 0."""
        shape = (self.posterior.denoiser.num_steps + 1, count // 2, 1, self.latent_dim)
        noise = rng.normal(Draws(0), (shape[0] * shape[1], self.latent_dim), rng.START, device=self.ellipsoid.shift.device).reshape(shape)
        return self._run(torch.cat((noise, -noise), 1)).z[:, 0] @ self.ellipsoid.factor().T

    def _run(self, noise: Tensor, return_trajectory: bool = False) -> ops.ChainSample:
        """Run the chain from the last entry of `noise` [T + 1, count, 1, D]."""
        with self._changed():
            encoded = self.posterior.encode(self._nothing())
            return self.posterior.run(encoded, noise[-1], noise=noise[:-1], return_trajectory=return_trajectory)

    @contextmanager
    def _changed(self, constant: bool = False) -> Iterator[None]:
        """Give the posterior its changed weights in the context."""
        places = [(name, *_owner(self.posterior, name.replace("-", "."))) for name in self.changes]
        initial = [getattr(owner, leaf) for _, owner, leaf in places]
        try:
            for (name, owner, leaf), value in zip(places, initial, strict=True):
                change = self.changes[name]
                setattr(owner, leaf, value + RATE * (change.detach() if constant else change))
            with use_backend("reference") if torch.jit.is_tracing() else nullcontext():  # torch.jit cannot trace fused operators
                yield
        finally:
            for (_, owner, leaf), value in zip(places, initial, strict=True):
                setattr(owner, leaf, value)

    def _nothing(self) -> Tensor:
        """The data of a posterior without data, one row."""
        return self.ellipsoid.shift.new_zeros(1, 1)


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The part of a module that has the buffer `name`, and its name there."""
    part, _, leaf = name.rpartition(".")
    return module.get_submodule(part), leaf


def _constant(module: nn.Module) -> nn.Module:
    """Turn the parameters of a module into buffers, and return it."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())
    return module
