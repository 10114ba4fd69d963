"""Tests of the tables of people that a run writes, and of the projection of new people by a run."""

import csv
import shutil

import numpy as np
import pytest

from ddvi_fast import cli
from ddvi_fast.config.compose import compose
from ddvi_fast.data.dataset import random_split
from ddvi_fast.genomes.align import MatchReport
from ddvi_fast.genomes.convert import import_genotypes, store_from_codes
from ddvi_fast.genomes.pca import GenotypePCA
from ddvi_fast.genomes.people import project
from ddvi_fast.training.run import Run, run
from tests.genomes.files import Genotypes, write_plink, write_vcf
from tests.genomes.test_cohorts import rewritten
from tests.genomes.test_experiments import QUICK
from tests.genomes.test_pca import ancestry

for library in ("bed_reader", "cyvcf2"):
    pytest.importorskip(library)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Genotypes of 60 people, and their store, with labels of which two are called as columns of the table."""
    folder = tmp_path_factory.mktemp("cohort")
    codes = ancestry(60, 150, missing=0)
    data = Genotypes(codes, variants=[(str(j // 40 + 1), 10 * j + 10, f"rs{j}", "AC"[j % 2], "CA"[j % 2]) for j in range(150)])
    table = folder / "labels.tsv"
    table.write_text("iid\tpopulation\tname\tz1\n" + "".join(f"{name}\t{'AB'[i % 2]}\tn{i}\t-\n" for i, name in enumerate(data.samples)))
    return data, import_genotypes(write_plink(data, folder / "a"), folder / "store", labels=table)


def config_of(store, folder, *further):
    return compose([f"dataset={further[0]}", f"data={store.path}", *QUICK, "figures=false", f"run_dir={folder}", *further[1:]])


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture(scope="module", params=["genomes", "genomes_counts"])
def finished(request, cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    run(config_of(cohort[1], folder, request.param, "method=ddvi_clustering"))
    return folder


def test_a_run_writes_all_people(cohort, finished):
    data, store = cohort
    rows = read(finished / "people.tsv")
    assert list(rows[0]) == [
        "name", "set", "z1", "z2", "spread1", "spread2", "cluster", "probability", "label_population", "label_name", "label_z1",
    ]  # fmt: skip
    train, test = random_split(60, 0.2, 0)
    assert [row["name"] for row in rows] == [data.samples[place] for place in [*train.tolist(), *test.tolist()]]
    assert [row["set"] for row in rows] == ["training"] * 48 + ["test"] * 12
    labels = dict(zip(store.samples.name, store.samples.labels["population"], strict=True))
    assert all(row["label_population"] == labels[row["name"]] for row in rows)
    assert all(0 < float(row["spread1"]) < 10 and 0 < float(row["probability"]) <= 1 for row in rows)
    assert {int(row["cluster"]) for row in rows} <= {0, 1, 2}


def test_components_are_written_as_plink_does(cohort, finished):
    if not (finished / "components.eigenvec").exists():
        assert "counts" in Run.load(finished).config.dataset.genotypes.features
        return
    rows = read(finished / "components.eigenvec")
    vectors = np.array([[float(row[f"PC{k + 1}"]) for k in range(4)] for row in rows])
    pca = GenotypePCA(4, drop_constant=True).fit(cohort[1], rows=random_split(60, 0.2, 0)[0].numpy())
    np.testing.assert_allclose(vectors, pca.scores_ / pca.singular_values_, atol=1e-4)
    np.testing.assert_allclose((vectors**2).sum(0), 1, atol=1e-3)
    assert [row["#IID"] for row in rows] == list(pca.samples_)
    values = np.array([float(line) for line in (finished / "components.eigenval").read_text().split()])
    np.testing.assert_allclose(values, pca.singular_values_**2 / (pca.scale_ > 0).sum(), rtol=1e-4)


def test_people_of_another_file_are_projected_without_the_data_of_the_run(cohort, finished, tmp_path, capsys):
    data, _ = cohort
    path = write_vcf(rewritten(data), tmp_path / "b.vcf")
    with pytest.warns(MatchReport, match="150 of 150 variants matched") as told:
        assert cli.main(["project", str(finished), str(path), "--out", str(tmp_path / "new.tsv")]) == 0
    assert len(told) == 1 and capsys.readouterr().out.strip() == str(tmp_path / "new.tsv")
    new, old = (read(place) for place in (tmp_path / "new.tsv", finished / "people.tsv"))
    known = {row["name"]: row for row in old}
    assert [row["name"] for row in new] == data.samples and all(row["called"] == "1.0000" for row in new)
    # The noise of posterior samples differs from row to row; what a person's calls say does not.
    for row in new:
        spread = max(float(known[row["name"]][f"spread{k}"]) for k in (1, 2))
        # People of the test set too, whose components are unshrunk in both tables.
        assert abs(float(row["z1"]) - float(known[row["name"]]["z1"])) < 5 * spread / 60**0.5 * 2**0.5 + 1e-3


def test_a_projection_does_not_need_the_files_of_the_run(cohort, tmp_path):
    data, _ = cohort
    store = store_from_codes(data.codes, tmp_path / "copy")
    run(config_of(store, tmp_path / "run", "genomes", "dataset.genotypes.label=null", "method=ddvi", "prior=pinwheel"))
    shutil.rmtree(store.path)
    rows = read(project(tmp_path / "run", store_from_codes(data.codes[:7], tmp_path / "other").path, tmp_path / "new.tsv"))
    assert len(rows) == 7 and "cluster" in rows[0]


def test_a_projection_reads_files_as_those_of_the_species_of_the_run(cohort, tmp_path):
    data, _ = cohort
    cows = Genotypes(data.codes, variants=[(str(20 + j // 15), 10 * j + 10, ".", "AC"[j % 2], "CA"[j % 2]) for j in range(150)])
    path = write_plink(cows, tmp_path / "cows")
    store = import_genotypes(path, tmp_path / "store", num_autosomes=29)
    run(config_of(store, tmp_path / "run", "genomes", "dataset.genotypes.label=null", "method=ddvi", "prior=pinwheel"))
    assert all(row["called"] == "1.0000" for row in read(project(tmp_path / "run", path, tmp_path / "new.tsv")))


def test_bad_requests_are_one_line(cohort, finished, tmp_path, one_line):
    data, store = cohort
    table = tmp_path / "new.tsv"
    table.write_text("precious")
    assert "--overwrite" in one_line(lambda: project(finished, store.path, table))
    part = Genotypes(data.codes[:, :30], data.samples, data.variants[:30])
    assert "30 of 150 variants" in one_line(lambda: project(finished, write_plink(part, tmp_path / "part"), tmp_path / "x.tsv"))
    assert not (tmp_path / "x.tsv").exists() and table.read_text() == "precious"
    digits = tmp_path / "digits"
    run(
        compose(
            [
                "dataset=digits",
                "epochs=1",
                "limit=20",
                "recipe.batch_size=10",
                "figures=false",
                "tensorboard=false",
                "progress=off",
                f"run_dir={digits}",
            ]
        )
    )
    assert "a run on genotypes" in one_line(lambda: project(digits, store.path, tmp_path / "x.tsv"))
