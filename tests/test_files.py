"""Tests of files: they are replaced as a whole or not at all, and the cache folder follows the environment."""

import subprocess
import sys
from pathlib import Path

import pytest

from ddvi_fast import _files


@pytest.mark.parametrize("sync", [False, True])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path, sync):
    path = tmp_path / "deep" / "table.json"
    _files.write_text(path, "old", sync)
    with pytest.raises(RuntimeError, match="died"), _files.replacing(path, sync) as fresh:
        fresh.write_text("half of the n")
        raise RuntimeError("died")
    assert path.read_text() == "old"
    _files.write_text(path, "new", sync)
    assert path.read_text() == "new" and [entry.name for entry in path.parent.iterdir()] == ["table.json"]


WRITER = """
import sys
from ddvi_fast import _files
for _ in range(300):
    _files.write_text(sys.argv[1], sys.argv[2] * 5000)
"""


def test_two_processes_may_write_one_file_at_the_same_time(tmp_path):
    path = tmp_path / "table.txt"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, letter], stderr=subprocess.PIPE, text=True) for letter in "ab"]
    assert [(writer.communicate()[1], writer.returncode) for writer in writers] == [("", 0), ("", 0)]
    assert path.read_text() in ("a" * 5000, "b" * 5000) and [entry.name for entry in tmp_path.iterdir()] == ["table.txt"]


def test_the_cache_folder_follows_the_environment(monkeypatch):
    for name in (_files.CACHE_VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert _files.cache_folder() == Path.home() / ".cache" / "ddvi_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert _files.cache_folder() == Path("/x/ddvi_fast")
    monkeypatch.setenv(_files.CACHE_VARIABLE, "~/here")
    assert _files.cache_folder() == Path.home() / "here"
