"""`python -m ddvi_fast.cli COMMAND [name=value ...]`, the same as `ddvi-fast`."""

from __future__ import annotations

import sys

from ddvi_fast.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
