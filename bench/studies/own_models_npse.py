"""Neural posterior score estimation (NPSE) of sbi, with the methods that `own_models` calls."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ddvi_fast.inference import Support
from ddvi_fast.inference.diagnostics import Diagnostics
from ddvi_fast.inference.model import Simulator
from ddvi_fast.rng import Draws

SIMULATIONS, EPOCHS = 50_000, 60


class Npse:
    """A posterior of sbi over unconstrained parameters, like those of this package."""

    def __init__(self, simulator: Simulator, posterior: Any, seed: int) -> None:
        self.simulator, self.posterior, self.seed = simulator, posterior, seed

    def sample(self, num_samples: int, x: Tensor) -> Tensor:
        torch.manual_seed(self.seed)
        drawn = self.posterior.sample((num_samples,), x=x, show_progress_bars=False)
        return self.simulator.support.constrain(drawn)[0]

    def diagnostics(self, truths: int, num_samples: int) -> Diagnostics:
        torch.manual_seed(self.seed)
        u, x = self.simulator.take(truths, Draws(self.seed, 1 << 51))
        drawn = self.posterior.sample_batched((num_samples,), x=x, show_progress_bars=False)
        return Diagnostics.of(u, drawn, [f"z[{place}]" for place in range(u.shape[1])])


def fit(example: ModuleType, seed: int) -> Npse:
    """Fit NPSE with sbi's default settings on simulations that are drawn once."""
    from sbi.inference import NPSE

    torch.manual_seed(seed)
    model = next(value() for name, value in vars(example).items() if name in ("TwoMoons", "GaussianMixture"))
    simulator = Simulator(model, Support(model.support, 2))
    u, x = simulator.take(SIMULATIONS, Draws(seed))
    # sbi only uses the bounds of the prior, and unconstrained parameters have none.
    prior = torch.distributions.MultivariateNormal(u.mean(0), torch.diag(4 * u.var(0)))
    inference = NPSE(prior, show_progress_bars=False)
    network = inference.append_simulations(u, x).train(training_batch_size=512, max_num_epochs=EPOCHS)
    return Npse(simulator, inference.build_posterior(network), seed)
