"""Everything that is to be seen on a device, in one command of less than eight minutes: parity, timings, rooflines, replay, host waits.

    python3 bench/device_check.py                            # on a GPU; an uninstalled tree will do
    python3 bench/device_check.py --device cpu --quick       # the same parts, small, without what needs CUDA

On a GPU every part runs in a process of its own with a time limit, so that one that crashes or hangs takes nothing with it; parts that
time nothing run side by side, because most of their time is compilation. Writes one JSON file and one table (Markdown) beside it.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 450.0  # seconds for everything
_GRACE = 15.0  # seconds between the end of a part's time and the end of its process


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes: a test of this script")
    parser.add_argument("--output", type=Path, help="JSON file; bench/results/device-NAME.json if left out")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--parts", nargs="+", help="some parts only, by name")
    # How this script calls itself: parts to run in this process, each for so many seconds, into a folder.
    parser.add_argument("--run", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    _use_this_tree()
    if options.run:
        return _run_here(options)
    return _run_all(parser, options)


def _use_this_tree() -> None:
    """Import from the tree around this file, whatever is installed, and nothing from beside this file."""
    sys.path[:] = [str(ROOT), *(path for path in sys.path if Path(path or ".").resolve() != ROOT / "bench")]


def _run_here(options: argparse.Namespace) -> int:
    """Parts in this process; what each has found so far is written whenever it grows."""
    import torch

    from bench.device_parts import PARTS, Setting

    for part in options.run:
        result: dict[str, Any] = {"ok": False, "summary": "nothing came out"}
        target, begun = _result_file(options.output, part), time.monotonic()
        try:
            for result in PARTS[part].run(Setting(torch.device(options.device), options.quick, options.seconds)):
                _write(target, {**result, "seconds": round(time.monotonic() - begun, 1)})
        except Exception as error:  # recorded; the other parts go on
            lines = str(error).strip().splitlines() or [""]
            failed = {"ok": False, "summary": f"{type(error).__name__}: {' '.join(lines[:2])}"[:400]}
            trace = traceback.format_exc().splitlines()[-12:]
            _write(target, {**result, **failed, "seconds": round(time.monotonic() - begun, 1), "traceback": trace})
    return 0


def _result_file(folder: Path, part: str) -> Path:
    return folder / f"{part.replace(' ', '-')}.json"


def _run_all(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    import torch

    from bench.device_parts import PARTS
    from bench.records import DEVICE_KIND
    from ddvi_fast.engine.run_folder import environment

    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu --quick runs what needs none")
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    path = options.output or ROOT / "bench" / "results" / f"device-{name.lower().replace(' ', '-')}.json"
    if path.exists() and not options.overwrite:
        parser.error(f"{path} stands already; --overwrite replaces it")
    wanted = [part for part in PARTS if options.parts is None or part in options.parts]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        together = [part for part in wanted if not PARTS[part].alone]
        # On a CPU one process is enough: there is no context that a failure could spoil, and starting takes longest.
        groups = [[part] for part in together] if options.device == "cuda" else [together] * bool(together)
        results: dict[str, dict[str, Any]] = {}
        with ThreadPoolExecutor(max(1, len(groups))) as pool:
            for found in pool.map(lambda group: _supervise(group, options, Path(folder), start), groups):
                results |= found
        for part in wanted:
            if PARTS[part].alone:
                results |= _supervise([part], options, Path(folder), start)
    record = {
        "kind": DEVICE_KIND,
        **environment(),
        "command": " ".join(["python3", "bench/device_check.py", *(["--device", options.device] if options.device != "cuda" else [])]),
        "device": name,
        "threads": torch.get_num_threads(),
        "quick": options.quick,
        "seconds": round(time.monotonic() - start, 1),
        "parts": {part: results[part] for part in wanted},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, record)
    text = table(record)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    return 1 if any(result["ok"] is False for result in results.values()) else 0


def _supervise(group: list[str], options: argparse.Namespace, folder: Path, start: float) -> dict[str, dict[str, Any]]:
    """Run parts in a process, at most as long as they may; what they wrote, and what became of it."""
    from bench.device_parts import PARTS

    limit = min(max(PARTS[part].seconds for part in group), LIMIT - (time.monotonic() - start))
    if limit < _GRACE:
        return {part: {"ok": False, "summary": "left out: no time was left", "seconds": 0.0} for part in group}
    command = [sys.executable, str(Path(__file__).resolve()), "--device", options.device, "--output", str(folder), "--run", *group]
    command += ["--seconds", str(limit - _GRACE), *(["--quick"] if options.quick else [])]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    trouble = ""
    try:
        # Longer than the parts have: for imports, and a case that is under way when their time ends.
        ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=len(group) * limit + _GRACE)
        if ran.returncode != 0:
            trouble = f"ended with exit code {ran.returncode}: {(ran.stderr.strip().splitlines() or ['no output'])[-1][:300]}"
    except subprocess.TimeoutExpired:
        trouble = f"stopped after {len(group) * limit + _GRACE:.0f} s"
    return {part: _outcome(part, folder, trouble) for part in group}


def _outcome(part: str, folder: Path, trouble: str) -> dict[str, Any]:
    target = _result_file(folder, part)
    result = {"ok": False, "summary": "no result", "seconds": 0.0}
    if target.exists():
        result = json.loads(target.read_text(encoding="utf-8"))
    if trouble:
        result |= {"ok": False, "summary": f"{trouble}; until then: {result['summary']}"}
    print(f"{part}: {_word(result)}, {result['seconds']:.0f} s", file=sys.stderr, flush=True)
    return result


def table(record: dict[str, Any]) -> str:
    """The parts, then every timing with its shares of the ceilings, as Markdown."""
    versions = record["versions"]
    lines = [
        f"# Device check on {record['device']}",
        "",
        f"torch {versions['torch']}, Triton {versions.get('triton')}, commit {str(record.get('commit'))[:10]}, {record['seconds']:.0f} s"
        + (", small sizes" if record["quick"] else ""),
        "",
        "| part | outcome | seconds | |",
        "| --- | --- | --- | --- |",
    ]
    lines += [f"| {name} | {_word(part)} | {part['seconds']:.0f} | {part['summary']} |" for name, part in record["parts"].items()]
    return "\n".join(lines + _timing_lines(record)) + "\n"


def _word(part: dict[str, Any]) -> str:
    return {True: "passed", False: "FAILED", None: "-"}[part["ok"]]


def _timing_lines(record: dict[str, Any]) -> list[str]:
    from bench.records import goal_lines, timed_cases
    from bench.report import HEADINGS, rows

    ceilings, timed = timed_cases(record)
    if not timed:
        return []
    lines = ["", f"| {' | '.join(HEADINGS)} |", f"| {' | '.join('---' for _ in HEADINGS)} |"]
    lines += [f"| {' | '.join(row)} |" for row in rows({"cases": timed, "ceilings": ceilings})]
    return lines + ([] if record["quick"] else ["", *goal_lines(record)])


def _write(path: Path, value: dict[str, Any]) -> None:
    """In one piece: a process that is stopped while it writes leaves the earlier result."""
    fresh = path.with_suffix(".partial")
    fresh.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


if __name__ == "__main__":
    sys.exit(main())
