"""Tests of `ddvi-fast data`: a store, its description, and one line for each error."""

import pytest

from ddvi_fast.genomes.store import GenotypeStore
from tests.genomes.files import simulated, write_eigenstrat


def test_import_and_info_tell_the_same_with_the_count_of_each_filter(shell, tmp_path):
    data = simulated(20, 40)
    data.codes[:, 2] = 0
    path = write_eigenstrat(data, tmp_path / "a")
    options = ("--labels", tmp_path / "a.ind", "--autosomes", "--maf", "0.01", "--max-missing", "0.9")
    out = shell("data", "import", path, "--out", tmp_path / "store", *options)
    lines = dict(line.split("  ", 1) for line in out.splitlines())
    told = {name.strip(): value.strip() for name, value in lines.items()}
    assert told["read"] == "20 samples, 40 variants" and told["kept"] == "20 samples, 29 variants"
    assert told["not on an autosome"] == "10 variants" and told["constant"] == "1 variants" and told["label population"] == "1 values: Somewhere 20"
    assert shell("data", "info", tmp_path / "store") == out
    assert GenotypeStore(tmp_path / "store").shape == (20, 29)


def test_simulate(shell, tmp_path):
    pytest.importorskip("msprime")
    out = shell("data", "simulate", "--out", tmp_path / "store", "--samples", 5, "--segments", 1, "--length", 5000)
    assert "20 samples" in out and "ADMIX 5" in out
    shell("data", "simulate", "--out", tmp_path / "store", code=2)


@pytest.mark.parametrize(
    "arguments, word",
    [
        ([], "import"),
        (["imprt"], "imprt"),
        (["import", "a.vcf"], "--out"),
        (["import", "a.vcf", "--out", "store"], "a.vcf"),
        (["import", "a.vcf", "--out", "store", "--maf", "2"], "min_frequency"),
        (["import", "a.vcf", "--out", "store", "--multiallelic", "keep"], "keep"),
        (["info", "nothing"], "nothing"),
        (["simulate", "--out", "store", "--samples", "0"], "samples"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(shell, tmp_path, monkeypatch, arguments, word):
    monkeypatch.chdir(tmp_path)
    assert word in shell("data", *arguments, code=2)
    assert not list(tmp_path.iterdir())
