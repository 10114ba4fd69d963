"""Tests of style and types: ruff and mypy report nothing."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent


def _run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=3600)


def test_ruff_is_content() -> None:
    program = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    if program is None:
        pytest.skip("ruff is not installed (pip install -e '.[dev]')")
    ran = _run(program, "check", "--no-cache", ".")
    assert ran.returncode == 0, ran.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed (pip install -e '.[dev]')")
def test_mypy_is_content() -> None:
    ran = _run(sys.executable, "-m", "mypy", "--no-error-summary")
    assert ran.returncode == 0, ran.stdout[-3000:]
