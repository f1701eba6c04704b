"""Files and folders appear whole or not at all, and what killed processes leave is removed."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from rerankzoo.atomic_writing import (
    temporary_folder,
    verify_checksums,
    write_atomically,
    write_checksums,
)
from rerankzoo.data.folder import write_parquet
from rerankzoo.errors import OutputError, UnreadableFileError

NUMBERS = np.random.default_rng(0).random(50_000)


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def write_one(text: str) -> Callable[[Path], Any]:
    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "one.txt").write_text(text)

    return write


@contextmanager
def full_disk(size: int = 100_000) -> Iterator[None]:
    """No file grows above a size: what the system answers then differs from that of a full disk by its number only."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_takes_its_place_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write(path: Path) -> None:
        path.write_text("ne")
        assert contents(tmp_path) == {"a.txt": "old", f"{path.parent.name}/a.txt": "ne"}
        path.write_text("new")

    write_atomically(target, write)
    assert contents(tmp_path) == {"a.txt": "new"}


def test_a_folder_takes_its_place_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder"
    write_atomically(target, write_one("old"))

    def write(folder: Path) -> None:
        folder.mkdir()
        save_file({"a": torch.ones(1)}, folder / "weights")  # safetensors' own are readable to their owner only
        assert contents(target) == {"one.txt": "old"}
        (folder.parent / "work.txt").touch()

    write_atomically(target, write)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == [
        "deep",
        "deep/folder",
        "deep/folder/weights",
    ]
    (tmp_path / "new").touch()
    assert (target / "weights").stat().st_mode == (tmp_path / "new").stat().st_mode


@pytest.mark.parametrize("exists", [True, False])
def test_a_symbolic_link_is_written_through(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "disk").mkdir()
    for name in ("file", "folder"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    if exists:
        (tmp_path / "disk" / "folder").mkdir()
        (tmp_path / "disk" / "file").touch()
    write_atomically(tmp_path / "file", lambda path: path.write_text("new"))
    write_atomically(tmp_path / "folder", write_one("new"))
    assert contents(tmp_path / "disk") == {"file": "new", "folder/one.txt": "new"}
    assert (tmp_path / "file").is_symlink()
    assert (tmp_path / "folder").is_symlink()


def write_with_duckdb(path: Path) -> None:
    import duckdb

    connection = duckdb.connect(str(path))
    connection.register("numbers", pa.table({"number": NUMBERS}))
    connection.execute("CREATE TABLE kept AS SELECT * FROM numbers")
    connection.execute("CHECKPOINT")


def write_with_datasets(path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"number": NUMBERS}).save_to_disk(path.with_name("arrow"))


def write_with_matplotlib(path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().scatter(NUMBERS[:5000], NUMBERS[5000:10000])
    figure.savefig(path, format="svg")


WRITERS: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: path.write_text("a" * 200_000),
    "pyarrow": lambda path: write_parquet(pa.table({"number": NUMBERS}), path),
    "torch": lambda path: torch.save({"numbers": torch.tensor(NUMBERS)}, path),
    "safetensors": lambda path: save_file({"numbers": torch.tensor(NUMBERS)}, path),
    "matplotlib": write_with_matplotlib,
    "datasets": write_with_datasets,
    "duckdb": write_with_duckdb,
}


@pytest.mark.parametrize("library", WRITERS)
def test_a_full_disk_is_one_line_whatever_library_writes(tmp_path: Path, library: str) -> None:
    target, folder = tmp_path / "a.txt", tmp_path / "b"
    write_atomically(target, lambda path: path.write_text("old"))
    write_atomically(folder, write_one("old"))
    for place, write in (
        (target, WRITERS[library]),
        (folder, lambda fresh: write_atomically(fresh / "a", WRITERS[library])),
    ):
        with (
            full_disk(),
            pytest.raises(OutputError, match=rf"^cannot write {place}: [^\n]+; what was there before is unchanged$"),
        ):
            write_atomically(place, write)
    assert contents(tmp_path) == {"a.txt": "old", "b/one.txt": "old"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_what_the_system_says_of_a_disk_is_told(tmp_path: Path, number: int) -> None:
    def fail(path: Path) -> None:
        try:
            raise OSError(number, os.strerror(number))
        except OSError as error:
            raise RuntimeError("of a library, without a word") from error

    with pytest.raises(OutputError, match=f"cannot write {tmp_path}/a: {os.strerror(number)}; what was there"):
        write_atomically(tmp_path / "a", fail)
    with pytest.raises(OutputError, match=f"cannot write {tmp_path}/a: "), temporary_folder(tmp_path / "a") as work:
        fail(work)


def test_an_error_about_something_else_stays_what_it_is(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        raise PermissionError(errno.EACCES, "no", f"{tmp_path}/another")

    with pytest.raises(PermissionError, match="another"):
        write_atomically(tmp_path / "a.txt", fail)
    with pytest.raises(ZeroDivisionError):
        write_atomically(tmp_path / "a.txt", lambda path: 1 / 0)


def test_a_folder_that_was_just_being_replaced_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, real = tmp_path / "b", os.replace
    write_atomically(target, write_one("old"))

    def interrupted(source: Path, place: Path) -> None:
        if not target.exists():
            raise KeyboardInterrupt
        real(source, place)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        patch.setattr("rerankzoo.atomic_writing._discard", lambda work, target: None)  # as a kill would have it
        with pytest.raises(KeyboardInterrupt):
            write_atomically(target, write_one("new"))
    assert not target.exists()
    with temporary_folder(target):
        assert (target / "one.txt").read_text() == "old"
    assert contents(tmp_path) == {"b/one.txt": "old"}


def test_leftovers_of_dead_processes_are_removed_and_of_living_ones_are_not(tmp_path: Path) -> None:
    target = tmp_path / "b"
    dead, others = tmp_path / ".b.00ff.tmp", tmp_path / ".c.00ff.tmp"
    for path in (dead, others):
        path.mkdir()
        (path / "half.txt").write_text("half")
    with temporary_folder(target) as living:
        assert not dead.exists()
        write_atomically(target, write_one("new"))
        assert living.is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {"b", others.name}


def test_checksums_tell_a_changed_byte(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="SHA256SUMS not found"):
        verify_checksums(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(100))
    write_checksums(tmp_path, "model*.safetensors")
    verify_checksums(tmp_path)
    path.write_bytes(bytes(50) + b"x" + bytes(49))
    with pytest.raises(UnreadableFileError, match=rf"^{path} is damaged"):
        verify_checksums(tmp_path)
