"""Readers of genotype files."""
