"""Test of the study of two cohorts on a small copy of its files."""

import json

import numpy as np
import pytest

from bench.studies import two_cohorts
from tests.genomes.files import Genotypes, write_plink
from tests.genomes.test_pca import ancestry

pytest.importorskip("bed_reader")


def test_both_copies_of_a_person_lie_at_one_place(tmp_path, capsys):
    data, folder = ancestry(90, 300, missing=0), tmp_path / "hapmap3"
    folder.mkdir()
    (tmp_path / "1kg").mkdir()
    people = [f"P{number:02d}" for number in range(90)]
    variants = [(str(j // 100 + 1), 10 * j + 10, f"rs{j}", "AC"[j % 2], "CA"[j % 2]) for j in range(300)]
    moved = [(chromosome, position + 777, *rest) for chromosome, position, *rest in variants]
    # People 30 to 60 are in both files, of which one has another build and counts the other alleles of some variants.
    write_plink(Genotypes(data[:60], people[:60], variants), folder / "1kg_phase1")
    turned = [(*row[:3], row[4], row[3]) if j % 7 == 0 else row for j, row in enumerate(moved)]
    codes = np.where(np.arange(300) % 7 == 0, 2 - data[30:], data[30:])
    write_plink(Genotypes(codes, people[30:], turned), folder / "hapmap3")
    (tmp_path / "1kg/1kg_phase3_samples.tsv").write_text(
        "sample\tpopulation\n" + "".join(f"{name}\t{'AB'[k % 2]}\n" for k, name in enumerate(people[:60]))
    )
    (folder / "hapmap3_relationships.txt").write_text(
        "".join(f"f {name} 0 0 1 0 {'MEX' if k % 2 else 'A'}\n" for k, name in enumerate(people) if k >= 30)
    )
    output = tmp_path / "out.json"
    two_cohorts.main(["--data", str(tmp_path), "--epochs", "1", "--output", str(output), "--picture", str(tmp_path / "maps.png")])
    found, unseen = (json.loads(path.read_text()) for path in (output, tmp_path / "out-unseen.json"))
    for row in found["rows"]:
        assert row[1] == 30 and row[2].startswith("300 of 300 variants matched, 300 by identifier (positions of another genome build")
        assert row[3] < 1e-3 and row[4] < 0.5
    assert {tuple(row[:2]) for row in unseen["rows"]} == {("1000 Genomes phase 1", "MXL"), ("HapMap 3", "B")}
    assert (tmp_path / "maps.png").is_file()
