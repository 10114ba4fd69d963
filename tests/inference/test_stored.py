"""Simulations in arrays: rows in a shuffled order, moments of all of them, fits from folders and memory maps, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Normal, constraints

from ddvi_fast import InputError
from ddvi_fast.inference import Architecture, FittedPosterior, Model, SetEmbedding, StoredSimulations, Support, Training, fit_posterior
from ddvi_fast.rng import Draws

GAUSSIAN = Architecture(family="gaussian", hidden=(16,))
OPTIONS = {"architecture": GAUSSIAN, "training": Training(steps=200, batch_size=128, lr=0.02)}
QUICK = {"architecture": GAUSSIAN, "training": Training(steps=2, batch_size=32)}


def simulations(rows: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    """z ~ N(0, 1) and x = z + 0.3 noise in units of 1000, both in single precision."""
    made = np.random.default_rng(0)
    z = made.standard_normal((rows, 1)).astype(np.float32)
    return z, 1000 * (z + 0.3 * made.standard_normal((rows, 1)).astype(np.float32))


def written(folder: Path, **arrays: np.ndarray) -> Path:
    folder.mkdir()
    for name, value in arrays.items():
        np.save(folder / f"{name.replace('__', '.')}.npy", value)
    return folder


def test_a_fit_is_the_same_from_a_folder_a_map_and_arrays(tmp_path) -> None:
    z, x = simulations()
    folder = written(tmp_path / "kept", z=z, x=x)
    maps = tuple(np.load(folder / f"{name}.npy", mmap_mode="r") for name in "zx")
    exact = fit_posterior(simulations=folder, x=torch.tensor([1000.0]), **OPTIONS).sample(2000)
    assert abs(float(exact.mean()) - 0.917) < 0.1 and abs(float(exact.std()) - 0.287) < 0.06
    draws = [fit_posterior(simulations=source, x=torch.tensor([1000.0]), **QUICK).sample(20)
             for source in (folder, str(folder), maps, (z, x), [torch.from_numpy(z), torch.from_numpy(x)])]  # fmt: skip
    assert all(torch.equal(draws[0], other) for other in draws[1:])


def test_named_parameters_have_files_of_their_own_and_a_density_joins_in(tmp_path) -> None:
    z, x = simulations()
    folder = written(tmp_path / "kept", z__rate=np.exp(z[:, 0]), x=x / 1000)

    def log_joint(x: torch.Tensor, z: dict[str, torch.Tensor]) -> torch.Tensor:
        log = z["rate"].log()
        return Normal(0.0, 1.0).log_prob(log) - log + Normal(log, 0.3).log_prob(x[..., 0])

    options = {"support": {"rate": constraints.positive}, "simulations": folder}
    posterior = fit_posterior(Model(log_joint=log_joint), torch.tensor([1.0]), **options, **OPTIONS)
    assert abs(float(posterior.sample(2000)["rate"].log().mean()) - 0.917) < 0.1
    assert posterior.importance_sample(500).effective_sample_size > 400
    assert posterior.diagnostics(200, 99).calibrated(errors=6)


def test_each_row_is_drawn_once_before_any_is_drawn_again() -> None:
    stored = StoredSimulations((np.arange(3000.0)[:, None], np.arange(3000.0)[:, None]))
    batches = [stored.simulate(100, Draws(5, 100 * step)) for step in range(60)]
    z, x = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
    assert torch.equal(z, x)
    first, second = z[:3000, 0], z[3000:, 0]
    assert torch.equal(first.sort().values, torch.arange(3000.0).double()) and torch.equal(second.sort().values, first.sort().values)
    assert not torch.equal(first, second) and not torch.equal(first, stored.simulate(3000, Draws(6))[0][:, 0])
    assert torch.equal(stored.simulate(3000, Draws(5))[0][:, 0], first)


def test_moments_are_those_of_all_rows_in_any_number_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    z, x = np.random.default_rng(1).lognormal(size=(1000, 2)), 1e6 + np.random.default_rng(2).standard_normal((1000, 3))
    x[::3, 1] = np.nan
    for size in (1 << 23, 1000):
        monkeypatch.setattr("ddvi_fast.inference.stored._BYTES", size)
        of_u, of_x = StoredSimulations((z, x)).moments(Support(constraints.positive, 2), missing=True)
        np.testing.assert_allclose(of_u.mean, np.log(z).mean(0), rtol=1e-12)
        np.testing.assert_allclose(of_x.deviation, np.nanstd(x, 0), rtol=1e-9)
        np.testing.assert_allclose(of_x.high, np.nanmax(x, 0))
        assert of_x.count.tolist() == [1000, 666, 1000]


def test_what_the_first_rows_do_not_show_is_standardized_too() -> None:
    z, x = simulations(60_000)
    rare = np.zeros((60_000, 1))
    rare[-1] = 5.0  # the chance that 4,096 rows show it is 7%
    posterior = fit_posterior(simulations=(z, np.concatenate((x, rare), 1)), **QUICK)
    observation = posterior.observation
    assert not len(observation.heavy)
    assert observation.columns.tolist() == [0, 1]
    np.testing.assert_allclose(observation.scale[0], x.astype(float).std(), rtol=1e-9)
    np.testing.assert_allclose(posterior.whitening.shift, z.astype(float).mean(0), atol=1e-7)


def test_missing_entries_of_stored_data() -> None:
    z, x = simulations()
    posterior = fit_posterior(simulations=(z, np.where(np.abs(x) > 1e3, np.nan, x)), missing="simulated", **QUICK)
    assert posterior.sample(3, torch.tensor([torch.nan])).shape == (3, 1)
    assert fit_posterior(simulations=(z, x), missing="random", **QUICK).sample(3, torch.tensor([torch.nan])).shape == (3, 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of files is read from /proc")
def test_pages_of_files_are_released(tmp_path) -> None:
    z = np.zeros((1 << 14, 1), dtype=np.float32)
    folder = written(tmp_path / "kept", z=z, x=np.zeros((1 << 14, 1 << 10), dtype=np.float32))  # 64 MiB

    def of_files() -> int:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
        return int(line.split()[1])

    stored = StoredSimulations(folder)
    before = of_files()
    stored.moments(Support(constraints.real, 1))
    for step in range(8):
        stored.simulate(512, Draws(0, 512 * step))
    assert of_files() - before < 16 * 1024, sys.platform


def test_bad_simulations_are_named(tmp_path) -> None:
    z, x = simulations(100)
    cases = {
        r"simulations: expected a folder with x.npy": (tmp_path, written(tmp_path / "a", z=z), written(tmp_path / "b", z=z, z__mu=z, x=x)),
        r"simulations: expected a folder, or a pair of arrays": (3, (z, x, x)),
        r"simulations, z: expected 100 rows, as x has, got 90": ((z[:90], x),),
        r"simulations, z: expected real numbers": ((z.astype(complex), x),),
        r"simulations, z: expected a NumPy array": ((None, x),),
        r"simulations, [zx]: expected at least 2 rows": ((z[:1], x[:1]), (z, x[:, :0])),
        r"simulat(e|ions), x.*: expected finite values": ((z, np.where(x > 0, np.inf, x)), (z, np.where(x > 0, np.nan, x))),
    }
    for message, sources in cases.items():
        for source in sources:
            with pytest.raises(InputError, match=message):
                fit_posterior(simulations=source, **QUICK)
    with pytest.raises(InputError, match=r"simulations, x, rows 0 to 99: expected finite values, got inf at index \(7, 0\)"):
        StoredSimulations((z, np.where(np.arange(100)[:, None] == 7, np.inf, x))).moments(Support(constraints.real, 1))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "z.npy").write_bytes(b"no array"), np.save(tmp_path / "c" / "x.npy", x)
    with pytest.raises(InputError, match=r"simulations: expected files of NumPy arrays, got z.npy"):
        fit_posterior(simulations=tmp_path / "c")
    with pytest.raises(InputError, match=r"simulat(e|ions), z.*: expected values in GreaterThan"):
        fit_posterior(simulations=(z, x), support=constraints.positive, **QUICK)
    with pytest.raises(InputError, match="num_simulations: expected None"):
        fit_posterior(simulations=(z, x), num_simulations=10)
    with pytest.raises(InputError, match="simulations: expected None, for sets"):
        fit_posterior(simulations=(z, x), embedding=SetEmbedding(1))
    with pytest.raises(InputError, match="model: expected an object with log_joint"):
        fit_posterior()
    assert isinstance(fit_posterior(simulations=(z, x), **QUICK), FittedPosterior)
