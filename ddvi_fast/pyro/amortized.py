"""Diffusion posterior as a guide that looks at the data: local latents of a plate, beside any guide of the other latents."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import biject_to

from ddvi_fast import _checks
from ddvi_fast.inference.networks import Architecture, build
from ddvi_fast.inference.observation import require_embedding
from ddvi_fast.networks import frozen
from ddvi_fast.posteriors import Diffusion
from ddvi_fast.standardization import Columns


class Features(nn.Module):
    """Inputs of the encoders: standardized columns of the data, and other latents as they are.

    Args:
        x: Data of the first call, rows [N, P].
        others: Number of other latents behind the columns of the data (int).
    """

    def __init__(self, x: Tensor, others: int) -> None:
        super().__init__()
        columns = Columns.of(x)
        for name, value, rest in (("shift", columns.center, 0.0), ("scale", columns.scale, 1.0)):
            self.register_buffer(name, torch.cat((value, value.new_full((others,), rest))).to(x.dtype))

    @property
    def width(self) -> int:
        """Number of inputs."""
        return self.shift.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


class LocalChain(nn.Module):
    """Chain of local latents given features: samples `u = start + y` and the log-densities of their paths.

    Args:
        posterior: The chain, a posterior with data as input in the encoder's frame.
        start: Values around which the samples lie at first [D].
    """

    def __init__(self, posterior: Diffusion, start: Tensor) -> None:
        super().__init__()
        self.posterior = posterior
        self.register_buffer("start", start)

    def forward(self, features: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents [R, D] for features [R, C] and noise [T + 1, R, D], with the log-densities of their paths less that of the noising [R].

        The density has constant weights of the chain, so that their gradient is that of the path (Roeder et al. 2017). The path lies in the
        encoder's frame, of which the density has the scale only: the gradient of the noising from latents outside of the frame would have a noise
        of one over the deviation of its first step.
        """
        noise, encoded = noise.unsqueeze(1), self.posterior.encode(features)
        path = self.posterior.run(encoded, noise[-1], noise=noise[:-1], return_trajectory=True).trajectory
        with frozen(self.posterior):
            ratio = self.posterior.log_ratio(self.posterior.encode(features), path)
        u = self.posterior.unwhitened(encoded, path[-1])
        return self.start + u[0], -ratio[0] - self.posterior.log_scale(encoded)


@functools.cache
def amortized_class() -> type:
    """Return the class `AutoAmortizedDDVI`; raise `InputError` if Pyro is not installed."""
    try:
        import pyro
        from pyro import distributions, poutine
        from pyro.infer.autoguide import AutoGuide, init_to_median
        from pyro.infer.autoguide.initialization import InitMessenger
    except ImportError as error:
        _checks.fail("ddvi_fast.pyro", "Pyro", " ".join(str(error).split()), "pip install 'ddvi-fast[pyro]'")

    class AutoAmortizedDDVI(AutoGuide):
        """Automatic guide for local latents in a plate, one or more for each row of the data, by a diffusion posterior that looks at the row.

        The latents of the plate given a row and the latents outside of all plates follow one chain, whose networks are trained for all rows: the
        guide serves subsamples of the plate, and new rows within the range of those that it was trained on; farther out its posteriors are too
        wide. All other latents have a guide of their own, which a subsampled plate trains slowly. As for other guides with networks, learning
        rates of 1e-3 to 5e-3 are right.

        Args:
            model: Pyro model with continuous latents, some of them in a plate of dimension -1.
            inputs: Function of the model's arguments that returns what the guide looks at, rows [N, ...]: one for each index of the plate, or for
                each of a subsample.
            create_plates: Function of the model's arguments that returns the plate, as for Pyro's own guides; needed if the plate subsamples.
                Default: a plate with as many indices as there are rows.
            global_guide: Function of a model without the plate's latents that returns the guide of the others, such as
                `pyro.infer.autoguide.AutoNormal`. Default: `AutoDDVI`.
            embedding: Network from rows [N, ...] to features [N, P], trained with the guide. Default: rows are flattened.
            init_loc_fn: Initial location, as for Pyro's other guides.
            architecture: Sizes of the chain and its encoders, see `ddvi_fast.inference.Architecture`.
            seed: Seed of the initial weights (int, default 0). Samples follow `pyro.set_rng_seed`.

        Raises:
            InputError: If no latent is in a plate of dimension -1, if latents are in several such plates, if the rows do not fit the plate, or if
                the architecture is not a chain without informed steps.

        Example:
            >>> import pyro, pyro.distributions as dist
            >>> def model(x):
            ...     level = pyro.sample("level", dist.Normal(0.0, 1.0))
            ...     with pyro.plate("rows", len(x)):
            ...         z = pyro.sample("z", dist.Normal(level, 1.0))
            ...         pyro.sample("x", dist.Normal(z, 0.5), obs=x)
            >>> guide = AutoAmortizedDDVI(model, inputs=lambda x: x)
            >>> sorted((name, tuple(value.shape)) for name, value in guide(torch.zeros(7)).items())
            [('level', ()), ('z', (7,))]
        """

        def __init__(
            self, model: Any, inputs: Callable[..., Tensor], *, create_plates: Any = None, global_guide: Any = None,
            embedding: nn.Module | None = None, init_loc_fn: Any = init_to_median, architecture: Architecture = Architecture(), seed: int = 0,
        ) -> None:  # fmt: skip
            super().__init__(InitMessenger(init_loc_fn)(model), create_plates=create_plates or self._plate)
            chain = architecture.family == "diffusion" and not any(architecture.looks().values())
            _checks.require(chain, "architecture", "family=diffusion without informed_steps", architecture)
            _checks.require(callable(inputs), "inputs", "a function of the model's arguments", inputs)
            require_embedding(embedding)
            self.inputs, self.make_global, self.architecture, self.seed = inputs, global_guide, architecture, seed
            self.embedding, self._bare = embedding, (model,)
            self.plate_name, self.local, self.outer, self.guide = "", {}, {}, None

        def _check_prototype(self, trace: Any) -> None:
            """Accept the guide of the other latents, whose sites are those of the model."""

        def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
            super()._setup_prototype(*args, **kwargs)
            sites = dict(self.prototype_trace.iter_stochastic_nodes())
            self._find(sites)
            rest = [name for name in sites if name not in self.local]
            if rest:
                self.guide = self._global_guide()
            rows = self._rows(*args, **kwargs)
            x = _checks.tensor(self._embedded(rows), "embedding", (None, None)).detach()
            start = torch.cat([_unconstrained(site, site["value"]) for site in self.local.values()], -1).mean(0)
            others = sum(_unconstrained(site, site["value"]).shape[-1] for site in self.outer.values())
            posterior = build(self.architecture, len(start), Features(x, others), self.seed).to(start)
            self.chain = LocalChain(posterior, start.detach())

        def _find(self, sites: dict[str, Any]) -> None:
            """Find the latents of the plate, and those outside of all plates."""
            plates = {name: [frame for frame in site["cond_indep_stack"] if frame.vectorized] for name, site in sites.items()}
            found = {frames[0].name for frames in plates.values() if len(frames) == 1 and frames[0].dim == -1}
            _checks.require(len(found) == 1, "model", "latents in one plate of dimension -1", ", ".join(sorted(found)) or "none")
            (self.plate_name,) = found
            self.local = {name: sites[name] for name, frames in plates.items() if [frame.name for frame in frames] == [self.plate_name]}
            self.outer = {name: sites[name] for name, frames in plates.items() if not frames}

        def _global_guide(self) -> Any:
            from ddvi_fast.pyro.guide import guide_class

            hidden = poutine.block(self._bare[0], hide=list(self.local))
            return (self.make_global or guide_class())(hidden)

        def _rows(self, *args: Any, **kwargs: Any) -> Tensor:
            rows = _checks.tensor(self.inputs(*args, **kwargs), "inputs", floating=False)
            _checks.require(rows.dim() >= 1, "inputs", "rows [N, ...]", rows)
            return rows

        def _embedded(self, rows: Tensor) -> Tensor:
            """Features [N, P] of rows [N, ...]."""
            rows = rows if rows.is_floating_point() else rows.float()
            return rows.reshape(len(rows), -1) if self.embedding is None else self.embedding(rows)

        def _plate(self, *args: Any, **kwargs: Any) -> Any:
            """The plate of as many indices as there are rows; new data may have another number of them."""
            return pyro.plate(self.plate_name, len(self._rows(*args, **kwargs)), dim=-1)

        def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
            """Sample all latents; arguments are those of the model. Returns values by the names of the sites."""
            if self.prototype_trace is None:
                self._setup_prototype(*args, **kwargs)
            plates = self._create_plates(*args, **kwargs)
            result = {} if self.guide is None else dict(self.guide(*args, **kwargs))
            rows = self._rows(*args, **kwargs)
            with plates[self.plate_name] as index:
                fits = len(rows) in (len(index), plates[self.plate_name].size)
                _checks.require(fits, "inputs", f"{plates[self.plate_name].size} rows, or {len(index)} of a subsample", len(rows))
                x = self._embedded(rows if len(rows) == len(index) else rows[index])
                result.update(self._sample_local(x, result))
            return result

        def _sample_local(self, x: Tensor, others: dict[str, Tensor]) -> dict[str, Tensor]:
            """Sample the latents of the plate given features [N, P] and the values of the other latents."""
            steps, dim = self.architecture.settled().num_steps, len(self.chain.start)
            normal = distributions.Normal(x.new_zeros(()), x.new_ones(())).expand((steps + 1, dim)).to_event(2).mask(False)
            noise = pyro.sample(f"_{self.plate_name}_noise", normal, infer={"is_auxiliary": True})  # [.., N, T + 1, D]
            batch = noise.shape[:-2]
            parts = [x, *(_unconstrained(site, others[name]) for name, site in self.outer.items() if name in others)]
            features = torch.cat([part.expand(*batch, part.shape[-1]) for part in parts], -1).reshape(math.prod(batch), -1)
            u, log_density = self.chain(features, noise.reshape(-1, steps + 1, dim).transpose(0, 1))
            return self._placed(u.reshape(*batch, dim), log_density.reshape(batch))

        def _placed(self, u: Tensor, log_density: Tensor) -> dict[str, Tensor]:
            """Sample the sites of the plate at unconstrained values [.., D]; the first of them has the density of the chain."""
            result, first = {}, 0
            for name, site in self.local.items():
                size, event = _unconstrained(site, site["value"]).shape[-1], site["fn"].event_dim
                transform = biject_to(site["fn"].support)
                shape = transform.inverse_shape(site["value"].shape)[site["value"].dim() - event :]
                free = u[..., first : first + size].reshape(*u.shape[:-1], *shape)
                value = transform(free)
                log_det = transform.log_abs_det_jacobian(free, value)
                log_density = log_density - log_det.reshape(*u.shape[:-1], -1).sum(-1)
                density = distributions.Delta(value, log_density=log_density, event_dim=event)
                result[name], first, log_density = pyro.sample(name, density), first + size, torch.zeros_like(log_density)
            return result

    AutoAmortizedDDVI.__module__, AutoAmortizedDDVI.__qualname__ = "ddvi_fast.pyro", "AutoAmortizedDDVI"
    return AutoAmortizedDDVI


def _unconstrained(site: dict[str, Any], value: Tensor) -> Tensor:
    """Unconstrained coordinates [.., d] of values [.., *event] of a latent."""
    free = biject_to(site["fn"].support).inv(value)
    return free.reshape(*value.shape[: value.dim() - site["fn"].event_dim], -1)
