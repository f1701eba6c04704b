"""Files and folders appear whole or not at all, and what killed processes leave is removed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rerankzoo import atomic_writing
from rerankzoo.atomic_writing import (
    remove_leftovers,
    temporary_folder,
    temporary_name,
    verify_checksums,
    write_atomically,
    write_checksums,
    write_folder_atomically,
)
from rerankzoo.errors import OutputError, UnreadableFileError


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def write_one(text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "one.txt").write_text(text)


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def name_of(target: Path, process: int, kind: str = "tmp") -> Path:
    return target.with_name(f".{target.name}.{atomic_writing._machine()}.{process}.{kind}")


def test_a_file_takes_its_place_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write(path: Path) -> None:
        path.write_text("ne")
        assert contents(tmp_path) == {"a.txt": "old", path.name: "ne"}
        path.write_text("new")

    write_atomically(target, write)
    assert contents(tmp_path) == {"a.txt": "new"}


def test_a_folder_takes_its_place_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder"
    write_folder_atomically(target, lambda folder: (folder / "other.txt").write_text("old"))

    def write(folder: Path) -> None:
        write_one("new")(folder)
        assert contents(target) == {"other.txt": "old"}

    write_folder_atomically(target, write)
    assert contents(tmp_path) == {"deep/folder/one.txt": "new"}


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "full"), OSError(errno.EROFS, "read-only"), RuntimeError("writer: (os error 28)")],
    ids=["disk", "read-only", "rust"],
)
def test_what_cannot_be_written_is_named_and_stays_as_it_was(tmp_path: Path, error: Exception) -> None:
    write_atomically(tmp_path / "a.txt", lambda path: path.write_text("old"))
    write_folder_atomically(tmp_path / "b", write_one("old"))

    def fail(path: Path) -> None:
        (path / "half" if path.is_dir() else path).write_text("half")
        raise error

    for write, target in ((write_atomically, tmp_path / "a.txt"), (write_folder_atomically, tmp_path / "b")):
        with pytest.raises(OutputError, match=rf"^cannot write {target}: \w+.*; what was there before is unchanged$"):
            write(target, fail)
    assert contents(tmp_path) == {"a.txt": "old", "b/one.txt": "old"}


def test_an_error_about_something_else_stays_what_it_is(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        raise PermissionError(errno.EACCES, "no", "/somewhere/else")

    with pytest.raises(PermissionError, match="/somewhere/else"):
        write_atomically(tmp_path / "a.txt", fail)
    with pytest.raises(ZeroDivisionError):
        write_atomically(tmp_path / "a.txt", lambda path: 1 / 0)


@pytest.mark.parametrize("swaps", [True, False], ids=["swap", "two renames"])
def test_a_folder_is_replaced_on_any_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool) -> None:
    if not swaps:
        monkeypatch.setattr(atomic_writing, "_exchange", lambda one, other: False)
    write_folder_atomically(tmp_path / "b", write_one("old"))
    write_folder_atomically(tmp_path / "b", write_one("new"))
    assert contents(tmp_path) == {"b/one.txt": "new"}


def test_a_folder_that_was_just_being_replaced_is_put_back(tmp_path: Path) -> None:
    old = name_of(tmp_path / "b", dead_process(), "old")
    old.mkdir()
    (old / "one.txt").write_text("old")
    remove_leftovers(tmp_path / "b")
    assert contents(tmp_path) == {"b/one.txt": "old"}


def test_leftovers_of_dead_processes_are_removed_and_of_living_ones_are_not(tmp_path: Path) -> None:
    target = tmp_path / "b"
    dead, own = name_of(target, dead_process()), temporary_name(target)
    living = name_of(target, os.getppid())
    young, ancient = (target.with_name(f".b.{name}.1.tmp") for name in ("elsewhere", "far-away"))
    others = name_of(tmp_path / "c", dead_process())
    for path in (dead, own, living, young, ancient, others):
        path.mkdir()
        (path / "half.txt").write_text("half")
    os.utime(ancient, (time.time() - 2 * 24 * 3600,) * 2)
    write_folder_atomically(target, write_one("new"))  # although a process of the same number left its folder
    assert {path.name for path in tmp_path.iterdir()} == {"b", living.name, young.name, others.name}


def test_a_folder_for_work_is_gone_afterwards(tmp_path: Path) -> None:
    left = name_of(tmp_path / "out", dead_process(), "work")
    left.mkdir()
    with temporary_folder(tmp_path / "out") as work:
        assert not left.exists()
        (work / "file").touch()
    assert list(tmp_path.iterdir()) == []


def test_checksums_tell_a_changed_byte(tmp_path: Path) -> None:
    verify_checksums(tmp_path)  # there are none
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(100))
    write_checksums(tmp_path, "model*.safetensors")
    verify_checksums(tmp_path)
    path.write_bytes(bytes(50) + b"x" + bytes(49))
    with pytest.raises(UnreadableFileError, match=rf"^{path} is damaged"):
        verify_checksums(tmp_path)
