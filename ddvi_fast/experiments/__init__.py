"""Experiments: configuration, what is built from it, training and evaluation of one run."""
