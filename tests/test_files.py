"""Atomic file writing."""

import os

import pytest

from dcal_hf.files import write_atomically


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "table.csv", "whole")

    def full(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as filling:
        filling.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(path, "half")
    assert os.listdir(tmp_path) == ["table.csv"] and path.read_text() == "whole"
    assert write_atomically(path, b"new").read_bytes() == b"new" and os.listdir(tmp_path) == ["table.csv"]
