"""Readers of genotype files, one format per file."""
