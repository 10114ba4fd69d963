"""`python -m ddvi_fast.cli COMMAND ...`, the same as `ddvi-fast COMMAND ...`."""

from __future__ import annotations

import sys

from ddvi_fast.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
