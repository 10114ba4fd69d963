"""Binaries of the sources in csrc/cuda/, compiled once for each architecture and set of options and kept in the cache folder."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Mapping
from pathlib import Path

from ddvi_fast import _checks, _files
from ddvi_fast.cuda import nvrtc

_HERE = Path(__file__).resolve().parent
# Inside the package in a wheel, beside it in a source tree.
_FOLDERS = (_HERE.parent / "csrc" / "cuda", _HERE.parents[1] / "csrc" / "cuda")
_OPTIONS = ("--std=c++17",)
_DIGEST = hashlib.sha256().digest_size
_compiling = threading.Lock()


def folder() -> Path:
    """The folder of the sources."""
    found = next((place for place in _FOLDERS if place.is_dir()), None)
    if found is None:
        _checks.fail("backend", "an installation with csrc/cuda", "none", "install ddvi_fast again")
    return found


def headers() -> dict[str, str]:
    """Texts of the files that sources may include, by name; toolkit headers are not among them, because torch does not bring them."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder().glob("*.cuh"))}


def options(architecture: int, macros: Mapping[str, int]) -> list[str]:
    """Options of NVRTC for an architecture, such as 90, with preprocessor `macros`."""
    return [f"--gpu-architecture=sm_{architecture}", *_OPTIONS, *(f"-D{name}={value}" for name, value in sorted(macros.items()))]


def binary(source: str, architecture: int, **macros: int) -> bytes:
    """The binary of a source for a device.

    It comes from the cache folder, or is compiled and put there. A file there that is damaged is written anew; without a folder that can be
    written, every process compiles for itself.

    Args:
        source: Name of a file in csrc/cuda, such as ``chain_forward.cu``.
        architecture: Compute capability of the device times ten, such as 90.
        macros: Preprocessor macros and their values.

    Raises:
        CompilationError: NVRTC found an error in the source.
        InputError: NVRTC is missing, or does not know the architecture.
    """
    with _compiling:  # one thread of several that ask at once compiles
        return _binary(source, architecture, tuple(sorted(macros.items())))


def key(text: str, included: Mapping[str, str], flags: list[str], version: str) -> str:
    """The name of a binary in the cache: a digest of everything that it is made from."""
    digest = hashlib.sha256()
    for part in (version, text, *(part for item in sorted(included.items()) for part in item), *flags):
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()


@functools.cache
def _binary(source: str, architecture: int, macros: tuple[tuple[str, int], ...]) -> bytes:
    target = nvrtc.target(architecture)
    if target is None:
        _checks.fail("backend", f"an NVRTC that compiles for sm_{architecture}", f"version {nvrtc.version()}")
    text, included, flags = (folder() / source).read_text(encoding="utf-8"), headers(), options(target, dict(macros))
    place = _files.cache_folder() / "cuda" / f"{key(text, included, flags, nvrtc.version())}.cubin"
    kept = read(place)
    if kept is None:
        kept = nvrtc.compile_source(text, source, included, flags)
        write(place, kept)
    return kept


def read(path: Path) -> bytes | None:
    """The binary in a file of the cache, None where the file is missing or not what was written."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data[_DIGEST:] if hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST] else None


def write(path: Path, data: bytes) -> None:
    """Put a binary into the cache, after its digest; a cache that cannot be written is left alone."""
    try:
        with _files.replacing(path) as fresh:
            fresh.write_bytes(hashlib.sha256(data).digest() + data)
    except OSError:
        return
