"""The figures of the table fixed-decoder, and its text."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor

from ddvi_fast import _markdown, ops
from ddvi_fast.paper.fixed_decoder_posteriors import IMAGES, ROWS, SAMPLES, UPDATES

FEW = 10  # samples of the smaller importance-weighted bound


def figures_of(log_weights: Tensor) -> dict[str, float]:
    """Bounds, nats, and the median share of effective samples, of log-weights [K, M]."""
    count = len(log_weights)
    few = log_weights[: count // FEW * FEW].unflatten(0, (-1, FEW))
    size = torch.exp(-torch.logsumexp(2 * log_weights.log_softmax(0), 0)) / count
    return {
        "elbo": float(log_weights.mean()),
        "iwae_few": float(ops.log_mean_exp(few, 1).mean()),
        "iwae": float(ops.log_mean_exp(log_weights, 0).mean()),
        "effective": float(size.median()),
    }


def markdown(record: dict[str, Any]) -> str:
    """The table of a record."""
    settings, evidence = record["settings"], record["evidence"]
    best = max(evidence.values())
    few, samples = f"IWAE-{FEW}", f"IWAE-{settings['samples']}"
    headings = ["posterior", "ELBO", "gap", few, samples, "ESS", "decoder passes", "CPU seconds", "seeds"]
    rows = [_row(ROWS[row], seeds, best) for row, seeds in record["runs"].items() if row != "annealed"]
    count, processor = settings["images"], record["machine"]["processor"]
    source = f"Commit {str(record['commit'])[:10]}, {processor}, torch {record['versions']['torch']}."
    split = "validation" if settings["validation"] else "test"
    lines = [
        f"# Posteriors of a fixed decoder with {settings['latents']} latents",
        "",
        f"`{record['command']}`. {source}",
        f"A variational autoencoder on binarized {settings['dataset']} ({settings['hidden']} hidden units, {settings['epochs']} epochs,"
        f" {record['active_units']} active latents), its decoder frozen. Means over {count} {split} images, nats per image,"
        " ± the standard deviation over seeds where there are several.",
        f"All amortized posteriors start from the encoder of the autoencoder; a training step has {IMAGES} images with {SAMPLES} samples each. The"
        f" informed chain in the frame of {UPDATES} updates is trained for a given time, every other one until it has had as many seconds and as many"
        " passes of the decoder, those of informed steps and frame updates included. Gap: the largest estimate of the evidence below, less the ELBO."
        f" ESS: median share of effective samples among {settings['samples']}.",
        "",
        _markdown.table(headings, rows),
        "",
        "Evidence, nats per image; each estimate is a lower bound in expectation:",
        "",
        _markdown.table(["estimate", "log p(x)"], [[name, f"{value:.2f}"] for name, value in evidence.items()]),
        "",
    ]
    return "\n".join(lines)


def _row(label: str, seeds: list[dict[str, Any]], evidence: float) -> list[str]:
    def mean(name: str, spec: str) -> str:
        values = [one[name] for one in seeds]
        return f"{statistics.fmean(values):{spec}}" + (f" ± {statistics.stdev(values):{spec}}" if len(values) > 1 else "")

    gap = f"{evidence - statistics.fmean(one['elbo'] for one in seeds):.2f}"
    bounds = [mean("elbo", ".2f"), gap, mean("iwae_few", ".2f"), mean("iwae", ".2f"), mean("effective", ".1%")]
    cost = [f"{statistics.fmean(one['passes'] for one in seeds):,.0f}", f"{statistics.fmean(one['seconds'] for one in seeds):.0f}"]
    return [label, *bounds, *cost, str(len(seeds))]
