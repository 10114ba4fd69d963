"""Functions that the processes of the tests run, called as `python -m tests.engine.workers NAME SETTINGS [SIZE FOLDER]`."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ddvi_fast import distributed, use_backend
from ddvi_fast.config.compose import compose
from ddvi_fast.engine.failed_step import examples
from ddvi_fast.engine.loop import Callback, Start, train
from ddvi_fast.engine.non_finite import NonFinite
from ddvi_fast.engine.watchdog import Watchdog
from ddvi_fast.precision import LossScale
from ddvi_fast.recipes.build import build
from ddvi_fast.recipes.builder import augmentation
from ddvi_fast.training.run import load_dataset
from tests.engine.world import free_port

BATCH, EPOCHS = 128, 5


def make_engine(kind: str, **options: Any):
    """Makes engines of one kind."""
    from ddvi_fast.engine.deepspeed_engine import DeepSpeedEngine
    from ddvi_fast.engine.engine import Engine

    family = DeepSpeedEngine if kind == "deepspeed" else Engine
    return lambda objective, optimisation: family(objective, optimisation, **options)


class Losses(Callback):
    """Means of the whole batch's terms, step by step."""

    def __init__(self, after: int) -> None:
        self.values, self.after = [], after

    def step(self, step, phase, epoch, terms):
        self.values.append({name: float(value) for name, value in distributed.means_over_processes(terms).items()})
        if step == self.after:
            raise StopIteration


class Overflows(LossScale):
    """Counts them."""

    overflows = 0

    def update(self, overflow):
        self.overflows += overflow
        super().update(overflow)


def follow(
    overrides: list[str],
    kind: str = "parallel",
    steps: int = 50,
    double: bool = False,
    batch: int = BATCH,
    spoil: int | None = None,
    first_scale: float | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The losses of `steps` steps of a run, and a fingerprint of the weights that it ends with."""
    torch.set_num_threads(1)
    distributed.start(torch.device("cpu"))
    config = compose(["dataset=digits", "recipe.match_prior=true", *overrides])
    dataset = load_dataset(config)
    experiment = build(config, dataset)
    phases = [dataclasses.replace(phase, epochs=EPOCHS) for phase in experiment.phases][:1]
    augment = drawn = augmentation(config)
    if double:
        for phase in phases:
            phase.objective.double()
        augment = lambda x, draws: (x if drawn is None else drawn(x, draws)).double()  # noqa: E731
    if spoil is not None:
        dataset = dataclasses.replace(dataset, train_inputs=dataset.train_inputs.float(), test_inputs=dataset.test_inputs.float())
        dataset.train_inputs[spoil] = float("nan")
    if first_scale is not None:
        options["loss_scale"] = scale = Overflows(first_scale)
    losses = Losses(steps)
    found: dict[str, Any] = {}
    with use_backend("reference" if double else "auto"):
        try:
            train(phases, dataset, batch, config.seed, make_engine(kind, **options), [losses], augment)
        except StopIteration:
            pass
        except NonFinite as error:
            found = {"what": error.what, "names": error.names, "examples": examples(error)}
    if first_scale is not None:
        found |= {"scale": scale.value, "overflows": scale.overflows}
    weights = torch.cat([parameter.detach().double().flatten() for parameter in phases[0].objective.parameters()])
    return {"losses": losses.values, "weights": [float(weights.sum()), float(weights.norm())], **found}


def exchanging_threads_left(**case: Any) -> int:
    """Threads that serve exchanges after a process has left the others; they would race with the end of the interpreter."""
    follow(**case)
    distributed.stop()
    names = [thread.read_text(encoding="utf-8").strip() for thread in Path("/proc/self/task").glob("*/comm")]
    return sum("gloo" in name for name in names)


class Handed(Exception):
    """The state of an engine that has done its part."""


class HandOver(Callback):
    """Ends the part of an engine after step `until`."""

    def __init__(self, until: int) -> None:
        self.until = until

    def after_step(self, step, engine):
        if step == self.until:
            raise Handed({name: value.clone() for name, value in engine.state().items()})


def relay(overrides: list[str], engines: list[dict[str, Any]], each: int) -> dict[str, Any]:
    """Losses of a run whose engine changes every `each` steps, and of the same run under one engine."""
    total = each * len(engines)
    whole = [sum(terms.values()) for terms in follow(overrides, steps=total)["losses"]]
    config = compose(["dataset=digits", *overrides])
    dataset = load_dataset(config)
    (phase,) = build(config, dataset).phases
    phase = dataclasses.replace(phase, epochs=EPOCHS)
    relayed, start = [], None
    for number, options in enumerate(engines):
        until = each * (number + 1)
        losses = Losses(1 << 30)

        try:
            train([phase], dataset, BATCH, config.seed, make_engine(**options), [losses, HandOver(until)], start=start)
        except Handed as handed:
            start = Start(until, handed.args[0])
        relayed += [sum(terms.values()) for terms in losses.values]
        weights = {name: value.detach().clone() for name, value in phase.objective.state_dict().items()}
        (fresh,) = build(config, dataset).phases  # without what an engine has hung on its parameters
        fresh.objective.load_state_dict(weights)
        phase = dataclasses.replace(phase, objective=fresh.objective)
    counts = sorted({int(value) for name, value in start.adam.items() if name.endswith(".step")})
    return {"whole": whole, "relayed": relayed, "counts": counts}


def shares(rows: list[int]) -> dict[str, Any]:
    """What two processes see of each other: shares of rows, gathered rows and a mean with their gradients."""
    distributed.start(torch.device("cpu"))
    rank = distributed.rank()
    collected = [distributed.collect(torch.arange(n)[distributed.share(n)], n).tolist() for n in rows]
    mine = torch.tensor([1.0, 2.0]) + 2 * rank
    with distributed.part_of_batch(distributed.Part(rank, 2)):
        x = mine.clone().requires_grad_()
        distributed.gathered(x).square().sum().backward()  # the sum over processes of the gradient 2 x
        y = mine.clone().requires_grad_()
        (distributed.batch_mean(y) * torch.tensor([float(rank), 1.0 - rank])).sum().backward()
    gathered = distributed.collect(x.grad, 4).tolist()
    mean = float(distributed.mean_over_processes(torch.tensor(float(rank))))
    return {"collected": collected, "gradient": [gathered, y.grad.tolist()], "mean": mean, "any": distributed.any_process(rank == 1)}


def oversleep() -> None:
    time.sleep(600)


def lose_a_peer(kind: str, timeout: float) -> None:
    """Process 1 goes still, dies, fails or sleeps; process 0 waits for it in an exchange."""
    distributed.start(torch.device("cpu"), timeout=timeout if kind == "asleep" else 60.0)
    with Watchdog(timeout):
        if distributed.rank() == 1 and kind == "failed":
            raise ValueError("the third shelf is empty")
        if distributed.rank() == 1 and kind == "asleep":
            oversleep()
        if distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGSTOP if kind == "stopped" else signal.SIGKILL)
        distributed.wait_for_all()


def lose_peers(cases: dict[str, float], ended: dict[str, int], folder: str) -> None:
    """`lose_a_peer` for several kinds at once, each with its time limit, in a pair of forks; writes what became of the `ended` first of each."""
    pairs: dict[str, list[int]] = {}
    for kind, timeout in cases.items():
        port = free_port()
        pairs[kind] = []
        for rank in range(2):
            if (process := os.fork()) == 0:
                os.dup2(os.open(Path(folder, f"{kind}-{rank}"), os.O_WRONLY | os.O_CREAT), 2)
                os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_PORT=str(port))
                return lose_a_peer(kind, timeout)
            pairs[kind].append(process)
    found = {}
    for kind, processes in pairs.items():
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes[: ended[kind]]]
        found[kind] = {"codes": codes, "lost": processes[1], "errors": [Path(folder, f"{kind}-{rank}").read_text() for rank in range(ended[kind])]}
    for kind, processes in pairs.items():
        for process in processes[ended[kind] :]:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
    Path(folder, "found").write_text(json.dumps(found))


def fork(size: int) -> int | None:
    """The rank of this process, one of `size` forks; None in the first process, which waits for them, and ends the others when one fails."""
    waiting: dict[int, int] = {}
    port = free_port()
    for rank in range(size):
        if (process := os.fork()) == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_PORT=str(port))
            return rank
        waiting[process] = rank
    while waiting:
        process, status = os.wait()
        rank = waiting.pop(process)
        if status != 0:
            for other in waiting:
                os.kill(other, signal.SIGKILL)
            sys.exit(f"process {rank} of {size} ended with {os.waitstatus_to_exitcode(status)}")
    return None


def groups(sizes_and_calls: list[tuple[int, list[tuple[str, dict[str, Any]]]]], folder: str) -> None:
    """Write what each group of processes returns in turn."""
    for library in ("sklearn.datasets", "torch._dynamo", *(["deepspeed"] if "deepspeed" in json.dumps(sizes_and_calls) else [])):
        importlib.import_module(library)
    for number, (size, calls) in enumerate(sizes_and_calls):
        if (rank := fork(size)) is not None:
            results = [globals()[name](**settings) for name, settings in calls]
            distributed.stop()
            Path(folder, f"{number}-{rank}").write_text(json.dumps(results))
            return


def main() -> None:
    name, settings, *folder = sys.argv[1:]
    given = json.loads(settings)
    if name == "groups":
        groups(given, *folder)
    else:
        globals()[name](**given)
        distributed.stop()


if __name__ == "__main__":
    main()
