"""Pictures of decoded images in a grid."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.plots.style import FAINT, INK, bare, new_figure, write


def decoded_grid(
    path: str | Path,
    images: Tensor,
    title: str = "",
    *,
    columns: int | None = None,
    bounds: tuple[float, float] | None = None,
    overwrite: bool = False,
) -> Path:
    """Draw decoded images in a grid, row by row from the top left.

    Args:
        path: File of the picture.
        images: Images [R * C, H, W] or [R * C, 3, H, W] with values in [0, 1].
        title: Title of the picture.
        columns: Number of columns, C (default: the square root of the number of images).
        bounds: Range of two latents, for the labels of the axes: the first grows along a row, the second from the bottom to the top.
        overwrite: Whether to replace the file (bool, default False).

    Raises:
        InputError: Images have another shape, do not fill the rows, or are not finite; or the file exists.
    """
    _checks.finite(_checks.tensor(images, "images"), "images")
    colour = images.dim() == 4 and images.shape[1] == 3
    _checks.require(len(images) > 0 and (images.dim() == 3 or colour), "images", "shape [R * C, H, W] or [R * C, 3, H, W]", images)
    columns = columns or int(len(images) ** 0.5)
    _checks.require(len(images) % columns == 0, "images", f"a multiple of {columns} images", len(images), "set columns")
    rows = len(images) // columns
    gap = max(1, images.shape[-1] // 20)
    framed = torch.nn.functional.pad(images.detach().cpu().float().clamp(0, 1), (gap,) * 4, value=1.0 if colour else 0.0)
    tiles = framed.reshape(rows, columns, *framed.shape[1:])
    order = (0, 3, 1, 4, 2) if colour else (0, 2, 1, 3)
    height, width = framed.shape[-2:]
    canvas = tiles.permute(order).reshape(rows * height, columns * width, *((3,) if colour else ())).numpy()

    figure = new_figure(6.0, 6.0 * canvas.shape[0] / canvas.shape[1] + 0.3)
    axes = figure.add_subplot()
    extent = (bounds[0], bounds[1], bounds[0], bounds[1]) if bounds else None
    axes.imshow(canvas, cmap="gray_r", vmin=0, vmax=1, extent=extent, aspect="auto", interpolation="nearest")
    bare(axes)
    if bounds:
        axes.tick_params(bottom=True, left=True, labelbottom=True, labelleft=True, labelsize=8, color=FAINT, labelcolor=INK)
        axes.set_xlabel("$z_1$", color=INK)
        axes.set_ylabel("$z_2$", color=INK)
    return write(figure, path, title, overwrite)
