"""Tests of files that people really have: names, lists and copies that are nearly what is expected."""

import shutil

import numpy as np
import pytest

from ddvi_fast import DDVI
from ddvi_fast.genomes.convert import import_genotypes
from ddvi_fast.genomes.dataset import Genotypes as Options
from ddvi_fast.genomes.dataset import store_of
from ddvi_fast.genomes.pca import GenotypePCA
from ddvi_fast.genomes.people import project
from ddvi_fast.genomes.selection import people_of
from ddvi_fast.genomes.tables import SampleTable
from ddvi_fast.training.run import run
from tests.genomes.files import Genotypes, write_plink, write_vcf
from tests.genomes.test_pca import ancestry
from tests.genomes.test_people import config_of

for library in ("bed_reader", "cyvcf2"):
    pytest.importorskip(library)


@pytest.fixture(scope="module")
def data():
    variants = [(str(j // 40 + 1), 10 * j + 10, f"rs{j}", "AC"[j % 2], "CA"[j % 2]) for j in range(150)]
    return Genotypes(ancestry(60, 150, missing=0), variants=variants)


def test_names_with_braces_and_brackets(data, tmp_path, monkeypatch):
    monkeypatch.setenv("DDVI_FAST_CACHE", str(tmp_path / "cache"))
    path = write_plink(data, tmp_path / "cohort{1..2}[x]")
    assert np.array_equal(import_genotypes(path, tmp_path / "store").genotypes(), data.codes)
    assert np.array_equal(store_of("genomes", Options(path=str(path), min_frequency=0.0)).genotypes(), data.codes)
    # The cached store is not that of a file that has changed since.
    write_plink(Genotypes(2 - data.codes, data.samples, data.variants), tmp_path / "cohort{1..2}[x]")
    assert np.array_equal(store_of("genomes", Options(path=str(path), min_frequency=0.0)).genotypes(), 2 - data.codes)


def test_a_file_twice_is_refused_and_files_that_overlap_are_told(data, tmp_path, one_line):
    path = write_vcf(data, tmp_path / "a.vcf")
    (tmp_path / "link.vcf").symlink_to(path)
    assert "twice" in one_line(lambda: import_genotypes([path, tmp_path / "link.vcf"], tmp_path / "store"))
    shutil.copy(path, tmp_path / "b.vcf")
    with pytest.warns(UserWarning, match="a.vcf and .*b.vcf overlap on chromosome 1; .*--unique"):
        assert import_genotypes([path, tmp_path / "b.vcf"], tmp_path / "store").num_variants == 300


def test_files_of_parts_of_a_chromosome_do_not_overlap(data, tmp_path, recwarn):
    paths = [write_vcf(Genotypes(data.codes[:, part], data.samples, data.variants[part]), tmp_path / f"{k}.vcf")
             for k, part in enumerate((slice(20), slice(20, 150)))]  # fmt: skip
    assert np.array_equal(import_genotypes(paths, tmp_path / "store").genotypes(), data.codes) and not recwarn


@pytest.fixture(scope="module")
def sites(data, tmp_path_factory):
    """Stores of one person's variant sites, and of a merge of such files, in which nobody is homozygous for the reference."""
    folder = tmp_path_factory.mktemp("sites")
    there = np.flatnonzero(data.codes[5] > 0)
    one = Genotypes(data.codes[5:6, there], data.samples[5:6], [data.variants[j] for j in there])
    everybody = Genotypes(np.where(data.codes == 0, 3, data.codes), data.samples, data.variants)
    stores = []
    for name, each in (("one", one), ("merged", everybody)):
        with pytest.warns(UserWarning, match="variant sites alone"):
            stores.append(import_genotypes(write_vcf(each, folder / f"{name}.vcf"), folder / name))
    return stores


def test_variant_sites_alone_are_told_and_never_projected(data, sites, tmp_path, one_line):
    store = import_genotypes(write_vcf(data, tmp_path / "a.vcf"), tmp_path / "store")
    pca = GenotypePCA(3, drop_constant=True).fit(store)
    small = {"epochs": 1, "hidden": (8,), "num_steps": 2, "n_samples": 2, "n_principal": 3}
    models = [DDVI(likelihood=likelihood, **small).fit(store) for likelihood in ("gaussian", "binomial")]
    run(config_of(store, tmp_path / "run", "genomes", "dataset.genotypes.label=null", "method=ddvi", "prior=pinwheel"))
    for other in sites:
        assert "variant sites alone" in one_line(lambda other=other: pca.transform(other))
        assert "variant sites alone" in one_line(lambda other=other: project(tmp_path / "run", other.path, tmp_path / "new.tsv"))
        for model in models:
            assert "variant sites alone" in one_line(lambda other=other, model=model: model.transform(other))
    assert not (tmp_path / "new.tsv").exists()


def test_one_person_with_all_calls_is_projected(data, tmp_path):
    store = import_genotypes(write_vcf(data, tmp_path / "a.vcf"), tmp_path / "store")
    alone = import_genotypes(write_vcf(Genotypes(data.codes[5:6], data.samples[5:6], data.variants), tmp_path / "one.vcf"), tmp_path / "one")
    pca = GenotypePCA(3, drop_constant=True).fit(store)
    np.testing.assert_allclose(pca.transform(alone), pca.scores_[5:6], atol=1e-3)


@pytest.mark.parametrize(
    "names", [lambda j, c: (f"CM{662 + int(c):06d}.2", "."), lambda j, c: (c, f"rs{j};rs90{j}"), lambda j, c: (c, f"rs90{j};rs{j}")]
)
@pytest.mark.filterwarnings("ignore:.*variants matched")
def test_other_names_of_chromosomes_and_variants_match(data, tmp_path, names):
    pca = GenotypePCA(3, drop_constant=True).fit(import_genotypes(write_vcf(data, tmp_path / "a.vcf"), tmp_path / "store"))
    named = [names(j, row[0]) for j, row in enumerate(data.variants)]
    shift = 0 if named[0][1] == "." else 1000
    variants = [(chromosome, row[1] + shift, name, *row[3:]) for (chromosome, name), row in zip(named, data.variants, strict=True)]
    other = import_genotypes(write_plink(Genotypes(data.codes, data.samples, variants), tmp_path / "b"), tmp_path / "other")
    np.testing.assert_allclose(pca.transform(other), pca.scores_, atol=1e-3)


@pytest.mark.parametrize("text", [
    "P003\r\nP004\r\n", "\ufeffP003\nP004\n", '"P003"\n"P004"\n', "P003,P003\nP004,P004\n", "family;P003\nfamily;P004\n", "P003 # a comment\nP004\n",
])  # fmt: skip
def test_lists_of_people_as_programs_write_them(data, tmp_path, text):
    samples = SampleTable(np.array(data.samples, object))
    for encoding in ("utf-8", "utf-16"):
        (tmp_path / "list.txt").write_bytes(text.encode(encoding))
        assert np.flatnonzero(people_of(tmp_path / "list.txt", samples)).tolist() == [3, 4]
    spaced = SampleTable(np.array(["Per son 1", "Per son 2", "Per son 3"], object))
    (tmp_path / "list.txt").write_text("Per son 2\n")
    assert people_of(tmp_path / "list.txt", spaced).tolist() == [False, True, False]


def test_labels_of_individuals_for_names_with_families(data, tmp_path, one_line):
    named = Genotypes(data.codes, [f"{name}_{name}" for name in data.samples], data.variants)
    (tmp_path / "labels.tsv").write_text("sample\tpopulation\n" + "".join(f"{name}\tA\n" for name in data.samples))
    path = write_vcf(named, tmp_path / "a.vcf")
    assert "vcf-iid" in one_line(lambda: import_genotypes(path, tmp_path / "store", labels=tmp_path / "labels.tsv"))
