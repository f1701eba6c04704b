"""Reading text files that anybody may have written: whatever is in them, plain data or one clear error comes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from rerankzoo.errors import LIBRARY_ERRORS, UnreadableFileError, in_one_line


def read_yaml(path: Path) -> Any:
    """Reads a YAML file as plain data: no tag makes an object. Raises as `read_json`."""
    return _read(path, "YAML", yaml.safe_load)


def read_json(path: Path) -> Any:
    """Reads a JSON file; raises `UnreadableFileError` if it is not JSON, `OSError` if it cannot be read."""
    return _read(path, "JSON", json.loads)


def _read(path: Path, kind: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, *LIBRARY_ERRORS) as error:  # PyYAML raises many of them besides its own
        raise UnreadableFileError(f"{path} is invalid {kind}: {in_one_line(error)}") from error
