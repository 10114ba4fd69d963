"""A posterior of posteriordb: its model, its data and its reference draws, read from a folder of `NAME.data.json` and `NAME.npz`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from examples.posteriordb import gaussian_process, hierarchy, kinetics, mixture, regression, series

MODELS = {
    "arK-arK": series.AutoRegression,
    "diamonds-diamonds": regression.Diamonds,
    "eight_schools-eight_schools_noncentered": hierarchy.EightSchools,
    "garch-garch11": series.Garch,
    "gp_pois_regr-gp_pois_regr": gaussian_process.Poisson,
    "gp_pois_regr-gp_regr": gaussian_process.Regression,
    "hmm_example-hmm_example": mixture.HiddenMarkov,
    "kidiq-kidscore_interaction": regression.KidScore,
    "low_dim_gauss_mix-low_dim_gauss_mix": mixture.TwoGaussians,
    "nes2000-nes": regression.Election,
    "one_comp_mm_elim_abs-one_comp_mm_elim_abs": kinetics.OneCompartment,
    "sblrc-blr": regression.Bayesian,
}
NAMES = tuple(MODELS)


@dataclass(frozen=True)
class Problem:
    """A posterior to be approximated.

    Attributes:
        name: Its name in posteriordb.
        model: Model with `log_joint(x, z)` and `support`. Its `reported(z)` [K, D] are the parameters of the reference draws, and
            `parameters(reported)` the inverse.
        x: The data, which the model has read; `log_joint` gets them as they are.
    """

    name: str
    model: Any
    x: Mapping[str, Tensor]


def load(name: str, folder: Path) -> Problem:
    """Read the data of the posterior `name` and make its model."""
    stored = json.loads((folder / f"{name}.data.json").read_text(encoding="utf-8"))
    x = {key: torch.tensor(value, dtype=torch.float64) for key, value in stored.items()}
    return Problem(name, MODELS[name](x), x)


def reference(name: str, folder: Path) -> tuple[list[str], Tensor]:
    """Read the names of the parameters and the reference draws, float64 [10,000, D], of which neighbors are of different chains."""
    with np.load(folder / f"{name}.npz") as stored:
        return stored["names"].tolist(), torch.from_numpy(stored["draws"]).double().transpose(0, 1).flatten(0, 1)
