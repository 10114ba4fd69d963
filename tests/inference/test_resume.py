"""Fits that go on from a checkpoint: equal bit for bit to those without interruption; folders that do not fit; progress."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ddvi_fast import InputError, fit_posterior
from ddvi_fast.engine.engine import Engine
from ddvi_fast.inference import Architecture, FittedPosterior, Model, Training
from tests.inference.test_fitting import Regression, X

SINGLE = Architecture(num_steps=4, width=8)
SMALL = Architecture(num_steps=4, width=8, hidden=(8,), context_dim=4)
QUICK = Training(steps=40, batch_size=16)
MODEL = Regression()


def embedding() -> nn.Module:
    """A network with batch normalization and dropout, which draws from torch's global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2))


FITS = {
    "a density": lambda **o: fit_posterior(Model(log_joint=MODEL.log_joint), X, dim=2, architecture=SINGLE, training=QUICK, **o),
    "simulations": lambda **o: fit_posterior(Model(simulate=MODEL.simulate), X, architecture=SMALL, training=QUICK, **o),
    "both": lambda **o: fit_posterior(MODEL, X, architecture=SMALL, training=QUICK, **o),
    "rows": lambda **o: fit_posterior(MODEL, X.expand(5, 3), architecture=SMALL, training=Training(steps=8, batch_size=16), **o),
    "few simulations": lambda **o: fit_posterior(
        Model(simulate=MODEL.simulate), X, num_simulations=60, training=QUICK,
        architecture=Architecture(num_steps=4, width=8, hidden=(8,), context_dim=4, ensemble=2), **o
    ),
    "an embedding": lambda **o: fit_posterior(
        Model(simulate=MODEL.simulate), X, embedding=embedding(), architecture=SMALL, training=QUICK, **o
    ),
}  # fmt: skip


class Interrupted(Exception):
    """What stops a fit in the tests."""


@pytest.fixture(autouse=True)
def one_attempt(quick_start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddvi_fast.inference.start._ATTEMPTS", 1)


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch):
    """A function that makes training steps stop the fit after so many of them; it returns a list of the steps taken since."""

    def set_limit(limit: int | None) -> list[int]:
        taken: list[int] = []

        def run(self: Engine, *arguments):
            if limit is not None and len(taken) >= limit:
                raise Interrupted
            taken.append(1)
            return step(self, *arguments)

        monkeypatch.setattr(Engine, "run", run)
        return taken

    step = Engine.run
    return set_limit


def equal(one: FittedPosterior, other: FittedPosterior) -> bool:
    same = all(torch.equal(a, b) for a, b in zip(one.posterior.state_dict().values(), other.posterior.state_dict().values(), strict=True))
    return same and torch.equal(one.sample(20, X), other.sample(20, X)) if one.conditional else same and torch.equal(one.sample(20), other.sample(20))


@pytest.mark.filterwarnings("ignore::UserWarning")  # such short fits have learned little
@pytest.mark.parametrize("name", FITS)
def test_an_interrupted_fit_goes_on_bit_for_bit(name: str, tmp_path, stop_after) -> None:
    taken = stop_after(None)
    whole = FITS[name]()
    total = len(taken)
    for done in (total // 5, total // 2):  # the second interruption follows the first
        taken = stop_after(done)
        with pytest.raises(Interrupted):
            FITS[name](checkpoint=tmp_path / "fit")
    taken = stop_after(None)
    resumed = FITS[name](checkpoint=tmp_path / "fit")
    assert equal(whole, resumed) and resumed.history == whole.history and resumed.information == whole.information
    assert 0 < len(taken) < 0.6 * total
    taken = stop_after(None)
    assert equal(whole, FITS[name](checkpoint=tmp_path / "fit")) and not taken  # it has ended


@pytest.mark.filterwarnings("ignore:loss")
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(tmp_path, stop_after) -> None:
    whole = FITS["simulations"]()
    stop_after(30)
    with pytest.raises(Interrupted):
        FITS["simulations"](checkpoint=tmp_path)
    stop_after(None)
    newest = sorted((tmp_path / "posterior").iterdir())[-1] / "weights.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    with pytest.warns(UserWarning, match=r"checkpoint step-\d+ is corrupt .* falling back to the previous one"):
        assert equal(whole, FITS["simulations"](checkpoint=tmp_path))
    (tmp_path / "settings" / "state.json").write_text("{")
    with pytest.raises(InputError, match=r"^[^\n]*state.json: expected JSON[^\n]*$"):
        FITS["simulations"](checkpoint=tmp_path)


@pytest.mark.filterwarnings("ignore:loss")
def test_folders_of_other_fits_are_refused(tmp_path) -> None:
    FITS["simulations"](checkpoint=tmp_path / "fit")
    with pytest.raises(InputError, match=r"^checkpoint: expected a fit with seed=1, got one with seed=0[^\n]*$"):
        FITS["simulations"](checkpoint=tmp_path / "fit", seed=1)
    with pytest.raises(InputError, match="checkpoint: expected a fit with objective=both"):
        FITS["both"](checkpoint=tmp_path / "fit")
    other = Model(simulate=lambda n: tuple(2 * part for part in MODEL.simulate(n)))
    with pytest.raises(InputError, match="checkpoint: expected a model with the data of the earlier call"):
        fit_posterior(other, X, architecture=SMALL, training=QUICK, checkpoint=tmp_path / "fit")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="checkpoint: expected a new or empty folder, or that of an earlier call"):
        FITS["simulations"](checkpoint=tmp_path / "foreign")
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["thesis.txt"]
    FITS["a density"](checkpoint=tmp_path / "density")
    with pytest.raises(InputError, match="checkpoint: expected a model with the log_joint of the earlier call"):
        fit_posterior(Model(log_joint=MODEL.log_joint), X + 1, dim=2, architecture=SINGLE, training=QUICK, checkpoint=tmp_path / "density")
    with pytest.raises(InputError, match="checkpoint: expected a path"):
        FITS["simulations"](checkpoint=3)


@pytest.mark.filterwarnings("ignore:loss")
def test_kept_simulations_are_not_drawn_again(tmp_path) -> None:
    calls: list[int] = []

    def simulate(n: int) -> tuple[dict[str, Tensor], Tensor]:
        calls.append(n)
        z, x = MODEL.simulate(n)
        return {"a": z[:, 0], "b": z[:, 1:]}, x

    kinds = {"a": torch.distributions.constraints.real, "b": (torch.distributions.constraints.real, (1,))}
    options = {"support": kinds, "num_simulations": 40, "training": Training(steps=10, batch_size=8), "checkpoint": tmp_path}
    first = fit_posterior(Model(simulate=simulate), X, architecture=SMALL, **options)
    assert equal_named(first, fit_posterior(Model(simulate=simulate), X, architecture=SMALL, **options)) and calls == [40]


def equal_named(one: FittedPosterior, other: FittedPosterior) -> bool:
    return all(torch.equal(value, other.sample(20)[name]) for name, value in one.sample(20).items())


@pytest.mark.filterwarnings("ignore:loss")
def test_progress_is_shown_stage_by_stage_where_it_is_asked_for(capsys) -> None:
    FITS["simulations"]()
    assert capsys.readouterr().err == ""
    FITS["simulations"](progress=True)
    shown = capsys.readouterr()
    assert [line.split()[0] for line in shown.err.splitlines()] == ["frame", "posterior"] and shown.out == ""
    assert "step 10/10" in shown.err and "step 40/40" in shown.err and "loss" in shown.err
    with pytest.raises(InputError, match="progress: expected True or False"):
        FITS["simulations"](progress="yes")
