"""What the processes of the tests do, called as `python -m tests.engine.workers NAME SETTINGS`."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import torch

from ddvi_fast import distributed, use_backend
from ddvi_fast.engine.base import NonFinite
from ddvi_fast.engine.loop import train
from ddvi_fast.experiments.build import build
from ddvi_fast.experiments.compose import compose
from ddvi_fast.experiments.run import load_dataset

BATCH = 128


def make_engine(kind: str, **options: Any):
    """Makes engines of one kind."""
    from ddvi_fast.engine.deepspeed_engine import DeepSpeedEngine
    from ddvi_fast.engine.local import LocalEngine
    from ddvi_fast.engine.parallel import ParallelEngine

    family = {"local": LocalEngine, "parallel": ParallelEngine, "deepspeed": DeepSpeedEngine}[kind]
    return lambda objective, optimisation: family(objective, optimisation, **options)


class Losses:
    """Means of the whole batch's terms, step by step."""

    def __init__(self, after: int) -> None:
        self.values, self.after = [], after

    def step(self, step, phase, epoch, terms):
        self.values.append({name: float(value) for name, value in distributed.means_over_processes(terms).items()})
        if step == self.after:
            raise StopIteration

    def epoch(self, step, phase, epoch, engine):
        pass


def follow(
    overrides: list[str], kind: str = "parallel", steps: int = 50, double: bool = False, batch: int = BATCH, spoil: int | None = None, **options: Any
) -> dict[str, Any]:
    """The losses of `steps` steps of a run, and a fingerprint of the weights that it ends with."""
    torch.set_num_threads(1)
    distributed.start(torch.device("cpu"))
    config = compose(["dataset=digits", "recipe.match_prior=true", *overrides])
    dataset = load_dataset(config)
    experiment = build(config, dataset)
    phases = [dataclasses.replace(phase, epochs=max(phase.epochs, steps)) for phase in experiment.phases][:1]
    augment = None
    if double:
        for phase in phases:
            phase.objective.double()
        augment = lambda x, draws: x.double()  # noqa: E731
    if spoil is not None:
        dataset.train_inputs[spoil] = float("nan")
    losses = Losses(steps)
    found: dict[str, Any] = {}
    with use_backend("reference" if double else "auto"):
        try:
            train(phases, dataset, batch, config.seed, make_engine(kind, **options), losses, augment)
        except StopIteration:
            pass
        except NonFinite as error:
            found = {"what": error.what, "names": error.names, "rows": error.rows}
    weights = torch.cat([parameter.detach().double().flatten() for parameter in phases[0].objective.parameters()])
    return {"losses": losses.values, "weights": [float(weights.sum()), float(weights.norm())], **found}


def main() -> None:
    name, settings = sys.argv[1], json.loads(sys.argv[2])
    result = globals()[name](**settings)
    distributed.stop()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
