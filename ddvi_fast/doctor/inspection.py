"""What there is: versions, devices, backends, compilers, optional libraries, data. Nothing is computed here."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import torch

from ddvi_fast import __version__, _backend, _checks, precision
from ddvi_fast.data import DATASETS, cifar, folder_of
from ddvi_fast.data.idx import find_folder
from ddvi_fast.doctor.findings import Finding
from ddvi_fast.engine import optimisers
from ddvi_fast.native import loader

REQUIRED = ("numpy", "scipy", "scikit-learn", "matplotlib", "hydra-core", "omegaconf", "rich", "tensorboard", "safetensors")
# Distribution, the module it brings, what it is for, and the extra that installs it.
OPTIONAL = (
    ("triton", "triton", "kernels for GPUs", "triton"),
    ("deepspeed", "deepspeed", "training in several processes with ZeRO", "distributed"),
    ("torchvision", "torchvision", "downloads of image data sets", "images"),
    ("zuko", "zuko", "spline flows", "flows"),
    ("bed-reader", "bed_reader", "PLINK files", "genomes"),
    ("cyvcf2", "cyvcf2", "VCF and BCF files", "genomes"),
    ("msprime", "msprime", "simulated genomes", "genomes"),
    ("openTSNE", "openTSNE", "t-SNE of many samples", "maps"),
    ("umap-learn", "umap", "maps to compare with", "maps"),
    ("wandb", "wandb", "tracker=wandb", "trackers"),
    ("mlflow", "mlflow", "tracker=mlflow", "trackers"),
)
TORCH_SUPPORTED = (2, 8)
_FILES = {
    "mnist": "mnist/train-images-idx3-ubyte.gz and its three companions",
    "fashion_mnist": "fashion_mnist/train-images-idx3-ubyte.gz and its three companions",
    "cifar10": "cifar10/cifar-10-batches-bin/",
    "1kg": "1kg/1kg_phase3.bed with its .bim, .fam and 1kg_phase3_samples.tsv",
}


def inspect(data_dir: str | Path | None = None) -> list[Finding]:
    """All that can be told by looking.

    Args:
        data_dir: folder of data sets' files; `DDVI_FAST_DATA` if not given.

    Example:
        >>> {finding.section for finding in inspect()} >= {"versions", "devices", "backends", "data"}
        True
    """
    return [*_versions(), *_devices(), *_backends(), *_compilers(), *_optional(), *_apex(), *_data(folder_of(data_dir))]


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "ddvi_fast", "ok", f"{__version__} in {Path(__file__).resolve().parents[1]}")
    yield Finding("versions", "python", "ok", f"{platform.python_version()} ({sys.executable}), {platform.platform()}")
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < TORCH_SUPPORTED:
        yield Finding("versions", "torch", "problem", torch.__version__, "ddvi_fast needs torch 2.8 or later: pip install 'torch>=2.8'")
    else:
        yield Finding(
            "versions", "torch", "ok", f"{torch.__version__}, built for {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'the CPU'}"
        )
    for name in REQUIRED:
        found = version(name)
        if found is None:
            yield Finding("versions", name, "problem", "not installed", f"pip install {name}")
        else:
            yield Finding("versions", name, "ok", found)


def version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[Finding]:
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    detail = f"{cores} cores, torch uses {threads} threads" + (f", kernels for {loader.isa()}" if loader.available()[0] else "")
    if threads > cores:
        yield Finding("devices", "cpu", "note", detail, f"more threads than cores slow each other down: threads={cores}, or OMP_NUM_THREADS={cores}")
    else:
        yield Finding("devices", "cpu", "ok", detail)
    yield _bf16(torch.device("cpu"))
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        capability = f"sm_{properties.major}{properties.minor}"
        yield Finding("devices", f"cuda:{number}", "ok", f"{properties.name}, {capability}, {properties.total_memory / 2**30:.0f} GiB")
        yield _bf16(torch.device("cuda", number))
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            advice = "the driver is there, but torch cannot use it: install a torch built for CUDA that the driver supports"
            yield Finding("devices", "cuda", "problem", "torch sees no GPU on a machine with nvidia-smi", advice)
        else:
            yield Finding("devices", "cuda", "note", "no GPU", "nothing to do on a machine without one: everything runs on the CPU")


def _bf16(device: torch.device) -> Finding:
    """Whether precision=bf16 runs on a device, and how."""
    try:
        how = precision.support("bf16", device)
    except _checks.InputError as error:
        return Finding("devices", f"bf16 on {device}", "note", str(error), "precision=float32, or precision=fp16 with engine=parallel")
    if how == "native":
        return Finding("devices", f"bf16 on {device}", "ok", how)
    advice = "precision=float32 is as fast here"
    return Finding("devices", f"bf16 on {device}", "note", f"{how}: operands are rounded to bf16 and multiplied in float32", advice)


def _backends() -> Iterator[Finding]:
    try:
        chosen = _backend.current()
    except _checks.InputError as error:
        yield Finding("backends", _backend.ENVIRONMENT_VARIABLE, "problem", str(error), f"unset {_backend.ENVIRONMENT_VARIABLE}")
        return
    wanted = _backend.unavailable(chosen) if chosen in ("cpp", "triton") else ""
    if wanted:
        advice = f"unset {_backend.ENVIRONMENT_VARIABLE}, or mend what is missing"
        yield Finding("backends", "chosen", "problem", f"{chosen} is asked for, but: {wanted}", advice)
    else:
        yield Finding("backends", "chosen", "ok", f"{chosen}" + (": the fused backend of the tensors' device" if chosen == "auto" else ""))
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        for operation in _backend.OPERATIONS:
            yield _used(operation, torch.device(device))


def _used(operation: str, device: torch.device) -> Finding:
    """Which backend an operation gets in float32 on a device, and why."""
    fused, name = {"cpu": "cpp", "cuda": "triton"}[device.type], f"{operation} on {device.type}"
    used = _backend.fused(device)
    why = _backend.unavailable(fused, operation)
    if used == fused and not why:
        return Finding("backends", name, "ok", f"{fused} for float32, reference for float64 and for sizes that the kernels do not take")
    if not why:
        return Finding("backends", name, "note", "reference, because it was chosen", "use_backend('auto'), or unset DDVI_FAST_BACKEND")
    return Finding("backends", name, "note", f"reference, which is slower: {why}", _MEND[fused])


_MEND = {
    "cpp": "with a C++17 compiler on the path: pip install --force-reinstall --no-deps ddvi-fast (in a source tree: pip install -e .)",
    "triton": "pip install 'ddvi-fast[triton]', in the release that belongs to the installed torch",
}


def _compilers() -> Iterator[Finding]:
    name = os.environ.get("CXX", "c++")
    said = _first_line(name)
    if said:
        yield Finding("compilers", "C++", "ok", said)
    else:
        built = loader.available()[0]
        advice = "nothing to do: the extension is built already" if built else "install a C++17 compiler (Debian: apt install g++) and install again"
        yield Finding("compilers", "C++", "note", f"{name} is not there; it builds the CPU kernels, and torch.compile needs it", advice)
    if torch.cuda.is_available():
        said = _first_line("nvcc")
        advice = "nothing to do: Triton brings its own compiler; only DeepSpeed's and Apex's extensions want nvcc"
        yield Finding("compilers", "nvcc", "ok", said) if said else Finding("compilers", "nvcc", "note", "not there", advice)


def _first_line(program: str) -> str:
    """What `program --version` says first, or the empty string if it cannot be run."""
    try:
        said = subprocess.run([*program.split(), "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.strip().partition("\n")[0]


def _optional() -> Iterator[Finding]:
    for distribution, module, purpose, extra in OPTIONAL:
        found = version(distribution)
        if importlib.util.find_spec(module) is None:
            yield Finding("optional", distribution, "note", f"not installed; for {purpose}", f"pip install 'ddvi-fast[{extra}]' where wanted")
        else:
            mismatch = _triton_mismatch(found or "") if distribution == "triton" else ""
            yield Finding("optional", distribution, "note" if mismatch else "ok", found or "without metadata", mismatch)


def _triton_mismatch(found: str) -> str:
    """Advice where torch was made with another Triton than the one installed; torch without CUDA does not say."""
    asked = [re.match(r"triton\s*==\s*([\d.]+)", line) for line in metadata.requires("torch") or []]
    wanted = next((match[1] for match in asked if match), found)
    return "" if wanted == found else f"torch {torch.__version__} was made with Triton {wanted}: pip install triton=={wanted}"


def _apex() -> Iterator[Finding]:
    why, device = optimisers.why_no_apex(), "cuda" if torch.cuda.is_available() else "cpu"
    chosen = optimisers.choose("auto", torch.device(device))
    yield Finding("optimiser", "Adam", "ok", f"{chosen.note} on {device}")
    if not why:
        yield Finding("optimiser", "apex", "ok", f"NVIDIA's, {version('apex') or 'without metadata'}")
    elif importlib.util.find_spec("apex") is None:
        yield Finding("optimiser", "apex", "note", "not installed", "nothing to do: torch's fused Adam serves; NVIDIA's is built from its source")
    else:
        impostor = "amp_C" not in why
        advice = "pip uninstall apex, then build NVIDIA's from its source" if impostor else "build Apex again with its CUDA extensions"
        yield Finding("optimiser", "apex", "problem" if impostor else "note", why, advice)


def _data(folder: Path | None) -> Iterator[Finding]:
    if folder is None:
        detail, advice = "no folder: neither data_dir nor DDVI_FAST_DATA is set", "export DDVI_FAST_DATA=path/to/data for MNIST, CIFAR-10 and 1kg"
        yield Finding("data", "folder", "note", detail, advice)
    elif not folder.is_dir():
        yield Finding("data", "folder", "problem", f"{folder} is missing", "set DDVI_FAST_DATA, or data_dir, to a folder that is there")
    else:
        yield Finding("data", "folder", "ok", str(folder))
    places: Mapping[str, Path | None] = _places(folder)
    for name in DATASETS:
        if name not in places:
            yield Finding("data", name, "ok", "needs no files")
        elif places[name] is None:
            fetched = "" if name == "1kg" else ", or download=true"
            where = folder or "a folder, and name it in DDVI_FAST_DATA"
            yield Finding("data", name, "note", "not found", f"put {_FILES[name]} into {where}{fetched}")
        else:
            yield Finding("data", name, "ok", str(places[name]))


def _places(folder: Path | None) -> dict[str, Path | None]:
    """Where each data set that has files was found."""
    return {
        "mnist": find_folder("mnist", folder),
        "fashion_mnist": find_folder("fashion_mnist", folder),
        "cifar10": cifar.find_full(folder) or _within(folder, "cifar10", cifar.SUBSET),
        "1kg": _within(folder, "1kg", "1kg_phase3.bed"),
    }


def _within(folder: Path | None, name: str, file: str) -> Path | None:
    """The file, in the data set's own folder or in that of all data."""
    if folder is None:
        return None
    return next((path for path in (folder / name / file, folder / file) if path.is_file()), None)
