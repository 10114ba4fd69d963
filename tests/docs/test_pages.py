"""Tests of the pages of the documentation: examples run, commands, links and paths exist, and the site builds without a warning."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ddvi_fast import cli
from ddvi_fast.config.compose import compose

PROJECT = Path(__file__).resolve().parents[2]
DOCS = PROJECT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*PAGES, PROJECT / "README.md", PROJECT / "CONTRIBUTING.md"]


def name(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def prose(page: Path) -> str:
    """Text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)


@pytest.mark.parametrize("page", [page for page in PAGES if ">>>" in page.read_text(encoding="utf-8")], ids=name)
def test_examples_of_a_page_run(page: Path) -> None:
    failed, tried = doctest.testfile(str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS, encoding="utf-8")
    assert tried > 0 and failed == 0


def commands(text: str) -> list[list[str]]:
    """Words of the lines of code blocks that call `ddvi-fast`, comments and redirections left out."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.S | re.M)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [shlex.split(line.partition(" > ")[0], comments=True)[1:] for line in lines if line.startswith("ddvi-fast ") and "COMMAND" not in line]


@pytest.mark.parametrize("page", [page for page in TEXTS if commands(page.read_text(encoding="utf-8"))], ids=name)
def test_commands_of_a_page_exist_and_their_settings_compose(page: Path) -> None:
    for command, *arguments in commands(page.read_text(encoding="utf-8")):
        assert command in (*cli.COMMANDS, "--completion"), command
        if command == "train" and not {"--paper", "--replay"} & {*arguments}:
            compose([argument for argument in arguments if not argument.startswith("--")])


def test_the_reader_of_commands_sees_them() -> None:
    text = "```\nddvi-fast train prior=square   # a comment\nddvi-fast --completion bash > file\nls\n```\n"
    assert commands(text) == [["train", "prior=square"], ["--completion", "bash"]]


@pytest.mark.parametrize("page", TEXTS, ids=name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not target.startswith(("http://", "https://", "#", "gallery/")):  # the gallery's pictures are drawn when the site is built
            assert (page.parent / target.partition("#")[0]).exists(), target


TOPS = "|".join(("bench", "csrc", "ddvi_fast", "docs", "examples", "kernels", "tests"))
PATH = re.compile(rf"`((?:{TOPS})/[\w./-]*|[\w-]+\.(?:py|toml|txt|yml))`")


@pytest.mark.parametrize("page", TEXTS, ids=name)
def test_paths_in_the_text_exist(page: Path) -> None:
    paths = PATH.findall(page.read_text(encoding="utf-8"))
    assert not [path for path in paths if not (PROJECT / path).exists()]


def test_the_pattern_of_paths_finds_them() -> None:
    assert PATH.findall("`docs/`, `ddvi_fast/a/b.py`, `setup.py`, `runs/x`, `mnist/` and `ddvi_fast.a`") == ["docs/", "ddvi_fast/a/b.py", "setup.py"]
    assert len(PATH.findall((PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8"))) > 60


def test_the_readme_is_short() -> None:
    assert len((PROJECT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and MkDocs make them."""
    plain = [re.sub(r"[`*]", "", title).strip().lower() for title in re.findall(r"^#+ (.*)$", prose(page), re.M)]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


def anchors(text: str) -> list[tuple[str, str]]:
    """Links to a place in a page: (page, or the empty string for the same one; anchor)."""
    return re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", text)


@pytest.mark.parametrize("page", TEXTS, ids=name)
def test_links_to_places_find_their_heading(page: Path) -> None:
    for target, anchor in anchors(page.read_text(encoding="utf-8")):
        assert anchor in headings(page.parent / target if target else page), f"{target}#{anchor}"


def test_the_reader_of_anchors_sees_them(tmp_path: Path) -> None:
    assert anchors("[a](#there) [b](c.md#d-e) [f](https://g.org/#h) [i](j.md)") == [("", "there"), ("c.md", "d-e")]
    page = tmp_path / "page.md"
    page.write_text("# One `two`: three\n```\n# no heading\n```\n## With-dash\n")
    assert headings(page) == {"one-two-three", "with-dash"}


def test_every_page_is_in_the_navigation() -> None:
    navigation = (PROJECT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    assert sorted(re.findall(r"[\w/-]+\.md", navigation)) == [page.relative_to(DOCS).as_posix() for page in PAGES]


MISSING = [module for module in ("mkdocs", "material", "mkdocstrings", "latex2mathml") if importlib.util.find_spec(module) is None]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Folder of the site, built with warnings as errors."""
    if MISSING:
        pytest.skip(f"not installed: {', '.join(MISSING)} (pip install -e '.[docs]')")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    # The theme announces its successor in the year before its end of life.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    ran = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=3600)
    assert ran.returncode == 0 and "WARNING" not in ran.stderr, ran.stderr[-3000:]
    return folder


def test_the_site_has_every_page_and_its_pictures(site: Path) -> None:
    for page in PAGES:
        relative = page.relative_to(DOCS).with_suffix("")
        assert (site / (relative if relative.name != "index" else relative.parent) / "index.html").is_file(), page
    for picture in ("latents.png", "gallery/priors.png", "gallery/noising_cosine.png"):
        assert (site / picture).read_bytes().startswith(b"\x89PNG"), picture


def test_formulas_are_drawn_without_a_script(site: Path) -> None:
    method = (site / "method" / "index.html").read_text(encoding="utf-8")
    assert method.count("<math ") > 20 and "arithmatex" not in method


def test_the_reference_holds_docstrings(site: Path) -> None:
    posteriors = (site / "reference" / "posteriors" / "index.html").read_text(encoding="utf-8")
    for words in ("denoising steps", "log_ratio", "learn_schedule"):
        assert words in posteriors


FETCHED = r'<(?:script|img|iframe)[^>]*\ssrc="(https?:[^"]+)"|<link[^>]*rel="stylesheet"[^>]*href="(https?:[^"]+)"'


def test_no_page_fetches_anything(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not re.findall(FETCHED, page.read_text(encoding="utf-8")), page
