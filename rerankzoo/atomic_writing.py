"""Writing files and folders so that they appear whole or not at all, whatever happens meanwhile.

What is written goes to a hidden temporary name beside its target, reaches the disk, and takes the target's place in one
step. A process that is killed leaves at most its temporary names behind; the next one that writes the same target
removes them.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rerankzoo.errors import OutputError, UnreadableFileError

#: What a folder says of its large files.
CHECKSUMS_FILE = "SHA256SUMS"
_BLOCK = 1 << 20
#: A temporary name of another machine, whose processes we do not see, is a leftover after so many seconds.
_LEFTOVER_AGE = 24 * 3600.0
#: `renameat2`: both names exist before and after, and never neither.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def write_atomically(target: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with a temporary name in the target's folder, then moves the file into place.

    Args:
        target: The file; its folder exists.
        write: Writes a file of the name it is given.

    Raises:
        OutputError: If the file cannot be written (a full disk, a read-only folder); the target is as it was.
    """
    with _naming(target):
        remove_leftovers(target)
        temporary = temporary_name(target)
        try:
            write(temporary)
            _sync(temporary)
            os.replace(temporary, target)
            _sync(target.parent)
        finally:
            _remove(temporary)


def write_folder_atomically(target: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with a temporary folder beside the target, which then takes the target's place.

    The files get the permissions of any new file: safetensors makes its own readable to their owner only.

    Args:
        target: The folder, which is replaced as a whole; the folders above it are made if they are missing.
        write: Writes what belongs into the folder that it is given.

    Raises:
        OutputError: If the folder cannot be written or replaced; it is as it was.
    """
    with _naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        fresh = temporary_name(target)
        try:
            fresh.mkdir()
            write(fresh)
            _share_like_new_files(fresh)
            for path in sorted(fresh.rglob("*")):
                _sync(path)
            _take_place(fresh, target)
            _sync(target.parent)
        finally:
            _remove(fresh)


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, unless it is there.

    Raises:
        OutputError: If it cannot be made.
    """
    with _naming(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """A folder beside a target for work files, gone afterwards; one that a killed process left is removed first."""
    with _naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target, "work")
        folder = temporary_name(target, "work")
        folder.mkdir()
    try:
        yield folder
    finally:
        _remove(folder)


def temporary_name(target: Path, kind: str = "tmp") -> Path:
    """A hidden name beside a target that no other process uses at the same time.

    Args:
        target: What it stands for.
        kind: Its purpose; leftovers are told apart by it.
    """
    return target.with_name(f".{target.name}.{_machine()}.{os.getpid()}.{kind}")


def remove_leftovers(target: Path, kind: str = "tmp") -> None:
    """Removes the temporary names of a target whose processes are gone.

    A folder that was being replaced where the file system cannot do it in one step is put back first.
    """
    if not target.parent.is_dir():
        return
    if not target.exists():
        for old in _leftovers(target, "old"):
            with suppress(OSError):
                old.rename(target)
    for path in [*_leftovers(target, kind), *_leftovers(target, "old")]:
        _remove(path)


def _leftovers(target: Path, kind: str) -> list[Path]:
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(?P<machine>[\w-]+)\.(?P<process>\d+)\.{kind}")
    found = []
    for entry in sorted(os.listdir(target.parent)):
        name = pattern.fullmatch(entry)
        if name and _is_leftover(target.parent / entry, name["machine"], int(name["process"])):
            found.append(target.parent / entry)
    return found


def _is_leftover(path: Path, machine: str, process: int) -> bool:
    if machine != _machine():
        try:
            return time.time() - path.lstat().st_mtime > _LEFTOVER_AGE
        except FileNotFoundError:  # its owner has just moved it into place
            return False
    if process == os.getpid():  # numbers are used again: it is not ours, for we have not begun
        return True
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's
        return False
    return False


def _machine() -> str:
    return re.sub(r"[^\w-]", "-", socket.gethostname())


def _take_place(fresh: Path, target: Path) -> None:
    if not target.exists():
        os.rename(fresh, target)
    elif not _exchange(fresh, target):
        old = temporary_name(target, "old")
        os.rename(target, old)  # killed from here to the next line, the old folder is put back by the next process
        os.rename(fresh, target)
        _remove(old)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step; False where the system cannot."""
    try:
        swap = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or an old C library
        return False
    if swap(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _sync(path: Path) -> None:
    """Waits until a file or a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # file systems that cannot
            raise
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def write_checksums(folder: Path, names: str) -> None:
    """Writes SHA256SUMS, which `sha256sum --check` reads.

    Args:
        folder: Of the files.
        names: Which of them, as for `Path.glob`.
    """
    lines = [f"{_sha256(path)}  {path.name}\n" for path in sorted(folder.glob(names))]
    write_atomically(folder / CHECKSUMS_FILE, lambda path: path.write_text("".join(lines), encoding="utf-8"))


def verify_checksums(folder: Path) -> None:
    """Compares the files of a folder with its SHA256SUMS, if it has one.

    Raises:
        UnreadableFileError: If a file is not what was written.
    """
    sums = folder / CHECKSUMS_FILE
    for line in sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else ():
        digest, _, name = line.partition("  ")
        path = folder / Path(name).name
        if path.is_file() and _sha256(path) != digest:
            raise UnreadableFileError(
                f"{path} is damaged: it is not the file that {sums} tells of (delete that one, if it was changed on "
                "purpose)"
            )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Says which output an error of the operating system concerns."""
    try:
        yield
    except (FileNotFoundError, FileExistsError):  # they name what they concern
        raise
    except Exception as error:
        reason = _system_error(error, target.parent)
        if reason is None:
            raise
        raise OutputError(f"cannot write {target}: {reason}; what was there before is unchanged") from error


def _system_error(error: BaseException, folder: Path) -> str | None:
    """What the system says of writing below a folder, in an error or behind it; `None` where it is about nothing such.

    Of an `OSError` of a file's write, torch makes a RuntimeError; of the system's answer, safetensors one of its own.
    """
    if isinstance(error, OSError):
        other = error.filename is not None and not Path(os.fsdecode(error.filename)).is_relative_to(folder)
        return None if error.errno is None or other else os.strerror(error.errno)
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        return _system_error(error.__context__, folder)
    number = re.search(r"\(os error (\d+)\)", str(error))
    return os.strerror(int(number[1])) if number else None


def _share_like_new_files(folder: Path) -> None:
    probe = folder / ".probe"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
