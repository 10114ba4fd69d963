"""Tests of style and types: ruff and mypy report nothing."""

from __future__ import annotations

import ast
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


FACTORIES = {"arange", "as_tensor", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randint", "randn", "randperm", "tensor", "zeros"}


def test_new_tensors_name_their_device() -> None:
    """Otherwise they would be on torch's default device, which may be another one, or meta."""
    found = []
    for path in sorted((PROJECT / "ddvi_fast").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = isinstance(call, ast.Call) and any(word.arg in ("device", None) for word in call.keywords)
            made = isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "torch"
            if made and call.func.attr in FACTORIES and not named:
                found.append(f"{path.relative_to(PROJECT)}:{call.lineno}: {ast.unparse(call)}")
    assert not found, "\n".join(found)
