"""Reference samples of the examples' posteriors: exact samples, published chains, and a No-U-Turn chain.

python -m examples.references --out bench/references    # the chain, a few minutes
"""

from __future__ import annotations

import argparse
import bz2
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from examples import logistic_regression

OBSERVATIONS = {"two_moons": 5, "gaussian_mixture": 5}  # number of observations compared per task
CHAIN = "logistic_regression_nuts"


def observation(data: Path, task: str, number: int) -> Tensor:
    """Return observation `number` [P] of a task."""
    return torch.tensor(json.loads((data / "posteriors/observations.json").read_text())[task][str(number)]["x"])


def simulator_draws(data: Path, task: str, number: int) -> Tensor:
    """Return exact posterior samples [10000, 2] of observation `number` of a task."""
    with bz2.open(data / f"posteriors/{task}/reference_{number:02d}.csv.bz2", "rt") as file:
        return torch.from_numpy(np.loadtxt(file, delimiter=",", skiprows=1)).float()


def eight_schools_draws(data: Path) -> dict[str, Tensor]:
    """Return samples of `mu` and `tau` [10000] and `eta` [10000, 8] from ten thinned chains of Stan, interleaved."""
    stored = np.load(data / "posteriors/eight_schools_draws.npz")
    draws = dict(zip(stored["names"].tolist(), torch.from_numpy(stored["draws"]).double().transpose(0, 1).flatten(0, 1).T, strict=True))
    theta = torch.stack([draws[f"theta[{school}]"] for school in range(1, 9)], 1)
    eta = (theta - draws["mu"].unsqueeze(1)) / draws["tau"].unsqueeze(1)
    return {"mu": draws["mu"].float(), "tau": draws["tau"].float(), "eta": eta.float()}


def logistic_regression_draws(folder: Path) -> Tensor:
    """Return samples [4000, 4] of the stored chain."""
    return torch.from_numpy(np.load(folder / f"{CHAIN}.npy")).flatten(0, 1)


def run_chain(folder: Path, chains: int = 4, warmup: int = 500, draws: int = 2000, thin: int = 2) -> dict[str, float]:
    """Run Pyro's No-U-Turn sampler on the logistic regression.

    It writes samples, float32 [draws / thin, chains, 4], and a JSON file with R-hat and effective sample size, which it also returns.
    """
    import pyro
    from pyro.infer import MCMC, NUTS
    from pyro.ops.stats import effective_sample_size, split_gelman_rubin

    features, labels = logistic_regression.data()
    model = logistic_regression.LogisticRegression(features)
    kept = []
    for chain in range(chains):
        pyro.set_rng_seed(chain)
        kernel = NUTS(potential_fn=lambda z: -model.log_joint(labels, z["weights"]), target_accept_prob=0.9)
        sampler = MCMC(kernel, draws, warmup_steps=warmup, initial_params={"weights": torch.randn(model.design.shape[1])}, disable_progbar=True)
        sampler.run()
        kept.append(sampler.get_samples()["weights"][::thin])
    stacked = torch.stack(kept, 1)
    summary = {
        "chains": chains,
        "draws": len(stacked),
        "rhat": float(split_gelman_rubin(stacked, 1, 0).max()),
        "effective sample size": float(effective_sample_size(stacked, 1, 0).min()),
    }
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{CHAIN}.npy", stacked.numpy().astype(np.float32))
    (folder / f"{CHAIN}.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the chain of the logistic regression.")
    parser.add_argument("--out", type=Path, default=Path("bench/references"))
    print(run_chain(parser.parse_args().out))
