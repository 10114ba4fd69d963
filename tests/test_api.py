"""Tests of the public names and their arguments: they are those listed in `public_api.txt`, so that none changes by accident.

A change that is meant: `python tests/test_api.py` writes the list anew, and CHANGELOG.md says what changed.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

LISTING = Path(__file__).with_name("public_api.txt")
PACKAGE = "ddvi_fast"
# Besides the submodules that the package names itself.
TOOLS = ("doctor", "figures", "parity", "plots", "report")


def public_api() -> list[str]:
    """One line for each public name: functions and classes with their arguments, methods and properties of classes, constants by name."""
    package = importlib.import_module(PACKAGE)
    lines = set()
    for name in [*package.__all__, *TOOLS]:
        value = importlib.import_module(f"{PACKAGE}.{name}") if name in TOOLS else getattr(package, name)
        lines |= set(_module(value) if isinstance(value, ModuleType) else _entry(f"{PACKAGE}.{name}", value))
    return sorted(lines)


def _module(module: ModuleType) -> Iterator[str]:
    yield f"{module.__name__} (module)"
    for name in getattr(module, "__all__", None) or [name for name, value in vars(module).items() if _own(module, name, value)]:
        value = getattr(module, name)
        if not isinstance(value, ModuleType):
            yield from _entry(f"{module.__name__}.{name}", value)


def _own(module: ModuleType, name: str, value: object) -> bool:
    """Public, and defined in the module itself; constants are those in capitals."""
    return not name.startswith("_") and (getattr(value, "__module__", None) == module.__name__ or name.isupper())


def _entry(path: str, value: object) -> Iterator[str]:
    if inspect.isclass(value):
        yield f"class {path}{_arguments(value)}"
        for owner in inspect.getmro(value):
            if owner.__module__.startswith(PACKAGE):
                for name, member in vars(owner).items():
                    yield from _member(f"{path}.{name}", name, member)
    elif callable(value):
        yield f"{path}{_arguments(value)}"
    else:
        yield f"{path} (constant)"


def _member(path: str, name: str, member: object) -> Iterator[str]:
    if name.startswith("_"):
        return
    if isinstance(member, property) or type(member).__name__ == "cached_property":
        yield f"{path} (property)"
    elif isinstance(member, (classmethod, staticmethod)):
        yield f"{path}{_arguments(member.__func__)}"
    elif inspect.isfunction(member):
        yield f"{path}{_arguments(member)}"


def _arguments(value: object) -> str:
    """Names and defaults, without types."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return "(...)"
    plain = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    text = str(signature.replace(parameters=plain, return_annotation=signature.empty))
    return re.sub(r"<function (\w+) at 0x[0-9a-f]+>|<(\w+) object at 0x[0-9a-f]+>", r"\1\2", " ".join(text.split()))


def _listed_by_a_fresh_interpreter() -> list[str]:
    """What other tests import or patch must not show."""
    project = LISTING.parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, __file__, "--print"]
    return subprocess.run(command, capture_output=True, text=True, cwd=project, env=environment, timeout=3600, check=True).stdout.splitlines()


def test_the_public_api_is_as_listed() -> None:
    now, listed = _listed_by_a_fresh_interpreter(), LISTING.read_text(encoding="utf-8").splitlines()
    gone, fresh = sorted(set(listed) - set(now)), sorted(set(now) - set(listed))
    assert not gone and not fresh, f"gone: {gone}; new: {fresh}; if that is meant: python tests/test_api.py, and a line in CHANGELOG.md"


def test_names_that_must_stay_are_there() -> None:
    names = (
        "ddvi_fast.schedules.make(name, num_steps",
        "class ddvi_fast.rng.Draws(seed, first_index=0",
        "ddvi_fast.rng.normal(draws, shape, stream",
        "class ddvi_fast.denoisers.ResidualMLP(latent_dim, context_dim, num_steps, hidden_dim=128, groups=None",
        "ddvi_fast.ops.add_noise(x0, t, schedule, *, noise=None, draws=None",
        "ddvi_fast.ops.sample_chain(y_T, context, denoiser, coefficients, *, draws=None, noise=None, return_trajectory=False",
        "ddvi_fast.ops.kde_log_density(z, points, bandwidths, clamp=None",
        "ddvi_fast.ops.mmd(x, y, sigmas",
        "class ddvi_fast.use_backend(name",
        "ddvi_fast.posteriors.Posterior.sample(self, x, num_samples=1, draws=None",
        "ddvi_fast.priors.make(name",
        "ddvi_fast.evidence.log_evidence_quadrature(model, x",
        "ddvi_fast.metrics.elbo(model, posterior, x",
        "ddvi_fast.interop.denoiser_from_ddvi(state_dict",
        "class ddvi_fast.DDVI(n_components=2",
    )
    listed = LISTING.read_text(encoding="utf-8")
    assert not [name for name in names if name not in listed]


if __name__ == "__main__":
    if "--print" in sys.argv:
        print("\n".join(public_api()))
    else:
        LISTING.write_text("\n".join(public_api()) + "\n", encoding="utf-8")
