"""Settings of a run that do not define its experiment, by what they change."""

from __future__ import annotations

# What is written and shown.
OUTPUT = ("run_dir", "overwrite", "progress", "tensorboard", "tracker", "figures")
# The machine.
MACHINE = ("data_dir", "download", "device", "threads")
# The way in which the same steps are computed and saved. Folders of earlier versions may have `resume`.
EXECUTION = (
    "resume", "capture", "compile_networks", "engine", "zero_stage", "accumulation", "optimiser", "timeout", "checkpoint_steps", "checkpoint_keep",
)  # fmt: skip
