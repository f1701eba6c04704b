"""Every example runs, on little data."""

from __future__ import annotations

import json
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from rerankzoo import RerankingPipeline, example
from rerankzoo.cli.main import main

EXAMPLES = Path(__file__).parents[1] / "examples"

#: Those that compare what the slates of several ways really earn, the logged slates' first.
COMPARISONS = (
    "classics",
    "clig",
    "congrats",
    "dual_rerank",
    "egrerank",
    "gfn4rec",
    "goalrank",
    "gref",
    "interaction",
    "mir",
    "nlgr",
    "seq2slate",
    "unirank",
    "yolor",
)
SIZES: dict[str, dict[str, int]] = {
    **{name: {"num_train": 128, "max_epochs": 1} for name in COMPARISONS},
    "yolor": {"num_train": 128, "num_test": 8, "max_epochs": 1},
    "fastapi_service": {},
    "onnx_only": {},
    "optuna_search": {"num_train": 128, "trials": 2, "max_epochs": 1},
    "ray_rerank": {"requests": 40, "files": 2},
    "trainer": {"num_train": 128, "max_epochs": 1},
    "nar4rec": {"num_train": 128, "max_epochs": 1},
    "degre": {"num_train": 128, "num_mined": 32, "max_epochs": 1},
    "prm": {"num_train": 128, "max_epochs": 2},
    "pointwise": {"num_train": 512, "max_epochs": 2},
    "constraints": {},
    "serve": {"num_train": 64, "max_epochs": 1},
    "own_log": {"num_train": 64, "max_epochs": 1},
}

#: Runs a file that must import neither.
WITHOUT_TORCH = """
import runpy, sys

sys.modules |= dict.fromkeys(["torch", "rerankzoo"])
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(name: str, tmp_path: Path, **sizes: int) -> Any:
    known = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    places = {"own_log": {"folder": str(tmp_path / "shop")}, "constraints": {}}
    return known["main"](**SIZES[name], **places.get(name, {"root": str(tmp_path)}))


def test_every_example_is_run_and_short() -> None:
    files = {path.stem: path for path in EXAMPLES.glob("*.py")}
    assert files.keys() == SIZES.keys()
    assert all(len(path.read_text(encoding="utf-8").splitlines()) < 100 for path in files.values())


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where examples of one world find one log."""
    return tmp_path_factory.mktemp("examples")


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons(name: str, shared_root: Path) -> None:
    utilities = run(name, shared_root)
    assert next(iter(utilities)) == "logged"
    assert len(utilities) > 1
    assert all(0 < utility < 4 for utility in utilities.values())


def test_trainer(tmp_path: Path) -> None:
    assert run("trainer", tmp_path)["eval_loss"] > 0
    RerankingPipeline.from_pretrained(tmp_path / "trainer" / "best")


def test_optuna_search(tmp_path: Path) -> None:
    assert run("optuna_search", tmp_path).keys() == {"hidden_size", "initializer_range", "learning_rate"}


def test_ray_rerank(tmp_path: Path) -> None:
    slates = run("ray_rerank", tmp_path)
    assert len(slates) == 40
    assert all(len(set(items)) == 4 for items in slates["item_ids"])


def test_fastapi_service() -> None:
    app = runpy.run_path(str(EXAMPLES / "fastapi_service.py"))["make_app"](str(example("degre-simulator")))
    [request, *_] = json.loads((example("degre-simulator") / "requests.json").read_text(encoding="utf-8"))
    client = TestClient(app)
    items = client.post("/rerank?slate_size=3", json=request).json()
    assert len({item["item_id"] for item in items}) == 3
    other = client.post(f"/rerank?bought={items[0]['item_id']}", json=request).json()
    assert items[0]["item_id"] not in {item["item_id"] for item in other}
    refused = client.post("/rerank", json={**request, "category": []})
    assert refused.status_code == 422
    assert "field 'category', row 0" in refused.json()["detail"]


def test_onnx_only(tmp_path: Path) -> None:
    folder = tmp_path / "graph"
    model = str(example("pointwise-simulator"))
    assert main(["export", model, "--format", "onnx", "--with-features", "--out", str(folder)]) == 0
    arguments = [sys.executable, "-c", WITHOUT_TORCH, str(EXAMPLES / "onnx_only.py"), str(folder)]
    told = subprocess.run(arguments, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert "candidate.item_id" in told.stdout
    assert "slate [" in told.stdout


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
