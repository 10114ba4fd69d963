"""Fixtures of every test: real data, golden values, poisoned memory, and a guard against traces left behind."""

from __future__ import annotations

import gc
import importlib.util
import os
import random
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets  # noqa: F401 - its import draws from random once; here, so that no test is blamed for it
import torch

import ddvi_fast.genomes
import ddvi_fast.paper  # noqa: F401 - data sets and recipes register themselves, as for the command line
from ddvi_fast import InputError, _backend, _signature, cli, data
from ddvi_fast.config.compose import compose
from ddvi_fast.config.schema import Config
from ddvi_fast.recipes.build import build
from ddvi_fast.recipes.phases import Experiment
from ddvi_fast.training.run import load_dataset
from tests import triton_interpreter

# Inductor's cache does not tell instruction sets apart: code for another one would be reused where torch is held to fewer instructions.
if "ATEN_CPU_CAPABILITY" in os.environ:
    cache = Path(tempfile.gettempdir()) / f"torchinductor-{os.environ['ATEN_CPU_CAPABILITY']}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))

# Triton reads this when it is first imported: without a GPU its interpreter runs the kernels.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
    triton_interpreter.quicken()

PROJECT = Path(__file__).resolve().parent.parent
# A relative DDVI_FAST_DATA starts from the project root, wherever pytest is called from.
DATA = (PROJECT / os.environ.get("DDVI_FAST_DATA", "../shared/data")).resolve()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """The collector of cyclic garbage does not search what lasts as long as the process: all tests and their modules, half a million objects."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def _existing(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is missing (the environment variable DDVI_FAST_DATA names the data folder)")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """``shared_data("mnist/train-images-idx3-ubyte.gz")``: the path of a data file; skips the test where it is missing."""
    return lambda name: _existing(DATA / name)


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    """Reference values computed with the paper's released code, by name (read-only arrays); see tests/golden/README.md."""
    with np.load(PROJECT / "tests" / "golden" / "values.npz", allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


# Process-wide settings: name -> (read, put back).
GLOBAL_SETTINGS: dict[str, tuple[Callable, Callable]] = {
    "torch default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch default device": (torch.get_default_device, torch.set_default_device),
    "torch number of threads": (torch.get_num_threads, torch.set_num_threads),
    "torch grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch anomaly mode": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "torch deterministic algorithms": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "torch float32 matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "torch.distributions validation": (
        lambda: torch.distributions.Distribution._validate_args,
        torch.distributions.Distribution.set_default_validate_args,
    ),
    "ddvi_fast backend": (lambda: _backend._chosen, lambda name: setattr(_backend, "_chosen", name)),
    "torch global generator": (lambda: torch.get_rng_state().numpy().tobytes(), lambda state: torch.set_rng_state(_as_state(state))),
    "numpy global generator": (
        lambda: tuple(part.tobytes() if isinstance(part, np.ndarray) else part for part in np.random.get_state()),
        lambda state: np.random.set_state((state[0], np.frombuffer(state[1], dtype=np.uint32), *state[2:])),
    ),
    "random's global generator": (random.getstate, random.setstate),
}


def _as_state(state: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)


@pytest.fixture(autouse=True)
def first_calls() -> None:
    """Every test begins with calls that are new: it may replace what the choice of a backend depends on."""
    _signature.forget()


@pytest.fixture(autouse=True)
def leaves_no_traces() -> Iterator[None]:
    """Fails a test that changes a process-wide setting or draws from a global generator, and puts the setting back."""
    before = {name: read() for name, (read, _) in GLOBAL_SETTINGS.items()}
    yield
    changed = [name for name, (read, _) in GLOBAL_SETTINGS.items() if read() != before[name]]
    for name in changed:
        GLOBAL_SETTINGS[name][1](before[name])
    if changed:
        pytest.fail(
            f"process-wide state changed: {', '.join(changed)}. Draw from ddvi_fast.rng or a torch.Generator, or wrap code that is not ours "
            "in torch.random.fork_rng()",
            pytrace=False,
        )


@pytest.fixture
def one_line() -> Callable[..., str]:
    """``one_line(call, match)``: the text of the `InputError` that a call must raise; it is one line in which `match` is found."""

    def text_of(call: Callable[[], object], match: str | None = None) -> str:
        with pytest.raises(InputError, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return text_of


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``shell(*arguments)``: what the command prints; with ``code=2`` the one line by which it refuses bad input."""

    def text_of(*arguments: object, code: int = 0) -> str:
        ended = cli.main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        assert ended == code, output.err
        if code != cli.EXIT_BAD_INPUT:
            return output.out
        assert output.out == "" and output.err.count("\n") == 1 and "Traceback" not in output.err, output.err
        return output.err

    return text_of


@pytest.fixture
def forked_generator() -> Iterator[None]:
    """Restores torch's global generator after a test that makes layers with torch's own initialization."""
    with torch.random.fork_rng():
        yield


@pytest.fixture
def assembled() -> Callable[..., tuple[Config, data.Dataset, Experiment]]:
    """``assembled(*overrides)``: the configuration, data set and experiment of these settings."""

    def make(*overrides: str) -> tuple[Config, data.Dataset, Experiment]:
        config = compose([*overrides])
        dataset = load_dataset(config)
        return config, dataset, build(config, dataset)

    return make


@pytest.fixture
def built(assembled: Callable[..., tuple]) -> Callable[..., Experiment]:
    """``built(*overrides)``: the experiment of these settings."""
    return lambda *overrides: assembled(*overrides)[2]


@pytest.fixture
def validation() -> Iterator[None]:
    """The first torch.compile of a process turns off the checks of torch.distributions."""
    before = torch.distributions.Distribution._validate_args
    yield
    torch.distributions.Distribution.set_default_validate_args(before)


def _poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def make_and_poison(*args, **kwargs) -> torch.Tensor:
        made = make(*args, **kwargs)
        if made.is_floating_point() or made.is_complex():
            return made.fill_(float("nan"))
        return made if made.dtype == torch.bool else made.fill_(torch.iinfo(made.dtype).max)

    return make_and_poison


@pytest.fixture
def poison_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialised memory holds NaN (integers: their largest value), so that an element nobody wrote is noticed at once."""
    for owner, names in ((torch, ("empty", "empty_like", "empty_strided")), (torch.Tensor, ("new_empty", "new_empty_strided"))):
        for name in names:
            monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))
