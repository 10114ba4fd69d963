"""Pytest plugin of the benchmarks: `pytest bench/ --benchmark-enable [--bench-set SET] [--bench-device DEVICE]` times the cases of a set.

Without --benchmark-enable every case runs once, as a check. The providers of a case form a group of the table.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import cases, gpu_figures
from ddvi_fast.cli.bench import SETS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench-set", default="quick", choices=SETS, help="which cases to run")
    parser.addoption("--bench-device", default="cpu", help="cpu or cuda")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Collect only bench_*.py; the others are modules and scripts."""
    return True if collection_path.suffix == ".py" and not collection_path.name.startswith("bench_") else None


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    # Pytest collects files that are named on the command line by itself.
    wanted = file_path.match("bench_*.py") and not parent.session.isinitpath(file_path)
    return pytest.Module.from_parent(parent, path=file_path) if wanted else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize with every provider of every case of the operation that the file is named after."""
    operation = metafunc.definition.path.stem.removeprefix("bench_")
    chosen = [case for case in cases.in_set(metafunc.config.getoption("--bench-set")) if case.operation == operation]
    pairs = [(case, provider) for case in chosen for provider in case.providers]
    metafunc.parametrize(("case", "provider"), pairs, ids=[f"{case.name}: {provider}" for case, provider in pairs])


@pytest.fixture
def call(case: cases.Case, provider: str, benchmark, pytestconfig: pytest.Config):
    """The function to time, after its check."""
    torch._dynamo.reset()
    problem = case.build(torch.device(pytestconfig.getoption("--bench-device")))
    problem.check(provider)
    benchmark.group = case.name
    was, model = gpu_figures.measured(case.name, provider), gpu_figures.predicted(case.name, provider)
    benchmark.extra_info |= {"H200 measured ms": was, "H200 predicted ms": None if model is None else model[0]}
    run = problem.provider(provider)
    run()  # compilation and other first-time work are not timed
    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show the figures of a GPU of the cases that were timed."""
    timed = {report.nodeid for report in terminalreporter.getreports("passed")}
    chosen = [case for case in cases.in_set(config.getoption("--bench-set")) if any(case.name in name for name in timed)]
    if figures := gpu_figures.table(chosen):
        terminalreporter.section("figures of a GPU")
        terminalreporter.write_line(figures)
