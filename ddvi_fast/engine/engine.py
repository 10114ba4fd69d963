"""Engine of a phase: updates of one objective in one process or several, on whole batches or accumulated parts.

The loss of a part is a mean over its rows, and gradients are averaged over parts, so that the result is the mean over the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ddvi_fast import _checks, distributed, rng
from ddvi_fast.distributed import Part, part_of_batch
from ddvi_fast.engine.adam_state import AdamState
from ddvi_fast.engine.cuda_graph import CapturedStep, CudaGraph, DeviceProgress, Recording
from ddvi_fast.engine.finish import Finish
from ddvi_fast.engine.non_finite import NonFinite, bad_rows, bad_terms
from ddvi_fast.engine.optimizers import by_factor, choose
from ddvi_fast.networks import MLP
from ddvi_fast.objectives import Objective, Progress, Terms, Update
from ddvi_fast.precision import SCALED, LossScale, products_in
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import Draws


class Engine(AdamState):
    """Adam on the parameters of one objective, one optimizer for each of its groups.

    Args:
        objective: Objective to minimize. It is moved to `device`.
        optimisation: Learning rates and clipping.
        device: Device of this process (default the CPU).
        precision: Precision of matrix products, ``"float32"``, ``"bf16"`` or ``"fp16"``: see `ddvi_fast.precision`.
        accumulation: Number of parts into which this process cuts its rows, so that fewer are in memory at once (int, default 1).
        optimizer: Kind of Adam: see `ddvi_fast.engine.optimizers`.
        exchange: Whether the processes that there are train one model together; False trains one in each of them.
        capture: Whether to record the training step once and replay it. By default on a GPU, if every module is `recordable` and one
            process with torch's Adam trains on whole batches.
        compile_networks: Whether `torch.compile` fuses the operations between the matrix products of the dense networks.
        loss_scale: Loss scale of fp16 at the start.
        make_recording: Function that makes the recording of a step.

    Raises:
        InputError: Options that do not go together, or that `device` does not have.
        NonFinite: A loss, or a gradient whose norm is computed, is not finite; in every process, if there are several. On the CPU the update
            raises it, on a device `check` does. Parameters are those before that update.
    """

    watches_on_device = True  # whether the optimizer can skip a step by a flag on the device

    def __init__(
        self,
        objective: Objective,
        optimisation: Optimisation,
        device: torch.device | str = "cpu",
        *,
        precision: str = "float32",
        accumulation: int = 1,
        optimizer: str = "torch",
        exchange: bool = True,
        capture: bool | None = None,
        compile_networks: bool = False,
        loss_scale: LossScale | None = None,
        make_recording: Callable[[], Recording] = CudaGraph,
    ) -> None:
        _checks.require(accumulation >= 1, "accumulation", "at least 1", accumulation)
        self.device = torch.device(device)
        self.objective, self.optimisation = objective.to(self.device), optimisation
        self.accumulation, self.adam = accumulation, choose(optimizer, self.device)
        self._rank, self._size = (distributed.rank(), distributed.world_size()) if exchange else (0, 1)
        self._products = products_in(precision, self.device)
        self.loss_scale = (loss_scale or LossScale()) if precision in SCALED else None
        self._alone = self._size == accumulation == 1 and self.loss_scale is None and self.adam.name == "torch" and self.watches_on_device
        capture = self._captures(capture)
        # Reading each loss back would stall a device, so there the losses are watched where they are.
        watches = self._alone and (capture or self.device.type != "cpu")
        self._captured = CapturedStep(self._run, self.device, make_recording) if capture else None
        self._flat: Tensor | None = None
        self._finish = Finish(self.device) if watches else None
        self._share_from_first()
        self._make_optimizers()
        if compile_networks:
            for module in objective.modules():
                if isinstance(module, MLP):
                    module.compile()

    def _captures(self, asked: bool | None) -> bool:
        recordable = all(getattr(module, "recordable", True) for module in self.objective.modules())
        if asked is None:
            return self.device.type == "cuda" and recordable and self._alone
        _checks.require(recordable or not asked, "capture", "false or null, for a posterior whose steps ask the device for numbers", asked)
        limits = "false or null, with several processes, accumulated parts, fp16 or an optimizer other than torch's"
        _checks.require(self._alone or not asked, "capture", limits, asked)
        return asked

    def _share_from_first(self) -> None:
        """Give all processes the weights of the first."""
        if self._size > 1:
            for value in (*self.objective.parameters(), *self.objective.buffers()):
                torch.distributed.broadcast(value.detach(), 0)

    def _make_optimizers(self) -> None:
        self._parameters = self.objective.parameter_groups()
        names = {id(parameter): name for name, parameter in self.objective.named_parameters()}
        self._optimizers = {
            group: self.adam.make(by_factor(parameters, names, self.optimisation), self.optimisation.lr, self.device)
            for group, parameters in self._parameters.items()
        }

    def run(self, x: Tensor, progress: Progress, draws: Draws) -> dict[str, Tensor]:
        """Take all updates of this process's rows of a batch.

        Args:
            x: Rows [N, ...].
            progress: Position in the phase.
            draws: Draws of the first row.

        Returns:
            Means of the terms over these rows, scalars on the device; of an update that is repeated, those of the last time.
        """
        return (self._captured or self._run)(x, progress, draws)

    def step(self, update: Update, progress: Progress | DeviceProgress) -> dict[str, Tensor]:
        """Take one update of a whole batch; returns the means of its terms."""
        return self._update([update], [Part()], progress, 0)

    def check(self) -> None:
        """Raise `NonFinite` if a loss since the last check was not finite; where nothing is watched on the device, losses have raised it already."""
        if self._finish is not None and self._finish.any_lost():
            raise NonFinite("loss", self._finish.lost())

    def refresh(self) -> None:
        """Follow a change of the objective between steps, such as which modules are frozen: a recorded step is dropped and warmed up again."""
        if self._captured is not None:
            self._captured.begin_anew()

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimizers by parameter group."""
        return self._optimizers

    def _run(self, x: Tensor, progress: Progress | DeviceProgress, draws: Draws | rng.DeviceDraws) -> dict[str, Tensor]:
        whole = len(x) % self.accumulation == 0
        _checks.require(whole, "batch_size", f"a multiple of processes times {self.accumulation} accumulated parts", f"{len(x)} rows a process")
        parts, rows = self._parts(), len(x) // self.accumulation
        each = [self.objective.updates(part, progress, draws.advance(i * rows)) for i, part in enumerate(x.split(rows))]
        means: dict[str, Tensor] = {}
        while updates := self._next(each, parts):
            means |= self._update(updates, parts, progress, rows)
        return means

    def _parts(self) -> list[Part]:
        first, count = self._rank * self.accumulation, self._size * self.accumulation
        return [Part(first + i, count) for i in range(self.accumulation)]

    def _next(self, each: Sequence[Iterator[Update]], parts: Sequence[Part]) -> list[Update]:
        """The next update of every part, or none; some objectives compute here what several updates share."""
        found = []
        for updates, part in zip(each, parts, strict=True):
            with part_of_batch(part), self._products():
                found.extend(update for update in [next(updates, None)] if update is not None)
        return found

    def _update(self, updates: Sequence[Update], parts: Sequence[Part], progress: Progress | DeviceProgress, rows: int) -> dict[str, Tensor]:
        group = updates[0].group
        self._forget_gradients(group)
        computed: list[Terms] = []
        losses: list[Tensor] = []
        means: list[dict[str, Tensor]] = []
        for update, part in zip(updates, parts, strict=True):
            with part_of_batch(part):
                with self._products():
                    terms = update.terms()
                loss, mean = (self._loss(terms), terms.means()) if self._finish is None else self._finish(terms)
                self._backward(self._scaled(loss))
            losses.append(loss)
            means.append(mean)
            computed.append(Terms({name: value.detach() for name, value in terms.values.items()}, terms.weights))
        self._look_at(computed, losses, group, rows)
        overflow = not self._move(group, progress.varying(self._rate))
        if self.loss_scale is not None:
            self.loss_scale.update(overflow)
        elif overflow:
            raise NonFinite("gradient", self._bad_parameters())
        return means[0] if len(means) == 1 else {name: torch.stack([each[name] for each in means]).mean() for name in means[0]}

    def _forget_gradients(self, group: str) -> None:
        for parameter in self._parameters[group]:  # as zero_grad does, without its bookkeeping
            parameter.grad = None

    def _loss(self, terms: Terms) -> Tensor:
        """The loss of one part."""
        return terms.total()

    def _scale(self) -> float:
        """Factor on the loss of each part, so that gradients of parts add up to their mean."""
        return (1.0 if self.loss_scale is None else self.loss_scale.value) / self.accumulation

    def _scaled(self, loss: Tensor) -> Tensor:
        scale = self._scale()
        return loss if scale == 1 else loss * scale

    def _backward(self, loss: Tensor) -> None:
        """Add the gradients of one part's loss, which has been scaled by `_scale`."""
        loss.backward(None if self._finish is None else self._finish.one)

    def _rate(self, progress: Progress) -> float:
        return self.optimisation.rate(progress.fraction)

    def _look_at(self, computed: Sequence[Terms], losses: Sequence[Tensor], group: str, rows: int) -> None:
        """Raise if a loss of any process is not finite, or note it on the device."""
        if self._finish is not None:
            optimizer = self._optimizers[group]
            optimizer.found_inf, optimizer.grad_scale = self._finish.found, None
        elif self._anywhere(not bool(torch.isfinite(torch.stack(list(losses))).all())):
            self._refuse(computed, rows)

    def _anywhere(self, flag: bool) -> bool:
        return distributed.any_process(flag) if self._size > 1 else flag

    def _refuse(self, computed: Sequence[Terms], rows: int) -> None:
        """Raise the same error in every process: the terms that are not finite, and the rows of the whole batch."""
        names = list(computed[0].values)
        bad = [any(name in bad_terms(terms) for terms in computed) for name in names]
        local = torch.cat([bad_rows(terms, rows) for terms in computed])
        everywhere = torch.zeros(self._size, len(bad) + len(local), dtype=torch.float32, device="cpu")
        everywhere[self._rank] = torch.cat((torch.tensor(bad, dtype=torch.float32, device="cpu"), local.float()))
        if self._size > 1:
            everywhere = distributed.mean_over_processes(everywhere.to(self.device)).cpu()
        named, seen = (everywhere > 0)[:, : len(bad)].any(0), (everywhere > 0)[:, len(bad) :].flatten()
        raise NonFinite("loss", [name for name, flag in zip(names, named, strict=True) if flag], seen.nonzero().flatten().tolist())

    def _move(self, group: str, rate: float | Tensor) -> bool:
        """Take the optimizer's step of `group`; False, and nothing has moved, if gradients are not finite."""
        moving = [parameter for parameter in self._parameters[group] if parameter.grad is not None]
        if not self._average_and_clip(moving):
            return False
        for options in self._optimizers[group].param_groups:
            options["lr"] = rate if options["factor"] == 1 else rate * options["factor"]
        self._optimizers[group].step()
        return True

    def _average_and_clip(self, moving: Sequence[nn.Parameter]) -> bool:
        """Average gradients over processes, undo the loss scale, clip; False if their norm is known and not finite."""
        gradients, max_norm = [parameter.grad for parameter in moving], self.optimisation.max_norm
        self._average(gradients)
        if self.loss_scale is not None:
            torch._foreach_div_(gradients, self.loss_scale.value)
        if max_norm is None and self._alone:
            return True
        norm = get_total_norm(gradients)
        if self._finish is None and not bool(torch.isfinite(norm)):
            return False
        if max_norm is not None:
            clip_grads_with_norm_(moving, max_norm, norm)
        return True

    def _average(self, gradients: Sequence[Tensor]) -> None:
        """Make each gradient its mean over processes, all in one exchange, in a buffer that is kept: a new one costs as much as the exchange."""
        if self._size == 1 or not gradients:
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
        """Names of the parameters whose gradient is known and not finite."""
        return [name for name, parameter in self.objective.named_parameters() if parameter.grad is not None and not parameter.grad.isfinite().all()]
