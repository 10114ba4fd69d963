"""Tests of launches with a driver that records them: types and order of arguments, grid, stream, what is loaded and when."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from ddvi_fast.cuda import compiler, module, nvrtc
from ddvi_fast.cuda import launch as launching
from ddvi_fast.cuda.driver import Driver
from ddvi_fast.cuda.launch import launch, pack
from ddvi_fast.cuda.module import Kernel, Variant

SCALE = Kernel("scale.cu", "scale", (("x", "float *"), ("order", "int64 *"), ("rows", "int"), ("offset", "int64"), ("factor", "float")))
DEVICE = torch.device("cuda", 1)


class RecordingDriver:
    """A driver without a device."""

    def __init__(self) -> None:
        self.loaded: list[bytes] = []
        self.shared: list[tuple[str, int]] = []
        self.launches: list[tuple] = []

    def load(self, binary):
        self.loaded.append(binary)
        return binary

    def function(self, loaded, name):
        return f"{name} of {loaded.decode()}"

    def allow_shared_memory(self, function, size):
        self.shared.append((function, size))

    def launch(self, function, grid, threads, shared, stream, arguments):
        self.launches.append((function, grid, threads, shared, stream, [(type(each), each.value) for each in arguments]))


@pytest.fixture
def driver(monkeypatch) -> RecordingDriver:
    """A recording driver, a compiler that is not there, and a device in name."""
    made = RecordingDriver()
    for place in (module, launching):
        monkeypatch.setattr(place, "driver", lambda: made)
    monkeypatch.setattr(module, "_loaded", {})
    monkeypatch.setattr(module, "architecture", lambda device: 90)
    monkeypatch.setattr(compiler, "binary", lambda source, architecture, **macros: f"{source} sm_{architecture} {macros}".encode())
    monkeypatch.setattr(nvrtc, "available", lambda: (True, ""))
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=77))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return made


def arguments(**changed) -> dict:
    return {"x": torch.zeros(3), "order": None, "rows": 3, "offset": 1 << 40, "factor": 0.5, **changed}


def test_a_launch_has_typed_arguments_in_order_on_the_current_stream(driver):
    given = arguments(order=torch.arange(3))
    launch(Variant(SCALE, (("WIDTH", 4),), 256, 1024), DEVICE, (3, 2), 512, **dict(reversed(given.items())))
    pointers = [(ctypes.c_void_p, given[name].data_ptr()) for name in ("x", "order")]
    numbers = [(ctypes.c_int32, 3), (ctypes.c_int64, 1 << 40), (ctypes.c_float, 0.5)]
    function = "scale of scale.cu sm_90 {'WIDTH': 4}"
    assert driver.launches == [(function, (3, 2, 1), 256, 512, 77, [*pointers, *numbers])]
    assert driver.shared == [(function, 1024)]


def test_a_missing_tensor_is_a_null_pointer(driver):
    assert pack(SCALE, arguments())[1].value is None


def test_a_variant_is_loaded_once_on_each_device(driver):
    for device in (torch.device("cuda"), DEVICE, torch.device("cuda", 0)):
        for width in (4, 8, 4):
            launch(Variant(SCALE, (("WIDTH", width),), 256), device, (1, 1), 0, **arguments())
    assert len(driver.launches) == 9 and len(driver.loaded) == 4 and driver.shared == []


def test_no_programs_no_launch(driver):
    launch(Variant(SCALE, (), 256), DEVICE, (0, 2), 0, **arguments())
    assert driver.launches == [] and driver.loaded == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.zeros(3, dtype=torch.float64)}, "scale: x is a contiguous tensor of torch.float32, got torch.float64"),
        ({"x": torch.zeros(3, 2).t()}, "scale: x is a contiguous tensor"),
        ({"x": 3}, "scale: x is .* got int"),
        ({"rows": torch.tensor(3)}, "scale: rows is a number"),
        ({"more": None}, "scale: parameters and arguments differ in more"),
    ],
)
def test_arguments_of_another_kind_are_refused(driver, changed, message):
    with pytest.raises(TypeError, match=message):
        launch(Variant(SCALE, (), 256), DEVICE, (1, 1), 0, **arguments(**changed))
    assert driver.launches == []


def test_nothing_is_loaded_while_a_graph_is_captured(driver, monkeypatch):
    before, after = Variant(SCALE, (), 256), Variant(SCALE, (("WIDTH", 4),), 256)
    launch(before, DEVICE, (1, 1), 0, **arguments())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    launch(before, DEVICE, (1, 1), 0, **arguments())
    assert len(driver.launches) == 2
    with pytest.raises(RuntimeError, match="run it once before"):
        launch(after, DEVICE, (1, 1), 0, **arguments())
    assert "run it once before" in module.trouble((before, after), 1)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert module.trouble((before, after), 1) == ""


@pytest.mark.parametrize("error", [nvrtc.CompilationError("scale.cu: NVRTC failed:\nscale.cu(3): error\n"), RuntimeError("cuModuleLoadData failed")])
def test_what_cannot_be_loaded_is_one_line(driver, monkeypatch, error):
    def fails(*arguments, **macros):
        raise error

    monkeypatch.setattr(compiler, "binary", fails)
    found = module.trouble((Variant(SCALE, (), 256),), 0)
    assert "\n" not in found and found.startswith(str(error).split()[0])


def test_without_nvrtc_nothing_is_tried(driver, monkeypatch):
    monkeypatch.setattr(nvrtc, "available", lambda: (False, "NVRTC was not found"))
    assert module.trouble((Variant(SCALE, (), 256),), 0) == "NVRTC was not found" and driver.loaded == []


class FakeLibrary:
    """A libcuda that records calls; `results` are the codes of functions that fail."""

    def __init__(self, context: int | None = None, **results: int) -> None:
        self.calls: list[tuple] = []
        self._context, self._results = context, results

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((name, *arguments))
            if name == "cuCtxGetCurrent":
                arguments[0]._obj.value = self._context
            if name == "cuGetErrorString":
                arguments[1]._obj.value = b"misaligned address"
            return self._results.get(name, 0)

        return call


def driver_on(library: FakeLibrary) -> Driver:
    made = Driver.__new__(Driver)
    made._library = library
    return made


@pytest.mark.parametrize("context", [None, 5])
def test_the_driver_launches_in_torchs_context(monkeypatch, context):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    library, function = FakeLibrary(context), ctypes.c_void_p(9)
    values = [ctypes.c_void_p(64), ctypes.c_int64(7)]
    driver_on(library).launch(function, (3, 2, 1), 256, 512, 77, values)
    names = [call[0] for call in library.calls]
    entering = [] if context else ["cuDevicePrimaryCtxRetain", "cuCtxSetCurrent"]
    assert names == ["cuCtxGetCurrent", *entering, "cuLaunchKernel"]
    *given, stream, places, extra = library.calls[-1]
    assert given == ["cuLaunchKernel", function, 3, 2, 1, 256, 1, 1, 512] and stream.value == 77 and extra is None
    assert list(places) == [ctypes.addressof(value) for value in values]
    if not context:
        assert library.calls[1][2] == 1  # the current device


def test_an_error_of_the_driver_has_its_name_and_text():
    library = FakeLibrary(5, cuModuleLoadData=209)
    with pytest.raises(RuntimeError, match=r"cuModuleLoadData failed: misaligned address \(209\)"):
        driver_on(library).load(b"binary")
