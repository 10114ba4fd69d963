"""Engine on DeepSpeed: optimizer states (ZeRO 1), gradients (2) and parameters (3) partitioned over processes.

An objective has one optimizer per kind of update, a DeepSpeed model has one in all: `UpdateAdam` holds them, with a parameter group for each
set of updates that train the same parameters. Parameters are float32 and autocast narrows products, as in every engine, so DeepSpeed runs in
its float32 mode.

The fused chain reads its weights directly and not through a module, so under ZeRO 3 parameters are gathered after each step and not at each
use. This saves memory of optimizer states and gradients, not of parameters.
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

from ddvi_fast import _checks
from ddvi_fast.engine.adam_state import COUNT, by_parameter
from ddvi_fast.engine.engine import Engine
from ddvi_fast.engine.optimizers import MOMENTS, UpdateAdam
from ddvi_fast.objectives import Objective, Terms
from ddvi_fast.recipes.phases import Optimisation

STAGES = (0, 1, 2, 3)
_EVERYTHING = 10**12  # elements: no parameter is too large to stay gathered
_BUCKET = 1 << 24  # elements of an exchange, at most; DeepSpeed allocates that much, and its own 5 * 10^8 are 2 GB


class DeepSpeedEngine(Engine):
    """Adam on the parameters of one objective, on DeepSpeed.

    Args:
        objective: Objective to minimize. It is moved to `device`.
        optimisation: Learning rates and clipping.
        device: Device of this process (default the CPU).
        zero_stage: What is partitioned over processes: 0 nothing, 1 optimizer states, 2 also gradients, 3 also parameters.
        options: Options of `Engine`.

    Raises:
        InputError: DeepSpeed is not installed.
        NonFinite: As in `Engine`.
    """

    watches_on_device = False

    def __init__(
        self, objective: Objective, optimisation: Optimisation, device: torch.device | str = "cpu", *, zero_stage: int = 0, **options: Any
    ) -> None:
        _checks.require(zero_stage in STAGES, "zero_stage", "0, 1, 2 or 3", zero_stage)
        deepspeed = _import_deepspeed(torch.device(device))
        self.zero_stage, self._deepspeed = zero_stage, deepspeed
        super().__init__(objective, optimisation, device, **options)

    def _make_optimizers(self) -> None:
        self._adam = UpdateAdam(memberships(self.objective, self.optimisation), self.adam, self.optimisation.lr, self.device)
        whole = _Whole(self.objective)
        self._engine, *_ = self._deepspeed.initialize(model=whole, optimizer=self._adam, config=self._config(), dist_init_required=False)
        # Without ZeRO it would exchange zeros for all parameters that an update does not train.
        self._engine.enable_backward_allreduce = self.zero_stage > 0
        if self.zero_stage == 3:
            # They partition the weights of a module after its call, also weights that a fused operation reads next.
            self._engine.optimizer.parameter_offload._remove_module_hooks()
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
        """Take a first step without an active update: it changes no parameter, but DeepSpeed links its states to parameters in it."""
        self._gather()
        for _ in range(self.accumulation):
            self._engine.backward(self._engine(self._nothing))
            self._engine.step()

    def _nothing(self) -> Tensor:
        return 0.0 * torch.stack([parameter.sum() for parameter in self.objective.parameters() if parameter.requires_grad]).sum()

    def _forget_gradients(self, group: str) -> None:
        """Nothing to do: DeepSpeed clears gradients."""

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

    def _move(self, group: str, rate: float | Tensor) -> bool:
        self._adam.active = group
        for options in self._adam.param_groups:
            options["lr"] = rate * options["factor"]
        try:
            return self._move_whole(group) if self.zero_stage == 0 else self._move_spread()
        finally:
            self._adam.active = None

    def _move_whole(self, group: str) -> bool:
        """Without ZeRO, gradients are on the parameters, and are averaged here."""
        members = [parameter for options in self._adam.param_groups if group in options["updates"] for parameter in options["params"]]
        moving = [parameter for parameter in members if parameter.grad is not None]
        good = self._average_and_clip(moving)
        if not good and self.loss_scale is None:
            return False
        if not good:
            self._adam.active = None
        self._engine.step()
        return good

    def _move_spread(self) -> bool:
        """With ZeRO, DeepSpeed clips, and skips a step whose gradient norm is not finite."""
        self._engine.step()
        if self.zero_stage == 3:
            # What the next update does not move would count with its last gradient in the norm.
            self._engine.optimizer.grad_partitions_flat_buffer.zero_()
        if self._engine.optimizer.overflow:
            self._gather()
        return not self._engine.optimizer.overflow

    def _gather(self) -> None:
        """Gather the parameters under ZeRO 3; DeepSpeed does so only after steps that it does not skip."""
        if self.zero_stage == 3:
            parameters = self._engine.optimizer.persistent_parameters
            parameters[0].all_gather(parameters)

    def refresh(self) -> None:
        """Leave out parameters that are frozen now; those of a group must be frozen together."""
        for options in self._adam.param_groups:
            parameters = dict(self.objective.named_parameters())
            moving = {parameters[name].requires_grad for name in options["names"]}
            _checks.require(len(moving) == 1, "frozen", "all of the model or of the posterior, on DeepSpeed", ", ".join(options["names"][:3]))
            options["frozen"] = not moving.pop()

    def state(self) -> dict[str, Tensor]:
        """As in `AdamState`; every process must call it."""
        from deepspeed.utils import safe_get_full_optimizer_state

        found = {}
        for update, name, parameter, number in self._moved():
            for key in MOMENTS:
                full = f"{update}.{key}"
                whole = self._adam.state[parameter][full] if self.zero_stage == 0 else safe_get_full_optimizer_state(parameter, full)
                found[f"{update}.{name}.{key}"] = whole.view(parameter.shape)
            found[f"{update}.{name}.{COUNT}"] = torch.tensor(float(self._adam.counts[update][number]), dtype=torch.float32, device="cpu")
        return found

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """As in `AdamState`. Weights are those of the objective when the engine was made."""
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
        """Update, name, parameter and group of every parameter that has been updated."""
        parameters = dict(self.objective.named_parameters())
        for options in self._adam.param_groups:
            for update in options["updates"]:
                if self._adam.counts[update][options["number"]]:
                    yield from ((update, name, parameters[name], options["number"]) for name in options["names"])


class _Whole(nn.Module):
    """The objective as a module that DeepSpeed calls with a function to compute."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, compute: Callable[[], Tensor]) -> Tensor:
        return compute()


def memberships(objective: Objective, optimisation: Optimisation) -> list[dict[str, Any]]:
    """Parameter groups whose members take part in the same updates, at the same rate, and are frozen together.

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
    """Import DeepSpeed for `device`, without its log, in the process group of the run."""
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
