"""Writing files so that no reader ever sees half of one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(target: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with a temporary name in the target's folder, then moves the file into place."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_folder_atomically(target: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with a temporary folder beside the target, which then takes the target's place.

    The files get the permissions of any new file: safetensors makes its own readable to their owner only.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (target.with_name(f".{target.name}.{os.getpid()}.{kind}") for kind in ("new", "old"))
    try:
        fresh.mkdir()
        write(fresh)
        _share_like_new_files(fresh)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _share_like_new_files(folder: Path) -> None:
    probe = folder / ".probe"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
