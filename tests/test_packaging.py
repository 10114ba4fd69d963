"""Tests of what people install: the source archive and the wheel, used from another folder, with and without a C++ compiler."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parent.parent
FOLDERS = ("ddvi_fast", "kernels", "csrc")
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CONTRIBUTING.md", "Makefile", "constraints.txt", "run.sh")
PROBE = 'extern "C" int ddvi_probe(int x) { return x + 1; }\n'
NO_COMPILER = {"CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"}


def _copy_project(to: Path) -> Path:
    """The project's files without build products, so that building leaves nothing in the source tree.

    The extension's own sources take half a minute to compile, and the development install has compiled them already: a test that needs
    a compiler puts a one-line source in their place, the others do without a compiler.
    """
    to.mkdir()
    for name in FOLDERS + FILES:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        elif source.is_file():
            shutil.copy(source, to / name)
    return to


def _python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    ran = subprocess.run([sys.executable, *arguments], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=3600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran


def _build_wheel(source: Path, to: Path, **environment: str) -> tuple[Path, str]:
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check", "--verbose", "--wheel-dir", str(to))
    ran = _python("-m", "pip", "wheel", *options, str(source), cwd=to.parent, **environment)
    (wheel,) = to.glob("ddvi_fast-*.whl")
    return wheel, ran.stdout + ran.stderr


def _use(wheel: Path, target: Path, code: str) -> str:
    """What `code` prints where only the unpacked wheel, and nothing of the source tree, is importable as ddvi_fast."""
    shutil.unpack_archive(wheel, target, "zip")
    head = f"import sys; sys.path.insert(0, {str(target)!r}); import ddvi_fast; assert ddvi_fast.__file__.startswith({str(target)!r}); "
    return _python("-c", head + code, cwd=target.parent).stdout


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The project with one more kernel file: (source archive, wheel built from that archive)."""
    folder = tmp_path_factory.mktemp("plain")
    source = _copy_project(folder / "source")
    (source / "kernels" / "packaging_probe.py").write_text("VALUE = 7\n")
    _python("setup.py", "-q", "sdist", "--dist-dir", str(folder), cwd=source)
    (archive,) = folder.glob("ddvi_fast-*.tar.gz")
    return archive, _build_wheel(archive, folder / "wheel", **NO_COMPILER)[0]


def _expected_in_wheel() -> set[str]:
    packed = (".py", ".yaml", ".html", ".css", ".txt")
    names = {path.relative_to(PROJECT).as_posix() for path in (PROJECT / "ddvi_fast").rglob("*") if path.suffix in packed}
    beside = [path for folder in ("kernels", "csrc") for path in (PROJECT / folder).rglob("*.*") if path.suffix not in (".so", ".pyc")]
    return names | {f"ddvi_fast/{path.relative_to(PROJECT).as_posix()}" for path in beside}


def test_wheel_holds_every_module_kernel_and_configuration(plain: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(plain[1]) as archive:
        names = set(archive.namelist())
    assert _expected_in_wheel() - names == set()
    assert not [name for name in names if not name.startswith(("ddvi_fast/", "ddvi_fast-"))], "a top-level name of ours could shadow another package"


def test_source_archive_holds_what_a_build_needs(plain: tuple[Path, Path]) -> None:
    with tarfile.open(plain[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "pyproject.toml", "LICENSE", "constraints.txt", "Makefile"} <= names
    assert {name for name in _expected_in_wheel() if not name.startswith(("ddvi_fast/kernels/", "ddvi_fast/csrc/"))} <= names


def test_wheel_works_from_another_folder(plain: tuple[Path, Path], tmp_path: Path) -> None:
    code = "import ddvi_fast.kernels, ddvi_fast.cli; print(ddvi_fast.rng.normal(ddvi_fast.rng.Draws(1), (3, 2), 0).shape)"
    assert "[3, 2]" in _use(plain[1], tmp_path / "target", code)


def _clean_environment(folder: Path) -> Path:
    """The interpreter of a new environment that sees the dependencies installed here, but no file of the project."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    places = {Path(importlib.util.find_spec(name).origin).parents[1] for name in ("torch", "numpy", "hydra", "setuptools")}
    (site / "dependencies.pth").write_text("".join(f"{place}\n" for place in sorted(places)))
    return folder / "bin" / "python"


@pytest.mark.parametrize("kind", ["wheel", "source archive"])
def test_it_installs_into_a_clean_environment_whose_command_trains(plain: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    interpreter = _clean_environment(tmp_path / "environment")
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed", "--disable-pip-version-check")
    package = plain[0] if kind == "source archive" else plain[1]
    _python("-m", "pip", "--python", str(interpreter), "install", *options, str(package), cwd=tmp_path, **NO_COMPILER)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DDVI_FAST_BACKEND")}
    command = [str(interpreter.with_name("ddvi-fast")), "train", "run_dir=run", "epochs=1", "limit=128", "progress=off", "tensorboard=false"]
    quick = ["figures=false", "evaluation.iwae_samples=5", "evaluation.elbo_samples=5", "evaluation.limit=16", "prior.resolution=40"]
    ran = subprocess.run([*command, *quick], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=3600)
    assert ran.returncode == 0, ran.stderr
    assert "ELBO" in ran.stdout and (tmp_path / "run" / "evaluation.json").is_file()
    code = "import ddvi_fast; print(ddvi_fast.__file__)"
    where = subprocess.run([interpreter, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True).stdout
    assert where.startswith(str(tmp_path / "environment"))


CORE = ("torch", "numpy", "scikit-learn", "safetensors")
TRAIN = ("hydra", "omegaconf", "yaml", "rich", "tensorboard", "matplotlib")
USE_OF_THE_CORE = """
import importlib.util, sys
import torch
assert not [name for name in sys.argv[2:] if importlib.util.find_spec(name)]
import ddvi_fast
assert ddvi_fast.__file__.startswith(sys.argv[1]), ddvi_fast.__file__
for name in ddvi_fast.__all__:
    getattr(ddvi_fast, name)
from ddvi_fast import DDVI, fit_posterior, likelihoods, metrics, models, networks, posteriors, priors
from ddvi_fast.inference import Training

class Coin:
    def simulate(self, n):
        bias = torch.rand(n, 1)
        return bias, torch.binomial(torch.full((n, 1), 10.0), bias)

assert fit_posterior(Coin(), torch.tensor([7.0]), training=Training(steps=5, batch_size=16)).sample(7).shape == (7, 1)
x = torch.rand(20, 4)
model = models.LatentVariableModel(priors.make("pinwheel"), networks.MLP(2, [8], 4), likelihoods.make("bernoulli"))
assert metrics.elbo(model, posteriors.Gaussian(networks.MLP(4, [8], 4), 2), x, num_samples=2).shape == (20,)
assert DDVI(epochs=1, hidden=(8,)).fit_transform(x.numpy()).shape == (20, 2)
from ddvi_fast.cli import main
sys.exit(main(["train", "epochs=1"]))
"""


def _closure(names: tuple[str, ...]) -> dict[str, metadata.Distribution]:
    """The installed distributions of these names and all that they require, by name."""
    found: dict[str, metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # such as CUDA's libraries, which torch for the CPU does without
        requirements = map(Requirement, found[name].requires or ())
        waiting += [requirement.name for requirement in requirements if requirement.marker is None or requirement.marker.evaluate({"extra": ""})]
    return found


def _environment_of(names: tuple[str, ...], folder: Path) -> tuple[Path, Path]:
    """A new environment with links to these distributions and what they require alone: its interpreter and its folder of packages."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for distribution in _closure(names).values():
        root = Path(str(distribution.locate_file("")))
        for entry in {Path(str(file)).parts[0] for file in distribution.files or ()} - {".."}:
            if entry != "__pycache__" and not (site / entry).exists():
                (site / entry).symlink_to(root / entry)
    return folder / "bin" / "python", site


def test_the_core_runs_with_its_own_dependencies_alone(plain: tuple[Path, Path], tmp_path: Path) -> None:
    interpreter, site = _environment_of(CORE, tmp_path / "environment")
    shutil.unpack_archive(plain[1], site, "zip")
    (information,) = site.glob("ddvi_fast-*.dist-info")
    required = map(Requirement, metadata.PathDistribution(information).requires)
    assert {requirement.name for requirement in required if "extra" not in str(requirement.marker)} == set(CORE)
    ran = subprocess.run([interpreter, "-I", "-c", USE_OF_THE_CORE, site, *TRAIN], cwd=tmp_path, capture_output=True, text=True, timeout=3600)
    assert (ran.returncode, ran.stdout) == (2, ""), ran.stderr
    assert ran.stderr.splitlines()[-1] == "ddvi-fast: this needs Hydra (pip install 'ddvi-fast[train]')"


def test_a_wheel_without_the_extension_can_say_so(plain: tuple[Path, Path], tmp_path: Path) -> None:
    told = json.loads(_use(plain[1], tmp_path / "target", "from ddvi_fast.cli import main; main(['doctor', '--quick', '--json'])"))
    found = {(finding["section"], finding["name"]): finding for finding in told["findings"]}
    assert told["healthy"]
    assert "not built" in found["backends", "chain on cpu"]["detail"] and "compiler" in found["backends", "chain on cpu"]["advice"]


def test_no_kernels_package_of_ours_can_shadow_another() -> None:
    assert not (PROJECT / "kernels" / "__init__.py").exists()


def test_kernels_resolve_beside_and_inside_the_package(plain: tuple[Path, Path], tmp_path: Path) -> None:
    source, code = plain[0].parent / "source", "from ddvi_fast.kernels.packaging_probe import VALUE; print(VALUE)"
    assert _python("-c", f"import sys; sys.path.insert(0, {str(source)!r}); {code}", cwd=tmp_path).stdout == "7\n"
    assert _use(plain[1], tmp_path / "target", code) == "7\n"


def test_sources_of_cuda_are_found_beside_and_inside_the_package(plain: tuple[Path, Path], tmp_path: Path) -> None:
    source, code = plain[0].parent / "source", "from ddvi_fast.cuda import compiler; print(compiler.folder(), *compiler.headers())"
    beside = _python("-c", f"import sys; sys.path.insert(0, {str(source)!r}); {code}", cwd=tmp_path).stdout.split()
    inside = _use(plain[1], tmp_path / "target", code).split()
    assert (beside[0], inside[0]) == (str(source / "csrc" / "cuda"), str(tmp_path / "target" / "ddvi_fast" / "csrc" / "cuda"))
    assert beside[1:] == inside[1:] == sorted(path.name for path in (PROJECT / "csrc" / "cuda").glob("*.cuh"))
    assert (Path(inside[0]) / "chain_forward.cu").is_file()


def _with_extension_source(folder: Path) -> Path:
    source = _copy_project(folder / "source")
    shutil.rmtree(source / "csrc", ignore_errors=True)
    (source / "csrc").mkdir()
    (source / "csrc" / "packaging_probe.cpp").write_text(PROBE)
    return source


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="no C++ compiler on this machine")
def test_extension_is_built_where_there_is_a_compiler(tmp_path: Path) -> None:
    wheel, _ = _build_wheel(_with_extension_source(tmp_path), tmp_path / "wheel")
    assert "-py3-none-" in wheel.name, "the library calls nothing of Python, so one wheel serves every version"
    with zipfile.ZipFile(wheel) as archive:
        library = ctypes.CDLL(archive.extract("ddvi_fast/_native.so", tmp_path / "target"))
    assert library.ddvi_probe(41) == 42


def test_install_succeeds_without_a_compiler_and_says_so_in_one_line(tmp_path: Path) -> None:
    wheel, said = _build_wheel(_with_extension_source(tmp_path), tmp_path / "wheel", **NO_COMPILER)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "ddvi_fast/_native.so" not in names and "ddvi_fast/csrc/packaging_probe.cpp" in names
    assert len([line for line in said.splitlines() if "compiled extension left out" in line]) == 1 and "Traceback" not in said
    assert "ok" in _use(wheel, tmp_path / "target", "print('ok')")
