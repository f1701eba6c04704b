"""Counts the files that adding a family makes or edits, from the walk of docs/adding-a-model.md.

python -m qa.family_files [family]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "adding-a-model.md"
#: The most that a family may touch.
MOST = 10


def page_files() -> dict[str, str]:
    """The files that the page shows, by path."""
    pattern = re.compile(r"<!-- file: (\S+) -->\n```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return {match[1]: match[2] for match in pattern.finditer(PAGE.read_text(encoding="utf-8"))}


def edited_files(family: str) -> list[str]:
    """The files of the page's table of steps, which must name all that the page shows of this family.

    Raises:
        ValueError: If the page shows a file of the family that the table does not name, or the table names a file that
            neither is in the repository nor is named after the family.
    """
    rows = re.findall(r"^\| \d+\. [^|]+ \|(.*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    named = re.findall(r"`([\w./-]+\.\w+)`", "\n".join(rows))
    untold = [path for path in page_files() if family in path and path not in named]
    unknown = [path for path in named if family not in path and not (ROOT / path).is_file()]
    if untold or unknown:
        raise ValueError(f"{PAGE.name}: not in the table of steps: {untold}; not in the repository: {unknown}")
    return named


def main(family: str = "toy") -> int:
    """Prints the files; returns the exit status."""
    files = edited_files(family)
    for path in files:
        print("edits" if (ROOT / path).is_file() else "makes", path)
    print(f"{len(files)} files, at most {MOST}")
    return 0 if len(files) <= MOST else 1


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
