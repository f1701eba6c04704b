"""Imports point down: the table of who may import whom, held against the code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "rerankzoo"

#: Each part and its level; a part imports only parts of lower levels, and itself.
LEVELS = {
    "errors": -1,
    "atomic_writing": 0,
    "text_files": 0,
    "pages": 0,
    "shipped": 0,
    "batch": 0,
    "slates": 1,
    "remote_code": 0,
    "hub_errors": 1,
    "engines": 1,
    "features": 1,
    "losses": 1,
    "layers": 2,
    "metrics": 2,
    "generation": 2,
    "models": 3,
    "data": 4,
    "mining": 5,
    "backends": 5,
    "evaluation": 5,
    "hub": 6,
    "diagnosis": 6,
    "pipeline": 7,
    "training": 7,
    "reranking": 8,
    "serving": 8,
    "cli": 9,
}
SHARED_MODEL_FILES = {
    *("base", "auto", "digest", "registry", "score_and_sort", "causal_trunk", "pointer_generator", "recurrent_pointer")
}


def imported_modules(path: Path, module: str) -> list[str]:
    """Absolute names of everything of ours that a file imports, wherever in the file the import stands."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found += [source, *(f"{source}.{name.name}" for name in node.names)]
    return [name for name in found if name.startswith("rerankzoo.")]


def violations(root: Path) -> list[str]:
    """One line for each import that points up, sideways, or from one model family to another."""
    lines = []
    for path in sorted(root.rglob("*.py")):
        module = ".".join(path.relative_to(root.parent).with_suffix("").parts)
        parts = module.split(".")
        if len(parts) < 2 or parts[1] == "__init__":
            continue  # rerankzoo/__init__.py exports the public names of all levels
        for name in imported_modules(path, module):
            source, target = parts[1], name.split(".")[1]
            if target not in LEVELS:
                lines.append(f"{module} imports {name}, which has no level")
            elif target != source and LEVELS[target] >= LEVELS[source]:
                lines.append(f"{module} imports {name}: {source} may not import {target}")
            elif source == target == "models" and _other_family(parts, name.split(".")):
                lines.append(f"{module} imports {name}: one model family imports another")
    return lines


def _other_family(importer: list[str], imported: list[str]) -> bool:
    if importer[2] in SHARED_MODEL_FILES or len(imported) < 3 or imported[2] in SHARED_MODEL_FILES:
        return importer[2] == "base" and len(imported) > 2 and imported[2] not in SHARED_MODEL_FILES
    return importer[2] != imported[2]


def test_imports_point_down() -> None:
    assert sum(1 for _ in ROOT.rglob("*.py")) > 30
    assert violations(ROOT) == []


def test_every_part_has_a_level() -> None:
    parts = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert parts - {"__init__"} <= set(LEVELS)


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("layers/planted.py", "from rerankzoo.models.base import RerankingConfig", "layers may not import models"),
        ("layers/planted.py", "from ..models import base", "layers may not import models"),
        ("features/planted.py", "import rerankzoo.layers", "features may not import layers"),
        (
            "models/one/planted.py",
            "def f():\n    from rerankzoo.models.two import X",
            "one model family imports another",
        ),
        ("models/base.py", "from rerankzoo.models.two import X", "one model family imports another"),
        ("generation/planted.py", "from rerankzoo import models", "generation may not import models"),
        ("pipeline.py", "from rerankzoo.serving import export_model", "pipeline may not import serving"),
        ("data/planted.py", "import rerankzoo.novelty", "has no level"),
    ],
)
def test_planted_violation_is_caught(tmp_path: Path, file: str, line: str, message: str) -> None:
    path = tmp_path / "rerankzoo" / file
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n", encoding="utf-8")
    found = violations(tmp_path / "rerankzoo")
    assert len(found) >= 1
    assert message in found[0]
