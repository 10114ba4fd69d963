"""Tests of the program that runs all commands of the paper's README."""

from __future__ import annotations

import sys

from bench.studies import run_paper_commands


def test_every_command_is_reported(tmp_path, monkeypatch, capsys):
    assert len(run_paper_commands.commands()) == 54
    found = {"seconds": 3.0, "latent_nll": 1.5}
    monkeypatch.setattr(run_paper_commands, "RESULTS", tmp_path / "commands.json")
    results = iter([{"command": "a", "finished": True, "seconds": 1.0, "message": "", "figures": found},
                    {"command": "b", "finished": False, "seconds": 1.0, "message": "why", "figures": {}}])  # fmt: skip
    monkeypatch.setattr(run_paper_commands, "run", lambda *arguments: next(results))
    monkeypatch.setattr(run_paper_commands, "commands", lambda: [["a"], ["b"]])
    monkeypatch.setattr(sys, "argv", ["script", "limit=5"])
    assert run_paper_commands.main() == 1
    assert "1 of 2 finished" in (tmp_path / "commands.md").read_text() and "| `b` | why |" in (tmp_path / "commands.md").read_text()
    assert "FAILED" in capsys.readouterr().out
