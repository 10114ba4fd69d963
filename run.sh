#!/usr/bin/env bash
# The command line of the paper's released code: ./run.sh DATASET METHOD PRIOR [name=value ...]
#   ./run.sh mnist diff_vae_warmup pinwheel epochs=1 data_dir=path/to/data
# Names and what they stand for: ddvi_fast/paper/commands.py. PYTHON=... chooses another interpreter.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ ! -x "$here/.venv/bin/python" ] || PYTHON="$here/.venv/bin/python"
fi
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m ddvi_fast.cli train --paper "$@"
