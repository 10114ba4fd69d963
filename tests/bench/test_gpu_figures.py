"""Tests of the GPU's figures beside those of a benchmark."""

from __future__ import annotations

import pytest

from bench import cases, gpu_figures


def test_measured_figures_are_those_of_the_committed_record():
    assert gpu_figures.measured("training N=128 T=40 forward+backward", "eager") == pytest.approx(93.8, abs=0.1)
    assert gpu_figures.measured("no such case", "ours") is None


def test_predictions_are_sums_of_launches(monkeypatch):
    rows = [
        {"case": "a", "precision": "float32", "kernel": "k", "microseconds": 5.0},
        {"case": "a", "precision": "bf16", "kernel": "k", "microseconds": 1.0},
        {"case": "a", "precision": "bf16", "kernel": "l", "microseconds": None},
        {"case": "a", "precision": "float32, CUDA C++", "kernel": "k", "microseconds": 2.0},
        {"case": "a", "precision": "float32, CUDA C++", "kernel": "l", "microseconds": 1.0},
    ]
    monkeypatch.setattr(gpu_figures, "_read", lambda path: {"predictions": rows})
    assert gpu_figures.predicted("a", "ours") == (0.003, True), "a chain of few rows runs in CUDA C++"
    assert gpu_figures.predicted("a", "ours_bf16") == (0.001, False)
    assert gpu_figures.predicted("a", "eager") is gpu_figures.predicted("b", "ours") is None


def test_the_table_has_both_columns():
    shown = gpu_figures.table(cases.in_set("quick"))
    assert "| case | provider | measured (ms) | predicted (ms) |" in shown and "training N=128 T=40 forward+backward | ours | 7.2 |" in shown
    assert gpu_figures.table([]) == ""
