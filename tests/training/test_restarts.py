"""Tests of several starts of a run: choice of the best one, continuation, interruptions."""

import json
import signal
import time
from functools import partial
from unittest.mock import Mock

import pytest
import torch

from ddvi_fast import DDVI, cli, distributed
from ddvi_fast.config.compose import compose
from ddvi_fast.engine.callbacks import TermMeter
from ddvi_fast.engine.engine import Engine
from ddvi_fast.engine.logs import read_metrics
from ddvi_fast.engine.loop import train
from ddvi_fast.engine.non_finite import NonFinite
from ddvi_fast.engine.signals import StopRequest
from ddvi_fast.estimator.training import configure
from ddvi_fast.training import restarts, session
from ddvi_fast.training.run import load_dataset, train_run
from tests.engine.recording import OperationRecording
from tests.engine.test_faults import Interrupted, final
from tests.training.test_time_budget import fitted

SMALL = [
    "limit=256", "recipe.batch_size=64", "recipe.epochs=3", "recipe.lr=3e-3", "dataset.encoder.hidden=[24]", "dataset.decoder.hidden=[24]",
    "method.chain.num_steps=4", "method.chain.hidden_dim=32", "prior=square",
]  # fmt: skip
QUICK = [
    *SMALL, "figures=false", "tensorboard=false", "progress=off", "evaluation.evidence=false", "evaluation.limit=8",
    "evaluation.elbo_samples=2", "evaluation.iwae_samples=2", "evaluation.prior_samples=64",
]  # fmt: skip
SEVERAL = ["recipe.restarts=4", "recipe.restart_fraction=0.34"]  # four batches an epoch: the choice is after step 4


def run(folder, *more, seed=0):
    train_run(compose([*QUICK, f"run_dir={folder}", f"seed={seed}", *more]))
    return folder


def records(folder, phase):
    """Records of a phase without their times."""
    return [
        {name: value for name, value in record.items() if name != "seconds"}
        for record in read_metrics(folder / "metrics.jsonl")
        if record["phase"] == phase
    ]


def same(one, other):
    one, other = final(one), final(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], value) for name, value in other.items())


def bound(record):
    return sum(record[name] for name in ("reconstruction", "kl", "bound") if name in record)


def test_a_single_start_is_the_loop_alone(assembled, tmp_path):
    _, dataset, experiment = assembled(*QUICK, "method=vae")
    train(experiment.phases, dataset, 64, 0, Engine, [TermMeter()])
    found = final(run(tmp_path / "run", "method=vae"))
    for name, value in experiment.model.state_dict().items():
        assert torch.equal(found[f"model.{name}"], value)
    assert not records(tmp_path / "run", "restarts")


@pytest.mark.parametrize("method", ["ddvi", "iwae", "aae"])
def test_the_best_start_is_chosen(tmp_path, method):
    """Each candidate is held against a run of its own with that seed."""
    folder = run(tmp_path / "run", f"method={method}", *SEVERAL)
    told = records(folder, "restarts")
    alone = [records(run(tmp_path / str(number), f"method={method}", seed=restarts.seed_of(0, number)), "train")[0] for number in range(4)]
    assert [record["objective"] for record in told] == pytest.approx([bound(record) for record in alone], rel=1e-6)
    best = min(range(4), key=lambda number: bound(alone[number]))
    assert [record["chosen"] for record in told] == [float(number == best) for number in range(4)]
    assert [(record["step"], record["epoch"], record["candidate"]) for record in told] == [(4, 1, number) for number in range(4)]
    assert [record["epoch"] for record in records(folder, "train")] == [2, 3]


def test_weights_and_optimisers_are_the_best_ones(tmp_path):
    """Chosen at the very end, a run is the one that has the best candidate's seed."""
    folder = run(tmp_path / "run", "method=vae", "recipe.restarts=3", "recipe.restart_fraction=1")
    (best,) = [int(record["candidate"]) for record in records(folder, "restarts") if record["chosen"]]
    assert same(folder, run(tmp_path / "alone", "method=vae", seed=restarts.seed_of(0, best)))
    assert same(folder, run(tmp_path / "other", "method=vae", seed=restarts.seed_of(0, (best + 1) % 3))) is False


@pytest.mark.parametrize("method", ["ddvi", "aae"])
def test_a_run_whose_first_start_is_the_best_is_the_run_alone(tmp_path, monkeypatch, method):
    expected = run(tmp_path / "alone", f"method={method}")
    monkeypatch.setattr(restarts, "seed_of", lambda seed, number: seed)  # of equals the first is taken
    assert same(run(tmp_path / "run", f"method={method}", *SEVERAL), expected)
    assert records(tmp_path / "run", "restarts")[0]["chosen"] == 1
    assert records(tmp_path / "run", "train") == records(expected, "train")[1:]


def test_seeds_of_candidates_are_all_different():
    seeds = {restarts.seed_of(seed, number) for seed in range(50) for number in range(20)}
    assert len(seeds) == 1000 and all(0 <= seed < 1 << 63 for seed in seeds)


AVERAGED = ["method=ddvi", "recipe.average_decay=0.9", *SEVERAL]


def stop(monkeypatch, folder, step):
    """Start a run that a signal stops at a step."""
    with monkeypatch.context() as patch:
        Interrupted(patch, step, signal.SIGTERM)
        assert cli.main(["train", *QUICK, f"run_dir={folder}", *AVERAGED]) == cli.EXIT_STOPPED


def test_a_run_stopped_after_the_choice_goes_on_bit_for_bit_without_another(tmp_path, monkeypatch):
    expected = run(tmp_path / "calm", *AVERAGED)
    stop(monkeypatch, tmp_path / "run", 6)
    # The choice itself is kept, so that a run that is killed need not repeat it.
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]
    monkeypatch.setattr(restarts, "choose", None)
    assert same(run(tmp_path / "run", *AVERAGED), expected)
    for phase in ("restarts", "train"):
        assert records(tmp_path / "run", phase) == records(expected, phase)


def test_a_run_that_goes_on_from_the_choice_itself_is_the_same(tmp_path, monkeypatch):
    def end(phases, dataset, batch_size, seed, make_engine, callbacks, *arguments, **options):
        callbacks[-1].finish_writing()
        raise RuntimeError("killed")

    expected = run(tmp_path / "calm", *AVERAGED)
    with monkeypatch.context() as patch:
        patch.setattr(session, "train", end)
        with pytest.raises(RuntimeError, match="killed"):
            run(tmp_path / "run", *AVERAGED)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000004"]
    monkeypatch.setattr(restarts, "choose", None)
    assert same(run(tmp_path / "run", *AVERAGED), expected)


def test_a_run_stopped_before_the_choice_begins_anew(tmp_path, monkeypatch, capsys):
    expected = run(tmp_path / "calm", *AVERAGED)
    stop(monkeypatch, tmp_path / "run", 3)
    assert "stopped after step 0; the same command resumes the run" in capsys.readouterr().err
    assert same(run(tmp_path / "run", *AVERAGED), expected)


def spoil(monkeypatch, numbers):
    """Let candidates with these numbers fail."""
    trained, seeds = restarts._train, [restarts.seed_of(0, number) for number in numbers]

    def fail(config, *others):
        if config.seed in seeds:
            raise NonFinite("loss", ["kl"])
        return trained(config, *others)

    monkeypatch.setattr(restarts, "_train", fail)


def test_a_candidate_that_is_not_finite_is_out_of_the_choice(tmp_path, monkeypatch):
    spoil(monkeypatch, [0, 2])
    told = records(run(tmp_path / "run", "method=vae", *SEVERAL), "restarts")
    assert [record["objective"] is None for record in told] == [True, False, True, False]
    assert sum(record["chosen"] for record in told) == 1 == told[1]["chosen"] + told[3]["chosen"]


def test_without_a_finite_candidate_the_run_fails(tmp_path, monkeypatch):
    spoil(monkeypatch, range(4))
    with pytest.raises(NonFinite, match="NaN or infinity in kl"):
        run(tmp_path / "run", "method=vae", *SEVERAL)
    assert not (tmp_path / "run" / "failed-step").exists()


def test_recorded_steps_choose_and_go_on_like_others(assembled, monkeypatch):
    monkeypatch.setattr("ddvi_fast.dense._fused_precision", lambda *_: None)  # a recording of operators has dense layers so
    weights, objectives = [], []
    for make in (Engine, partial(Engine, capture=True, make_recording=OperationRecording)):
        config, dataset, experiment = assembled(*SMALL, *SEVERAL, "method=ddvi")
        log = Mock()
        start = restarts.choose(config, experiment, dataset, make, StopRequest(), log, lambda line: None)
        train(experiment.phases, dataset, 64, 0, make, [TermMeter()], start=start)
        weights.append(experiment.model.state_dict())
        objectives.append([call.kwargs["terms"]["objective"] for call in log.log.mock_calls])
    assert objectives[1] == pytest.approx(objectives[0], rel=2e-4) and len(set(objectives[0])) == 4
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-4)


def test_candidates_count_in_a_runs_time(tmp_path, monkeypatch):
    choose, clock = restarts.choose, time.process_time

    def slow(*arguments):
        monkeypatch.setattr(session.time, "process_time", lambda: clock() + 5000)
        return choose(*arguments)

    monkeypatch.setattr(restarts, "choose", slow)
    folder = run(tmp_path / "run", "method=vae", *SEVERAL)
    assert json.loads((folder / "evaluation.json").read_text())["cpu_seconds"] >= 5000


def test_minutes_are_shared_with_the_candidates(monkeypatch):
    several = ("recipe.restarts=5", "recipe.restart_fraction=0.25")
    assert fitted(monkeypatch, "max_minutes=1", *several).recipe.epochs == 15  # 30 of a single start


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recipe=released", "method=vae"], r"recipe\.restarts: expected 1 with recipe=released"),
        (["method=vae_semi"], r"recipe\.restarts: expected 1 for methods with labels"),
        (["recipe.restarts=0"], r"recipe\.restarts: expected at least 1, got 0"),
        (["recipe.restart_fraction=0"], r"recipe\.restart_fraction: expected a number in \(0, 1\]"),
        (["recipe.restart_fraction=1.5"], r"recipe\.restart_fraction: expected a number in \(0, 1\]"),
        (["engine=deepspeed"], r"recipe\.restarts: expected 1 with engine=deepspeed"),
        (["zero_stage=1"], r"recipe\.restarts: expected 1 with engine=deepspeed"),
    ],
)
def test_what_has_no_several_starts_says_so(one_line, tmp_path, overrides, message):
    one_line(lambda: train_run(compose(["recipe.restarts=2", *overrides, f"run_dir={tmp_path / 'run'}"])), message)


def test_several_processes_have_one_start(monkeypatch, one_line):
    monkeypatch.setattr(distributed, "launched", lambda: True)
    one_line(session.processes(compose(["recipe.restarts=2"])).__enter__, r"recipe\.restarts: expected 1 in several processes, got 2")


def test_an_estimator_has_one_start(one_line):
    parameters = DDVI(likelihood="bernoulli", settings=["recipe.restarts=2"]).get_params()
    one_line(lambda: configure(parameters, 0, load_dataset(compose([]))), r"settings: expected recipe\.restarts=1")
