"""Tests of lists of people and variants, and of regions."""

import numpy as np
import pytest

from ddvi_fast import cli
from ddvi_fast.genomes.convert import import_genotypes
from ddvi_fast.genomes.filters import Filters
from ddvi_fast.genomes.selection import people_of, region_of, variants_of
from ddvi_fast.genomes.store import GenotypeStore
from ddvi_fast.genomes.tables import SampleTable, VariantTable, chromosome_set
from tests.genomes.files import Genotypes, simulated, write_eigenstrat, write_plink

ALONE = SampleTable(np.array(["1", "2", "3", "4"], object))
FAMILIES = SampleTable(np.array(["a:1", "b:1", "a:2", "b:2"], object))


def listed(tmp_path, text, samples=ALONE):
    (tmp_path / "list.txt").write_text(text)
    return np.flatnonzero(people_of(tmp_path / "list.txt", samples)).tolist()


@pytest.mark.parametrize(
    "text, samples, expected",
    [
        ("1\n3\n", ALONE, [0, 2]),
        ("f 1\nf\t3\r\n", ALONE, [0, 2]),
        ("#IID\n1\n3\n", ALONE, [0, 2]),
        ("#IID SEX\n1 2\n3 1\n", ALONE, [0, 2]),
        ("#FID\tIID\n4\t1\n3\t3\n", ALONE, [0, 2]),
        ("4 1\n3 3\n", ALONE, [0, 2]),  # families that are called as individuals
        ("FID IID PHENO\n9 1 1\n9 3 2\n", ALONE, [0, 2]),  # a heading without a mark is no person
        ("1 GBR\n3 YRI\n", ALONE, [0, 2]),
        ("a 1\nb 2\n", FAMILIES, [0, 3]),
        ("a:1\nb:2\n", FAMILIES, [0, 3]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*are not in the genotype file")
def test_lists_of_people(tmp_path, text, samples, expected):
    assert listed(tmp_path, text, samples) == expected


def test_people_who_are_not_there_are_told(tmp_path, one_line):
    with pytest.warns(UserWarning, match="2 of 3 people are not in the genotype file: 8, 9$"):
        assert listed(tmp_path, "1\n8\n9\n9\n") == [0]
    for text, words in (("", "at least one person"), ("8\n9\n", "2 others: 8, 9"), ("1\n", "1 others: 1")):
        assert words in one_line(lambda text=text: listed(tmp_path, text, FAMILIES if text == "1\n" else ALONE))
    assert "existing file" in one_line(lambda: people_of(tmp_path / "none", ALONE))


def test_identifiers(tmp_path, one_line):
    table = VariantTable.from_rows([("1", 5, "rs1", "A", "C"), ("1", 6, "rs2", "A", "C"), ("1", 7, "rs1", "A", "G")])
    (tmp_path / "list.txt").write_text("rs1 rs9\n\nrs8\n")
    with pytest.warns(UserWarning, match="2 of 3 identifiers are not in the genotype file"):
        assert variants_of(tmp_path / "list.txt", table).tolist() == [True, False, True]
    (tmp_path / "list.txt").write_text("1 5 6 set\n")
    assert "--region" in one_line(lambda: variants_of(tmp_path / "list.txt", table))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("6", ("6", 0, None)), ("chrX", ("X", 0, None)), ("23:5-6", ("X", 5, 6)), ("chr06:1,000-2,000", ("6", 1000, 2000)),
        ("1:7", ("1", 7, 7)), ("1:7-", ("1", 7, None)), ("1:-7", ("1", 0, 7)), ("HLA_A:3-4", ("HLA_A", 3, 4)),
    ],
)  # fmt: skip
def test_regions(text, expected):
    region = region_of(text)
    assert (region.chromosome, region.first) == expected[:2] and region.last == (expected[2] or np.iinfo(np.int64).max)


@pytest.mark.parametrize("text", ["", ":5-6", "1:", "1:-", "1:6-5", "1:a-b", "1:5-6-7", "1 5 6", 6])
def test_what_is_no_region_is_refused(text, one_line):
    assert "regions" in one_line(lambda: Filters(regions=(text,)))


def test_a_region_is_one_of_the_species():
    with chromosome_set(29):
        assert region_of("23:5-6").chromosome == "23" and region_of("30").chromosome == "X"


def test_selections_of_an_import(tmp_path, capsys):
    data = simulated(12, 40)
    path = write_plink(data, tmp_path / "file")
    (tmp_path / "people").write_text("family P003\nfamily P004\nfamily P005\n")
    (tmp_path / "out").write_text("P004\n")
    (tmp_path / "names").write_text("rs0\nrs3\nrs12\n")
    command = ["data", "import", str(path), "--out", str(tmp_path / "store"), "--keep", str(tmp_path / "people"), "--remove", str(tmp_path / "out")]
    first = int(data.variants[0][1])
    command += ["--exclude", str(tmp_path / "names"), "--region", f"chr1:{first}-{first + 7 * 5}", "--region", "2", "--exclude-region", "2:1-175"]
    assert cli.main(command) == 0
    store = GenotypeStore(tmp_path / "store")
    kept = [j for j in range(20) if j not in (0, 3, 12) and (j <= 5 or (j >= 10 and data.variants[j][1] > 175))]
    assert np.array_equal(store.genotypes(), data.codes[np.ix_([3, 5], kept)]) and list(store.samples.name) == ["P003", "P005"]
    told = capsys.readouterr().out
    assert f"samples not in {tmp_path / 'people'}" in told and "9 samples" in told and f"variants in {tmp_path / 'names'}" in told
    whole = import_genotypes(path, tmp_path / "whole", filters=Filters(extract=tmp_path / "names"))
    assert list(whole.variants.name) == ["rs0", "rs3", "rs12"]


def test_nothing_is_left_where_a_list_has_everybody(tmp_path, one_line):
    path = write_eigenstrat(simulated(3, 5), tmp_path / "file")
    (tmp_path / "out").write_text("P000\nP001\nP002\n")
    assert "at least one sample left" in one_line(lambda: import_genotypes(path, tmp_path / "store", filters=Filters(remove=tmp_path / "out")))
    assert "at least one variant left" in one_line(lambda: import_genotypes(path, tmp_path / "store", filters=Filters(regions=("19",))))
    assert not (tmp_path / "store").exists()


def test_a_species_stays_with_its_store(tmp_path):
    data = Genotypes(simulated(6, 4).codes, variants=[(str(25 + j), 7, f"rs{j}", "A", "C") for j in range(4)])
    path = write_plink(data, tmp_path / "file")
    store = import_genotypes(path, tmp_path / "cows", num_autosomes=29)
    assert store.num_autosomes == 29 and list(store.variants.chromosome) == ["25", "26", "27", "28"]
    assert import_genotypes(path, tmp_path / "people").num_autosomes == 22
