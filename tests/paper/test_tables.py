"""Tests of means, intervals and the tables made of them, and of the paper's own figures."""

import re
import statistics

import pytest

from ddvi_fast.cli.tables import print_table
from ddvi_fast.paper import table_spec as grid
from ddvi_fast.paper import tables
from ddvi_fast.paper.tables import summarise


def paper_figures(name):
    table = grid.load(name)
    return grid.paper_figures(table, table.dataset)


def record(**changes):
    runs = [
        {"row": row, "column": "pinwheel", "seed": seed, "figures": {"elbo": elbo + seed, "seconds": 10.0, "latent_nll": 2.0}}
        for row, elbo in (("vae", -30.0), ("ddvi", -20.0))
        for seed in (0, 1, 2)
    ]
    made = {
        "title": "a title", "note": "", "command": "ddvi-fast reproduce x", "commit": "0123456789abcdef", "versions": {"torch": "2.13"},
        "rows": {"vae": "Gaussian", "ddvi": "diffusion", "aae": "adversarial"},
        "columns": {"pinwheel": "pinwheel"},
        "figures": ["elbo", "mmd", "latent_nll", "seconds"],
        "paper": {"vae": {"pinwheel": {"latent_nll": [1.68, 0.31]}}},
        "others": ["paper", "after 200 epochs"],
        "runs": [*runs, {"row": "aae", "column": "pinwheel", "seed": 0, "failure": "no reason"}],
    }  # fmt: skip
    return {**made, **changes}


def test_intervals_are_students():
    # Quantile 0.975 of t with 4 degrees of freedom, from a printed table.
    values = [1.0, 2.0, 4.0, 4.0, 9.0]
    assert summarise(values).mean == 4
    assert summarise(values).half == pytest.approx(2.776 * statistics.stdev(values) / 5**0.5, rel=1e-3)
    assert summarise([3.0]) == (3.0, None, 1)


def test_markdown_explains_what_the_table_has_and_nothing_else():
    whole = tables.markdown(record(figures=["elbo", "elbo_released"], note="A remark."))
    assert "released ELBO the paper's scale" in whole and "after 200 epochs" in whole and "\nA remark.\n" in whole
    plain = tables.markdown(record(paper={}))
    assert "released" not in plain and "200 epochs" not in plain


def test_markdown_shows_means_the_best_and_the_papers():
    text = tables.markdown(record())
    assert "over 3 seeds" in text and "0123456789" in text
    assert "|  | method | ELBO | latent NLL | paper | seconds |" in text
    assert "| pinwheel | Gaussian | -29.00 ± 2.48 | **2.00 ± 0.00** | 1.68 ± 0.31 | 10 ± 0 |" in text
    assert "| pinwheel | diffusion | **-19.00 ± 2.48** | **2.00 ± 0.00** | - | 10 ± 0 |" in text
    assert "| pinwheel | adversarial | - | - | - | - |" in text and "- aae, pinwheel: no reason" in text


def test_figures_of_others_have_their_own_heading():
    others = {"vae": {"pinwheel": {"latent_nll": [1.68], "seconds": [472]}}}
    text = tables.markdown(record(paper=others, others=["released code", "Two cores."]))
    assert "| latent NLL | released code | seconds | released code |" in text and "\nTwo cores.\n" in text
    assert "| 1.68 | 10 ± 0 | 472 |" in text


def test_rows_with_seeds_to_come_are_named():
    made = record()
    assert "Not finished" not in tables.markdown(made)
    for number in (4, 5):  # two seeds of ddvi
        del made["runs"][number]["figures"]
    assert tables.markdown(made).endswith("Not finished:\n\n- diffusion: 2 of its runs, 2 a column at most\n")


def test_latex_has_the_same_rows():
    text = tables.latex(record(title="50% of a_b"))
    assert r"\textbf{-19.00 $\pm$ 2.48}" in text and text.count(r" \\") == 4 and r"\bottomrule" in text
    assert all(line.count(" & ") == 5 for line in text.splitlines() if line.endswith(r"\\"))


def test_a_single_run_has_no_interval():
    made = record()
    made["runs"] = [run for run in made["runs"] if run["seed"] == 0]
    assert "| -30.00 |" in tables.markdown(made) and "one seed" in tables.markdown(made)


def test_the_papers_figures_belong_to_cells_that_exist():
    known = {column.paper for column in tables.COLUMNS.values()} - {None}
    filled = [name for name in grid.names() if paper_figures(name)]
    assert {"mnist", "cifar10", "mnist-semi", "cifar10-semi", "ablation-sleep"} <= set(filled)
    for name in filled:
        table, stated = grid.load(name), paper_figures(name)
        assert stated.keys() <= table.rows.keys()  # a table may have more cells than the paper's
        for by_column in stated.values():
            assert by_column.keys() <= table.columns.keys()
            assert all(figure in known and 1 <= len(value) <= 2 for figures in by_column.values() for figure, value in figures.items())
    assert paper_figures("mnist")["ddvi"]["swiss_roll"] == {"elbo": [-5.03, 0.58], "mmd": [0.62, 0.33], "latent_nll": [3.86, 0.17]}


@pytest.mark.parametrize(("columns", "terminal"), [(80, True), (300, True), (80, False)])
def test_a_table_fits_the_terminal_that_shows_it(capsys, monkeypatch, columns, terminal):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("rich.console.Console.is_terminal", terminal)
    names = ("evidence", "elbo", "iwae", "gap", "knn_accuracy", "latent_nll", "mmd", "elbo_released", "seconds", "cpu_seconds")
    figures = dict.fromkeys(names, -12.345)
    print_table([("Gaussian posterior", figures), ("diffusion posterior", {**figures, "elbo": -7.5})])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    (elbo,) = [line for line in lines if line.count("-7.500")]
    turned = terminal and columns == 80
    assert ("Gaussian" in elbo) is False and ("diffusion" in elbo) is not turned and ("ELBO" in elbo) is turned
    assert elbo.count("-12.345") == (1 if turned else 9)
    if terminal:
        assert max(map(len, lines)) <= columns
