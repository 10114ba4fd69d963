"""Import of checkpoints and weights of the released code of the paper, without executing anything in a file."""

from __future__ import annotations

from ddvi_fast.interop.checkpoint import read_checkpoint
from ddvi_fast.interop.weights import denoiser_from_ddvi, denoisers_in, iaf_step_from_ddvi, iaf_steps_in, mlp_from_ddvi

__all__ = ["denoiser_from_ddvi", "denoisers_in", "iaf_step_from_ddvi", "iaf_steps_in", "mlp_from_ddvi", "read_checkpoint"]
