"""`python -m ddvi_fast.train name=value ...`, the same as `ddvi-fast train`, for launchers that start modules."""

from __future__ import annotations

import sys

from ddvi_fast.cli import main

if __name__ == "__main__":
    # The deepspeed launcher adds --local_rank, which the environment says too.
    sys.exit(main(["train", *(argument for argument in sys.argv[1:] if not argument.startswith("--local_rank"))]))
