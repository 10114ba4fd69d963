"""Tests of maps of populations: colors, files, and the content of the HTML page."""

import colorsys
import json
import re

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from ddvi_fast import plots

NAMES, GROUPS = ["CHB", "FIN", "GBR", "JPT", "YRI"], ["EAS", "EUR", "EUR", "EAS", "AFR"]


@pytest.fixture
def people():
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 5
    return generator.normal(size=(5, 2))[labels] * 4 + 0.3 * generator.normal(size=(60, 2)), labels


def test_a_group_has_a_hue_and_its_populations_shades():
    colours = plots.population_colours(NAMES, GROUPS)
    assert len(set(colours)) == 5
    hue, light, _ = np.array([colorsys.rgb_to_hls(*to_rgb(colour)) for colour in colours]).T
    for one, other in ((0, 3), (1, 2)):  # the two of EAS, the two of EUR
        assert abs(hue[one] - hue[other]) < 0.02 and light[one] < light[other]
    assert min(abs(hue[0] - hue[1]), abs(hue[0] - hue[4]), abs(hue[1] - hue[4])) > 0.05


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


@pytest.mark.parametrize(
    "change, words",
    [
        ({"labels": np.zeros(3, int)}, "places: expected"),
        ({"path": "map.htm"}, "ends in .html"),
        ({"hover": {"sample": ["a"]}}, r"hover\[sample\]"),
        ({"places": np.full((60, 2), np.nan)}, "finite places"),
    ],
)
def test_bad_requests_are_one_line(people, tmp_path, change, words, one_line):
    places, labels = people
    given = {"path": "map.html", "places": places, "labels": labels, "names": NAMES, "groups": GROUPS, "hover": {}, **change}
    one_line(lambda: plots.interactive_map(tmp_path / given.pop("path"), **given), words)
    assert not list(tmp_path.iterdir())
    one_line(lambda: plots.population_maps(tmp_path / "maps.png", [("one", places)], labels + 1, NAMES, GROUPS), "labels: expected whole numbers")
