"""Tests of imports: they go one way, and importing the package is quick and changes no device, optional library or global setting."""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
PACKAGE = PROJECT / "ddvi_fast"

# The three rings on their common ground, lowest first, each with its layers, lowest first. A module imports from its own layer and the layers
# below it, never from a later one. A folder is one module here.
RINGS = {
    "ground": (
        ("_checks", "_html", "_json", "_markdown"),
        ("_backend", "_files", "_operands", "_operator", "_signature", "precision"),
        ("rng", "schedules"),
        ("cuda", "distributed", "kernels", "native", "reference", "testing"),
    ),
    "library": (
        ("dense", "networks", "denoisers", "standardization"),
        ("langevin", "ops"),
        ("likelihoods", "parity", "priors", "models"),
        ("posteriors",),
        ("annealed", "data", "evidence", "export", "objectives", "released_scale"),
        ("gap", "metrics", "recipes"),
    ),
    "trainer": (("engine",), ("config", "inference"), ("estimator", "pyro", "training")),
    "leaves": (("figures", "plots"), ("genomes", "interop"), ("paper",), ("doctor", "report")),
    "command line": (("__init__",), ("cli", "train")),
}
LEVEL = {name: level for level, names in enumerate(layer for layers in RINGS.values() for layer in layers) for name in names}
RING = {name: ring for ring, layers in RINGS.items() for layer in layers for name in layer}
# `kernels/` and `csrc/` know nothing of the package above `rng`.
KERNELS_MAY_IMPORT = {"_checks", "_operands", "precision", "rng", "kernels"}
OPTIONAL = (
    "triton", "deepspeed", "torchvision", "matplotlib", "tensorboard", "bed_reader", "cyvcf2", "pgenlib", "msprime", "pyro", "arviz_stats", "wandb",
    "mlflow",
)  # fmt: skip


def _unit(path: Path) -> str:
    """The module of RINGS that a file of the package belongs to: its name, or that of its top folder."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _is_unit(name: str) -> bool:
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


def _imported_units(source: str, package: tuple[str, ...] = ("ddvi_fast",)) -> set[str]:
    """Modules of ddvi_fast that `source`, a file of `package`, imports anywhere, in functions too.

    ``__init__`` stands for the package itself; its version is a constant that everybody may read.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            targets = [base + (node.module.split(".") if node.module else []) + [alias.name] for alias in node.names]
        else:
            continue
        for parts in targets:
            if parts[0] == "ddvi_fast" and parts[1:] != ["__version__"]:
                found.add(parts[1] if len(parts) > 1 and _is_unit(parts[1]) else "__init__")
    return found


def _package_of(path: Path) -> tuple[str, ...]:
    return ("ddvi_fast", *path.relative_to(PACKAGE).parent.parts)


def _name(path: Path) -> str:
    """Name of a module to import."""
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    unit = _unit(path)
    assert unit in LEVEL, f"ddvi_fast.{unit} has no place in RINGS of {Path(__file__).name}: put it after everything it imports"
    upward = sorted(name for name in _imported_units(path.read_text(), _package_of(path)) if LEVEL.get(name, -1) > LEVEL[unit])
    assert not upward, f"{path.relative_to(PROJECT)} is below what it imports: {', '.join(upward)}; pass the thing in, or move it down"


def test_modules_of_one_layer_do_not_import_each_other_in_a_circle() -> None:
    edges: dict[str, set[str]] = {}
    for path in SOURCES:
        edges.setdefault(_unit(path), set()).update(_imported_units(path.read_text(), _package_of(path)) - {_unit(path)})
    graphlib.TopologicalSorter(edges).prepare()  # an error that names the circle, if there is one


def test_kernels_know_nothing_above_rng() -> None:
    for path in (PROJECT / "kernels").glob("*.py"):
        above = _imported_units(path.read_text()) - KERNELS_MAY_IMPORT
        assert not above, f"kernels/{path.name} imports {', '.join(sorted(above))}; a kernel may import {', '.join(sorted(KERNELS_MAY_IMPORT))}"
    for path in (PROJECT / "csrc").glob("*.py"):
        assert not _imported_units(path.read_text()), f"csrc/{path.name} imports ddvi_fast"


@pytest.mark.parametrize(
    ("source", "package", "units"),
    [
        ("import ddvi_fast.ops.chain as c", ("ddvi_fast",), {"ops"}),
        ("from ddvi_fast import rng, __version__", ("ddvi_fast",), {"rng"}),
        ("import ddvi_fast", ("ddvi_fast",), {"__init__"}),
        ("from ddvi_fast import InputError", ("ddvi_fast",), {"__init__"}),
        ("def f():\n    from ddvi_fast.ops.chain import sample_chain", ("ddvi_fast",), {"ops"}),
        ("from . import chain", ("ddvi_fast", "ops"), {"ops"}),
        ("from ..reference import chain", ("ddvi_fast", "ops"), {"reference"}),
        ("import torch\nfrom ddvi_fastest import ops", ("ddvi_fast",), set()),
    ],
)
def test_the_reader_of_imports_sees_every_form(source: str, package: tuple[str, ...], units: set[str]) -> None:
    assert _imported_units(source, package) == units


def _run(code: str) -> dict:
    """What `code`, run in a fresh interpreter, prints as JSON."""
    ran = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=3600)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


IMPORT = """
import json, random, sys, time
import numpy, torch

def state():
    return {
        "default dtype": str(torch.get_default_dtype()), "threads": torch.get_num_threads(), "interop threads": torch.get_num_interop_threads(),
        "grad": torch.is_grad_enabled(), "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(), "generator": torch.get_rng_state().tolist(),
        "numpy generator": numpy.random.get_state()[1].tolist(), "random generator": str(random.getstate()),
        "validation": torch.distributions.Distribution._validate_args,
    }

before, loaded = state(), set(sys.modules)
IMPORTS
after = state()
print(json.dumps({
    "changed": [name for name in before if before[name] != after[name]],
    "loaded": sorted({name.split(".")[0] for name in set(sys.modules) - loaded}),
    "cuda": torch.cuda.is_initialized(),
}))
"""


@pytest.fixture(scope="module")
def imported() -> dict:
    """What a fresh interpreter reports of `import ddvi_fast`."""
    return _run(IMPORT.replace("IMPORTS", "import ddvi_fast"))


def test_importing_the_package_touches_nothing(imported: dict) -> None:
    assert imported["changed"] == []
    assert not imported["cuda"], "import ddvi_fast initialised CUDA"
    assert not {*OPTIONAL, "hydra", "omegaconf", "sklearn", "scipy", "zuko"} & set(imported["loaded"])


def test_importing_the_package_loads_nothing_but_the_standard_library(imported: dict) -> None:
    assert set(imported["loaded"]) - sys.stdlib_module_names == {"ddvi_fast"}


def test_importing_every_module_loads_no_optional_library() -> None:
    modules = [name for name in map(_name, SOURCES) if not name.endswith("__main__")]
    seen = _run(IMPORT.replace("IMPORTS", "\n".join(f"import {name}" for name in modules)))
    assert not seen["changed"] and not seen["cuda"] and not set(OPTIONAL) & set(seen["loaded"])


WITHOUT = """
import importlib, json, sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("ddvi_fast.") and name.split(".")[1] in BLOCKED:
            raise ImportError(f"{name} belongs to a later ring")

sys.meta_path.insert(0, Wall())
for name in MODULES:
    importlib.import_module(name)
print(json.dumps({}))
"""


@pytest.mark.parametrize("ring", ["ground", "library", "trainer"])
def test_a_ring_is_importable_without_the_next(ring: str) -> None:
    order = list(RINGS)
    blocked = [name for name in RING if order.index(RING[name]) > order.index(ring) and name != "__init__"]
    modules = [_name(path) for path in SOURCES if RING[_unit(path)] == ring]
    _run(WITHOUT.replace("BLOCKED", repr(blocked)).replace("MODULES", repr(modules)))
