"""Tests of tables of labels in every format, and of samples without labels."""

import gzip

import pytest

from ddvi_fast.genomes.convert import import_genotypes
from ddvi_fast.genomes.labels import attach, read_labels
from ddvi_fast.genomes.store import GenotypeStore
from ddvi_fast.genomes.tables import SampleTable
from tests.genomes.files import simulated, write_eigenstrat

TABLES = {
    "tabs": "sample\tpopulation\tnote\nP002\tC\tfar away\nP000\tA\there\nP001\tB\t-\n",
    "windows": "sample\tpopulation\tnote\r\nP002\tC\tfar away\r\nP000\tA\there\r\nP001\tB\t-\r\n",
    "commas": 'population,IID,note\nC,P002,far away\nA,P000,"here"\nB,P001,-\n',
    "blank": "Individual_ID population note\nP002 C far\nP000 A here\n\nP001 B -\n",
    "mark": "\ufeff#IID\tpopulation\tnote\nP002\tC\tx\nP000\tA\ty\nP001\tB\t-\n",
    "first column": "who,population,note\nP002,C,1\nP000,A,2\nP001,B,3\nP999,Z,4\n",
    "panel": "sample\tpopulation\tsuper_pop\tgender\t\t\nP002\tC\tX\tmale\nP000\tA\tY\tmale\nP001\tB\tX\tfemale\n",
    "1000 genomes ped": "Family ID\tIndividual ID\tpopulation\nF1\tP002\tC\nF2\tP000\tA\nF2\tP001\tB\n",
    "genetic id": "Index\tGenetic ID\tpopulation\tmore\n1\tP002\tC\t\n2\tP000\tA\t\n3\tP001\tB\tx\n",
    "poseidon": "Poseidon_ID\tpopulation\nP002\tC\nP000\tA\nP001\tB\n",
    "write.table": '"iid" "population"\n"1" "P002" "C"\n"2" "P000" "A"\n"3" "P001" "B"\n',
    "write.csv": '"","iid","population"\n"1","P002","C"\n"2","P000","A"\n"3","P001","B"\n',
    "write.csv2": '"iid";"population";"share"\n"P002";"C";"0,5"\n"P000";"A";"0,25"\n"P001";"B";"0,25"\n',
    "quoted tabs": '"iid"\t"population"\n"P002"\t"C"\n"P000"\t"A"\n"P001"\t"B"\n',
    "comments": "# made by hand\n# of three people\n#IID population\nP002 C\n# the next\nP000 A\nP001 B\n",
    "comments alone": "# made by hand\niid population\nP002 C\nP000 A\nP001 B\n",
    "no heading": "P002 C\nP000 A\nP001 B\n",
    "no heading, families": "F1 P002 C\nF2 P000 A\nF2 P001 B\n",
    "no heading, others first": "Q1,B\nP002,C\nP000,A\nP001,B\n",
    "names of the same column": "iid,sample,population\nP002,tooth,C\nP000,petrous,A\nP001,tooth,B\n",
    "commas in values": "iid population note\nP002 C a,b\nP000 A c,d\nP001 B e,f\n",
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


def test_sixteen_bit_characters(tmp_path):
    samples = SampleTable.from_names(["P000", "Pé"], tmp_path)
    for coding in ("utf-16", "utf-16-be"):
        path = tmp_path / coding
        mark = b"" if coding == "utf-16" else b"\xfe\xff"
        path.write_bytes(mark + "iid\tpopulation\r\nPé\tB\r\nP000\tA\r\n".encode(coding))
        assert attach(samples, read_labels(path))[0].labels["population"].tolist() == ["A", "B"]


def test_a_table_without_a_heading_is_told(tmp_path):
    samples = SampleTable.from_names(["P000", "P001", "P002"], tmp_path)
    with pytest.warns(UserWarning, match="no heading.*column1, population"):
        labelled, _ = attach(samples, read_labels(write(tmp_path, "no heading, families")))
    assert labelled.labels["column1"].tolist() == ["F2", "F2", "F1"]


def test_a_label_called_sample_is_no_name(tmp_path):
    data = simulated(4, 20)
    table = tmp_path / "labels.csv"
    table.write_text("iid,sample,pop\n" + "".join(f"{name},{kind},A\n" for name, kind in zip(data.samples, "uvuw", strict=True)))
    store = import_genotypes(write_eigenstrat(data, tmp_path / "a"), tmp_path / "store", labels=table)
    for each in (store, GenotypeStore(store.path)):
        assert list(each.samples.name) == data.samples and each.samples.labels["sample"].tolist() == list("uvuw")


def test_names_of_families_and_individuals(tmp_path):
    samples = SampleTable.from_names(["f1:1", "f1:2", "f2:1"], tmp_path)
    path = tmp_path / "labels.txt"
    path.write_text("FID IID population\nf2 1 C\nf1 1 A\nf1 2 B\n")
    labelled, _ = attach(samples, read_labels(path))
    assert labelled.labels["population"].tolist() == ["A", "B", "C"]


def test_values_that_mean_no_label_are_none_and_told(tmp_path):
    samples = SampleTable.from_names([f"P{number:03d}" for number in range(6)], tmp_path)
    path = tmp_path / "labels.txt"
    path.write_text("iid population\nP000 A\nP001 NA\nP002 .\nP003 Ignore\nP004 ???\nP005 Nation\n")
    with pytest.warns(UserWarning, match=r"no label: NA \(1 times\), \. \(1 times\), Ignore"):
        labelled, found = attach(samples, read_labels(path), leave_out=True)
    assert labelled.labels["population"].tolist() == ["A", "", "", "", "", "Nation"] and found.sum() == 2


def test_names_with_odd_spaces(tmp_path):
    samples = SampleTable.from_names(["A\u00a0B", "C"], tmp_path)
    path = tmp_path / "labels.txt"
    path.write_text("iid population\nA\u00a0B X\nC \u2003Y\n")
    assert attach(samples, read_labels(path))[0].labels["population"].tolist() == ["X", "\u2003Y"]


def test_rows_of_others_may_contradict_each_other(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("iid population\nP000 A\nQ Y\nQ Z\n")
    assert attach(SampleTable.from_names(["P000"], tmp_path), read_labels(path))[1].all()


def test_compressed_tables_and_spaces_inside_values(tmp_path):
    path = tmp_path / "table.tsv.gz"
    path.write_bytes(gzip.compress(TABLES["tabs"].encode()))
    labels = attach(SampleTable.from_names(["P002"], tmp_path), read_labels(path))[0].labels
    assert {name: column.tolist() for name, column in labels.items()} == {"population": ["C"], "note": ["far away"]}


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
    (tmp_path / "labels.csv").write_bytes(b"\xfe\x00\x01\n\xff")
    assert "UTF-8" in one_line(lambda: read_labels(tmp_path / "labels.csv"))
    assert "missing" in one_line(lambda: read_labels(tmp_path / "nothing.csv"))
