"""Baselines in plain PyTorch, which the benchmarks compare with."""
