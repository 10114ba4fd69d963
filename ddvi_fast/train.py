"""`python -m ddvi_fast.train name=value ...`, the same as `ddvi-fast train`, for launchers that start modules."""

from __future__ import annotations

import sys

from ddvi_fast.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
