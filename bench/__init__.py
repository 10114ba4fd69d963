"""Benchmarks: cases and problems, timing, memory and ceilings, records and reports."""
