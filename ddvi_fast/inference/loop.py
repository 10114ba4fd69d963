"""Training of one objective of a fit, for all steps or until a validation loss no longer falls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ddvi_fast.engine.engine import Engine
from ddvi_fast.inference.averaged import Averaged
from ddvi_fast.inference.objective import COVERING
from ddvi_fast.inference.recorder import Recorder
from ddvi_fast.objectives import Objective, Progress
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import Draws

_WARMUP = 0.05  # fraction of the steps with a rising rate; without it wide networks can collapse to outputs that ignore the data
_CHECKS = 40  # validations in all steps
_PATIENCE = 0.3  # share of the steps without a lower validation loss after which a fit stops


@dataclass(frozen=True)
class Fit:
    """Settings of a training: the number of steps, rows per step, rate, limit of the gradient's norm, and seed."""

    steps: int
    batch_size: int
    lr: float
    max_norm: float
    seed: int

    def train(
        self, objective: Objective, device: torch.device, recorder: Recorder, name: str, validation_loss: Callable[[], float] | None = None
    ) -> Tensor:  # fmt: skip
        """Train, and return the loss of each step.

        Args:
            objective: Objective to minimize.
            device: Device of the training.
            recorder: Checkpoints and progress.
            name: Name of this training there.
            validation_loss: Function that computes the loss of what is held out. With it the training ends when that has not fallen for long, and
                leaves the best average of the weights. Default: none, and all steps are taken.
        """
        optimisation = Optimisation(lr=self.lr, warmup_fraction=_WARMUP, max_norm=self.max_norm, factors={})
        engine = Engine(objective, optimisation, device, capture=False, exchange=False)
        trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        averaged = None if validation_loss is None else Averaged(trained, validation_loss)
        stage = recorder.stage(name, self.steps)
        losses, ended = stage.restore(engine, averaged)
        try:
            if not ended:
                for _ in self._steps(engine, averaged, losses, device):
                    stage.after_step(engine, averaged, losses)
                engine.check()
                if averaged is not None:
                    averaged.finish()
                stage.end(engine, averaged, losses)
        finally:
            stage.close()
        return torch.stack(losses)

    def _steps(self, engine: Engine, averaged: Averaged | None, losses: list[Tensor], device: torch.device) -> Iterator[None]:
        """Take the steps that are left, each of which appends its loss."""
        row, every = torch.zeros(1, 1, dtype=torch.float32, device=device), max(1, self.steps // _CHECKS)
        for step in range(len(losses), self.steps):
            if averaged is not None and step % every == 0 and step - averaged.found_at > _PATIENCE * self.steps:
                return
            means = engine.run(row, Progress(step, self.steps), Draws(self.seed, step * self.batch_size))
            losses.append(torch.stack([mean for name, mean in means.items() if name != COVERING]).sum())
            if averaged is not None:
                averaged.follow()
                if (step + 1) % every == 0 or step + 1 == self.steps:
                    averaged.check()
            yield
