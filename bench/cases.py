"""Registry of the benchmark cases: an operation at one size, and the sets that `ddvi-fast bench` runs.

Sets: ``targets`` (the comparisons with a goal), ``quick`` (every operation once, small), ``full`` (128 to 65,536 rows, latent dimensions 2 and
16, 5 to 100 steps), ``device`` (sizes for a large GPU), ``genomes`` (unpacking of genotypes, their principal components against
scikit-learn's, and latents of a fitted model), ``million`` (components of 2,504 x 1,000,000 genotypes, for which a dense matrix takes 10 GB).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from bench.problem import Problem

WITH_BF16 = ("chain", "sleep", "training", "semisupervised")  # operations with hidden layers
MODES = {False: "forward", True: "forward+backward"}


@dataclass(frozen=True)
class Case:
    """One operation at one size.

    Args:
        operation: A key of `operations.OPERATIONS`, ``training``, ``semisupervised`` or ``genomes``.
        shape: Arguments of its problem.
        backward: Whether forward and backward pass are computed, or the forward pass alone.
        sets: Names of the sets that the case belongs to.
        goals: Smallest speed of each provider relative to eager, on a 2-core CPU with AVX-512.
        most_bytes: Largest peak memory of ours in bytes, or None.
    """

    operation: str
    shape: tuple[tuple[str, Any], ...]
    backward: bool
    sets: frozenset[str]
    goals: tuple[tuple[str, float], ...] = ()
    most_bytes: int | None = None

    @property
    def name(self) -> str:
        """The name, for example ``chain N=128 T=40 D=2 forward``."""
        shape = " ".join(str(value) if isinstance(value, str) else f"{key}={value}" for key, value in self.shape)
        return " ".join(part for part in (self.operation, shape, MODES[self.backward]) if part)

    @property
    def providers(self) -> tuple[str, ...]:
        """Names of the providers."""
        if self.operation == "genomes":
            return ("eager", "ours") if "genomes" in self.sets else ("ours",)
        return ("eager", "compiled", "ours", *(["ours_bf16"] if self.operation in WITH_BF16 else []))

    def build(self, device: torch.device) -> Problem:
        """Make the problem with its inputs on `device`."""
        if self.operation == "training":
            from bench.training import Training

            return Training(device, **dict(self.shape))
        if self.operation == "semisupervised":
            from bench.semisupervised import SemiSupervisedTraining

            return SemiSupervisedTraining(device, **dict(self.shape))
        if self.operation == "genomes":
            from bench import genomes

            shape = dict(self.shape)
            kinds = {"codes": genomes.Unpacking, "scaled": genomes.Unpacking, "map": genomes.Mapping}
            return kinds.get(shape["kind"], genomes.Components)(device, **shape)
        from bench.operations import OPERATIONS

        return OPERATIONS[self.operation](device, self.backward, **dict(self.shape))


@cache
def all_cases() -> tuple[Case, ...]:
    """All cases, each once, with all sets that it belongs to."""
    merged: dict[tuple, Case] = {}
    for case in (*_targets(), *_quick(), *_full(), *_device(), *_genomes()):
        key = (case.operation, case.shape, case.backward)
        known = merged.get(key)
        merged[key] = case if known is None else replace(known, sets=known.sets | case.sets)
    return tuple(merged.values())


def in_set(name: str) -> list[Case]:
    """The cases of a set."""
    return [case for case in all_cases() if name in case.sets]


def by_name(name: str) -> Case:
    """The case of that name."""
    return next(case for case in all_cases() if case.name == name)


def _case(group: str, operation: str, backward: bool, goals: dict[str, float] | None = None, /, **shape: Any) -> Case:
    return Case(operation, tuple(shape.items()), backward, frozenset((group,)), tuple((goals or {}).items()))


def _both(group: str, operation: str, /, **shape: Any) -> Iterator[Case]:
    for backward in (False, True):
        yield _case(group, operation, backward, None, **shape)


def _targets() -> Iterator[Case]:
    small = {"N": 128, "T": 40, "D": 2, "C": 2, "H": 128}
    for kind in ("deterministic", "ancestral"):
        yield _case("targets", "chain", False, {"ours": 3.0, "ours_bf16": 5.0}, **small, kind=kind)
        yield _case("targets", "chain", True, {"ours": 2.5, "ours_bf16": 4.0}, **small, kind=kind)
    yield _case("targets", "chain", False, {"ours": 1.3, "ours_bf16": 2.5}, **{**small, "N": 8192}, kind="deterministic")
    yield _case("targets", "chain", True, {"ours": 2.5}, **{**small, "N": 1024, "T": 100}, G=10)
    yield _case("targets", "kde", True, {"ours": 25.0}, N=128, M=10_000, D=2)
    yield replace(_case("targets", "mmd", False, {"ours": 4.0}, N=10_000, M=10_000, P=784), most_bytes=200 * 10**6)
    yield _case("targets", "training", True, {"ours": 4.0, "ours_bf16": 6.0}, N=128, T=40)
    yield _case("targets", "semisupervised", True, {"ours": 3.0}, N=1024, T=100, classes=10)


def _quick() -> Iterator[Case]:
    yield from _both("quick", "noise", N=8192, D=2)
    yield from _both("quick", "chain", N=128, T=40, D=2, C=2, H=128, kind="ancestral")
    yield _case("quick", "chain", True, None, N=64, T=20, D=2, C=2, H=128, G=3)
    yield _case("quick", "chain", True, None, N=128, T=20, D=2, C=2, H=128, G=3, indexed=True)
    yield _case("quick", "sleep", True, None, N=128, T=40, D=2)
    for kind, width in (("bernoulli", 784), ("gaussian", 784), ("binomial", 784), ("gaussian_kl", 2), ("log_mean_exp", 50)):
        yield _case("quick", "elbo", True, None, kind=kind, N=128, P=width)
    yield _case("quick", "kde", True, None, N=128, M=10_000, D=2)
    yield _case("quick", "mmd", False, None, N=1000, M=1000, P=784)
    yield _case("quick", "training", True, None, N=128, T=40)


def _full() -> Iterator[Case]:
    for rows in (128, 8192, 65_536):
        for latent in (2, 16):
            yield from _both("full", "noise", N=rows, D=latent)
            yield from _both("full", "sleep", N=rows, T=40, D=latent)
            for steps in (5, 40, 100):
                yield from _both("full", "chain", N=rows, T=steps, D=latent, C=2, H=128, kind="ancestral")
        for kind, width in (("bernoulli", 784), ("gaussian", 784), ("binomial", 784), ("gaussian_kl", 2), ("gaussian_kl", 16), ("log_mean_exp", 50)):
            yield from _both("full", "elbo", kind=kind, N=rows, P=width)
    for hidden in (64, 256):
        yield from _both("full", "chain", N=8192, T=40, D=2, C=2, H=hidden, kind="ancestral")
    yield _case("full", "chain", True, None, N=1024, T=100, D=2, C=2, H=128, G=10)
    for rows in (128, 8192):
        for latent in (2, 16):
            yield from _both("full", "kde", N=rows, M=10_000, D=latent)
    for rows, pixels in ((1000, 2), (2000, 784), (10_000, 784)):
        yield from _both("full", "mmd", N=rows, M=rows, P=pixels)
    yield _case("full", "training", True, None, N=128, T=40)
    yield _case("full", "training", True, None, N=1024, T=40)


def _device() -> Iterator[Case]:
    large = {"N": 65_536, "T": 40, "D": 2, "C": 2, "H": 128, "kind": "ancestral"}
    yield from _both("device", "chain", **large)
    yield _case("device", "kde", True, None, N=8192, M=10_000, D=2)
    yield _case("device", "noise", False, None, N=1 << 24, D=2)
    yield from _both("device", "chain", **{**large, "N": 128})
    yield _case("device", "chain", True, None, N=1024, T=100, D=2, C=2, H=128, G=10)
    yield _case("device", "chain", True, None, N=10_240, T=100, D=2, C=2, H=128, G=10, indexed=True)
    yield _case("device", "sleep", True, None, N=65_536, T=40, D=2)
    yield from _both("device", "mmd", N=10_000, M=10_000, P=784)
    yield _case("device", "chain", False, None, **{**large, "D": 16})
    for kind, width in (("bernoulli", 784), ("gaussian", 784), ("binomial", 784), ("gaussian_kl", 16), ("log_mean_exp", 50)):
        yield _case("device", "elbo", True, None, kind=kind, N=65_536, P=width)


def _genomes() -> Iterator[Case]:
    for kind in ("codes", "scaled"):
        yield _case("genomes", "genomes", False, None, kind=kind, N=2504, M=4096)
    for kind in ("pca", "pca in 7 passes"):
        yield _case("genomes", "genomes", False, None, kind=kind, N=2504, M=20_000)
    yield _case("genomes", "genomes", False, None, kind="map", N=100_000, M=20)
    yield replace(_case("million", "genomes", False, None, kind="pca", N=2504, M=1_000_000), most_bytes=2 * 10**9)
