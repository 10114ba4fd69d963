"""Checkpoint format: a folder with weights.safetensors (all tensors) and state.json (all else). Nothing is ever unpickled.

A checkpoint may have further files, which state.json lists with their checksums.

A checkpoint is written into a hidden folder beside its path, synced to the disk, and then renamed; the previous one is renamed first and
removed last. An intact checkpoint can be read at every moment: after a crash between the two renames `load` reads the previous one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor, nn

from ddvi_fast import _checks
from ddvi_fast._files import naming, sync_path, write_synced
from ddvi_fast.engine.tensor_file import write_tensors

WEIGHTS, STATE = "weights.safetensors", "state.json"
FORMAT = 1


def save(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    further: Callable[[Path], Any] = lambda folder: None,
    earlier: Sequence[str] = (),
) -> None:
    """Write `tensors` (any device, any strides) and `state` (what JSON can hold, keys are strings) as the checkpoint `path`.

    A checkpoint at `path` is replaced, and remains intact until the new one is on the disk.

    Args:
        path: Folder of the checkpoint.
        tensors: Tensors by name.
        state: Plain values by name.
        further: Function that writes further files into the folder that it is given.
        earlier: Names of further files that checkpoints of earlier versions have without listing them.

    Raises:
        InputError: `state` holds values that JSON cannot (NaN and infinity included), or `path` is not a checkpoint.
        OSError: The disk is full or not writable; the old checkpoint is intact.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "last"
        >>> save(folder, {"w": torch.arange(3.0)}, {"step": 7})
        >>> load(folder)
        ({'w': tensor([0., 1., 2.])}, {'step': 7})
    """
    path, digest = Path(path), _state_digest(dict(state))
    on_host = {name: _on_host(name, value) for name, value in tensors.items()}

    def write(fresh: Path) -> None:
        further(fresh)
        files = {}
        for file in sorted(fresh.iterdir()):
            sync_path(file)
            files[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
        weights = write_tensors(fresh / WEIGHTS, on_host)
        envelope = {"format": FORMAT, "weights_sha256": weights, "state_sha256": digest, "state": dict(state), **({"files": files} if files else {})}
        write_synced(fresh / STATE, (json.dumps(envelope, indent=1) + "\n").encode())

    _put(path, write, earlier)


def link(source: str | Path, path: str | Path) -> None:
    """Make `path` a second name of the checkpoint `source`, with the same bytes on the disk; OSError as in `save`."""
    _put(Path(path), lambda fresh: shutil.copytree(source, fresh, copy_function=_link, dirs_exist_ok=True))


def _put(path: Path, write: Callable[[Path], Any], earlier: Sequence[str] = ()) -> None:
    """Call `write` with a new folder, and move that to `path`, or to where a link of that name points."""
    path = path.resolve() if path.is_symlink() else path
    _refuse_foreign(path, earlier)
    fresh, previous = partial(path), _beside(path, "previous")
    if previous.is_dir() and not path.exists():  # a crash between the two renames below
        previous.rename(path)
    shutil.rmtree(fresh, ignore_errors=True)
    with naming(path):
        try:
            fresh.mkdir(parents=True)
            write(fresh)
            sync_path(fresh)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    shutil.rmtree(previous, ignore_errors=True)
    if path.exists():
        path.rename(previous)
    fresh.rename(path)
    sync_path(path.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        write_synced(Path(target), Path(source).read_bytes())


def load(path: str | Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint and verify its checksums: (tensors on `device`, state).

    Raises:
        InputError: A file is missing, truncated, altered or of another kind; the message names it and the cause.
    """
    folder = _standing(Path(path))
    envelope = _read_envelope(folder / STATE)
    weights = _read(folder / WEIGHTS)
    found = hashlib.sha256(weights).hexdigest()
    wanted = envelope["weights_sha256"]
    if found != wanted:
        _bad(folder / WEIGHTS, f"contents with sha256 {str(wanted)[:12]}...", f"{found[:12]}... in {len(weights)} bytes", "truncated or altered")
    for name, digest in envelope.get("files", {}).items():
        if hashlib.sha256(_read(folder / name)).hexdigest() != digest:
            _bad(folder / name, "contents that fit their sha256", "others", "truncated or altered")
    try:
        with torch.device("cpu"):  # empty tensors have no bytes, and would be made on the default device
            tensors = safetensors.load(weights)
    except (SafetensorError, ValueError, KeyError) as error:
        _bad(folder / WEIGHTS, "a safetensors file", _one_line(error))
    return {name: value.to(device) for name, value in tensors.items()}, envelope["state"]


def module_tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Parameters and persistent buffers under dotted names, ``{"model": net}`` giving ``model.weight`` and so on.

    Example:
        >>> sorted(module_tensors({"decoder": nn.Linear(2, 3)}))
        ['decoder.bias', 'decoder.weight']
    """
    for name in modules:
        _checks.require("." not in name, "modules", "names without a dot", name)
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items() if isinstance(value, Tensor)}


def load_modules(tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module]) -> None:
    """Copy `tensors` into the modules in place; tensors of other modules (an optimizer's, say) are ignored.

    Raises:
        InputError: A name is missing or unexpected, a shape or dtype differs, or a tensor holds NaN. Nothing is copied then.
    """
    own = {name: value for name, value in tensors.items() if name.split(".", 1)[0] in modules}
    require_numbers(own)
    load_tensors(own, module_tensors(modules))


def require_numbers(tensors: Mapping[str, Tensor]) -> None:
    """Check that no tensor holds NaN, which training and evaluation would spread.

    Raises:
        InputError: A tensor does; the message names it.
    """
    for name, value in tensors.items():
        _checks.require(not value.isnan().any(), "checkpoint", "numbers", f"NaN in {name}")


def load_tensors(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Copy `given` into the tensors `wanted` of the same names, in place; none is copied unless all fit.

    Raises:
        InputError: A name is missing or unexpected, or a shape or dtype differs.
    """
    if missing := wanted.keys() - given.keys():
        _checks.fail("checkpoint", f"the tensors {_listed(wanted)}", f"none for {_listed(missing)}")
    if unexpected := given.keys() - wanted.keys():
        _checks.fail("checkpoint", f"only {_listed(wanted)}", f"unexpected {_listed(unexpected)}")
    for name, target in wanted.items():
        _require_like(name, given[name], target)
    with torch.no_grad():
        for name, target in wanted.items():
            target.copy_(given[name])


def _state_digest(state: Any) -> str:
    try:
        return hashlib.sha256(json.dumps(state, sort_keys=True, allow_nan=False).encode()).hexdigest()
    except (TypeError, ValueError, RecursionError) as error:
        _checks.fail("state", "what JSON can hold", _one_line(error))


def _read_envelope(path: Path) -> dict[str, Any]:
    try:
        envelope = json.loads(_read(path))
    except (ValueError, RecursionError) as error:  # text that is no UTF-8 is a ValueError as well
        _bad(path, "JSON", _one_line(error), "truncated or altered")
    known = isinstance(envelope, dict) and {"format", "weights_sha256", "state_sha256", "state"} == envelope.keys() - {"files"}
    if not known or not isinstance(envelope["state"], dict) or not _plain_names(envelope.get("files", {})):
        _bad(path, "the state of a checkpoint", "something else", "truncated or altered")
    if envelope["format"] != FORMAT:
        _bad(path, f"format {FORMAT}", envelope["format"])
    if _state_digest(envelope["state"]) != envelope["state_sha256"]:
        _bad(path, "contents that fit their sha256", "others", "altered")
    return envelope


def _plain_names(files: Any) -> bool:
    """Whether `files` is a mapping by names of files without folders."""
    return isinstance(files, dict) and all(Path(name).name == name for name in files)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        _bad(path, "a readable file", error.strerror or _one_line(error))


def _standing(path: Path) -> Path:
    """The folder to read: `path`, or the previous checkpoint after a crash between the two renames of `save`."""
    if path.is_dir():
        return path
    previous = _beside(path, "previous")
    if not path.exists() and previous.is_dir():
        return previous
    _bad(path, f"a checkpoint folder with {WEIGHTS} and {STATE}", "a file" if path.exists() else "no such folder")


def _refuse_foreign(path: Path, earlier: Sequence[str]) -> None:
    if not path.exists():
        return
    expected, own = "a new folder or a checkpoint to replace", (WEIGHTS, STATE, *earlier, *_files_of(path))
    _checks.require(path.is_dir(), str(path), expected, "a file of another kind")
    foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in own)
    names = ", ".join(foreign[:3]) + (", .." if len(foreign) > 3 else "")
    _checks.require(not foreign, str(path), expected, f"a folder with files of another kind: {names}")


def _files_of(path: Path) -> Sequence[str]:
    """Names of the further files of a checkpoint."""
    try:
        return list(_read_envelope(path / STATE).get("files", {}))
    except _checks.InputError:
        return ()


def partial(path: Path) -> Path:
    """Path of a checkpoint while it is written; one that a crash leaves is removed by the next write."""
    return _beside(path, "partial")


def _beside(path: Path, role: str) -> Path:
    return path.parent / f".{path.name}.{role}"


def _on_host(name: str, value: Tensor) -> Tensor:
    return _checks.tensor(value, name, floating=False).detach().to("cpu").contiguous()


def _require_like(name: str, given: Tensor, target: Tensor) -> None:
    wanted = f"a {str(target.dtype).removeprefix('torch.')} tensor of shape {list(target.shape)}"
    _checks.require(given.shape == target.shape and given.dtype == target.dtype, f"checkpoint, {name}", wanted, given)


def _listed(names: Any) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:4]) + (f" and {len(ordered) - 4} more" if len(ordered) > 4 else "")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _bad(path: Path, expected: str, got: Any, hint: str = "") -> Any:
    _checks.fail(str(path), expected, got, hint)
