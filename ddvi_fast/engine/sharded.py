"""What engines over parts of a batch share: parts taken in step, losses watched, and gradients left to each engine.

The loss of a part is a mean over its rows, and gradients are averaged over parts: that is the mean over the batch. What an engine
adds is `_backward`, which adds a part's gradients up, and `_move`, which averages them over processes, clips, and takes Adam's step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ddvi_fast import _checks, distributed
from ddvi_fast.distributed import Part, part_of_batch
from ddvi_fast.engine.base import NonFinite, bad_rows, bad_terms
from ddvi_fast.engine.optimisers import choose
from ddvi_fast.objectives import Objective, Progress, Terms, Update
from ddvi_fast.precision import LossScale, products_in
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import Draws


class ShardedEngine:
    """Trains on parts of a batch: those of other processes, and its own `accumulation` ones after another.

    Args:
        objective: what is minimised; it moves to `device`.
        optimisation: learning rates and clipping.
        device: of this process.
        precision: of matrix products, ``float32``, ``bf16`` or ``fp16``: see `ddvi_fast.engine.precision`.
        accumulation: parts into which this process cuts its rows, so that fewer are in memory at once.
        optimiser: which Adam: see `ddvi_fast.engine.optimisers`.
        loss_scale: of fp16, where it starts.

    Raises:
        NonFinite: in every process, where the loss or gradient of any is not finite; parameters are as before that update.
    """

    def __init__(
        self,
        objective: Objective,
        optimisation: Optimisation,
        device: torch.device | str = "cpu",
        *,
        precision: str = "float32",
        accumulation: int = 1,
        optimiser: str = "auto",
        loss_scale: LossScale | None = None,
    ) -> None:
        _checks.require(accumulation >= 1, "accumulation", "at least 1", accumulation)
        self.device = torch.device(device)
        self.objective, self.optimisation = objective.to(self.device), optimisation
        self.accumulation, self.adam = accumulation, choose(optimiser, self.device)
        self._products = products_in(precision, self.device)
        self.loss_scale = (loss_scale or LossScale()) if precision == "fp16" else None
        self._flat: Tensor | None = None
        self._share_from_first()

    def _share_from_first(self) -> None:
        """All start from the first process's weights."""
        if distributed.world_size() > 1:
            for value in (*self.objective.parameters(), *self.objective.buffers()):
                torch.distributed.broadcast(value.detach(), 0)

    def run(self, x: Tensor, progress: Progress, draws: Draws) -> dict[str, Tensor]:
        """All updates on this process's rows of a batch, `x` [N, ...] at `draws`; returns the terms' means over these rows."""
        whole = len(x) % self.accumulation == 0
        _checks.require(whole, "batch_size", f"a multiple of processes times {self.accumulation} accumulated parts", f"{len(x)} rows a process")
        parts, rows = self._parts(), len(x) // self.accumulation
        each = [self.objective.updates(part, progress, draws.advance(i * rows)) for i, part in enumerate(x.split(rows))]
        means: dict[str, Tensor] = {}
        while updates := self._next(each, parts):
            means |= self._update(updates, parts, progress, rows)
        return means

    def _parts(self) -> list[Part]:
        first, count = distributed.rank() * self.accumulation, distributed.world_size() * self.accumulation
        return [Part(first + i, count) for i in range(self.accumulation)]

    def _next(self, each: Sequence[Iterator[Update]], parts: Sequence[Part]) -> list[Update]:
        """The next update of every part, or none: some of them compute what updates share."""
        found = []
        for updates, part in zip(each, parts, strict=True):
            with part_of_batch(part), self._products():
                found.extend(update for update in [next(updates, None)] if update is not None)
        return found

    def _update(self, updates: Sequence[Update], parts: Sequence[Part], progress: Progress, rows: int) -> dict[str, Tensor]:
        computed: list[Terms] = []
        losses = []
        for update, part in zip(updates, parts, strict=True):
            with part_of_batch(part):
                with self._products():
                    terms = update.terms()
                losses.append(self._loss(terms))
                self._backward(losses[-1] * self._scale())
            computed.append(Terms({name: value.detach() for name, value in terms.values.items()}, terms.weights))
        if distributed.any_process(not bool(torch.isfinite(torch.stack(losses)).all())):
            self._refuse(computed, rows)
        overflow = not self._move(updates[0].group, self.optimisation.rate(progress.fraction))
        if self.loss_scale is not None:
            self.loss_scale.update(overflow)
        elif overflow:
            raise NonFinite("gradient", self._bad_parameters())
        names = computed[0].values
        return {name: torch.stack([terms.values[name].mean() for terms in computed]).mean() for name in names}

    def _loss(self, terms: Terms) -> Tensor:
        """What is minimised on one part."""
        return terms.total()

    def _scale(self) -> float:
        """On each part's loss, so that gradients of parts add up to their mean."""
        return (1.0 if self.loss_scale is None else self.loss_scale.value) / self.accumulation

    def _backward(self, loss: Tensor) -> None:
        """Add the gradients of one part's loss, which has been scaled by `_scale`."""
        raise NotImplementedError

    def _move(self, group: str, rate: float) -> bool:
        """Average gradients over processes, undo the loss's scale, clip, step; False, and nothing moved, if they are not finite."""
        raise NotImplementedError

    def _average(self, gradients: Sequence[Tensor]) -> None:
        """Make each its mean over processes, all in one exchange, in memory that is kept: fresh memory costs as much as the exchange."""
        if distributed.world_size() == 1 or not gradients:
            return
        sizes = [gradient.numel() for gradient in gradients]
        if self._flat is None or self._flat.numel() < sum(sizes):
            self._flat = gradients[0].new_empty(sum(sizes))
        flat = self._flat[: sum(sizes)]
        parts = [part.view_as(gradient) for part, gradient in zip(flat.split(sizes), gradients, strict=True)]
        torch._foreach_copy_(parts, list(gradients))
        distributed.average_(flat)
        torch._foreach_copy_(list(gradients), parts)

    def _bad_parameters(self) -> list[str]:
        """Names of parameters whose gradient is not finite, as far as they are known."""
        return [name for name, parameter in self.objective.named_parameters() if parameter.grad is not None and not parameter.grad.isfinite().all()]

    def _refuse(self, computed: Sequence[Terms], rows: int) -> None:
        """Raise the same in every process: the terms at fault, and the rows of the whole batch."""
        names = list(computed[0].values)
        bad = [any(name in bad_terms(terms) for terms in computed) for name in names]
        local = torch.cat([bad_rows(terms, rows) for terms in computed])
        everywhere = torch.zeros(distributed.world_size(), len(bad) + len(local))
        everywhere[distributed.rank()] = torch.cat((torch.tensor(bad, dtype=torch.float32), local.float().cpu()))
        everywhere = distributed.mean_over_processes(everywhere.to(self.device)).cpu() > 0
        named, seen = everywhere[:, : len(bad)].any(0), everywhere[:, len(bad) :].flatten()
        raise NonFinite("loss", [name for name, flag in zip(names, named, strict=True) if flag], seen.nonzero().flatten().tolist())

    def check(self) -> None:
        """Losses have been checked as they came."""

    def refresh(self) -> None:
        """Nothing is recorded that a change could make void."""
