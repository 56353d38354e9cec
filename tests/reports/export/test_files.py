"""Files are written whole or not at all, and what is no plain file stays what it is."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from reports.export.files import replacing
from simulator.errors import InputError


def _half_written(file: Path) -> None:
    with replacing(file) as out:
        out.write(b"half")
        raise KeyError


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "step.json"
    with replacing(file) as out:
        out.write(b"old")
    with pytest.raises(KeyError):
        _half_written(file)
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"old")
    link.symlink_to(file)
    with replacing(link) as out:
        out.write(b"new")
    assert link.is_symlink()
    assert file.read_bytes() == b"new"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    with replacing(pipe) as out:
        out.write(b"step")
    reader.join()
    assert read == [b"step"]
    assert pipe.is_fifo()


def test_a_folder_that_is_missing_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written: No such file"), replacing(tmp_path / "no" / "file"):
        pass
