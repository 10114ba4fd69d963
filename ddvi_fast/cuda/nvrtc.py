"""NVRTC, NVIDIA's run-time compiler, through ctypes: the library that CUDA builds of torch bring, or its wheel.

Six functions are needed, and their interface has been the same since CUDA 11.1. That is less than what an optional dependency (cuda-core,
cuda-bindings) would have to keep in step with the CUDA version of every torch from 2.8 on.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from ddvi_fast import _checks

_SONAME = "libnvrtc.so"


class CompilationError(RuntimeError):
    """NVRTC refused a source; the message has its log."""


def available() -> tuple[bool, str]:
    """Whether NVRTC can be used, and the reason if not."""
    return _open()[0] is not None, _open()[1]


@functools.cache
def version() -> str:
    """Version of NVRTC, such as ``13.0``."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


@functools.cache
def architectures() -> tuple[int, ...]:
    """Compute capabilities times ten, for example 90, for which this NVRTC compiles, lowest first."""
    count = ctypes.c_int()
    _check(_library().nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    found = (ctypes.c_int * count.value)()
    _check(_library().nvrtcGetSupportedArchs(found))
    return tuple(sorted(found))


def target(architecture: int) -> int | None:
    """The architecture to compile for, so that a device of `architecture` can run it: the same, else the next lower with the same first
    digits, whose binaries it runs as well; None if there is none."""
    usable = [known for known in architectures() if known <= architecture and known // 10 == architecture // 10]
    return max(usable, default=None)


def compile_source(source: str, name: str, headers: Mapping[str, str], options: Sequence[str]) -> bytes:
    """Compile CUDA C++ to a binary (cubin).

    Args:
        source: Text to compile.
        name: Its name in messages.
        headers: Texts that it may include, by name; nothing is read from the disk.
        options: Options of NVRTC; they must name an architecture ``sm_..``.

    Raises:
        CompilationError: NVRTC found an error.
    """
    library, program = _library(), ctypes.c_void_p()
    texts, names = _strings(headers.values()), _strings(headers)
    _check(library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), len(headers), texts, names))
    try:
        if library.nvrtcCompileProgram(program, len(options), _strings(options)):
            log = _text(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program)
            raise CompilationError(f"{name}: NVRTC {version()} failed:\n{log.rstrip(bytes(1)).decode(errors='replace')}")
        return _text(library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN, program)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def candidates() -> Iterator[str]:
    """Names and paths under which NVRTC may be found, in the order in which they are tried.

    A binary made by a newer major version than torch's own may be too new for the driver, so that version is looked for first, and alone
    where torch was built for CUDA.
    """
    major = (torch.version.cuda or "").partition(".")[0]
    if major:
        yield f"{_SONAME}.{major}"  # loaded by torch already, or on the path of the system
    for folder in _folders():
        found = [path for path in folder.glob(f"{_SONAME}.*") if re.fullmatch(rf"{major or '[0-9]+'}", path.name.split(".")[-1])]
        yield from sorted(map(str, found), reverse=True)


def _folders() -> Iterator[Path]:
    """Folders of wheels (CUDA 13: nvidia/cu13/lib, CUDA 12: nvidia/cuda_nvrtc/lib), of torch, of conda and of the toolkit."""
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        yield from sorted(Path(place).glob("cu[0-9]*/lib"), reverse=True)
        yield Path(place) / "cuda_nvrtc" / "lib"
    yield Path(torch.__file__).parent / "lib"
    yield Path(sys.prefix) / "lib"
    yield Path("/usr/local/cuda/lib64")


@functools.cache
def _open() -> tuple[ctypes.CDLL | None, str]:
    for name in candidates():
        try:
            # The second library is opened by NVRTC itself, by its name alone, which its own folder need not be on the path for.
            for builtins in Path(name).parent.glob("libnvrtc-builtins.so.*") if "/" in name else ():
                ctypes.CDLL(str(builtins))
            return ctypes.CDLL(name), ""
        except OSError:
            continue
    wanted = f"of CUDA {torch.version.cuda} " if torch.version.cuda else ""
    return None, f"NVRTC {wanted}was not found: pip install nvidia-cuda-nvrtc, in the major version of torch's CUDA"


def _library() -> ctypes.CDLL:
    opened, reason = _open()
    if opened is None:
        _checks.fail("backend", "an installation with NVRTC", "none", reason)
    return opened


def _check(result: int) -> None:
    if result:
        _library().nvrtcGetErrorString.restype = ctypes.c_char_p
        raise RuntimeError(f"NVRTC failed: {_library().nvrtcGetErrorString(result).decode()}")


def _strings(values) -> ctypes.Array:
    encoded = [value.encode() for value in values]
    return (ctypes.c_char_p * len(encoded))(*encoded)


def _text(size_of, read, program: ctypes.c_void_p) -> bytes:
    """What `read` writes into a buffer of the size that `size_of` gives."""
    size = ctypes.c_size_t()
    _check(size_of(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(read(program, buffer))
    return buffer.raw
