"""Pictures of latents, decoded images, training curves and trajectories, drawn without a display and without global state.

matplotlib is imported when a picture is drawn, without `pyplot`, its settings and its windows.
"""

from __future__ import annotations

from ddvi_fast.plots.admixture import admixture_bars
from ddvi_fast.plots.ancestry import population_colours, population_maps, uncertainty
from ddvi_fast.plots.cost import curves
from ddvi_fast.plots.images import decoded_grid
from ddvi_fast.plots.interactive import interactive_map
from ddvi_fast.plots.interactive_bars import interactive_bars
from ddvi_fast.plots.scatter import comparison, grid, latents, trajectory
from ddvi_fast.plots.style import PALETTE, UNLABELLED, class_colours
from ddvi_fast.plots.training import loss_terms

__all__ = [
    "PALETTE", "UNLABELLED", "admixture_bars", "class_colours", "comparison", "curves", "decoded_grid", "grid", "interactive_bars", "interactive_map",
    "latents", "loss_terms", "population_colours", "population_maps", "trajectory", "uncertainty",
]  # fmt: skip
