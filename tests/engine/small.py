"""Small experiments of every kind that the tests of several processes train, and how far two runs are apart."""

from __future__ import annotations

from typing import Any

NARROW = ["dataset.encoder.hidden=[24]", "dataset.decoder.hidden=[24]", "figures=false"]
COMMON = [*NARROW, "recipe.epochs=4"]
CHAIN = ["method.chain.num_steps=4", "method.chain.hidden_dim=64"]
# Under the default prior, whose arms are 0.005 wide, rounding grows tenfold every seven steps; here it does not grow.
SMOOTH = ["prior=gaussian"]
# The table of a learned schedule is float32 in every dtype, and so is the gradient that passes through it.
FIXED = ["method.chain.learn_schedule=false"]
METHODS = {
    "ddvi": ["method=ddvi", *CHAIN, *SMOOTH],
    "vae": ["method=vae", *SMOOTH],
    "iaf": ["method=iaf", *SMOOTH],
    "binary": ["method=vae", *SMOOTH, "dataset.binarize=true"],
    "ddvi_semi": ["method=ddvi_semi", *CHAIN],
}
# Losses that couple the rows of a batch, and an update of an opponent.
COUPLED = {
    "wae": ["method=wae"],
    "aae": ["method=aae"],
    "clusters": ["method=ddvi_clustering", *CHAIN, "method.clustering.num_clusters=3"],
}


def case(method: str, steps: int = 50, double: bool = False, **options: Any) -> dict[str, Any]:
    """Settings of `workers.follow`."""
    chosen = {**METHODS, **COUPLED}[method]
    fixed = FIXED if double and CHAIN[0] in chosen else []
    return {"overrides": [*COMMON, *chosen, *fixed], "steps": steps, "double": double, **options}


def distance(one: dict[str, Any], other: dict[str, Any], step: int) -> float:
    """Largest relative difference of the losses' terms at a step; terms are held against the largest of them."""
    here, there = one["losses"][step], other["losses"][step]
    assert here.keys() == there.keys()
    scale = max(abs(value) for value in there.values())
    return max(abs(here[name] - there[name]) for name in here) / scale
