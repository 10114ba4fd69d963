"""Sleep term's regression: noising of each row to a step of its own, the denoiser there, and its loss (docs/method.md, section 3)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from ddvi_fast.reference.chain import ChainWeights, denoise, time_rows

ERRORS = {"squared": functional.mse_loss, "absolute": functional.l1_loss, "huber": functional.smooth_l1_loss}


def denoising_loss(
    x0: Tensor,
    t: Tensor,
    context: Tensor | None,
    weights: ChainWeights,
    table: Tensor,
    noise: Tensor,
    loss: str,
    residual: bool,
    precision: str = "float32",
) -> Tensor:
    """`weight_t sum_d rho(o_d - target_d)` with `o` the denoiser at `y_t = signal_t x0 + deviation_t noise` and `target = c0_t x0 + c1_t noise`.

    Args:
        x0: Clean latents [.., R, D], where `..` is empty or the weights' group axis `G`.
        t: 0-based steps, int64 [.., R].
        context: Contexts [.., R, C] or None.
        weights: Weights of one network, or of G.
        table: Table [T, 5] with columns signal, deviation, c0, c1, weight.
        noise: Standard normals of the shape of `x0`.
        loss: Error `rho`: ``squared`` (e^2), ``absolute`` (|e|) or ``huber`` (e^2 / 2 below 1, else |e| - 1/2).
        residual: Whether the first hidden layer is added to the third.
        precision: Precision of the hidden layers' products, as in `reference.chain.denoise`.

    Returns:
        Loss of each row, [.., R], in the units of `rho` times the weight.
    """
    signal, deviation, c0, c1, weight = functional.embedding(t, table).split(1, dim=-1)
    output = denoise(signal * x0 + deviation * noise, context, weights, time_rows(weights.time_table, t), residual, precision)
    return (weight * ERRORS[loss](output, c0 * x0 + c1 * noise, reduction="none")).sum(-1)
