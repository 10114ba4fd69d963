"""Atomic writes, locks of folders, and the cache folder."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from ddvi_fast import _checks

LOCK = ".lock"
CACHE_VARIABLE = "DDVI_FAST_CACHE"


def partial(path: Path) -> Path:
    """The hidden file beside `path` in which this process writes its contents; it keeps the suffix, which names the format for some writers."""
    return path.with_name(f".{path.name}.partial{os.getpid()}{path.suffix}")


@contextmanager
def replacing(path: str | Path, sync: bool = False) -> Iterator[Path]:
    """A context that writes a file as a whole or not at all: readers find the old file or the new one, never a part.

    Args:
        path: File to write; its folder is made where it is missing.
        sync: Whether to wait until the contents are on the disk.

    Yields:
        The path to write to. It takes the place of `path` when the block succeeds, and is removed when it raises.

    Raises:
        OSError: The file cannot be written; its `filename` is `path`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with replacing(path) as fresh:
        ...     _ = fresh.write_text("whole")
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('whole', 1)
    """
    path = Path(path)
    fresh = partial(path)
    with naming(path, fresh):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield fresh
            if sync:
                sync_path(fresh)
            fresh.replace(path)
        except BaseException:
            with suppress(OSError):
                fresh.unlink()
            raise


@contextmanager
def naming(path: Path, fresh: Path | None = None) -> Iterator[None]:
    """A context whose `OSError` names `path` where it names no file, as that of a full disk, or the file `fresh` that is written in its place."""
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename) == str(fresh):
            error.filename, error.filename2 = str(path), None
        raise


def write_text(path: str | Path, text: str, sync: bool = False) -> None:
    """Write a text file in UTF-8 as `replacing` does."""
    with replacing(path, sync) as fresh:
        fresh.write_bytes(text.encode())


def write_json(path: str | Path, value: Any, sync: bool = False) -> None:
    """Write a value as JSON in a text file as `replacing` does."""
    write_text(path, json.dumps(value, indent=2) + "\n", sync)


def read_json(path: str | Path, hint: str = "") -> dict[str, Any]:
    """Read a file with a JSON object.

    Args:
        path: File to read.
        hint: What to do where it cannot be used, for the message.

    Raises:
        InputError: The file is missing or cannot be read, or holds anything else.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.json"
        >>> write_json(path, {"a": 1})
        >>> read_json(path)
        {'a': 1}
    """
    try:
        value = json.loads(Path(path).read_bytes())
    except OSError as error:
        _checks.fail(str(path), "a readable file", error.strerror, hint)
    except (ValueError, RecursionError) as error:  # bytes that are no text are a ValueError as well
        _checks.fail(str(path), "JSON", str(error), hint)
    _checks.require(isinstance(value, dict), str(path), "a JSON object", value, hint)
    return value


def write_synced(path: Path, data: bytes) -> None:
    """Write a file in place and wait until it is on the disk."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_path(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk; folders only where the system can open them (POSIX)."""
    if os.name == "posix" or path.is_file():
        descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def locked(folder: str | Path, argument: str = "run folder") -> Iterator[None]:
    """A context that holds `folder` against other processes; the lock ends with this process, however it ends.

    Args:
        folder: Folder to hold; it is made where it is missing.
        argument: What an error calls it.

    Raises:
        InputError: Another process holds the folder, or it cannot be written to.
    """
    folder = Path(folder)
    _checks.require(folder.is_dir() or not folder.exists(), argument, "a folder", f"{folder}, which is a file")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        _checks.fail(f"{argument} {folder}", "a folder that can be written", error.strerror)
    with file:
        _take(file, f"{argument} {folder}")
        yield  # the file stays: were it removed, two processes could hold two files of that name


def _take(file: TextIO, argument: str) -> None:
    try:
        import fcntl
    except ImportError:  # not a POSIX system: there is no lock
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        _checks.fail(argument, "a folder that no other process writes to", f"one held by {file.read().strip() or 'another process'}")
    with suppress(OSError):  # the lock holds on a full disk, too
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}\n".encode())


def cache_folder() -> Path:
    """The user's folder for files that can be made again: ``DDVI_FAST_CACHE``, else ``ddvi_fast`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddvi_fast"
