"""Writing files and folders so that they appear whole or not at all, whatever happens meanwhile.

What is written goes into a hidden temporary folder beside its target, reaches the disk, and then takes the target's
place. A symbolic link is written through. A process that is killed leaves at most its temporary folder behind, and the
next one that writes the same target removes it: a folder in use is locked, and locks end with their processes.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import secrets
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rerankzoo.errors import OutputError, UnreadableFileError, error_chain

#: What a checkpoint says of its weights.
CHECKSUMS_FILE = "SHA256SUMS"
#: What a model, or several, may have left in a folder.
SAVED_MODEL = (
    *("model*.safetensors*", "pytorch_model*", "generation_config.json", CHECKSUMS_FILE),
    *("ensemble.json", "member-[0-9]*"),
)
#: Within a temporary folder: the folder whose place is being taken.
_REPLACED = ".replaced"
#: Where the file system has no locks, a temporary folder is a leftover after so many seconds.
_LEFTOVER_AGE = 24 * 3600.0
#: What a disk answers that takes nothing more.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
#: Of torch's writer, which does not tell the system's answer.
_TORCH_WRITER = re.compile(r"inline_container\.cc.*unexpected pos|iostream error|PytorchStreamWriter failed")


def write_atomically(target: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with a temporary path, then moves the file into place.

    Args:
        target: The file; its folder exists.
        write: Writes a file of the path it is given, which has the target's name.

    Raises:
        OutputError: If the file cannot be written (a full disk, a read-only folder); the target is as it was.
    """
    target = Path(os.path.realpath(target))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target))
    with temporary_folder(target) as work:
        fresh = work / target.name
        write(fresh)
        _finish(fresh, work)
        os.replace(fresh, target)
        _sync(target.parent)


def write_folder_atomically(target: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with a temporary folder, which then takes the target's place.

    Args:
        target: The folder, which is replaced as a whole; the folders above it are made if they are missing.
        write: Writes what belongs into the folder that it is given, which has the target's name.

    Raises:
        OutputError: If the folder cannot be written or replaced; it is as it was.
    """
    target = Path(os.path.realpath(target))
    with temporary_folder(target) as work:
        fresh = work / target.name
        fresh.mkdir()
        write(fresh)
        for path in (fresh, *sorted(fresh.rglob("*"))):
            _finish(path, work)
        _take_place(fresh, target)
        _sync(target.parent)


def _take_place(fresh: Path, target: Path) -> None:
    if target.exists():
        os.rename(target, fresh.with_name(_REPLACED))  # whatever happens from here to the next line, it is put back
    os.rename(fresh, target)


@contextmanager
def saved_over(folder: Path, earlier: Iterable[str]) -> Iterator[Path]:
    """A temporary folder whose files then replace those that an earlier save left in a folder; its other files stay.

    Args:
        folder: Where the files go; made if it is missing.
        earlier: What is removed of it once all new files are written, as patterns of names.

    Yields:
        The temporary folder, which has the folder's name.

    Raises:
        OutputError: If the files cannot be written; the folder is as it was.
    """
    with temporary_folder(folder / "save") as work:
        fresh = work / Path(os.path.realpath(folder)).name
        fresh.mkdir()
        yield fresh
        for path in [path for pattern in earlier for path in folder.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        for path in fresh.iterdir():
            os.replace(path, folder / path.name)


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, unless it is there.

    Raises:
        OutputError: If it cannot be made.
    """
    with _naming(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside a target for what becomes the target; gone afterwards.

    Args:
        target: The file or folder; the folders above it are made if they are missing.

    Yields:
        The folder. What killed processes have left of theirs for the same target is gone.

    Raises:
        OutputError: Instead of whatever a library raises of a disk that takes nothing more, while the folder is used.
    """
    target = Path(os.path.realpath(target))
    with _naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        for entry in sorted(os.listdir(target.parent)):
            if re.fullmatch(rf"\.{re.escape(target.name)}\.\w+\.tmp", entry):
                _discard_leftover(target.parent / entry, target)
        work, lock = _make_locked(target)
        try:
            yield work
        finally:
            _discard(work, target)
            os.close(lock)


def _make_locked(target: Path) -> tuple[Path, int]:
    while True:
        work = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        work.mkdir()
        with suppress(FileNotFoundError):  # another process took it for a leftover before it was locked
            lock = os.open(work, os.O_RDONLY)
            _lock(lock)
            if work.is_dir():
                return work, lock
            os.close(lock)


def _lock(descriptor: int) -> bool | None:
    """Takes a lock that ends with the process; False if another one has it, `None` where there are no locks."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def _discard_leftover(work: Path, target: Path) -> None:
    """Removes a temporary folder that no process uses."""
    with suppress(OSError):  # its process has just removed it, or it is another user's
        descriptor = os.open(work, os.O_RDONLY)
        try:
            locked = _lock(descriptor)
            if locked or (locked is None and time.time() - work.stat().st_mtime > _LEFTOVER_AGE):
                _discard(work, target)
        finally:
            os.close(descriptor)


def _discard(work: Path, target: Path) -> None:
    """Removes a temporary folder; what it was about to replace is put back first."""
    if not target.exists() and (work / _REPLACED).exists():
        os.rename(work / _REPLACED, target)
    shutil.rmtree(work, ignore_errors=True)


def _finish(path: Path, work: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk; a file gets the permissions of any new one."""
    if path.is_file() and path.stat().st_nlink == 1:  # not those of a link to somebody else's
        path.chmod(work.stat().st_mode & 0o666)  # safetensors makes its files readable to their owner only
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # file systems that cannot
            raise
    finally:
        os.close(descriptor)


# --- errors of the disk ---------------------------------------------------------------------------------------------


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Says which output an error of the disk concerns."""
    try:
        yield
    except (FileNotFoundError, FileExistsError):  # they name what they concern
        raise
    except Exception as error:
        reason = _refused(error, target) or disk_error(error)
        if reason is None:
            raise
        raise OutputError(f"cannot write {target}: {reason}; what was there before is unchanged") from error


def _refused(error: Exception, target: Path) -> str | None:
    """What the system says of the target, the folder it is in, or a temporary folder beside it."""
    if not isinstance(error, OSError) or error.errno is None or not isinstance(error.filename, str | bytes):
        return None
    path, parent = os.fsdecode(error.filename), target.parent
    ours = path in (str(parent), str(target)) or path.startswith((f"{target}/", f"{parent}/.{target.name}."))
    return os.strerror(error.errno) if ours else None


def disk_error(error: BaseException) -> str | None:
    """What the system says of a disk that takes nothing more, in an error of whatever library, or behind it.

    pyarrow, matplotlib and datasets pass its `OSError` on or raise their own from it, DuckDB and safetensors quote it.

    Returns:
        The system's words; `None` if the error is about something else.
    """
    for link in error_chain(error):
        text, own_number = str(link), getattr(link, "errno", None)
        for number in _DISK_ERRORS:
            if own_number == number or os.strerror(number) in text or f"(os error {number})" in text:
                return os.strerror(number)
        if isinstance(link, RuntimeError) and _TORCH_WRITER.search(text):
            return "the file was not taken whole, as on a full disk"
    return None


def name_output(error: Exception) -> str | None:
    """One line about an error of the disk that names no file: the one that was open where it arose.

    Returns:
        The line; `None` if the error is about something else, or names its file.
    """
    reason = disk_error(error)
    if reason is None or isinstance(error, OutputError) or getattr(error, "filename", None) is not None:
        return None
    name = "an output"
    for link in error_chain(error):
        for frame, _ in traceback.walk_tb(link.__traceback__):
            opened = [value for value in frame.f_locals.values() if isinstance(value, io.IOBase)]
            names = [getattr(file, "name", None) for file in opened]
            name = next((found for found in names if isinstance(found, str)), name)
    return f"cannot write {name}: {reason}"


# --- checksums ------------------------------------------------------------------------------------------------------


def write_checksums(folder: Path, names: str) -> None:
    """Writes SHA256SUMS, which `sha256sum --check` reads.

    Args:
        folder: Of the files.
        names: Which of them, as for `Path.glob`.
    """
    lines = [f"{_sha256(path)}  {path.name}\n" for path in sorted(folder.glob(names))]
    write_atomically(folder / CHECKSUMS_FILE, lambda path: path.write_text("".join(lines), encoding="utf-8"))


def verify_checksums(folder: Path) -> None:
    """Compares the files of a folder with its SHA256SUMS.

    Raises:
        UnreadableFileError: If a file is missing or not what was written, or the folder has no checksums.
    """
    sums = folder / CHECKSUMS_FILE
    if not sums.is_file():
        raise UnreadableFileError(f"{folder} cannot be verified: {CHECKSUMS_FILE} not found")
    for line in sums.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        path = folder / Path(name).name
        if not path.is_file() or _sha256(path) != digest:
            raise UnreadableFileError(f"{path} is damaged: its SHA-256 is not the one in {sums}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
