"""Alias of the Triton kernels' folder, which is inside the package in a wheel and beside it in a source tree."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent
__path__ = [str(folder) for folder in (_HERE / "kernels", _HERE.parent / "kernels") if folder.is_dir()][:1]
