"""Seconds from `import` to the first draws of a saved posterior, beyond those of importing torch, in fresh interpreters.

python -m bench.own_models_start            # a minute; writes bench/results/own_models_start.json
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from ddvi_fast.engine.run_folder import environment
from ddvi_fast.inference import Training
from examples import two_moons

RESULTS = Path(__file__).parent / "results/own_models_start.json"
REPEATS = 5
FRESH = """
import json, sys, time
start = time.perf_counter()
import torch
torch.set_num_threads(1)
imported = time.perf_counter()
from ddvi_fast import inference
package = time.perf_counter()
posterior = inference.load(sys.argv[1])
loaded = time.perf_counter()
posterior.sample(1000, torch.zeros(2))
done = time.perf_counter()
print(json.dumps({"torch": imported - start, "import": package - imported, "load": loaded - package, "sample": done - loaded, "beyond torch": done - imported}))
"""


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = two_moons.fit(training=Training(steps=20)).save(Path(folder) / "posterior")
        ran = [subprocess.run([sys.executable, "-c", FRESH, str(path)], capture_output=True, text=True, check=True) for _ in range(REPEATS)]
    seconds = [json.loads(one.stdout.splitlines()[-1]) for one in ran]
    middle = {part: statistics.median(one[part] for one in seconds) for part in seconds[0]}
    RESULTS.write_text(json.dumps({**environment(), "seconds": middle, "each": seconds}, indent=1) + "\n", encoding="utf-8")
    print({part: round(value, 3) for part, value in middle.items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
