"""Tests of `ddvi-fast admixture` and `method=ddvi_admixture`, and of the bars."""

import dataclasses
import json
import re

import numpy as np
import pytest

from ddvi_fast import cli, plots
from ddvi_fast._checks import InputError
from ddvi_fast.engine.run_folder import _remove_owned as remove_owned
from ddvi_fast.genomes import admixture_posterior
from ddvi_fast.genomes.admixture import Admixture
from ddvi_fast.genomes.convert import store_from_codes
from ddvi_fast.genomes.tables import SampleTable
from ddvi_fast.metrics import purity
from ddvi_fast.plots.admixture import bar_order
from tests.genomes.test_admixture import labels_of, simulated


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A store of people of two sources and of both, and a table of the sources of half of them."""
    folder = tmp_path_factory.mktemp("cohort")
    codes, shares, _ = simulated(2, 60, 600)
    store = store_from_codes(codes, folder / "store")
    rows = zip(store.samples.name, labels_of(shares), ["left", "right"] * 30, strict=True)
    (folder / "sources.tsv").write_text("sample\tsource\tside\n" + "".join("\t".join(row) + "\n" for row in rows))
    return folder, shares


def test_the_command_writes_proportions_files_and_bars(cohort, tmp_path, capsys):
    folder, shares = cohort
    arguments = ["--sources", "2", "--supervised", str(folder / "sources.tsv"), "--label", "source", "--out", str(tmp_path / "out")]
    assert cli.main(["admixture", str(folder / "store"), *arguments]) == 0
    names = ["admixture.2.Q", "admixture.2.P", "admixture.tsv", "admixture.png", "admixture.html"]
    assert capsys.readouterr().out.split() == [str(tmp_path / "out" / name) for name in names]
    assert np.abs(np.loadtxt(tmp_path / "out" / names[0]) - shares).mean() < 0.08
    assert np.loadtxt(tmp_path / "out" / names[1]).shape == (600, 2)
    assert (tmp_path / "out" / names[3]).stat().st_size > 5000


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--sources", "2", "--supervised", "{table}"], "label: expected one of source, side"),
        (["--sources", "2", "3", "--supervised", "{table}", "--label", "source"], "sources: expected one number"),
        (["--sources", "3", "--supervised", "{table}", "--label", "source"], "labels: expected 3 sources, got 2: A, B"),
        (["--sources", "0"], "sources[0]: expected an integer of at least 1"),
        (["--sources", "2", "--groups", "{table}x"], "sources.tsvx, which is missing"),
    ],
)
def test_wrong_arguments_are_refused_and_write_nothing(cohort, tmp_path, capsys, arguments, message):
    folder, _ = cohort
    words = [word.format(table=folder / "sources.tsv") for word in arguments]
    assert cli.main(["admixture", str(folder / "store"), *words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_groups_of_one_source_stand_side_by_side_and_people_in_the_order_of_its_share():
    generator = np.random.default_rng(0)
    shares = generator.dirichlet(np.full(3, 0.4), 90)
    groups = np.array(list("abcdef"), object)[generator.integers(0, 6, 90)]
    order = bar_order(shares, groups)
    assert sorted(order.tolist()) == list(range(90))
    starts = [0, *(np.flatnonzero(groups[order][1:] != groups[order][:-1]) + 1), 90]
    assert len(starts) == 7  # each group is in one piece
    major = [int(shares[groups == groups[order[start]]].mean(0).argmax()) for start in starts[:-1]]
    assert major == sorted(major)
    for start, end, source in zip(starts, starts[1:], major, strict=False):
        assert (np.diff(shares[order[start:end], source]) <= 0).all()


def test_bars_refuse_shares_of_other_sources(tmp_path):
    with pytest.raises(InputError, match="proportions: expected a row of 3 numbers"):
        plots.admixture_bars(tmp_path / "a.png", np.ones((4, 2)) / 2, "abc")
    with pytest.raises(InputError, match="groups: expected 4 names"):
        plots.admixture_bars(tmp_path / "a.png", np.ones((4, 2)) / 2, "ab", ["x"])


def test_columns_of_a_table_are_those_that_it_adds(cohort):
    from ddvi_fast.genomes.admixture_run import _column
    from ddvi_fast.genomes.store import GenotypeStore

    folder, shares = cohort
    store = GenotypeStore(folder / "store")
    known = store.with_samples(SampleTable(store.samples.name, {"other": np.full(60, "x", object)}))
    assert _column(known, folder / "sources.tsv", None, first=True).tolist() == labels_of(shares).tolist()


def test_a_run_of_the_method_has_the_files_of_the_command_and_is_reported(cohort, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(admixture_posterior, "_TRAINING", dataclasses.replace(admixture_posterior._TRAINING, steps=5))
    folder, _ = cohort
    settings = [f"data={folder / 'store'}", f"labels={folder / 'sources.tsv'}", "dataset.genotypes.label=side", f"run_dir={tmp_path / 'run'}"]
    supervised = [f"method.admixture.supervised={folder / 'sources.tsv'}", "method.admixture.label=source", "method.admixture.sources=[2]"]
    assert cli.main(["train", "dataset=1kg", "method=ddvi_admixture", *settings, *supervised]) == 0
    assert "admixture.html" in capsys.readouterr().out
    arguments = ["--sources", "2", "--supervised", str(folder / "sources.tsv"), "--label", "source", "--out", str(tmp_path / "out")]
    assert cli.main(["admixture", str(folder / "store"), *arguments]) == 0
    for name in ("admixture.2.Q", "admixture.2.P", "admixture.tsv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    proportions = np.loadtxt(tmp_path / "run" / "admixture.2.Q")
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert found["sources"] == 2 and found["purity"] == purity(np.arange(60) % 2, proportions.argmax(1))
    assert cli.main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "report.html")]) == 0
    text = (tmp_path / "report.html").read_text()
    assert 'alt="admixture, run"' in text and "data:image/png" in text
    remove_owned(tmp_path / "run")
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]  # `overwrite=true` takes all of its files away


def test_a_run_that_fails_leaves_the_earlier_run_and_an_occupied_folder_is_told_before_the_fit(cohort, tmp_path, capsys, monkeypatch):
    folder, _ = cohort
    monkeypatch.setattr(admixture_posterior, "_TRAINING", dataclasses.replace(admixture_posterior._TRAINING, steps=5))
    arguments = ["train", "dataset=1kg", "method=ddvi_admixture", f"data={folder / 'store'}", "method.admixture.sources=[2]"]
    arguments += [f"run_dir={tmp_path / 'run'}", "figures=false"]
    assert cli.main(arguments) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}

    def broken(*_):
        raise InputError("the fit was begun")

    monkeypatch.setattr(Admixture, "fit", broken)
    assert cli.main(arguments) == 2 and "expected a new or empty folder" in capsys.readouterr().err
    assert cli.main([*arguments, "overwrite=true"]) == 2 and "the fit was begun" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "settings, message",
    [
        (["dataset=digits"], "dataset: expected one of"),
        (["dataset=1kg", "method.clustering.num_clusters=4"], "method.clustering.num_clusters: expected a run with method.task=clustering"),
        (["dataset=1kg", "epochs=3"], "epochs: expected a run with a method that is trained"),
        (["dataset=1kg", "dataset.genotypes.num_components=3"], "dataset.genotypes.num_components: expected a run with a method of features"),
    ],
)
def test_settings_that_the_method_ignores_are_refused(cohort, tmp_path, capsys, settings, message):
    folder, _ = cohort
    assert cli.main(["train", "method=ddvi_admixture", *settings, f"data={folder / 'store'}", f"run_dir={tmp_path / 'run'}"]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_the_page_has_all_people_in_the_order_of_the_bars(tmp_path):
    shares = np.random.default_rng(0).dirichlet(np.ones(3), 12)
    people, groups = [f"person {row}" for row in range(12)], ["</script>", "b", "c"] * 4
    path = plots.interactive_bars(tmp_path / "bars.html", shares, "abc", people, groups, "A title", interval=(0.5 * shares, shares))
    text = path.read_text()
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', text, re.S)[1])
    order = bar_order(shares, groups)
    assert data["people"] == [people[row] for row in order] and data["groups"] == [groups[row] for row in order]
    np.testing.assert_allclose(data["shares"], shares[order], atol=5e-5)
    np.testing.assert_allclose(data["lower"], 0.5 * shares[order], atol=5e-5)
    assert "A title" in text and "http" not in text
    with pytest.raises(InputError, match="people: expected 12 names"):
        plots.interactive_bars(tmp_path / "a.html", shares, "abc", people[:3])
    with pytest.raises(InputError, match="interval, upper: expected shape"):
        plots.interactive_bars(tmp_path / "a.html", shares, "abc", people, interval=(shares, shares[:2]))
