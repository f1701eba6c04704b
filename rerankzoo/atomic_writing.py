"""Writing files and folders so that they appear whole or not at all, whatever happens meanwhile.

What is written goes into a hidden temporary folder beside its target, reaches the disk, and then takes the target's
place. A symbolic link is written through. A process that is killed leaves at most its temporary folder behind, and the
next one that writes the same target removes it: a folder in use is locked, and locks end with their processes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import re
import secrets
import shutil
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rerankzoo.errors import OutputError, UnreadableFileError, error_chain

logger = logging.getLogger(__name__)

CHECKSUMS_FILE = "SHA256SUMS"
#: What a model, or several, may have left in a folder.
SAVED_MODEL = (
    *("model*.safetensors*", "pytorch_model*", "generation_config.json", CHECKSUMS_FILE),
    *("ensemble.json", "member-[0-9]*"),
)
#: Within a temporary folder: the folder whose place is being taken.
_REPLACED = ".replaced"
#: What a disk answers that takes nothing more.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
#: Of torch's writer, which does not tell the system's answer.
_TORCH_WRITER = re.compile(r"inline_container\.cc.*unexpected pos|iostream error|PytorchStreamWriter failed")


def write_atomically(target: Path, write: Callable[[Path], Any]) -> None:
    """Writes a file or replaces a folder as a whole, or leaves what is there as it was.

    Args:
        target: The file or folder; the folders above it are made if they are missing.
        write: Writes the file or folder at the path that it is given, which has the target's name.

    Raises:
        OutputError: If it cannot be written or replaced (a full disk, a read-only folder).
    """
    target = Path(os.path.realpath(target))
    with temporary_folder(target) as work:
        fresh = work / target.name
        write(fresh)
        _flush(work)
        if fresh.is_dir() and target.exists():
            os.replace(target, work / _REPLACED)  # whatever happens from here to the next line, it is put back
        os.replace(fresh, target)
        _sync(target.parent)


def write_text(target: Path, text: str) -> None:
    """Writes a text file; see `write_atomically`."""
    write_atomically(target, lambda path: path.write_text(text, encoding="utf-8"))


def write_json(target: Path, value: Any) -> None:
    """Writes a JSON file for people to read, too; see `write_atomically`."""
    write_text(target, json.dumps(value, indent=2) + "\n")


@contextmanager
def saved_over(folder: Path, earlier: Iterable[str]) -> Iterator[Path]:
    """Yields a temporary folder, whose files then go into a folder of the same name, made if it is missing.

    What an earlier save left there, by patterns of names, goes once all new files are written; other files stay. Where
    they cannot be written an `OutputError` says so, and the folder is as it was.
    """
    with temporary_folder(folder / "save") as work:
        fresh = work / Path(os.path.realpath(folder)).name
        fresh.mkdir()
        yield fresh
        _flush(work)
        for path in [path for pattern in earlier for path in folder.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        for path in fresh.iterdir():
            os.replace(path, folder / path.name)


def work_folder(out: str | Path) -> Path:
    """Where the files of `kept_folder` stand, beside the output."""
    out = Path(os.path.realpath(out))
    return out.with_name(f".{out.name}.work")


@contextmanager
def kept_folder(out: str | Path, settings: Mapping[str, Any]) -> Iterator[Path]:
    """Yields a folder for the work files of an output, which goes at the end.

    What a process that was killed, or whose disk was full, has left is there for the next one that has the same
    settings (JSON-able), and thrown away by one that has others.
    """
    work, told = work_folder(out), json.dumps(settings, sort_keys=True)
    record = work / "settings.json"
    if work.is_dir() and not (record.is_file() and record.read_text(encoding="utf-8") == told):
        shutil.rmtree(work)
    if work.is_dir():
        logger.warning("%s: continuing what was begun", work)
    work.mkdir(parents=True, exist_ok=True)
    record.write_text(told, encoding="utf-8")
    try:
        yield work
    except ValueError:  # of the data, which will not be better next time
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Yields a hidden folder beside a target for what becomes the target; gone afterwards.

    What killed processes have left of theirs for the same target goes first, where the file system has locks. While the
    folder is used, whatever a library raises of a disk that takes nothing more becomes an `OutputError`.
    """
    target = Path(os.path.realpath(target))
    with _naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        for name in os.listdir(target.parent):
            if re.fullmatch(rf"\.{re.escape(target.name)}\.\w+\.tmp", name):
                with suppress(OSError), _locked(target.parent / name):  # in use, just removed, or another user's
                    _discard(target.parent / name, target)
        made = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
        made.mkdir()
        with _locked(made, needed=False):
            work = made.rename(f"{made}.tmp")  # only now: nobody may take it for a leftover
            try:
                yield work
            finally:
                _discard(work, target)


@contextmanager
def _locked(folder: Path, needed: bool = True) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(*() if needed else (OSError,)):  # not every file system has locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _discard(work: Path, target: Path) -> None:
    """Removes a temporary folder; what it was about to replace is put back first."""
    if not target.exists() and (work / _REPLACED).exists():
        os.rename(work / _REPLACED, target)
    shutil.rmtree(work, ignore_errors=True)


def _flush(work: Path) -> None:
    """Waits until all below a folder is on the disk; files get the permissions of any new one."""
    for path in sorted(work.rglob("*")):
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


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Says which output an error of the disk concerns."""
    try:
        yield
    except (FileNotFoundError, FileExistsError):  # they name what they concern
        raise
    except Exception as error:
        reason, parent, name = disk_error(error), target.parent, str(getattr(error, "filename", None))
        ours = name in (str(parent), str(target)) or name.startswith((f"{target}/", f"{parent}/.{target.name}."))
        if ours and isinstance(error, OSError) and error.errno is not None:
            reason = os.strerror(error.errno)
        if reason is None:
            raise
        raise OutputError(f"cannot write {target}: {reason}; what was there before is unchanged") from error


def disk_error(error: BaseException) -> str | None:
    """What the system says of a disk that takes nothing more, in an error of whatever library, or behind it.

    pyarrow, matplotlib and datasets pass its `OSError` on or raise their own from it, DuckDB and safetensors quote it.
    `None` if the error is about something else.
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
    """One line about an error of the disk that names no file: the one open where it arose; `None` of other errors."""
    reason = disk_error(error)
    if reason is None or isinstance(error, OutputError) or getattr(error, "filename", None) is not None:
        return None
    frames = [frame for link in error_chain(error) for frame, _ in traceback.walk_tb(link.__traceback__)]
    files = [value for frame in frames for value in frame.f_locals.values() if isinstance(value, io.IOBase)]
    names = [name for file in files if isinstance(name := getattr(file, "name", None), str)]
    return f"cannot write {names[-1] if names else 'an output'}: {reason}"


def write_checksums(folder: Path, names: str) -> None:
    """Writes SHA256SUMS, which `sha256sum --check` reads, of the files whose names match a pattern."""
    lines = [f"{_sha256(path)}  {path.name}\n" for path in sorted(folder.glob(names))]
    (folder / CHECKSUMS_FILE).write_text("".join(lines), encoding="utf-8")


def verify_checksums(folder: Path) -> None:
    """Raises `UnreadableFileError` if a folder has no SHA256SUMS, or a file of them is missing or not what it was."""
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
