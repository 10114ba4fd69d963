"""Tests of the readers: equal stores from all formats, special cases against bed-reader and cyvcf2, damaged files."""

import gc
import gzip
import sys

import numpy as np
import pytest

from ddvi_fast.genomes.convert import import_genotypes
from ddvi_fast.genomes.formats import plink, sources, vcf
from ddvi_fast.genomes.formats.sources import open_source
from tests.genomes.files import COLUMNS, GT, HEADER, WRITERS, Genotypes, bgzip, simulated, vcf_text, write_eigenstrat, write_plink, write_vcf

for library in ("bed_reader", "cyvcf2"):
    pytest.importorskip(library)

SAME = ("genotypes.bin", "counts.npy", "samples.tsv", "variants.tsv", "store.json")


def read(path, **options):
    """Codes [N, M], variant rows and notes of a file."""
    source = open_source(path, **options)
    blocks = list(source.blocks)
    rows = [row for block in blocks for row in zip(*vars(block.variants).values(), strict=True)]
    return np.concatenate([block.codes for block in blocks]).T, rows, source


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    data = simulated()
    return data, {name: import_genotypes(write(data, folder), folder / f"store {name}") for name, write in WRITERS.items()}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_store(stores, name):
    data, made = stores
    assert np.array_equal(made[name].genotypes(), data.codes)
    assert list(made[name].samples.name) == data.samples
    rows = zip(*(getattr(made[name].variants, column) for column in ("chromosome", "position", "name", "counted", "other")), strict=True)
    assert list(rows) == data.variants
    for file in SAME:
        assert (made[name].path / file).read_bytes() == (made["plink"].path / file).read_bytes(), file


@pytest.mark.parametrize("samples, variants", [(1, 1), (4, 5), (5, 4), (64, 33)])
@pytest.mark.parametrize("name", ["plink", "vcf bgzip", "bcf", "eigenstrat", "eigenstrat packed", "eigenstrat transposed"])
def test_odd_sizes_and_small_blocks(tmp_path, monkeypatch, name, samples, variants):
    monkeypatch.setattr(sources, "BLOCK_CODES", 7 * samples)
    data = simulated(samples, variants, missing=0.2)
    assert np.array_equal(import_genotypes(WRITERS[name](data, tmp_path), tmp_path / "store").genotypes(), data.codes)


def test_element_by_element_against_bed_reader_on_real_genomes(shared_data, tmp_path):
    from bed_reader import open_bed

    path = shared_data("1kg/1kg_phase3.bed")
    store = import_genotypes(path, tmp_path / "store", labels=shared_data("1kg/1kg_phase3_samples.tsv"))
    with open_bed(path) as opened:
        assert np.array_equal(store.genotypes(), opened.read(dtype="int8"))
        assert list(store.samples.name) == list(opened.iid) and list(store.variants.name) == list(opened.sid)
        assert list(store.variants.counted) == list(opened.allele_1) and list(store.variants.other) == list(opened.allele_2)
        # The family of this file is the population: an independent copy of what the table says.
        assert list(store.samples.labels["population"]) == list(opened.fid)
    numbers, names = store.labels("superpopulation")
    assert dict(zip(names, np.bincount(numbers).tolist(), strict=True)) == {"AFR": 661, "AMR": 347, "EAS": 504, "EUR": 503, "SAS": 489}


def test_element_by_element_against_cyvcf2(tmp_path):
    from cyvcf2 import VCF

    path = write_vcf(simulated(50, 60), tmp_path / "a.vcf.gz")
    codes, _, _ = read(path)
    assert np.array_equal(codes, np.stack([record.gt_types.copy() for record in VCF(str(path), gts012=True)], axis=1))


def record(position, ref, alt, *calls, kind="PASS", chromosome="1", name="."):
    return [chromosome, str(position), name, ref, alt, ".", kind, ".", *calls]


ODD = [
    record(10, "A", "C", "0|1", "1", "./.", "0/."),
    record(20, "A", "C,G", "0/1", "1/2", "2/2", "./2"),
    record(30, "A", ".", "0/0", "0/0", "0/0", "0/0"),
    record(40, "A", "<DEL>", "0/1", "0/0", "0/0", "0/0"),
    record(50, "AT", "A", "1|1", "0", ".", "./1", kind="low"),
    record(60, "G", "T", "0", "1", ".", "1", chromosome="chrX"),
]


@pytest.fixture
def odd(tmp_path):
    path = tmp_path / "odd.vcf"
    path.write_bytes(vcf_text(["a", "b", "c", "d"], ODD, header=HEADER.replace("ID=X", "ID=chrX") + GT))
    return path


def test_odd_calls_and_sites_are_dropped_with_their_counts(odd):
    codes, rows, source = read(odd)
    assert codes.T.tolist() == [[1, 2, 3, 3], [2, 0, 3, 3], [0, 2, 3, 2]]
    assert [row[2] for row in rows] == ["1:10:A:C", "1:50:AT:A", "X:60:G:T"]
    assert source.notes == {vcf.DROPPED: 1, vcf.UNVARIED: 1, vcf.SYMBOLIC: 1, vcf.HALF: 2}


def test_sites_with_several_alleles_can_be_split(odd):
    codes, rows, source = read(odd, multiallelic="split")
    assert [row[3:] for row in rows[1:3]] == [("C", "A"), ("G", "A")]
    assert codes.T[1:3].tolist() == [[1, 1, 0, 3], [0, 1, 2, 3]]
    assert source.notes[vcf.SPLIT] == 1 and vcf.DROPPED not in source.notes


def test_records_that_do_not_pass_can_be_left_out(odd):
    codes, _, source = read(odd, passing_only=True)
    assert codes.shape == (4, 2) and source.notes[vcf.FILTERED] == 1


def test_alleles_that_stand_for_others_are_no_second_allele(tmp_path):
    records = [record(10, "A", "G,<NON_REF>", "0/1", "1/2"), record(20, "A", "G,*", "1|1", "2"), record(30, "A", "<NON_REF>", "0/0", "0/0")]
    path = tmp_path / "a.vcf"
    path.write_bytes(vcf_text(["a", "b"], records))
    codes, rows, source = read(path)
    assert codes.T.tolist() == [[1, 3], [2, 3]] and [row[3] for row in rows] == ["G", "G"]
    assert source.notes == {vcf.OTHERS: 2, vcf.UNVARIED: 1}


def test_a_record_without_genotypes_is_missing(tmp_path):
    path = tmp_path / "a.vcf"
    path.write_bytes(vcf_text(["a"], [record(10, "A", "G", "0/1"), record(20, "A", "G", "7")]).replace(b"GT\t7", b"DP\t7"))
    codes, _, source = read(path)
    assert codes.tolist() == [[1, 3]] and source.notes == {vcf.WITHOUT_CALLS: 1}


def test_alleles_of_msprime_and_in_lower_case(tmp_path):
    path = tmp_path / "a.vcf"
    path.write_bytes(vcf_text(["a"], [record(10, "0", "1", "0/1"), record(20, "a", "g", "1/1")]))
    codes, rows, _ = read(path)
    assert codes.tolist() == [[1, 2]] and [row[3:] for row in rows] == [("1", "0"), ("g", "a")]


def test_a_reader_that_is_left_ends(tmp_path):
    source = open_source(write_vcf(simulated(30, 200), tmp_path / "a.vcf"))
    process = source.blocks.gi_frame.f_locals["self"]._process
    del source
    gc.collect()
    assert process.returncode is not None


def test_any_of_the_three_files_or_their_common_name_can_be_given(tmp_path):
    data = simulated(6, 9)
    write_plink(data, tmp_path / "a")
    write_eigenstrat(data, tmp_path / "b")
    for name in ("a.bed", "a.bim", "a.fam", "a", "b.geno", "b.snp", "b.ind", "b"):
        assert np.array_equal(read(tmp_path / name)[0], data.codes), name


def test_compressed_text_of_eigenstrat(tmp_path):
    data = simulated(6, 9)
    path = write_eigenstrat(data, tmp_path / "a")
    for ending in (".geno", ".snp"):
        plain = path.with_suffix(ending)
        path.with_name(f"a{ending}.gz").write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    assert np.array_equal(read(tmp_path / "a.ind")[0], data.codes)


def text(header, *lines):
    return lambda _: "".join(part + "\n" for part in ((HEADER + GT).rstrip(), "\t".join([*COLUMNS, "FORMAT", *header]), *lines)).encode()


# htslib cannot read the second record, whose chromosome the header does not name, and its binding hands it on half parsed.
CRASH = vcf_text(
    ["s1", "s2"], [["1", "100", ".", "A", "G", ".", "PASS", ".", "0/0", "0/1"], ["2", "200", ".", "C", "T", ".", "PASS", ".", "1/1", "0/x"]],
    header="##fileformat=VCFv4.2\n" + GT,
)  # fmt: skip
TWICE = vcf_text(["a", "b"], [["1", "5", ".", "A", "G", ".", ".", ".", "0/0", "0/1"]]) + vcf_text(["b", "a"], [])
LINE = "\t".join(["1", "5", ".", "A", "C", ".", ".", ".", "GT", "0/1"])
# File, what is done to its content, and words of the message.
DAMAGES = {
    "bed truncated": ("a.bed", lambda content: content[:-2], ["21 bytes", "19 bytes", "truncated"]),
    "bed longer": ("a.bed", lambda content: content + b"\0", ["21 bytes", "22 bytes"]),
    "bed magic": ("a.bed", lambda content: b"PK" + content[2:], ["PLINK 1"]),
    "bed by sample": ("a.bed", lambda content: content[:2] + b"\0" + content[3:], ["variant-major"]),
    "bim columns": ("a.bim", lambda _: b"1 rs 0\n", ["six fields"]),
    "bim position": ("a.bim", lambda content: content.replace(b"\t100\t", b"\tabc\t"), ["variant 1", "abc"]),
    "bim empty": ("a.bim", lambda _: b"", ["at least one variant"]),
    "fam length": ("a.fam", lambda content: b"".join(content.splitlines(keepends=True)[:-3]), ["3 samples (.fam)"]),
    "fam twice": ("a.fam", lambda content: content.replace(b"P001", b"P000"), ["P000 2 times"]),
    "fam empty": ("a.fam", lambda _: b"\n", ["at least one sample"]),
    "geno short": ("e.geno", lambda content: b"".join(content.splitlines(keepends=True)[:-1]), ["9 lines", "8"]),
    "geno long": ("e.geno", lambda content: content * 2, ["9 lines", "more"]),
    "geno narrow": ("e.geno", lambda content: content.replace(b"\n", b"", 1), ["e.geno, line 1", "6 genotypes", "12"]),
    "geno letters": ("e.geno", lambda content: b"3" + content[1:], ["e.geno, line 1", "0, 1, 2 or 9", "3"]),
    "packed truncated": ("ep.geno", lambda content: content[:-1], ["480 bytes", "479"]),
    "vcf text": ("t.vcf", lambda _: b"no genotypes here\n", ["a VCF or BCF file"]),
    "vcf no samples": ("t.vcf", lambda _: vcf_text([], [record(5, "A", "C")]), ["genotypes", "without samples"]),
    "vcf no calls": ("t.vcf", text("a", LINE.replace("GT", "DP").replace("0/1", "7")), ["GT", "DP"]),
    "vcf polyploid": ("t.vcf", text("a", LINE.replace("0/1", "0/1/1")), ["1:5", "two alleles", "3"]),
    "vcf allele": ("t.vcf", text("a", LINE.replace("0/1", "0/2")), ["1:5", "alleles from 0 to 1", "allele 2"]),
    "vcf twice": ("t.vcf", lambda _: TWICE, ["after 1:5", "one header", "bcftools"]),
    "vcf same name": ("t.vcf", text("aa", LINE + "\t0/0"), ["sample names that differ", "a more than once"]),
    "vcf 4.4": ("t.vcf", text("a", LINE.replace("0/1", "|0|1")), ["VCF 4.4", "|0|1"]),
    "vcf crash": ("t.vcf", lambda _: CRASH, ["ended", "2:200"]),
    "vcf no variants": ("t.vcf", text("a"), ["at least one variant"]),
    "vcf only several": ("t.vcf", text("a", LINE.replace("\tC\t", "\tC,G\t")), ["at least one variant", "several alternate alleles"]),
    "vcf short row": ("t.vcf", text("ab", LINE), ["damaged"]),
    "bgzip truncated": ("v.vcf.bgz", lambda content: content[:-28], ["truncated"]),
    "bgzip cut": ("v.vcf.bgz", lambda content: content[:1500], ["truncated"]),
    "gzip cut": ("z.vcf.gz", lambda content: content[:1500], []),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_are_one_line_and_leave_nothing(tmp_path, name, one_line):
    small, large = simulated(6, 9), simulated(30, 200)
    write_plink(small, tmp_path / "a")
    write_eigenstrat(small, tmp_path / "e")
    write_eigenstrat(small, tmp_path / "ep", packed=True)
    for file in ("v.vcf.bgz", "z.vcf.gz"):
        write_vcf(large, tmp_path / file)
    file, damage, words = DAMAGES[name]
    path = tmp_path / file
    path.write_bytes(damage(path.read_bytes() if path.exists() else b""))
    before = sorted(tmp_path.iterdir())
    message = one_line(lambda: import_genotypes(path, tmp_path / "store"))
    named = "a.bed" if name == "fam length" else file  # the length of .bed tells that .fam is short
    for word in (named, *words):
        assert word in message
    assert sorted(tmp_path.iterdir()) == before


def test_missing_files_are_named(tmp_path, one_line):
    write_plink(simulated(6, 9), tmp_path / "a")
    (tmp_path / "a.fam").unlink()
    assert "a.fam" in one_line(lambda: open_source(tmp_path / "a.bed"))
    assert "missing" in one_line(lambda: open_source(tmp_path / "nothing.vcf"))
    assert "a folder" in one_line(lambda: open_source(tmp_path.rename(tmp_path.with_suffix(".vcf"))))
    assert ".bed" in one_line(lambda: open_source(tmp_path / "what.docx"))


def test_a_library_that_is_missing_is_one_line(tmp_path, monkeypatch, one_line):
    path = write_plink(simulated(6, 9), tmp_path / "a")
    monkeypatch.setitem(sys.modules, "bed_reader", None)
    assert "ddvi-fast[genomes]" in one_line(lambda: plink.open_file(path))


def test_blocked_gzip_of_the_tests_is_what_htslib_calls_so(tmp_path):
    assert gzip.decompress(bgzip(b"abc" * 10_000)) == b"abc" * 10_000


def test_names_of_chromosomes_agree_between_files(tmp_path):
    names = [("chr1", "1"), ("1", "1"), ("23", "X"), ("chrX", "X"), ("26", "MT"), ("chrM", "MT"), ("24", "Y")]
    data = Genotypes(np.zeros((2, len(names)), np.uint8), variants=[(name, 5, f"v{i}", "A", "C") for i, (name, _) in enumerate(names)])
    _, rows, _ = read(write_plink(data, tmp_path / "a"))
    assert [row[0] for row in rows] == [plain for _, plain in names]


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("cohort.ped", "plink --file NAME --make-bed"),
        ("cohort.gen.gz", "plink2 --gen FILE ref-first --sample NAME.sample --make-pgen"),
        ("cohort.haps", "plink2 --haps FILE ref-first --sample NAME.sample --make-pgen"),
        ("cohort.trees", "tskit vcf FILE > NAME.vcf"),
        ("cohort.bgen", "plink2 --bgen FILE ref-first --sample NAME.sample --make-pgen"),
        ("cohort.gds", "SeqArray::seqGDS2VCF"),
    ],
)
def test_other_formats_are_refused_with_the_command_that_converts_them(tmp_path, name, command, one_line):
    assert f"convert it: {command}" in one_line(lambda: open_source(tmp_path / name))
