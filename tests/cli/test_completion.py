"""Tests of shell completion: commands, settings and choices."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from ddvi_fast.cli.completion import SHELLS, script, words
from ddvi_fast.config.compose import compose

COMMANDS = ["train", "report", "doctor"]


def complete(line: str) -> set[str]:
    """What bash offers at the end of `line`, cut into words as readline cuts it."""
    pieces = line.replace("=", " = ").split(" ")
    pieces = [piece for piece in pieces[:-1] if piece] + [pieces[-1]]
    setup = f"COMP_WORDS=({' '.join(repr(piece) for piece in pieces)}); COMP_CWORD={len(pieces) - 1}; COMP_LINE={line!r}; COMP_POINT={len(line)}"
    code = f'{script("bash", COMMANDS)}\n{setup}\n_ddvi_fast\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    ran = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, timeout=3600)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("ddvi-fast tr", {"train"}),
        ("ddvi-fast ", set(COMMANDS)),
        ("ddvi-fast train prior=pin", {"pinwheel"}),
        ("ddvi-fast train prior=square epo", {"epochs="}),
        ("ddvi-fast train recipe.kl.we", {"recipe.kl.weight="}),
        ("ddvi-fast train --d", {"--dry-run"}),
        ("ddvi-fast train --", {"--dry-run", "--settings", "--paper", "--replay"}),
        ("ddvi-fast doctor prior=pin", set()),
    ],
)
def test_bash_offers_what_fits(line: str, offered: set[str]) -> None:
    assert complete(line) == offered


def test_every_choice_that_is_offered_composes() -> None:
    for prior in (word for word in words() if word.startswith("prior=")):
        assert compose([prior]).prior.name


@pytest.mark.parametrize("name", SHELLS)
def test_scripts_hold_all_commands_and_no_placeholder(shell, name: str) -> None:
    written = shell("--completion", name)
    assert "@" not in written
    for word in ("train", "doctor", "report", "method=ddvi", "evaluation.iwae_samples="):
        assert word in written
