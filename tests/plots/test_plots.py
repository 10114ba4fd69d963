"""Tests of pictures: colors of the classes, errors, and the global state of matplotlib."""

from __future__ import annotations

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from ddvi_fast import plots
from ddvi_fast.plots import scatter, training


def _wheel(count: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(count) % 10
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(count))
    return torch.view_as_real(torch.polar(torch.ones(count), 2 * torch.pi * labels / 10)) + 0.05 * noise, labels


def _pixels(path) -> np.ndarray:
    image = imread(path)[..., :3]
    assert image.shape[0] > 200 and image.shape[1] > 300 and image.std() > 0.01
    return image


def _shows(image: np.ndarray, colour: str, least: int = 20) -> bool:
    return int((np.abs(image - np.array(to_rgb(colour))).max(axis=-1) < 0.03).sum()) >= least


def _half(image: np.ndarray, side: int) -> np.ndarray:
    """The left or right half without the legend below."""
    rows, columns = int(image.shape[0] * 0.85), image.shape[1] // 2
    return image[:rows, side * columns : (side + 1) * columns]


def test_latents_show_every_class_on_the_left_and_the_prior_on_the_right(tmp_path):
    z, labels = _wheel(200)
    image = _pixels(plots.latents(tmp_path / "a" / "latents.png", z, labels, z[:150], title="digits"))
    colours = plots.class_colours(10)
    assert all(_shows(_half(image, 0), colour) for colour in colours)
    assert not any(_shows(_half(image, 1), colour) for colour in colours) and _shows(_half(image, 1), plots.UNLABELLED)
    both = _pixels(plots.latents(tmp_path / "both.png", z, labels, z, labels))
    assert all(_shows(_half(both, 1), colour) for colour in colours)


def test_a_missing_class_is_missing(tmp_path):
    z, labels = _wheel(200)
    keep = labels != 3
    image = _pixels(plots.latents(tmp_path / "l.png", z[keep], labels[keep], z))
    assert not _shows(_half(image, 0), plots.PALETTE[3]) and _shows(_half(image, 0), plots.PALETTE[4])


def test_a_stray_point_does_not_shrink_the_picture_and_is_counted():
    z = _wheel(2000)[0].double().numpy()
    strayed = np.concatenate([z, [[1e6, 0.0]]])
    (left, right), (low, high) = scatter._limits([strayed])
    assert -2 < left < -1 and 1 < right < 2 and right - left == pytest.approx(high - low)
    (left, right), _ = scatter._limits([z])
    assert left < z.min() and z.max() < right


def test_many_classes_get_colours_of_their_own():
    colours = plots.class_colours(50)
    assert len(set(colours)) == 50 and tuple(colours[:10]) == plots.PALETTE


def test_colours_stay_apart_for_every_eye():
    """Distances in sRGB after the simulated loss of the red or green cones (Viénot, Brettel and Mollon 1999)."""
    colours = np.array([to_rgb(colour) for colour in plots.PALETTE]) ** 2.2
    protan = np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]])
    deutan = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
    for loss in (np.eye(3), protan, deutan):
        seen = np.clip(colours @ loss.T, 0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(10, 1)]
        assert apart.min() > 0.15  # two of matplotlib's default ten come closer than 0.05


def test_comparison_has_a_panel_for_each(tmp_path, one_line):
    z, labels = _wheel()
    one = _pixels(plots.comparison(tmp_path / "1.png", [("prior", z, labels)]))
    four = _pixels(plots.comparison(tmp_path / "4.png", [(name, z, labels) for name in "abcd"], "all"))
    assert four.shape[1] > 2 * one.shape[1]
    inner = four[:, four.shape[1] // 30 :]  # without the name of the axis
    assert all(_shows(inner[:, part * inner.shape[1] // 4 : (part + 1) * inner.shape[1] // 4], plots.PALETTE[0]) for part in range(4))
    one_line(lambda: plots.comparison(tmp_path / "0.png", []), "panels: expected at least one")


def test_comparison_is_drawn_over_the_prior(tmp_path):
    z, labels = _wheel()
    panels = [("a", z[:0], labels[:0]), ("b", z, labels)]
    inner = [_half(_pixels(plots.comparison(tmp_path / f"{given}.png", panels, prior_samples=z if given else None)), 0)[60:] for given in (0, 1)]
    gray = [int((np.ptp(image, axis=-1) < 0.1)[image.mean(-1) < 0.93].sum()) for image in inner]
    assert gray[1] > gray[0] + 500


def test_trajectory_starts_at_the_start(tmp_path, one_line):
    z, labels = _wheel()
    path = torch.stack([z * 0, z, z, z, z])
    image = _pixels(plots.trajectory(tmp_path / "t.png", path, labels, num_panels=2))
    ring = [int((_half(image, side)[60:] < 0.75).any(axis=-1).sum()) for side in (0, 1)]
    assert ring[0] < ring[1] / 2  # all points on one spot, then on the ring
    _pixels(plots.trajectory(tmp_path / "p.png", path, None, z))
    one_line(lambda: plots.trajectory(tmp_path / "none.png", path[:1], labels), "T >= 1")


@pytest.mark.parametrize("shape", [(12, 8, 8), (12, 3, 8, 8)])
def test_decoded_grid_puts_tiles_row_by_row(tmp_path, shape):
    images = torch.zeros(shape)
    images[1] = 1.0  # second tile of the first row
    image = _pixels(plots.decoded_grid(tmp_path / "g.png", images, columns=4))
    lit = 1.0 if len(shape) == 4 else 0.0
    height, width = image.shape[:2]
    centres = [image[int((r + 0.5) * height / 3), int((c + 0.5) * width / 4)].mean() for r in range(3) for c in range(4)]
    assert [abs(value - lit) < 0.1 for value in centres] == [index == 1 for index in range(12)]
    _pixels(plots.decoded_grid(tmp_path / "b.png", images, columns=4, bounds=(-2, 2), title="grid"))


@pytest.mark.parametrize(
    "images, words",
    [(torch.zeros(5, 4, 4), "a multiple of 2"), (torch.zeros(4, 2, 4, 4), "shape"), (torch.full((4, 2, 2), torch.nan), "finite")],
)
def test_decoded_grid_refuses_what_is_no_grid(tmp_path, one_line, images, words):
    one_line(lambda: plots.decoded_grid(tmp_path / "g.png", images), words)


def test_loss_terms_draw_phases_evaluations_and_gaps(tmp_path, one_line):
    records = [{"step": s, "epoch": 0, "phase": "a" if s < 200 else "b", "seconds": 0.1, "loss": 1 / (1 + s), "kl": None} for s in range(400)]
    records += [{"step": s, "epoch": 0, "phase": "evaluation", "elbo": -s, "loss": 0.5, "non_finite": ["kl"]} for s in (100, 200, 300)]
    spans, between = training._phases(records)
    assert spans == {"a": (0, 199), "b": (200, 399)} and between == ["evaluation"]
    image = _pixels(plots.loss_terms(tmp_path / "l.png", records, "run"))
    assert _shows(image, plots.PALETTE[0]) and _shows(image, plots.PALETTE[1])
    assert all(_shows(image, training._phase_shade(index), 5000) for index in (0, 1))
    one_line(lambda: plots.loss_terms(tmp_path / "none.png", [{"step": 1, "loss": None}]), "named term")


def test_smoothing_keeps_a_level_and_steps_over_gaps():
    values = np.full(300, 2.5)
    values[40:50] = np.nan
    assert np.allclose(training._smooth(np.arange(300.0), values)[1][[0, 39, 150, 299]], 2.5)


@pytest.mark.parametrize("width", [1, 3])
def test_latents_that_are_not_flat_are_refused(tmp_path, width, one_line):
    z, flat, labels, path = torch.zeros(10, width), torch.zeros(10, 2), torch.zeros(10, dtype=torch.long), tmp_path / "f.png"
    one_line(lambda: plots.latents(path, z, labels, flat), "D = 2")
    one_line(lambda: plots.latents(path, flat, labels, z), "D = 2")
    one_line(lambda: plots.comparison(path, [("a", z, labels)]), "D = 2")
    one_line(lambda: plots.trajectory(path, z.expand(4, 10, width), labels), "D = 2")
    assert not any(tmp_path.iterdir())


def test_bad_labels_and_values_are_refused(tmp_path, one_line):
    z, labels = _wheel()
    one_line(lambda: plots.latents(tmp_path / "f.png", z, labels[:-1], z), r"labels of posterior samples: expected whole numbers of shape \[400\]")
    one_line(lambda: plots.latents(tmp_path / "f.png", z / 0, labels, z), "finite")


def test_nothing_is_overwritten_unasked(tmp_path, one_line):
    (z, labels), path = _wheel(50), tmp_path / "f.png"
    before = plots.latents(path, z, labels, z).read_bytes()
    one_line(lambda: plots.latents(path, -z, None, z), "overwrite=True")
    assert path.read_bytes() == before
    assert plots.latents(path, -z, None, z, overwrite=True).read_bytes() != before
    one_line(lambda: plots.latents(tmp_path / "f.exe", z, labels, z), r"ends in \.png")


def test_no_points_at_all_make_an_empty_panel(tmp_path):
    path = plots.latents(tmp_path / "f.png", torch.empty(0, 2), torch.empty(0, dtype=torch.long), torch.empty(0, 2))
    assert path.stat().st_size > 1000


def test_matplotlib_is_left_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    z, labels = _wheel(50)
    plots.latents(tmp_path / "f.svg", z, labels, z)
    assert dict(matplotlib.rcParams) == before
    code = (
        "import sys, torch, ddvi_fast.plots as f; assert 'matplotlib' not in sys.modules; "
        "f.comparison(sys.argv[1], [('a', torch.rand(9, 2), None)]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "g.png")], check=True)


def test_a_grid_shows_each_cell_and_says_which_were_not_run(tmp_path, one_line):
    z, labels = _wheel()
    panels = {("small", "one"): (z, labels), ("small", "prior"): (z, labels), ("large", "prior"): (100 * z, None)}
    image = _pixels(plots.grid(tmp_path / "g.png", ["small", "large"], ["one", "prior"], panels, "all"))
    assert _shows(_half(image, 0), plots.PALETTE[3]), "a small row beside a large one keeps its own axes"
    assert _shows(_half(image, 1), plots.UNLABELLED)
    one_line(lambda: plots.grid(tmp_path / "h.png", ["a"], ["b"], {}), "panels")
