"""Tests of the sources in csrc/cuda/: their parameters are those that launches pass, and NVRTC compiles them for every architecture."""

from __future__ import annotations

import re

import pytest

from bench.device import sass
from ddvi_fast import _files
from ddvi_fast.cuda import chain, compiler, nvrtc, selection
from ddvi_fast.cuda.module import NUMBERS, POINTERS, Kernel
from ddvi_fast.precision import PRODUCTS

needs_nvrtc = pytest.mark.skipif(not nvrtc.available()[0], reason=f"{nvrtc.available()[1]} (the extra `test` brings it)")
KERNELS = (chain.FORWARD, chain.BACKWARD)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_parameters_are_those_of_the_source(kernel: Kernel) -> None:
    text = re.sub(r"//.*", "", (compiler.folder() / kernel.source).read_text())
    (parameters,) = re.findall(rf'extern "C" __global__ void [^{{]*\b{kernel.name}\(([^)]*)\)', text)
    found = [re.fullmatch(r"(?:const )?(\w+ \*|\w+ )(\w+)", " ".join(each.split())) for each in parameters.split(",")]
    assert tuple((match[2], match[1].strip()) for match in found) == kernel.parameters


def test_every_type_of_a_parameter_can_be_passed() -> None:
    assert {kind for kernel in KERNELS for _, kind in kernel.parameters} <= {*POINTERS, *NUMBERS}


def test_sources_include_nothing_but_each_other() -> None:
    present = compiler.headers()
    for path in compiler.folder().iterdir():
        assert path.suffix in (".cu", ".cuh")
        assert set(re.findall(r"#include (\S+)", path.read_text())) <= {f'"{name}"' for name in present}


def test_compilations_are_distinct_and_within_the_table() -> None:
    listed = list(chain.compilations())
    assert len({each.name for each in listed}) == len({each.variant for each in listed}) == len(listed) >= 8
    for each in listed:
        macros = dict(each.variant.macros)
        precision = next(name for name in PRODUCTS if f" {name}" in each.name)
        sizes = selection.Sizes(macros["DDVI_D"], macros["DDVI_C"], macros["DDVI_H"], each.steps, 8 * each.grid[0], precision, 90)
        assert selection.choose(sizes) == "cuda" and each.variant.threads == 2 * macros["DDVI_H"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of binaries for this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_files.CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


WIDEST = ("float32", 16, 16)
COMPILED = [(precision, 2, 2, architecture) for precision in ("bf16",) for architecture in (80, 90, 100)] + [(*WIDEST, 80), (*WIDEST, 100)]


@needs_nvrtc
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize(("precision", "latent", "context", "architecture"), COMPILED)
def test_nvrtc_compiles_them_within_the_memory_of_the_table(cache, kernel, precision, latent, context, architecture) -> None:
    call = chain._Call(1, 8, latent, context, 128, 40, False, 2, True, precision)
    switches = {"keep": True} if kernel is chain.FORWARD else {"path_gradient": True, "noise_gradient": True, "coefficient_gradient": True}
    made = compiler.binary(kernel.source, architecture, **dict(call.variant(kernel, **switches).macros))
    assert made[:4] == b"\x7fELF" and kernel.name.encode() in made
    if sass.cuobjdump() is None:
        pytest.skip(sass.MISSING)
    used = sass.resources(made)
    assert 0 < used["SHARED"] <= (selection.OTHER_SHARED - 1) * 1024  # the driver takes one KiB
    assert used["REG"] * call.variant(kernel).threads <= 65536
