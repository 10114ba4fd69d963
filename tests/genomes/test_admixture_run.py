"""Tests of `ddvi-fast admixture`, and of the order of bars."""

import numpy as np
import pytest

from ddvi_fast import cli, plots
from ddvi_fast._checks import InputError
from ddvi_fast.genomes.convert import store_from_codes
from ddvi_fast.genomes.tables import SampleTable
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
    names = ["admixture.2.Q", "admixture.2.P", "admixture.tsv", "admixture.png"]
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
