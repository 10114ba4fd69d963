"""Check of a device in less than eight minutes: parity, timings, rooflines, graph replay, host synchronization, races, the static model.

    python3 bench/device_check.py                            # on a GPU; the package need not be installed
    python3 bench/device_check.py --denoiser                 # the kernels around the denoiser alone, in less than seven minutes
    python3 bench/device_check.py --device cpu --quick       # the same parts with small sizes, without those that need CUDA

On a GPU every part runs in its own process with a time limit, so that a part that crashes or hangs does not affect the others. Parts that time
nothing run side by side, because most of their time is compilation. The result is one JSON file and one table (Markdown).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 420.0  # seconds for everything
_GRACE = 15.0  # seconds between the end of a part's time and the end of its process


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes: a test of this script")
    parser.add_argument("--output", type=Path, help="JSON file; bench/results/device-NAME.json if left out")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--parts", nargs="+", help="some parts only, by name")
    parser.add_argument("--denoiser", action="store_true", help="the parts that cover the kernels around the denoiser only")
    # Arguments of this script's own processes: parts to run, and seconds for each of them; --output is a folder then.
    parser.add_argument("--run", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    _use_this_tree()
    if options.run:
        return _run_here(options)
    return _run_all(parser, options)


def _use_this_tree() -> None:
    """Import from the tree around this file, whatever is installed, and nothing from the folder of this file."""
    sys.path[:] = [str(ROOT), *(path for path in sys.path if Path(path or ".").resolve() != ROOT / "bench")]


def _run_here(options: argparse.Namespace) -> int:
    """Run parts in this process; the result of a part so far is written whenever it grows."""
    import torch

    from bench.device.parts import PARTS, Setting

    for part in options.run:
        result: dict[str, Any] = {"ok": False, "summary": "no result"}
        target, begun = _result_file(options.output, part), time.monotonic()
        try:
            for result in PARTS[part].results(Setting(torch.device(options.device), options.quick, options.seconds)):
                _write(target, result, begun)
        except Exception as error:  # recorded, so that the other parts are run
            lines = str(error).strip().splitlines() or [""]
            result |= {"ok": False, "summary": f"{type(error).__name__}: {' '.join(lines[:2])}"[:400]}
            _write(target, {**result, "traceback": traceback.format_exc().splitlines()[-12:]}, begun)
    return 0


def _write(path: Path, result: dict[str, Any], begun: float) -> None:
    """Write a result atomically: a process that is stopped while it writes leaves the earlier one."""
    fresh = path.with_suffix(".partial")
    fresh.write_text(json.dumps({**result, "seconds": round(time.monotonic() - begun, 1)}), encoding="utf-8")
    fresh.replace(path)


def _result_file(folder: Path, part: str) -> Path:
    return folder / f"{part.replace(' ', '-')}.json"


def _run_all(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    import torch

    from bench import records
    from bench.device.parts import DENOISER_PARTS, PARTS
    from ddvi_fast.engine.run_folder import environment

    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device was found; --device cpu --quick runs the parts that need none")
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    path = options.output or ROOT / "bench" / "results" / f"device-{name.lower().replace(' ', '-')}.json"
    if path.exists() and not options.overwrite:
        parser.error(f"{path} exists; --overwrite replaces it")
    chosen = DENOISER_PARTS if options.denoiser else options.parts
    wanted = [part for part in PARTS if chosen is None or part in chosen]
    start = time.monotonic()
    about = {
        "kind": records.DEVICE_KIND,
        **environment(),
        "command": " ".join(["python3", "bench/device_check.py", *sys.argv[1:]]),
        "device": name,
        "threads": torch.get_num_threads(),
        "quick": options.quick,
    }
    results: dict[str, dict[str, Any]] = {}

    def keep(found: dict[str, dict[str, Any]]) -> str:
        """Write the record with what has been found so far: a check that is stopped leaves it."""
        results.update(found)
        waiting = {"ok": None, "summary": "0 run, 0 passed; not run yet", "seconds": 0.0}
        parts = {part: results.get(part, waiting) for part in wanted}
        return records.write(path, {**about, "seconds": round(time.monotonic() - start, 1), "parts": parts})

    with tempfile.TemporaryDirectory() as folder:
        together, one_by_one = ([part for part in wanted if PARTS[part].alone == alone] for alone in (False, True))
        # On a CPU one process is enough: there is no context that a failure could spoil, and starting takes longest.
        groups, groups_alone = ([[part] for part in parts] if options.device == "cuda" else [parts] * bool(parts) for parts in (together, one_by_one))
        with ThreadPoolExecutor(max(1, len(groups))) as pool:
            for done in as_completed([pool.submit(_supervise, group, options, Path(folder), start) for group in groups]):
                keep(done.result())
        for group in groups_alone:
            keep(_supervise(group, options, Path(folder), start))
    print(keep({}))
    return 1 if any(result["ok"] is False for result in results.values()) else 0


def _supervise(group: list[str], options: argparse.Namespace, folder: Path, start: float) -> dict[str, dict[str, Any]]:
    """Run parts in a process with a time limit; returns their results."""
    from bench.device.parts import PARTS

    limit = min(max(PARTS[part].seconds for part in group), LIMIT - (time.monotonic() - start))
    if limit < _GRACE:
        return {part: {"ok": None, "summary": "not run for lack of time", "seconds": 0.0} for part in group}
    command = [sys.executable, str(Path(__file__).resolve()), "--device", options.device, "--output", str(folder), "--run", *group]
    command += ["--seconds", str(limit - _GRACE), *(["--quick"] if options.quick else [])]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    trouble, late = "", False
    try:
        # More than the limit of the parts: for imports, and for the case that is running at the limit.
        ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=len(group) * limit + _GRACE)
        if ran.returncode != 0:
            trouble = f"ended with exit code {ran.returncode}: {(ran.stderr.strip().splitlines() or ['no output'])[-1][:300]}"
    except subprocess.TimeoutExpired:
        trouble, late = f"out of time after {len(group) * limit + _GRACE:.0f} s", True
    return {part: _outcome(part, folder, trouble, late) for part in group}


def _outcome(part: str, folder: Path, trouble: str, late: bool = False) -> dict[str, Any]:
    """The result of a part, marked as failed if its process had trouble; a part that runs out of time has failed only if it had before."""
    from bench.device.table import WORDS

    target = _result_file(folder, part)
    result = {"ok": None if late else False, "summary": "no result", "seconds": 0.0}
    if target.exists():
        result = json.loads(target.read_text(encoding="utf-8"))
    if trouble:
        failed = not late or result["ok"] is False
        result |= {"ok": False if failed else None, "summary": f"{trouble}; until then: {result['summary']}"}
    print(f"{part}: {WORDS[result['ok']]}, {result['seconds']:.0f} s", file=sys.stderr, flush=True)
    return result


if __name__ == "__main__":
    sys.exit(main())
