"""The module beside a checkpoint by which transformers finds our classes where rerankzoo was not imported.

`trust_remote_code=True` makes it load the module that `auto_map` in the config names. That holds no code of the model:
it takes the class from the installed package, and transformers says what to install where there is none.
"""

from __future__ import annotations

import os
from pathlib import Path

MODULE = "modeling_rerankzoo"

_TEXT = '''"""Lets transformers find the classes of this checkpoint, with trust_remote_code=True.

They live in the package rerankzoo: pip install rerankzoo
"""

import rerankzoo


def __getattr__(name):
    return getattr(rerankzoo, name)
'''


def auto_map(**classes: str) -> dict[str, str]:
    """The config entry for class names by auto class, such as `AutoModel="DeGReGenerator"`."""
    return {auto: f"{MODULE}.{name}" for auto, name in classes.items()}


def write_module(folder: str | os.PathLike[str]) -> Path:
    """Writes the module into a checkpoint's folder, made if it is missing; returns the file."""
    path = Path(folder) / f"{MODULE}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_TEXT, encoding="utf-8")
    return path


class OwnAutoMap:
    """For classes that write their `auto_map` themselves."""

    @classmethod
    def register_for_auto_class(cls, auto_class: object = None) -> None:
        """Does nothing: transformers would copy source files of ours beside the checkpoint and point to those."""
