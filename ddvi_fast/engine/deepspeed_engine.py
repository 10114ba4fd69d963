"""Training on DeepSpeed: optimiser states (ZeRO 1), gradients (2) and parameters (3) spread over processes.

The objective's updates do not share one optimiser, DeepSpeed's model has one: `UpdateAdam` holds them all, and a parameter group
for each set of updates that move the same parameters. Parameters stay float32 and autocast narrows products, as in every engine, so
DeepSpeed runs in its float32 mode; its scale on the loss serves fp16.

The fused chain takes its weights as they are, without going through a module, so under ZeRO 3 parameters are gathered after each
step and not at each use: what is saved is the optimiser's memory and the gradients'.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ddvi_fast import _checks
from ddvi_fast.engine.adam_state import COUNT, by_parameter
from ddvi_fast.engine.optimisers import MOMENTS, UpdateAdam
from ddvi_fast.engine.sharded import ShardedEngine
from ddvi_fast.objectives import Objective, Terms
from ddvi_fast.recipes.phases import Optimisation

STAGES = (0, 1, 2, 3)
_EVERYTHING = 10**12  # elements: no parameter is too large to stay gathered
_BUCKET = 1 << 24  # elements of an exchange, at most; DeepSpeed allocates that much, and its own 5 * 10^8 are 2 GB


class DeepSpeedEngine(ShardedEngine):
    """Parts of a batch on DeepSpeed.

    Args:
        objective: what is minimised; it moves to `device`.
        optimisation: learning rates and clipping.
        device: of this process.
        zero_stage: what is spread over processes: 0 nothing, 1 optimiser states, 2 gradients too, 3 parameters too.
        options: those of `ShardedEngine`.

    Raises:
        InputError: DeepSpeed is not installed, or refuses.
        NonFinite: as of `ShardedEngine`.
    """

    def __init__(
        self, objective: Objective, optimisation: Optimisation, device: torch.device | str = "cpu", *, zero_stage: int = 0, **options: Any
    ) -> None:
        _checks.require(zero_stage in STAGES, "zero_stage", "0, 1, 2 or 3", zero_stage)
        deepspeed = _import_deepspeed(torch.device(device))
        super().__init__(objective, optimisation, device, **options)
        self.zero_stage = zero_stage
        self._adam = UpdateAdam(memberships(objective, optimisation), self.adam, optimisation.lr, self.device)
        self._engine, *_ = deepspeed.initialize(model=_Whole(objective), optimizer=self._adam, config=self._config(), dist_init_required=False)
        # Without ZeRO it would exchange zeros for whatever an update does not move.
        self._engine.enable_backward_allreduce = zero_stage > 0
        self._lay_out()

    def _config(self) -> dict[str, Any]:
        clipped = self.zero_stage > 0 and self.optimisation.max_norm is not None
        return {
            "train_micro_batch_size_per_gpu": 1,  # it only counts examples, for a log that is off
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": self.optimisation.max_norm if clipped else 0.0,
            "steps_per_print": 1 << 60,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": {
                "stage": self.zero_stage,
                "reduce_bucket_size": _BUCKET,
                "allgather_bucket_size": _BUCKET,
                "stage3_param_persistence_threshold": _EVERYTHING,
                "stage3_prefetch_bucket_size": _BUCKET,
            },
        }

    def _lay_out(self) -> None:
        """A first step without an active update moves nothing, but DeepSpeed links its states to parameters in it."""
        self._gather()
        for _ in range(self.accumulation):
            self._engine.backward(self._engine(self._nothing))
            self._engine.step()

    def _nothing(self) -> Tensor:
        return 0.0 * torch.stack([parameter.sum() for parameter in self.objective.parameters() if parameter.requires_grad]).sum()

    def _loss(self, terms: Terms) -> Tensor:
        return self._engine(terms.total)

    def _scale(self) -> float:
        """DeepSpeed divides by the number of accumulated parts itself, and scales losses where it knows a scale."""
        if self.loss_scale is None:
            return 1.0
        if self.zero_stage == 0:
            return self.loss_scale.value
        self._engine.optimizer.override_loss_scale(self.loss_scale.value)
        return 1.0

    def _backward(self, loss: Tensor) -> None:
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.backward(loss)
            self._engine.step()  # counts the part; it moves nothing before the last one
            return
        self._engine.backward(loss)

    def _move(self, group: str, rate: float) -> bool:
        self._adam.active = group
        for options in self._adam.param_groups:
            options["lr"] = rate * options["factor"]
        try:
            return self._move_whole(group) if self.zero_stage == 0 else self._move_spread()
        finally:
            self._adam.active = None

    def _move_whole(self, group: str) -> bool:
        """Without ZeRO, gradients stand on the parameters, and are averaged here."""
        members = [parameter for options in self._adam.param_groups if group in options["updates"] for parameter in options["params"]]
        moving = [parameter for parameter in members if parameter.grad is not None]
        gradients = [parameter.grad for parameter in moving]
        self._average(gradients)
        if self.loss_scale is not None:
            torch._foreach_div_(gradients, self.loss_scale.value)
        norm = get_total_norm(gradients)
        good = bool(torch.isfinite(norm))
        if good and self.optimisation.max_norm is not None:
            clip_grads_with_norm_(moving, self.optimisation.max_norm, norm)
        if not good and self.loss_scale is None:
            return False
        if not good:
            self._adam.active = None
        self._engine.step()
        return good

    def _move_spread(self) -> bool:
        """DeepSpeed clips, and leaves out a step whose gradient's norm is not finite."""
        self._engine.step()
        if self.zero_stage == 3:
            # What the next update does not move would count with its last gradient in the norm.
            self._engine.optimizer.grad_partitions_flat_buffer.zero_()
        if self._engine.optimizer.overflow:
            self._gather()
        return not self._engine.optimizer.overflow

    def _gather(self) -> None:
        """Whole parameters under ZeRO 3, which DeepSpeed gathers after those steps alone that it takes."""
        if self.zero_stage == 3:
            parameters = self._engine.optimizer.persistent_parameters
            parameters[0].all_gather(parameters)

    def refresh(self) -> None:
        """Parameters that stand still now are left out; those of a group must do so together."""
        for options in self._adam.param_groups:
            parameters = dict(self.objective.named_parameters())
            moving = {parameters[name].requires_grad for name in options["names"]}
            _checks.require(len(moving) == 1, "frozen", "all of the model or of the posterior, on DeepSpeed", ", ".join(options["names"][:3]))
            options["frozen"] = not moving.pop()

    def state(self) -> dict[str, Tensor]:
        """As of `AdamState`; every process must call it."""
        from deepspeed.utils import safe_get_full_optimizer_state

        found = {}
        for update, name, parameter, number in self._moved():
            for key in MOMENTS:
                full = f"{update}.{key}"
                whole = self._adam.state[parameter][full] if self.zero_stage == 0 else safe_get_full_optimizer_state(parameter, full)
                found[f"{update}.{name}.{key}"] = whole.view(parameter.shape)
            found[f"{update}.{name}.{COUNT}"] = torch.tensor(float(self._adam.counts[update][number]))
        return found

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """As of `AdamState`. Weights are those that the objective had when the engine was made."""
        from deepspeed.utils import safe_set_full_optimizer_state

        parameters = dict(self.objective.named_parameters())
        numbers = {name: options["number"] for options in self._adam.param_groups for name in options["names"]}
        for (update, name), entry in by_parameter(tensors, self._adam.counts, parameters).items():
            parameter, counts = parameters[name], self._adam.counts[update]
            for key in MOMENTS:
                value = entry[key].to(self.device)
                if self.zero_stage == 0:
                    self._adam.state[parameter][f"{update}.{key}"].copy_(value)
                else:
                    safe_set_full_optimizer_state(parameter, value, f"{update}.{key}")
            counts[numbers[name]] = max(counts[numbers[name]], int(entry[COUNT]))

    def _moved(self) -> Iterator[tuple[str, str, nn.Parameter, int]]:
        """Update, name, parameter and group of whatever has moved."""
        parameters = dict(self.objective.named_parameters())
        for options in self._adam.param_groups:
            for update in options["updates"]:
                if self._adam.counts[update][options["number"]]:
                    yield from ((update, name, parameters[name], options["number"]) for name in options["names"])


class _Whole(nn.Module):
    """The objective as DeepSpeed calls it: with what is to be computed."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, compute: Callable[[], Tensor]) -> Tensor:
        return compute()


def memberships(objective: Objective, optimisation: Optimisation) -> list[dict[str, Any]]:
    """Parameter groups whose members take part in the same updates, at the same rate, and may stand still together.

    Example:
        >>> from ddvi_fast import likelihoods, models, networks, objectives, posteriors, priors
        >>> model = models.LatentVariableModel(priors.make("pinwheel"), networks.MLP(2, [], 3), likelihoods.make("bernoulli"))
        >>> elbo = objectives.ELBO(model, posteriors.Gaussian(networks.MLP(3, [], 4), 2))
        >>> [(group["updates"], group["names"]) for group in memberships(elbo, Optimisation())][0]
        (('wake',), ['model.decoder.layers.0.weight', 'model.decoder.layers.0.bias'])
    """
    members = {update: {id(parameter) for parameter in parameters} for update, parameters in objective.parameter_groups().items()}
    groups: dict[tuple, dict[str, Any]] = {}
    for name, parameter in objective.named_parameters():
        updates = tuple(update for update, ids in members.items() if id(parameter) in ids)
        if updates:
            key = (updates, optimisation.factor(name), "model" in name.split("."))
            group = groups.setdefault(key, {"params": [], "names": [], "updates": updates, "factor": key[1], "frozen": False})
            group["params"].append(parameter)
            group["names"].append(name)
    return list(groups.values())


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed on `device`, quiet, among the processes that there are."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when DeepSpeed is imported
    if importlib.util.find_spec("deepspeed") is None:
        _checks.fail("engine", "DeepSpeed, for engine=deepspeed", "none installed", "pip install 'ddvi-fast[distributed]', or engine=parallel")
    if not torch.distributed.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it where there is no launcher, too
        backend = "nccl" if device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    import deepspeed
    from deepspeed.comm.torch import TorchBackend

    deepspeed.utils.logger.setLevel(logging.ERROR)  # it warns of an optimiser that it has not tested: ours
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # it calls torch by older names
    # An exchange for inference alone, which would be compiled here and now.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Their defaults are the group of the time of import and would keep its threads past its end; None says the same.
    for barrier in (TorchBackend.barrier, TorchBackend.monitored_barrier):
        barrier.__defaults__ = (None, *barrier.__defaults__[1:])
    deepspeed.init_distributed(verbose=False)
    return deepspeed
