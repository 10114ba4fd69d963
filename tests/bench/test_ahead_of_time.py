"""Tests of compilation ahead of time: no spills on any architecture, and a table that is up to date."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench.device import ahead_of_time


@pytest.mark.slow
def test_kernels_compile_as_the_table_says():
    """The first variant of each kernel on each architecture; all variants are what the command itself compiles."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "bench.device.ahead_of_time", "--check", "--first-variants"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ahead_of_time.KERNELS.parent)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_check_finds():
    good = {"registers": 32, "local": 0, "shared": 1024}
    committed = {"triton": "3.7.1", "kernels": {"a": {"sm_80": good, "sm_90": good}, "b": {"sm_80": good}}}
    names = ["a", "b"]
    assert ahead_of_time.check(committed, "3.7.1", committed["kernels"], names) == []
    changed = {"a": {"sm_80": {**good, "registers": 33}}}
    assert len(ahead_of_time.check(committed, "3.7.1", changed, names)) == 1
    assert ahead_of_time.check(committed, "3.6.0", changed, names) == []  # another compiler has other figures
    assert len(ahead_of_time.check(committed, "3.6.0", {"a": {"sm_80": {**good, "local": 8}}}, names)) == 1
    assert len(ahead_of_time.check(committed, "3.6.0", {"a": {"sm_80": {**good, "shared": 200 << 10}}}, names)) == 1
    assert ahead_of_time.check(committed, "3.6.0", {"a": {"sm_90": {**good, "shared": 200 << 10}}}, names) == []
    assert len(ahead_of_time.check(committed, "3.7.1", {}, ["a", "c"])) == 2  # b is gone, c is new
