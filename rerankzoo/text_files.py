"""Reading text files that anybody may have written: whatever is in them, plain data or one clear error comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rerankzoo.errors import UnreadableFileError, in_one_line

#: What PyYAML's safe loader raises besides its own errors: of tags whose content is not what they say, of integers too
#: long to read, of bytes that are no UTF-8, of lists a thousand levels deep.
_NOT_YAML = (ValueError, AttributeError, LookupError, TypeError, OverflowError, RecursionError)


def read_yaml(path: Path) -> Any:
    """Reads a YAML file as plain data: no tag makes an object.

    Raises:
        UnreadableFileError: If it is not YAML.
        OSError: If it cannot be read.
    """
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, *_NOT_YAML) as error:
        raise UnreadableFileError(f"{path} is invalid YAML: {in_one_line(error)}") from error


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UnreadableFileError: If it is not JSON.
        OSError: If it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError(f"{path} is invalid JSON: {in_one_line(error)}") from error
