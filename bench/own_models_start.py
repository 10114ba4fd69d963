"""Seconds from `import` to the first draws of a saved posterior, beyond those of importing torch, in fresh interpreters.

Those of the processor stand beside those of the clock, which a busy machine stretches.

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
marks = [(time.perf_counter(), time.process_time())]
def mark():
    marks.append((time.perf_counter(), time.process_time()))
import torch
torch.set_num_threads(1)
mark()
from ddvi_fast import inference
mark()
posterior = inference.load(sys.argv[1])
mark()
posterior.sample(1000, torch.zeros(2))
mark()
steps = [[later - before for before, later in zip(one, other)] for one, other in zip(marks, marks[1:])]
names = ("torch", "import", "load", "sample")
beyond = {"beyond torch": marks[-1][0] - marks[1][0], "beyond torch, processor": marks[-1][1] - marks[1][1]}
print(json.dumps({**{name: wall for name, (wall, _) in zip(names, steps)}, **beyond}))
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
