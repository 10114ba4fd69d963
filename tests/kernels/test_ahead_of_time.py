"""Every Triton kernel compiles for every architecture without spills, and the table of what it takes is that of the sources."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / "bench" / "ahead_of_time.py"


def _script():
    """The command as a module."""
    specification = importlib.util.spec_from_file_location("ahead_of_time", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_kernels_compile_as_the_table_says():
    """The first variant of each kernel on each architecture; all variants are what the command itself compiles."""
    pytest.importorskip("triton")
    command = [sys.executable, str(SCRIPT), "--check", "--first-variants"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_check_finds():
    script = _script()
    good = {"registers": 32, "local": 0, "shared": 1024}
    committed = {"triton": "3.7.1", "kernels": {"a": {"sm_80": good, "sm_90": good}, "b": {"sm_80": good}}}
    names = ["a", "b"]
    assert script.check(committed, "3.7.1", committed["kernels"], names) == []
    changed = {"a": {"sm_80": {**good, "registers": 33}}}
    assert len(script.check(committed, "3.7.1", changed, names)) == 1
    assert script.check(committed, "3.6.0", changed, names) == []  # another compiler has other figures
    assert len(script.check(committed, "3.6.0", {"a": {"sm_80": {**good, "local": 8}}}, names)) == 1
    assert len(script.check(committed, "3.6.0", {"a": {"sm_80": {**good, "shared": 200 << 10}}}, names)) == 1
    assert script.check(committed, "3.6.0", {"a": {"sm_90": {**good, "shared": 200 << 10}}}, names) == []
    assert len(script.check(committed, "3.7.1", {}, ["a", "c"])) == 2  # b is gone, c is new
