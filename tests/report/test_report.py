"""Tests of the report: content, self-contained HTML, charts, contrast."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from ddvi_fast import cli
from ddvi_fast.report import read_run, write_report
from ddvi_fast.report.charts import bar_chart, group_chart, line_chart
from ddvi_fast.report.runs import differences, groups

SMALL = [
    "epochs=2", "limit=256", "progress=off", "tensorboard=false", "evaluation.iwae_samples=5", "evaluation.elbo_samples=5", "evaluation.limit=64",
    "prior.resolution=40", "dataset.encoder.hidden=[16]", "dataset.decoder.hidden=[16]",
]  # fmt: skip
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """A Gaussian posterior, and a diffusion posterior of two seeds, one of them with pictures."""
    root = tmp_path_factory.mktemp("runs")
    for name, *settings in (
        ("gaussian", "method=vae", "figures=false"),
        ("first", "method=ddvi", "figures=true"),
        ("second", "method=ddvi", "figures=false", "seed=1"),
    ):
        assert cli.main(["train", f"run_dir={root / name}", *settings, *SMALL]) == 0
    return [root / "gaussian", root / "first", root / "second"]


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory) -> Path:
    return write_report(runs, tmp_path_factory.mktemp("report") / "report.html")


class _Reader(HTMLParser):
    """Text, addresses, ids, and whether every element is closed."""

    EMPTY = ("meta", "link", "img", "path", "use", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open, self.ids, self.addresses, self.text = [], [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in self.EMPTY:
            self.open.append(tag)
        self.ids += [value for name, value in attributes if name == "id"]
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def reader(written: Path) -> _Reader:
    made = _Reader()
    made.feed(written.read_text(encoding="utf-8"))
    return made


def test_the_page_is_whole_and_needs_nothing_else(reader: _Reader, written: Path) -> None:
    assert reader.open == [] and len(reader.ids) == len(set(reader.ids))
    assert all(address.startswith(("data:", "#")) for address in reader.addresses)
    assert {address[1:] for address in reader.addresses if address.startswith("#")} <= set(reader.ids)
    assert not re.search(r"url\((?!#)|@import|<script", written.read_text(encoding="utf-8"))


def test_it_holds_what_the_runs_hold(reader: _Reader, runs: list[Path]) -> None:
    text, gaussian = " ".join(reader.text), json.loads((runs[0] / "evaluation.json").read_text())
    assert f"{gaussian['elbo']:.2f}" in text and "2 seeds: first" in text and "±" in text and "latents, second" not in text
    for words in (
        "method.posterior", "Learning curves", "reconstruction", "nats of each step", "latents, first", "activations", "encode and sample",
        "Parts of the gap", "amortisation",
    ):  # fmt: skip
        assert words in text


def test_settings_that_differ_and_no_others(runs: list[Path]) -> None:
    found = differences([read_run(path) for path in runs])
    assert found["method.posterior"] == ["gaussian", "diffusion", "diffusion"] and found["seed"] == [0, 0, 1]
    assert "prior.name" not in found and "run_dir" not in found


def test_runs_of_one_kind_are_grouped(runs: list[Path]) -> None:
    assert [[run.name for run in members] for members in groups([read_run(path) for path in runs])] == [["gaussian"], ["first", "second"]]


def test_a_run_without_its_data_is_shown_with_the_reason(runs: list[Path], tmp_path: Path) -> None:
    copy = shutil.copytree(runs[0], tmp_path / "moved")
    config = json.loads((copy / "config.json").read_text())
    config["dataset"]["name"], config["data_dir"] = "mnist", str(tmp_path)
    (copy / "config.json").write_text(json.dumps(config))
    text = write_report([copy], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "train-images-idx3-ubyte" in text and "Learning curves" in text


def test_nothing_is_overwritten_and_bad_input_is_named(runs: list[Path], written: Path, tmp_path: Path, shell, one_line) -> None:
    one_line(lambda: write_report(runs, written), "overwrite")
    assert "from 1 to" in shell("report", code=2)
    shell("report", tmp_path, code=2)
    assert "output" in shell("report", runs[0], "out=x", code=2)
    shell("report", runs[1], f"output={tmp_path / 'page.html'}")
    assert "one run" in (tmp_path / "page.html").read_text().lower()


def test_charts_draw_every_curve_in_its_colour_and_are_built_alike() -> None:
    chart, again = (line_chart([([1, 2, 3], [1.0, 4.0, 2.0]), ([1, 2, 3], [2.0, 2.0, 2.0])], "step", [3, 5]) for _ in range(2))
    assert "var(--c3)" in chart and "var(--c5)" in chart and "var(--c0)" not in chart and "currentColor" in chart and chart == again
    assert bar_chart([[1.0, -2.0]], "step t", [1]).count("var(--c1)") == 2
    grouped = group_chart([[1.0, -2.0, 3.0], [0.0, 1.0, 1.0]], ["first", "second", "third"], "part", [4, 6])
    assert grouped.count("var(--c4)") == grouped.count("var(--c6)") == 3 and all(f"<!-- {name} -->" in grouped for name in ("first", "third"))


def test_a_curves_first_drop_does_not_set_the_frame() -> None:
    late = [2.0 + 0.01 * step for step in range(99)]
    falls, stays = (line_chart([(range(100), [first, *late])], "step") for first in (4000.0, 2.0))
    ticks = [set(re.findall(r"<!-- ([\d.]+) -->", chart)) for chart in (falls, stays)]
    assert ticks[0] == ticks[1] and "2.4" in ticks[0]


def _contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours as WCAG 2 defines it."""

    parts = np.array([to_rgb(first), to_rgb(second)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    low, high = np.sort(linear @ [0.2126, 0.7152, 0.0722])
    return (high + 0.05) / (low + 0.05)


def test_text_has_contrast_by_day_and_by_night(written: Path) -> None:
    sheets = re.findall(r":root \{([^}]*)\}", written.read_text(encoding="utf-8"))
    assert len(sheets) == 2
    for sheet in sheets:
        colours = dict(re.findall(r"--(\w+): (#\w{6})", sheet))
        assert min(_contrast(colours[ink], colours[ground]) for ink in ("ink", "soft", "link") for ground in ("paper", "panel")) >= 4.5


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1280, 400])
def test_chromium_renders_it_with_an_empty_console(written: Path, tmp_path: Path, width: int) -> None:
    picture = tmp_path / "page.png"
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"]
    command = [CHROMIUM, *options, f"--window-size={width},1200", f"--screenshot={picture}", written.as_uri()]
    said = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=True).stderr
    assert picture.stat().st_size > 10_000
    assert "CONSOLE" not in said
