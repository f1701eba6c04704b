"""Every example runs, on little data."""

from __future__ import annotations

import json
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest

from rerankzoo import RerankingPipeline
from rerankzoo.cli.main import main

EXAMPLES = Path(__file__).parents[1] / "examples"

SIZES: dict[str, dict[str, int]] = {
    "nar4rec": {"num_train": 128, "max_epochs": 1},
    "degre": {"num_train": 128, "num_mined": 32, "max_epochs": 1},
    "prm": {"num_train": 128, "max_epochs": 2},
    "pointwise": {"num_train": 512, "max_epochs": 2},
    "constraints": {},
    "serve": {"num_train": 64, "max_epochs": 1},
    "own_log": {"num_train": 64, "max_epochs": 1},
}


def run(name: str, tmp_path: Path, **sizes: int) -> Any:
    example = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    places = {"own_log": {"folder": str(tmp_path / "shop")}, "constraints": {}}
    return example["main"](**SIZES[name], **places.get(name, {"root": str(tmp_path)}))


def test_every_example_is_run_and_short() -> None:
    files = {path.stem: path for path in EXAMPLES.glob("*.py")}
    assert files.keys() == SIZES.keys()
    assert all(len(path.read_text(encoding="utf-8").splitlines()) < 100 for path in files.values())


def test_nar4rec(tmp_path: Path) -> None:
    utilities = run("nar4rec", tmp_path)
    assert all(utility > 0 for utility in utilities.values())
    pipeline = RerankingPipeline.from_pretrained(tmp_path / "nar4rec", evaluator=True)
    assert pipeline.evaluator is not None


def test_degre(tmp_path: Path) -> None:
    assert run("degre", tmp_path).keys() == {"logged", "greedy"}


def test_prm(tmp_path: Path) -> None:
    assert 0 < run("prm", tmp_path) < 1


def test_pointwise(tmp_path: Path) -> None:
    losses = run("pointwise", tmp_path)
    assert losses[-1] < losses[0]


def test_constraints(tmp_path: Path) -> None:
    free, pinned, *others = run("constraints", tmp_path)
    assert free != pinned
    assert all(len(set(items)) == 4 for items in (free, pinned, *others))


def test_serve(tmp_path: Path) -> None:
    good, bad, other = run("serve", tmp_path)
    assert len(good) == len(other) == 4
    assert bad == {"error": "field 'category', row 1: 9 entries, but 'item_id' has 10"}


def test_own_log(tmp_path: Path) -> None:
    assert len({item["item_id"] for item in run("own_log", tmp_path)}) == 3


@pytest.mark.slow
def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = json.loads((EXAMPLES / "from_my_log_to_a_slate.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in cells)
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {}
    for number, source in enumerate(code):
        commands = [shlex.split(line[1:]) for line in source.splitlines() if line.startswith("!")]
        assert all(command[0] == "rerankzoo" and main(command[1:]) == 0 for command in commands)
        cell = tmp_path / f"cell_{number}.py"
        lines = [line for line in source.replace("pages = 6_000", "pages = 300").splitlines() if line[:1] != "!"]
        cell.write_text("\n".join(lines), encoding="utf-8")
        known |= runpy.run_path(str(cell), init_globals=known)
    assert len({item["item_id"] for item in known["slate"]}) == 4
    assert len(known["different"]) == 4
