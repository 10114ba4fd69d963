"""Inspection of the installation: versions, devices, backends, compilers, optional libraries, data. Nothing is computed."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

from ddvi_fast import __version__, _backend, _checks, precision
from ddvi_fast.cuda import chain, selection
from ddvi_fast.cuda.module import architecture
from ddvi_fast.data import DATASETS, cifar, folder_of, omniglot
from ddvi_fast.data.folders import candidates, first
from ddvi_fast.data.idx import find_folder
from ddvi_fast.doctor.findings import Finding, judged
from ddvi_fast.engine import optimizers
from ddvi_fast.native import loader

REQUIRED = ("numpy", "scikit-learn", "safetensors")
# Distribution, its module, its purpose, and the extra that installs it.
OPTIONAL = (
    ("hydra-core", "hydra", "the command line", "train"),
    ("rich", "rich", "progress bars and tables", "train"),
    ("tensorboard", "tensorboard", "logs of training", "train"),
    ("matplotlib", "matplotlib", "pictures", "train"),
    ("triton", "triton", "kernels for GPUs", "triton"),
    ("deepspeed", "deepspeed", "training in several processes with ZeRO", "distributed"),
    ("torchvision", "torchvision", "downloads of image data sets", "images"),
    ("zuko", "zuko", "spline flows", "flows"),
    ("bed-reader", "bed_reader", "PLINK files", "genomes"),
    ("cyvcf2", "cyvcf2", "VCF and BCF files", "genomes"),
    ("pgenlib", "pgenlib", "PLINK 2 files", "pgen"),
    ("msprime", "msprime", "simulated genomes", "genomes"),
    ("openTSNE", "openTSNE", "t-SNE of many samples", "maps"),
    ("umap-learn", "umap", "maps to compare with", "maps"),
    ("wandb", "wandb", "tracker=wandb", "trackers"),
    ("mlflow", "mlflow", "tracker=mlflow", "trackers"),
)
TORCH_SUPPORTED = (2, 8)
_FILES = {
    "mnist": "mnist/train-images-idx3-ubyte.gz and the other three files",
    "fashion_mnist": "fashion_mnist/train-images-idx3-ubyte.gz and the other three files",
    "omniglot": "omniglot/images_background.npz and images_evaluation.npz",
    "cifar10": "cifar10/cifar-10-batches-bin/",
    "1kg": "1kg/1kg_phase3.bed with its .bim, .fam and 1kg_phase3_samples.tsv",
}


def inspect(data_dir: str | Path | None = None) -> list[Finding]:
    """Inspect the installation.

    Args:
        data_dir: Folder of the files of data sets (default: the environment variable ``DDVI_FAST_DATA``).

    Example:
        >>> {finding.section for finding in inspect()} >= {"versions", "devices", "backends", "data"}
        True
    """
    return [*_versions(), *_devices(), *_backends(), *_compilers(), *_optional(), *_apex(), *_data(folder_of(data_dir))]


def _versions() -> Iterator[Finding]:
    yield judged("versions", "ddvi_fast", f"{__version__} in {Path(__file__).resolve().parents[1]}")
    yield judged("versions", "python", f"{platform.python_version()} ({sys.executable}), {platform.platform()}")
    old = tuple(int(part) for part in torch.__version__.split(".")[:2]) < TORCH_SUPPORTED
    built = f"{torch.__version__}, built for {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'the CPU'}"
    yield judged("versions", "torch", built, "ddvi_fast needs torch 2.8 or later: pip install 'torch>=2.8'" if old else "", "problem")
    for name in REQUIRED:
        found = version(name)
        yield judged("versions", name, found or "not installed", "" if found else f"pip install {name}", "problem")


def version(distribution: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[Finding]:
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    detail = f"{cores} cores, torch uses {threads} threads" + (f", kernels for {loader.isa()}" if loader.available()[0] else "")
    advice = f"more threads than cores slow each other down: threads={cores}, or OMP_NUM_THREADS={cores}" if threads > cores else ""
    yield judged("devices", "cpu", detail, advice)
    yield _bf16(torch.device("cpu"))
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        capability = f"sm_{properties.major}{properties.minor}"
        yield judged("devices", f"cuda:{number}", f"{properties.name}, {capability}, {properties.total_memory / 2**30:.0f} GiB")
        yield _bf16(torch.device("cuda", number))
    if torch.cuda.is_available():
        return
    if shutil.which("nvidia-smi"):
        advice = "there is a driver, but torch cannot use it: install a torch built for a CUDA version that the driver supports"
        yield judged("devices", "cuda", "torch finds no GPU on a machine with nvidia-smi", advice, "problem")
    else:
        yield judged("devices", "cuda", "no GPU", "nothing to do on a machine without one: everything runs on the CPU")


def _bf16(device: torch.device) -> Finding:
    """Whether precision=bf16 runs on a device, and how."""
    try:
        how = precision.support("bf16", device)
    except _checks.InputError as error:
        return judged("devices", f"bf16 on {device}", str(error), "precision=float32, or precision=fp16 with engine=parallel")
    if how == "native":
        return judged("devices", f"bf16 on {device}", how)
    advice = "precision=float32 is as fast here"
    return judged("devices", f"bf16 on {device}", f"{how}: operands are rounded to bf16 and multiplied in float32", advice)


def _backends() -> Iterator[Finding]:
    try:
        chosen = _backend.current()
    except _checks.InputError as error:
        yield judged("backends", _backend.ENVIRONMENT_VARIABLE, str(error), f"unset {_backend.ENVIRONMENT_VARIABLE}", "problem")
        return
    why = _backend.unavailable(chosen) if chosen in ("cpp", "triton", "cuda") else ""
    automatic = ": the fused backend of the tensors' device" if chosen == "auto" else ""
    detail = f"{chosen} is asked for, but not available: {why}" if why else chosen + automatic
    yield judged("backends", "chosen", detail, f"unset {_backend.ENVIRONMENT_VARIABLE}, or install what is missing" if why else "", "problem")
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        for operation in _backend.OPERATIONS:
            yield _used(operation, torch.device(device))


def _used(operation: str, device: torch.device) -> Finding:
    """The backend that an operation uses in float32 on a device, and the reason."""
    fused, name = {"cpu": "cpp", "cuda": "triton"}[device.type], f"{operation} on {device.type}"
    why = _backend.unavailable(fused, operation)
    if why:
        return judged("backends", name, f"reference, which is slower: {why}", _REPAIR[fused])
    if _backend.fused(device) == fused:
        if fused == "triton" and operation in _backend.CUDA_OPERATIONS:
            return _few_rows(name, device)
        return judged("backends", name, f"{fused} for float32, {_rest(operation, device)}")
    return judged("backends", name, "reference, because it was chosen", "use_backend('auto'), or unset DDVI_FAST_BACKEND")


def _few_rows(name: str, device: torch.device) -> Finding:
    """Which of Triton and CUDA C++ computes chains, and why."""
    rest = _rest("chain", device)
    why = _backend.unavailable("cuda") or chain.why_not(_index(device))
    if why:
        return judged("backends", name, f"triton for float32, {rest}; no CUDA C++ for few rows: {why}", _REPAIR["cuda"])
    most = ", ".join(f"{rows} rows in {precision}" for precision, rows in selection.limits(architecture(_index(device))).items())
    return judged("backends", name, f"cuda up to {most}, triton for more, {rest}")


def _rest(operation: str, device: torch.device) -> str:
    """What the reference computes."""
    narrow = selection.narrow(operation, architecture(_index(device))) if device.type == "cuda" and operation in ("chain", "sleep") else ""
    return "reference for float64 and for sizes that the kernels do not support" + (f": {narrow}" if narrow else "")


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


_REPAIR = {
    "cuda": "nothing to do: Triton computes the same; for CUDA C++ install what is missing",
    "cpp": "with a C++17 compiler on the path: pip install --force-reinstall --no-deps ddvi-fast (in a source tree: pip install -e .)",
    "triton": "pip install 'ddvi-fast[triton]', in the release that belongs to the installed torch",
}


def _compilers() -> Iterator[Finding]:
    name = os.environ.get("CXX", "c++")
    built = loader.available()[0]
    advice = "nothing to do: the extension is built already" if built else "install a C++17 compiler (Debian: apt install g++) and install again"
    missing = f"{name} is not installed; it builds the CPU kernels, and torch.compile needs it"
    yield _compiler("C++", name, missing, advice)
    if torch.cuda.is_available():
        advice = "nothing to do: Triton has a compiler of its own; only the extensions of DeepSpeed and Apex need nvcc"
        yield _compiler("nvcc", "nvcc", "not installed", advice)


def _compiler(name: str, program: str, missing: str, advice: str) -> Finding:
    first = _first_line(program)
    return judged("compilers", name, first or missing, "" if first else advice)


def _first_line(program: str) -> str:
    """First line of the output of `program --version`, or the empty string if the program cannot be run."""
    try:
        output = subprocess.run([*program.split(), "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return output.strip().partition("\n")[0]


def _optional() -> Iterator[Finding]:
    for distribution, module, purpose, extra in OPTIONAL:
        found = version(distribution) or ""
        if importlib.util.find_spec(module) is None:
            yield judged("optional", distribution, f"not installed; for {purpose}", f"to use it: pip install 'ddvi-fast[{extra}]'")
        else:
            yield judged("optional", distribution, found or "without metadata", _triton_mismatch(found) if distribution == "triton" else "")


def _triton_mismatch(found: str) -> str:
    """Advice where torch was built with another Triton than the installed one; a torch without CUDA does not name any."""
    asked = [re.match(r"triton\s*==\s*([\d.]+)", line) for line in metadata.requires("torch") or []]
    wanted = next((match[1] for match in asked if match), found)
    return "" if wanted == found else f"torch {torch.__version__} was built with Triton {wanted}: pip install triton=={wanted}"


def _apex() -> Iterator[Finding]:
    why, device = optimizers.why_no_apex(), "cuda" if torch.cuda.is_available() else "cpu"
    yield judged("optimiser", "Adam", f"{optimizers.choose('auto', torch.device(device)).note} on {device}")
    if not why:
        yield judged("optimiser", "apex", f"NVIDIA's, {version('apex') or 'without metadata'}")
    elif importlib.util.find_spec("apex") is None:
        yield judged("optimiser", "apex", "not installed", "nothing to do: torch's fused Adam is used; NVIDIA's Apex is built from its source")
    elif "amp_C" in why:
        yield judged("optimiser", "apex", why, "build Apex again with its CUDA extensions")
    else:
        yield judged("optimiser", "apex", why, "pip uninstall apex, then build NVIDIA's Apex from its source", "problem")


def _data(folder: Path | None) -> Iterator[Finding]:
    if folder is None:
        detail, advice = "neither data_dir nor DDVI_FAST_DATA is set", "export DDVI_FAST_DATA=path/to/data for MNIST, CIFAR-10 and 1kg"
        yield judged("data", "folder", detail, advice)
    elif folder.is_dir():
        yield judged("data", "folder", str(folder))
    else:
        yield judged("data", "folder", f"{folder} is missing", "set DDVI_FAST_DATA, or data_dir, to an existing folder", "problem")
    places = {
        "mnist": find_folder("mnist", folder),
        "fashion_mnist": find_folder("fashion_mnist", folder),
        "omniglot": omniglot.find(folder),
        "cifar10": cifar.find(folder),
        "1kg": first(candidates(folder, "1kg", ""), "1kg_phase3.bed"),
    }
    for name in DATASETS:
        if name not in places:
            yield judged("data", name, "needs no files")
        elif places[name] is None:
            fetched = "" if name in ("1kg", "omniglot") else ", or download=true"
            where = folder or "a folder, and name it in DDVI_FAST_DATA"
            yield judged("data", name, "not found", f"put {_FILES[name]} into {where}{fetched}")
        else:
            yield judged("data", name, str(places[name]))
