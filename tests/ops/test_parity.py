"""Every backend against the reference in float64, on the cases of `ddvi_fast.parity`: values and all gradients, in every layout."""

from __future__ import annotations

import pytest

from ddvi_fast import _backend, parity
from tests.operands import BACKENDS, check_triton


def cases(backend: str, small: bool) -> list:
    available = backend in BACKENDS
    reason = "" if available else _backend.unavailable(backend)
    found = [case for operation in _backend.OPERATIONS for case in parity.cases(operation, small)]
    return [pytest.param(case, id=str(case), marks=pytest.mark.skipif(not available, reason=reason)) for case in found]


@pytest.mark.parametrize("case", cases("cpp", small=False))
def test_cpp(case, poison_empty):
    parity.check(case, "cpp", layout="contiguous")


@pytest.mark.parametrize("layout", ["strided", "expanded"])
@pytest.mark.parametrize("case", cases("cpp", small=True))
def test_cpp_in_other_layouts(case, layout, poison_empty):
    if layout in case.layouts:
        parity.check(case, "cpp", layout=layout)


@pytest.mark.parametrize("case", cases("triton", small=True))
def test_triton(case, poison_empty):
    check_triton(case)


@pytest.mark.skipif(bool(_backend.unavailable("cuda")), reason=_backend.unavailable("cuda"))
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("case", parity.cases("chain", small=True), ids=str)
def test_cuda(case, precision, poison_empty):
    parity.check(case, "cuda", "cuda", precision=precision)


@pytest.mark.parametrize("operation", _backend.OPERATIONS)
def test_triton_in_other_layouts(operation):
    if "triton" not in BACKENDS:
        pytest.skip(_backend.unavailable("triton"))
    case = parity.cases(operation, small=True)[-1]
    for layout in case.layouts[1:]:
        check_triton(case, layout=layout)


def test_the_cases_cover_the_contract():
    rows, steps, latents, contexts, widths, groups = (set(values) for values in zip(*parity.CHAIN_SHAPES, strict=True))
    assert latents == {1, 2, 3, 5, 16, 33, 64} and contexts == {0, 1, 2, 7, 64} and widths == {64, 128, 256}
    assert steps == {2, 5, 20, 40, 100} and rows == {0, 1, 2, 63, 64, 65, 257, 1000} and groups == {None, 1, 3, 10}


def test_a_wrong_gradient_is_noticed(monkeypatch):
    """A wrong result fails the comparison."""
    case = parity.cases("elbo", small=True)[-1]
    right = parity.run(case, "reference")
    wrong = {name: value * 1.001 for name, value in right.items()}
    run = parity.run
    monkeypatch.setattr(parity, "run", lambda case, backend, *args, **kwargs: wrong if backend == "cpp" else run(case, backend, *args, **kwargs))
    with pytest.raises(AssertionError, match="elements differ"):
        parity.check(case, "cpp")
