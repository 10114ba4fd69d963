"""Makes `ddvi_fast.kernels.*` importable from a wheel (folder inside the package) and from a source tree (folder beside it)."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent
__path__ = [str(folder) for folder in (_HERE / "kernels", _HERE.parent / "kernels") if folder.is_dir()][:1]
