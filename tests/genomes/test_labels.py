"""Tests of tables of labels in every format, and of samples without labels."""

import gzip

import pytest

from ddvi_fast.genomes.convert import import_genotypes
from ddvi_fast.genomes.labels import attach, read_labels
from ddvi_fast.genomes.tables import SampleTable
from tests.genomes.files import simulated, write_eigenstrat

TABLES = {
    "tabs": "sample\tpopulation\tnote\nP002\tC\tfar away\nP000\tA\there\nP001\tB\t-\n",
    "windows": "sample\tpopulation\tnote\r\nP002\tC\tfar away\r\nP000\tA\there\r\nP001\tB\t-\r\n",
    "commas": 'population,IID,note\nC,P002,far away\nA,P000,"here"\nB,P001,-\n',
    "blank": "Individual_ID population note\nP002 C far\nP000 A here\n\nP001 B -\n",
    "mark": "\ufeff#IID\tpopulation\tnote\nP002\tC\tx\nP000\tA\ty\nP001\tB\t-\n",
    "first column": "who,population,note\nP002,C,1\nP000,A,2\nP001,B,3\nP999,Z,4\n",
    "a.ind": "P002 U C\nP000 U A\nP001 U B\n",
    "a.fam": "C P002 0 0 1 -9\nA P000 0 0 1 -9\nB P001 0 0 1 -9\n",
}


def write(tmp_path, name):
    path = tmp_path / (name if "." in name else f"{name}.txt")
    path.write_bytes(TABLES[name].encode())
    return path


@pytest.mark.parametrize("name", TABLES)
def test_every_kind_of_table_in_any_order(tmp_path, name):
    samples = SampleTable.from_names(["P000", "P001", "P002"], tmp_path)
    labelled, found = attach(samples, read_labels(write(tmp_path, name)))
    assert list(labelled.labels["population"]) == ["A", "B", "C"] and found.all()


def test_compressed_tables_and_spaces_inside_values(tmp_path):
    path = tmp_path / "table.tsv.gz"
    path.write_bytes(gzip.compress(TABLES["tabs"].encode()))
    assert read_labels(path)["P002"] == {"population": "C", "note": "far away"}


def test_labels_of_the_store_follow_the_file_not_the_table(tmp_path):
    data = simulated(30, 20)
    order = [7, 3, *(number for number in range(30) if number not in (3, 7))]
    rows = [f"P{number:03d}\tpop{number % 3}" for number in order]
    (tmp_path / "labels.tsv").write_text("\n".join(["sample\tpopulation", *rows]) + "\n")
    store = import_genotypes(write_eigenstrat(data, tmp_path / "a"), tmp_path / "store", labels=tmp_path / "labels.tsv")
    numbers, names = store.labels("population")
    assert names == ("pop0", "pop1", "pop2") and numbers.tolist() == [number % 3 for number in range(30)]


def test_samples_without_a_label_are_named_and_left_out_on_request(tmp_path, one_line):
    data = simulated(12, 20)
    rows = [f"P{number:03d},{'' if number == 4 else 'somewhere'}" for number in range(12) if number not in (2, 9)]
    (tmp_path / "labels.csv").write_text("\n".join(["sample,population", *rows]) + "\n")
    path = write_eigenstrat(data, tmp_path / "a")
    options = {"file": path, "out": tmp_path / "store", "labels": tmp_path / "labels.csv"}
    text = one_line(lambda: import_genotypes(**options))
    assert "none for 3: P002, P004, P009" in text and "leave_out_unlabelled" in text and not (tmp_path / "store").exists()
    store = import_genotypes(**options, leave_out_unlabelled=True)
    assert list(store.samples.name) == [name for name in data.samples if name not in ("P002", "P004", "P009")]
    assert (store.genotypes() == data.codes[[0, 1, 3, 5, 6, 7, 8, 10, 11]]).all()
    assert store.imported["removed"] == [{"reason": "samples without a label", "variants": 0, "samples": 3}]


def test_a_column_may_be_empty_for_some_until_it_is_asked_for(tmp_path, one_line):
    (tmp_path / "labels.tsv").write_text("sample\tpopulation\tnote\n" + "".join(f"P{number:03d}\tA\t{'x' * (number != 2)}\n" for number in range(5)))
    store = import_genotypes(write_eigenstrat(simulated(5, 6), tmp_path / "a"), tmp_path / "store", labels=tmp_path / "labels.tsv")
    assert store.labels("population")[1] == ("A",)
    one_line(lambda: store.labels("note"), r"labels\[note\].*none for 1: P002")


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "none"),
        ("sample,population\n", "at least one row"),
        ("sample\nP000\n", "alone"),
        ("sample,population\nP000,A,B\n", "row 2"),
        ("sample,population\nP000,A\nP000,B\n", "another of P000"),
        ("sample,x,x\nP000,A,B\n", "different names"),
        ("sample,population\nQ1,A\n", "a sample is called P000 here and Q1 there"),
    ],
)
def test_bad_tables_are_one_line(tmp_path, one_line, text, words):
    (tmp_path / "labels.csv").write_text(text)
    samples = SampleTable.from_names(["P000", "P001"], tmp_path)
    assert words in one_line(lambda: attach(samples, read_labels(tmp_path / "labels.csv")))


def test_tables_that_are_no_text(tmp_path, one_line):
    (tmp_path / "labels.csv").write_bytes(b"\xff\xfe\x00\x01")
    assert "UTF-8" in one_line(lambda: read_labels(tmp_path / "labels.csv"))
    assert "missing" in one_line(lambda: read_labels(tmp_path / "nothing.csv"))
