"""Packages, and the compiled extension, which is optional: without a C++ compiler the install still succeeds.

The extension is a plain shared library with a C interface (`ddvi_fast/_native.so`, opened with ctypes). It is linked to neither Python
nor torch, so that one wheel serves every supported version of both. All other metadata stands in pyproject.toml.
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

HERE = Path(__file__).parent
# Folders beside the package that become subpackages of it, and what they ship besides Python files.
BESIDE = {"kernels": [], "csrc": ["*.cpp", "*.h", "*.hpp", "cuda/*.cu", "cuda/*.cuh"]}
PRESENT = [folder for folder in BESIDE if any((HERE / folder).glob("*.*"))]
SOURCES = sorted(path.relative_to(HERE).as_posix() for path in (HERE / "csrc").glob("*.cpp"))
HEADERS = sorted(path.relative_to(HERE).as_posix() for path in (HERE / "csrc").glob("*.h*"))
# -g0: Python's own flags ask for debugging symbols, nine tenths of the file.
OPTIMISE = ["/O2", "/std:c++17"] if sys.platform == "win32" else ["-O3", "-std=c++17", "-g0"]
NATIVE = Extension("ddvi_fast._native", SOURCES, depends=HEADERS, language="c++", extra_compile_args=OPTIMISE, optional=True)


class BuildNative(build_ext):
    """Builds `_native.so`, or says in one line that it did not."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return list(ext.export_symbols or [])  # no PyInit function: this is not a Python module

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except (BaseError, CCompilerError, OSError) as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            print(f"ddvi_fast: compiled extension left out ({why}); the CPU backend falls back to 'reference'", file=sys.stderr)


class AnyPythonWheel(bdist_wheel):
    """The library calls nothing of Python: tag the wheel for the platform alone."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    packages=find_packages(include=["ddvi_fast", "ddvi_fast.*"]) + [f"ddvi_fast.{folder}" for folder in PRESENT],
    package_dir={f"ddvi_fast.{folder}": folder for folder in PRESENT},
    package_data={
        "ddvi_fast": ["config/names.txt", "config/conf/**/*.yaml", "plots/*.html", "report/*.css"],
        **{f"ddvi_fast.{folder}": BESIDE[folder] for folder in PRESENT},
    },
    ext_modules=[NATIVE] if SOURCES else [],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": AnyPythonWheel},
)
