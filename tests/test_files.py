"""Tests of files: they are replaced as a whole or not at all, and the cache folder follows the environment."""

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


def test_the_cache_folder_follows_the_environment(monkeypatch):
    for name in (_files.CACHE_VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert _files.cache_folder() == Path.home() / ".cache" / "ddvi_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert _files.cache_folder() == Path("/x/ddvi_fast")
    monkeypatch.setenv(_files.CACHE_VARIABLE, "~/here")
    assert _files.cache_folder() == Path.home() / "here"
