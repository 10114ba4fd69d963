"""Folder of one run: resolved configuration, environment, metrics, plots, checkpoints, TensorBoard events.

A folder is that of a run if its environment.json says so; any other folder is left unchanged.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ddvi_fast import __version__, _checks, _files
from ddvi_fast.engine.checkpoint import STATE, WEIGHTS
from ddvi_fast.engine.run_settings import EXECUTION, MACHINE, OUTPUT
from ddvi_fast.precision import in_force

CONFIG, CONFIG_YAML, ENVIRONMENT = "config.json", "config.yaml", "environment.json"
KIND = "ddvi_fast run"

EVALUATION = "evaluation.json"

# All files that a run writes, and so all that overwrite=True removes. Other files in the folder remain.
OWNED = (
    "metrics.jsonl",
    EVALUATION,
    f"failed-step/{WEIGHTS}",
    f"failed-step/{STATE}",
    "people.tsv",
    "components.eigenvec",
    "components.eigenval",
    "admixture.*.[QP]",
    "admixture.tsv",
    "figures/*.png",
    "figures/map.html",
    "figures/admixture.html",
    "tensorboard/events.out.tfevents.*",
    f"checkpoints/*/{WEIGHTS}",
    f"checkpoints/*/{STATE}",
    "checkpoints/features/*.npz",
    "tracker.json",
    CONFIG_YAML,
    CONFIG,
    ENVIRONMENT,  # it marks the folder, and is removed last, so that an interrupted removal can be repeated
)
_FOLDERS = ("figures", "checkpoints", "tensorboard")
FINAL = "final"  # among the checkpoints


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run, from `create` (to train) or `open` (to evaluate).

    Example:
        >>> import tempfile
        >>> run = RunFolder.create(Path(tempfile.mkdtemp()) / "first", {"dataset": "digits", "seed": 0})
        >>> RunFolder.open(run.path).config
        {'dataset': 'digits', 'seed': 0}
    """

    path: Path
    config: dict[str, Any]

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, Any], overwrite: bool = False, resume: bool = False) -> RunFolder:
        """Make the folder and write configuration and environment into it.

        Args:
            path: Folder of the run.
            config: Resolved configuration, plain values by name.
            overwrite: Whether to remove a run that the folder holds.
            resume: Whether to continue a run that the folder holds with the same configuration; an empty folder gets a new run.

        Raises:
            InputError: The folder holds another run or other files, or `config` holds values that JSON cannot.
        """
        path = Path(path)
        plain = _plain(config)
        _checks.require(not (overwrite and resume), "run folder", "overwrite or resume", "both")
        require_room(path, overwrite or resume)
        if resume and (path / CONFIG).exists():
            return cls._resume(path, plain)
        _remove_owned(path)
        for name in _FOLDERS:
            (path / name).mkdir(parents=True, exist_ok=True)
        _files.write_json(path / ENVIRONMENT, {"kind": KIND, **_environment_of(plain), "resumed": []}, sync=True)
        _files.write_text(path / CONFIG_YAML, _as_yaml(plain), sync=True)
        _files.write_json(path / CONFIG, plain, sync=True)  # written last: a folder with it is complete
        return cls(path, plain)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open the run at `path`, with its configuration.

        Raises:
            InputError: There is none, or its files cannot be read.
        """
        path = Path(path)
        _checks.require(path.is_dir(), "run folder", "the folder of a run", f"{path}, which is {'a file' if path.exists() else 'missing'}")
        _require_run(path)
        return cls(path, _files.read_json(path / CONFIG))

    @classmethod
    def _resume(cls, path: Path, config: dict[str, Any]) -> RunFolder:
        present = cls.open(path)
        if different := _differences(present.config, config):
            shown = "; ".join(different[:4]) + (f"; and {len(different) - 4} more" if len(different) > 4 else "")
            _checks.fail(f"run folder {path}", "the configuration of the run to resume", shown)
        record = present.environment()
        resumed = _checks.instance(record.get("resumed", []), list, f"{path / ENVIRONMENT}, resumed", "a list")
        _files.write_json(path / ENVIRONMENT, {**record, "resumed": [*resumed, _environment_of(config)]}, sync=True)
        return present

    @property
    def finished(self) -> bool:
        """Whether the run has been trained and evaluated."""
        return evaluated(self.path)

    def environment(self) -> dict[str, Any]:
        """Versions, machine, time and command of the run; InputError if the file is damaged."""
        path = self.path / ENVIRONMENT
        found = _files.read_json(path)
        for name in ("versions", "machine"):
            _checks.instance(found.get(name, {}), dict, f"{path}, {name}", "a mapping")
        return found

    def evaluation(self) -> dict[str, float]:
        """Metrics of the evaluated run by name; InputError if there are none, or the file is damaged."""
        return read_evaluation(self.path)

    @property
    def failed_step(self) -> Path:
        """Folder of the record of a step that was not finite."""
        return self.path / "failed-step"

    @property
    def metrics(self) -> Path:
        """The file metrics.jsonl, one record a line."""
        return self.path / "metrics.jsonl"

    @property
    def figures(self) -> Path:
        """Folder of the plots."""
        return self.path / "figures"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints, each a folder of its own."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.path / "tensorboard"


def environment() -> dict[str, Any]:
    """Versions, machine, commit of the source tree (None outside one), time and command of this process."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [_program(), *sys.argv[1:]],
        "versions": {
            "ddvi_fast": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in ("torch", "numpy", "triton", "deepspeed")},
        },
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "cuda": torch.version.cuda,
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "commit": _commit(),
    }


def _environment_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The environment of a run, with the precision in force: ``bf16 (emulated)``, say."""
    return {**environment(), "precision": in_force(config.get("precision", "float32"), torch.device(config.get("device", "cpu")))}


def _program() -> str:
    """The program's path relative to the working directory, or its name."""
    path = Path(sys.argv[0])
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else path.name


def _processor() -> str:
    """Model of the processor where the system reports it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the source tree of the package, with -dirty if it was changed; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def unfinished(path: str | Path) -> bool:
    """Whether `path` holds a run that was begun and not finished."""
    path = Path(path)
    return (path / CONFIG).is_file() and (path / ENVIRONMENT).is_file() and not evaluated(path)


def evaluated(path: str | Path) -> bool:
    """Whether the folder `path` holds the metrics of a run; a file without them, which a full disk can leave, is none."""
    try:
        return bool(read_evaluation(Path(path)))
    except _checks.InputError:
        return False


def read_evaluation(path: Path) -> dict[str, float]:
    """Metrics by name of the run in the folder `path`.

    Raises:
        InputError: There are none, or the file is damaged.
    """
    hint = "ddvi-fast evaluate RUN --overwrite writes it anew"
    found = _files.read_json(path / EVALUATION, hint)
    for name, value in found.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        _checks.require(number, f"{path / EVALUATION}, {name}", "a number", value, hint)
    return found


def require_room(path: Path, overwrite: bool) -> None:
    """Check that a run can be written into the folder `path`, so that this is told before the work: nothing in it is changed.

    Raises:
        InputError: It holds other files, or a run and `overwrite` is false.
    """
    if _vacant(path):
        return
    _require_run(path)
    require_places(path)
    hint = "overwrite=true replaces it, another run_dir keeps it"
    free = overwrite or _unwritten(path)
    _checks.require(free, f"run folder {path}", "a new or empty folder", "one that holds another run or a finished one", hint)


def _unwritten(path: Path) -> bool:
    """Whether the folder is that of a run whose configuration could not be written, so that it holds no results."""
    return not (path / CONFIG).exists() and not any(path.glob("checkpoints/*")) and not (path / "metrics.jsonl").exists()


def _vacant(path: Path) -> bool:
    """Whether a folder is missing or empty, but for a lock and the leftovers of an interrupted start."""
    _checks.require(path.is_dir() or not path.exists(), "run folder", "a folder", f"{path}, which is a file")
    return not path.exists() or all(_leftover(entry) or (entry.name in _FOLDERS and _empty(entry)) for entry in path.iterdir())


def _empty(entry: Path) -> bool:
    return entry.is_dir() and not any(entry.iterdir())


def _leftover(entry: Path) -> bool:
    return entry.name == _files.LOCK or entry.name.startswith(f".{ENVIRONMENT}.partial")


def _require_run(path: Path) -> None:
    marked = (path / ENVIRONMENT).is_file() and _files.read_json(path / ENVIRONMENT).get("kind") == KIND
    _checks.require(marked, f"run folder {path}", f"a run's folder (one with our {ENVIRONMENT})", "a folder with other files", "it is left as it is")


def require_places(path: Path) -> None:
    """Check that no folder stands where a run writes a file, and no file where it makes a folder, so that this is told before the work.

    Raises:
        InputError: One does; the message names it.
    """
    for pattern in (*OWNED, f"checkpoints/{FINAL}/{WEIGHTS}"):
        parents = [path / parent for parent in Path(pattern).parents[:-1]]
        if any("*" in parent.name for parent in parents):
            continue
        for parent in parents:
            _checks.require(parent.is_dir() or not os.path.lexists(parent), str(parent), "a folder", "a file", "remove it")
        for file in path.glob(pattern):
            _checks.require(not file.is_dir(), str(file), "a file", "a folder", "remove it")


def _remove_owned(path: Path) -> None:
    for pattern in OWNED:
        for file in path.glob(pattern):
            if _inside(file, path):
                file.unlink()
    for folder in (*path.glob("checkpoints/*/"), path / "failed-step", *(path / name for name in _FOLDERS)):
        if _inside(folder, path) and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _inside(entry: Path, folder: Path) -> bool:
    """Whether `entry` lies in `folder` without symbolic links, and is none itself."""
    return not entry.is_symlink() and entry.resolve().is_relative_to(folder.resolve())


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    """``name=new (was old)`` for every leaf that differs."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new and type(old) is type(new) else [f"{name}={json.dumps(new)} (was {json.dumps(old)})"]
    keys = [key for key in {**old, **new} if name or key not in (*OUTPUT, *MACHINE, *EXECUTION)]
    return [line for key in keys for line in _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)]


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(config), allow_nan=False))
    except (TypeError, ValueError) as error:
        _checks.fail("config", "plain values that JSON can hold", str(error))


def _as_yaml(config: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(config, sort_keys=False)
