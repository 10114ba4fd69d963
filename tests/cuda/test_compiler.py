"""Tests of the run-time compiler: where NVRTC is looked for, what it makes, and the cache of binaries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddvi_fast import _files
from ddvi_fast.cuda import compiler, nvrtc

PROJECT = Path(__file__).resolve().parents[2]
needs_nvrtc = pytest.mark.skipif(not nvrtc.available()[0], reason=f"{nvrtc.available()[1]} (the extra `test` brings it)")

SOURCE = '#include "scale.cuh"\nextern "C" __global__ void scale(float *x, int n) { if (threadIdx.x < n) x[threadIdx.x] *= FACTOR * HALF; }\n'
HEADER = "#define HALF 0.5f\n"


@pytest.fixture
def sources(tmp_path, monkeypatch) -> Path:
    """A folder of sources and an empty cache."""
    (tmp_path / "scale.cu").write_text(SOURCE)
    (tmp_path / "scale.cuh").write_text(HEADER)
    monkeypatch.setattr(compiler, "folder", lambda: tmp_path)
    monkeypatch.setenv(_files.CACHE_VARIABLE, str(tmp_path / "cache"))
    compiler._binary.cache_clear()
    yield tmp_path
    compiler._binary.cache_clear()


@pytest.fixture
def compiles(sources, monkeypatch) -> list[list[str]]:
    """Options of every compilation by a compiler that is not there."""
    seen: list[list[str]] = []

    def compile_source(source, name, headers, options):
        seen.append(list(options))
        return f"binary {len(seen)}".encode()

    monkeypatch.setattr(nvrtc, "compile_source", compile_source)
    monkeypatch.setattr(nvrtc, "target", lambda architecture: architecture)
    monkeypatch.setattr(nvrtc, "version", lambda: "13.0")
    return seen


def anew(*arguments, **macros) -> bytes:
    """The binary as a new process would get it."""
    compiler._binary.cache_clear()
    return compiler.binary(*arguments, **macros)


def kept(sources: Path) -> list[Path]:
    return sorted((sources / "cache" / "cuda").iterdir())


def test_a_source_is_compiled_once(sources, compiles):
    first = compiler.binary("scale.cu", 90, FACTOR=2)
    assert compiler.binary("scale.cu", 90, FACTOR=2) == anew("scale.cu", 90, FACTOR=2) == first == b"binary 1"
    assert compiles == [["--gpu-architecture=sm_90", "--std=c++17", "-DFACTOR=2"]]
    assert [path.suffix for path in kept(sources)] == [".cubin"]


def test_everything_a_binary_is_made_from_is_in_its_name(sources, compiles, monkeypatch):
    anew("scale.cu", 90, FACTOR=2)
    anew("scale.cu", 80, FACTOR=2)
    anew("scale.cu", 90, FACTOR=3)
    (sources / "scale.cuh").write_text(HEADER + "// changed\n")
    anew("scale.cu", 90, FACTOR=2)
    (sources / "scale.cu").write_text(SOURCE + "// changed\n")
    anew("scale.cu", 90, FACTOR=2)
    monkeypatch.setattr(nvrtc, "version", lambda: "13.1")
    anew("scale.cu", 90, FACTOR=2)
    assert len(compiles) == 6 and len(kept(sources)) == 6


def test_parts_of_a_name_cannot_run_together():
    assert compiler.key("ab", {}, ["c"], "1") != compiler.key("a", {}, ["bc"], "1")


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + b"?", lambda data: b"", lambda data: data[40:]])
def test_a_damaged_file_is_compiled_again(sources, compiles, damage):
    anew("scale.cu", 90, FACTOR=2)
    (path,) = kept(sources)
    path.write_bytes(damage(path.read_bytes()))
    assert anew("scale.cu", 90, FACTOR=2) == b"binary 2"
    assert anew("scale.cu", 90, FACTOR=2) == b"binary 2" and len(compiles) == 2


def test_without_a_cache_every_process_compiles(sources, compiles):
    (sources / "cache").write_text("a file where the folder should be")
    assert anew("scale.cu", 90, FACTOR=2) == b"binary 1"
    assert anew("scale.cu", 90, FACTOR=2) == b"binary 2"


def test_an_architecture_that_nvrtc_does_not_know_is_refused(sources, compiles, monkeypatch, one_line):
    monkeypatch.setattr(nvrtc, "target", lambda architecture: None)
    one_line(lambda: compiler.binary("scale.cu", 200), "backend: expected an NVRTC that compiles for sm_200, got version 13.0")


@pytest.mark.parametrize(("architecture", "expected"), [(80, 80), (86, 86), (89, 86), (90, 90), (103, 100), (75, None), (120, None)])
def test_a_device_runs_binaries_of_lower_architectures_of_its_kind(monkeypatch, architecture, expected):
    monkeypatch.setattr(nvrtc, "architectures", lambda: (80, 86, 90, 100))
    assert nvrtc.target(architecture) == expected


WRITER = """
import sys
from ddvi_fast.cuda import compiler, nvrtc
from pathlib import Path
compiler.folder = lambda: Path(sys.argv[1])
nvrtc.target, nvrtc.version = lambda architecture: architecture, lambda: "13.0"
nvrtc.compile_source = lambda *arguments: b"x" * 1_000_000
for _ in range(20):
    for path in (Path(sys.argv[1]) / "cache" / "cuda").glob("*.cubin"):
        path.unlink(missing_ok=True)
    compiler._binary.cache_clear()
    assert compiler.binary("scale.cu", 90) == b"x" * 1_000_000
"""


def test_two_processes_may_compile_at_the_same_time(sources):
    started = [subprocess.Popen([sys.executable, "-c", WRITER, sources], cwd=PROJECT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [(process.communicate()[1], process.returncode) for process in started] == [("", 0), ("", 0)]
    assert all(compiler.read(path) == b"x" * 1_000_000 for path in kept(sources))


def test_without_nvrtc_the_reason_says_what_to_install(monkeypatch, one_line):
    monkeypatch.setattr(nvrtc, "candidates", lambda: iter(["libnvrtc.so.of-nowhere"]))
    nvrtc._open.cache_clear()
    try:
        usable, reason = nvrtc.available()
        assert not usable and "pip install nvidia-cuda-nvrtc" in reason and "\n" not in reason
        one_line(lambda: nvrtc.compile_source("", "empty.cu", {}, []), "backend: expected an installation with NVRTC")
    finally:
        nvrtc._open.cache_clear()


def test_torchs_own_version_comes_first_and_no_other_after_it(monkeypatch, tmp_path):
    for name in ("cu13/lib/libnvrtc.so.13", "cuda_nvrtc/lib/libnvrtc.so.12", "cuda_nvrtc/lib/libnvrtc.alt.so.12", "cu13/lib/libnvrtc-other.so.13"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(nvrtc, "_folders", lambda: iter([tmp_path / "cu13" / "lib", tmp_path / "cuda_nvrtc" / "lib"]))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert list(nvrtc.candidates()) == ["libnvrtc.so.12", str(tmp_path / "cuda_nvrtc/lib/libnvrtc.so.12")]
    monkeypatch.setattr(torch.version, "cuda", None)
    assert list(nvrtc.candidates()) == [str(tmp_path / "cu13/lib/libnvrtc.so.13"), str(tmp_path / "cuda_nvrtc/lib/libnvrtc.so.12")]


@needs_nvrtc
def test_nvrtc_compiles_what_it_is_given(sources):
    made = compiler.binary("scale.cu", 90, FACTOR=2)
    assert made[:4] == b"\x7fELF" and b"scale" in made
    assert made != anew("scale.cu", 80, FACTOR=2)


@needs_nvrtc
def test_an_error_in_a_source_names_its_line(sources):
    (sources / "scale.cu").write_text(SOURCE + "error\n")
    with pytest.raises(nvrtc.CompilationError, match=r"scale.cu: NVRTC [\d.]+ failed:\nscale.cu\(3\)"):
        compiler.binary("scale.cu", 90, FACTOR=2)
    assert not (sources / "cache").exists()


@needs_nvrtc
def test_nvrtc_refuses_options_that_it_does_not_know():
    with pytest.raises(nvrtc.CompilationError, match="no-such-option"):
        nvrtc.compile_source("", "empty.cu", {}, ["--no-such-option"])
