"""Benchmarks: what is timed and against what (`cases`), how (`timing`, `memory`, `ceilings`), and what is made of it (`run`, `report`)."""
