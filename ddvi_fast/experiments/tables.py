"""Figures of merit as tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ddvi_fast.experiments.run import Result

# name in evaluation.json -> heading; nats per example where nothing else is said
COLUMNS = {
    "evidence": "evidence",
    "elbo": "ELBO",
    "iwae": "IWAE",
    "gap": "gap",
    "class_accuracy": "accuracy",
    "purity": "purity",
    "completeness": "completeness",
    "nmi": "NMI",
    "knn_accuracy": "KNN accuracy",
    "latent_nll": "latent NLL",
    "mmd": "MMD",
    "elbo_released": "released ELBO",
    "seconds": "seconds",
}


def print_result(result: Result) -> None:
    """One run: its figures of merit and the paths of its pictures."""
    print_table([(result.folder.path.name, result.metrics)])
    if "elbo" not in result.metrics:
        print("no ELBO, IWAE or gap: this posterior has no density, so it has no bound; the other columns judge its samples")
    print(f"run folder: {result.folder.path}")
    for path in result.figures:
        print(f"figure: {path}")


def print_table(rows: Sequence[tuple[str, Mapping[str, float]]], title: str = "test set, nats per example") -> None:
    """Rows of figures under their headings; columns that no row has are left out."""
    from rich.console import Console
    from rich.table import Table

    shown = [name for name in COLUMNS if any(name in metrics for _, metrics in rows)]
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for name in shown:
        table.add_column(COLUMNS[name], justify="right", no_wrap=True)
    for label, metrics in rows:
        table.add_row(label, *[f"{metrics[name]:.3f}" if name in metrics else "-" for name in shown])
    Console(width=max(150, Console().width)).print(table)
