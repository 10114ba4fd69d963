"""Tests of maps of populations: colors, files, and the content of the HTML page."""

import json
import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from ddvi_fast import plots
from ddvi_fast.plots import ancestry
from ddvi_fast.plots.ancestry import population_markers
from ddvi_fast.plots.style import oklch

NAMES, GROUPS = ["CHB", "FIN", "GBR", "JPT", "YRI"], ["EAS", "EUR", "EUR", "EAS", "AFR"]


@pytest.fixture
def people():
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 5
    return generator.normal(size=(5, 2))[labels] * 4 + 0.3 * generator.normal(size=(60, 2)), labels


def lab(colour):
    """Lightness and the two opponent axes of a color in OKLab."""
    value = np.array(to_rgb(colour))
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    cones = np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
                      [0.0883024619, 0.2817188376, 0.6299787005]]) @ linear  # fmt: skip
    return np.array([[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
                     [0.0259040371, 0.7827717662, -0.8086757660]]) @ np.cbrt(cones)  # fmt: skip


def test_a_color_has_its_lightness_and_hue():
    for lightness, hue in ((0.46, 10), (0.62, 100), (0.78, 250)):
        light, a, b = lab(oklch(lightness, hue))
        assert abs(light - lightness) < 0.005 and abs((np.degrees(np.arctan2(b, a)) - hue + 180) % 360 - 180) < 2 and np.hypot(a, b) > 0.07


def test_populations_of_one_continent_differ_and_continents_have_hues_of_their_own():
    sizes = {"AFR": 7, "AMR": 4, "EAS": 5, "EUR": 5, "SAS": 5}  # of the 1000 Genomes
    groups = [group for group, size in sizes.items() for _ in range(size)]
    names = [f"{group}{number}" for number, group in enumerate(groups)]
    colours, markers = np.array([lab(each) for each in plots.population_colours(names, groups)]), population_markers(names, groups)
    apart = np.linalg.norm(colours[:, None] - colours, axis=-1)
    hues = np.degrees(np.arctan2(colours[:, 2], colours[:, 1]))
    between = np.abs((hues[:, None] - hues + 180) % 360 - 180)
    for i in range(26):
        for j in range(i):
            assert apart[i, j] > 0.06 and (groups[i] == groups[j] or between[i, j] > 15)
    assert all(len({mark for mark, its in zip(markers, groups, strict=True) if its == group}) == size for group, size in sizes.items())
    assert plots.population_colours(NAMES, NAMES) == plots.class_colours(5)


def test_names_overlap_neither_each_other_nor_points(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    names = [f"POP{number}" for number in range(26)]
    labels = np.arange(520) % 26
    drawn = []
    monkeypatch.setattr(ancestry, "write", lambda figure, *_: drawn.append(figure))
    # Half of the populations lie at one place.
    spots = np.where(np.arange(26)[:, None] % 2, 0.0, generator.normal(size=(26, 2)))
    plots.population_maps(tmp_path / "a.png", [("one", spots[labels] + 0.02 * generator.normal(size=(520, 2)))], labels, names, names)
    figure = drawn[0]
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 26 and {text.get_text() for text in axes.texts} == set(names)
    assert not any(one.overlaps(other) for k, one in enumerate(boxes) for other in boxes[:k])
    points = np.concatenate([axes.transData.transform(each.get_offsets()) for each in axes.collections])
    assert len(points) == 520 and not any(box.contains(*point) for box in boxes for point in points)
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1 for box in boxes)
    assert axes.get_title() == "one, 520 people" and axes.get_xlabel() == "latent 1" and axes.get_ylabel() == "latent 2"
    assert "POP3 (20)" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_panels_of_different_people_share_their_limits(people, tmp_path, monkeypatch):
    places, labels = people
    drawn, axes = [], [("component 1", "component 2")]
    monkeypatch.setattr(ancestry, "write", lambda figure, *_: drawn.append(figure))
    panels = [("a", places[:40]), ("b", places[40:] / 9), ("c", 5 * places[:40])]
    axes = [*axes, *axes, ("component 3", "component 4")]
    plots.population_maps(tmp_path / "a.png", panels, [labels[:40], labels[40:], labels[:40]], NAMES, GROUPS, axes=axes)
    one, other, third, _ = drawn[0].axes
    assert third.get_xlim() != one.get_xlim() and third.get_ylabel() == "component 4"
    assert one.get_xlim() == other.get_xlim() and one.get_ylim() == other.get_ylim() and other.get_xlabel() == "component 1"
    assert [panel.get_title() for panel in (one, other)] == ["a, 40 people", "b, 20 people"]
    assert "EUR (24)" in [text.get_text() for text in drawn[0].legends[0].get_texts()]


def test_maps_and_clouds_are_written_whole_and_never_over_another_file(people, tmp_path, one_line):
    places, labels = people
    panels = [("first", places), ("second", -places)]
    path = plots.population_maps(tmp_path / "maps.png", panels, labels, NAMES, GROUPS, "title")
    grouped = plots.population_maps(tmp_path / "groups.png", panels, labels, NAMES, GROUPS, by_group=True)
    clouds = plots.uncertainty(tmp_path / "clouds.png", places + np.random.default_rng(1).normal(size=(9, 60, 2)), labels, NAMES, GROUPS)
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in (path, grouped, clouds)) and len(list(tmp_path.iterdir())) == 3
    one_line(lambda: plots.population_maps(path, panels, labels, NAMES, GROUPS), "path: expected a new file")


def test_the_page_needs_nothing_else_and_holds_everybody(people, tmp_path):
    places, labels = people
    strange = ["</script><b>", *(f"P{number}" for number in range(1, 60))]
    path = plots.interactive_map(tmp_path / "map.html", places, labels, NAMES, GROUPS, {"sample": strange, "cluster": labels}, "A & B")
    text = path.read_text()
    assert not re.search(r"(src|href)=|https?://|import\s|fetch\(", text), "nothing is loaded from elsewhere"
    assert text.count("</script>") == 2 and "<title>A &amp; B</title>" in text and "@" not in text.replace("@media", "")
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)[1])
    assert data["hover"]["sample"] == strange and data["hover"]["cluster"] == [str(label) for label in labels]
    np.testing.assert_allclose(np.column_stack((data["x"], data["y"])), places, atol=1e-5)
    assert data["names"] == NAMES and data["groups"] == GROUPS and len(data["colours"]) == 5
    assert data["cluster"] is None and data["probability"] is None and set(data["set"]) == {""}


def test_the_page_has_sets_clusters_and_probabilities(people, tmp_path):
    places, labels = people
    sets, chance = np.where(labels < 2, "test", "training"), np.linspace(0, 1, 60)
    given = {"sets": sets, "cluster": labels + 3, "probability": chance, "axes": ("first", "second")}
    text = plots.interactive_map(tmp_path / "map.html", places, labels, NAMES, GROUPS, {}, **given).read_text()
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)[1])
    assert data["set"] == sets.tolist() and data["cluster"] == (labels + 3).tolist() and data["axes"] == ["first", "second"]
    np.testing.assert_allclose(data["probability"], chance, atol=1e-4)
    assert len(data["clusterColours"]) == 8 and len(set(data["clusterColours"])) == 8
    # Another marker for each population of a group.
    assert data["marker"][0] != data["marker"][3] and data["marker"][1] != data["marker"][2]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"labels": np.zeros(3, int)}, "places: expected"),
        ({"path": "map.htm"}, "ends in .html"),
        ({"hover": {"sample": ["a"]}}, r"hover\[sample\]"),
        ({"probability": [0.5]}, "probability: expected 60 values"),
        ({"places": np.full((60, 2), np.nan)}, "finite places"),
    ],
)
def test_bad_requests_are_one_line(people, tmp_path, change, words, one_line):
    places, labels = people
    given = {"path": "map.html", "places": places, "labels": labels, "names": NAMES, "groups": GROUPS, "hover": {}, **change}
    one_line(lambda: plots.interactive_map(tmp_path / given.pop("path"), **given), words)
    assert not list(tmp_path.iterdir())
    one_line(lambda: plots.population_maps(tmp_path / "maps.png", [("one", places)], labels + 1, NAMES, GROUPS), "labels: expected whole numbers")
