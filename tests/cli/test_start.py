from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Dataset

from rerankzoo import RerankingPipeline
from rerankzoo.cli import start
from rerankzoo.cli.main import main, run_command
from rerankzoo.cli.start import LogSize
from rerankzoo.errors import shown
from rerankzoo.training import log_size
from tests.conftest import TINY_SCHEMA


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass over the log, and two behaviours."""
    monkeypatch.setattr(log_size, "_MOST", 1)
    monkeypatch.setattr(log_size, "_FEWEST", 1)
    monkeypatch.setattr(start, "_BEHAVIOURS", "model.init_args.config.behaviour=independent,cascade")


def commands_of(out: Path) -> list[list[str]]:
    """The lines of a start's script, without its comments."""
    lines = (out / "start.sh").read_text().splitlines()
    return [shlex.split(line) for line in lines if line.startswith("rerankzoo ")]


def state_of(out: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((out / "start.json").read_text())
    return state


def test_too_little_feedback_trains_the_pointwise_ranker(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["start", str(data_folder), "--out", str(out)]) == 0
    told = capsys.readouterr().out.replace("\n", " ")
    assert "not enough feedback" in told
    assert list(state_of(out)["done"]) == ["diagnosis", "pointwise", "evaluation"]
    assert state_of(out)["recommended"] == str(out / "pointwise" / "best")
    request = pq.read_table(data_folder / "test.parquet").slice(0, 1).to_pylist()[0]
    items = RerankingPipeline.from_pretrained(out / "pointwise" / "best")(request)
    assert f"request: {', '.join(str(item['item_id']) for item in items)} -" in " ".join(told.split())
    # Every command that a person can go on with stands in the script, and that of a recipe in its head.
    assert [words[1] for words in commands_of(out)] == ["diagnose", *3 * ["fit"], "mine", "fit", "evaluate"]
    for name in ("pointwise", "prm", "evaluator", "degre"):
        text = (out / f"{name}.yaml").read_text()
        assert [line for line in commands_of(out) if str(out / f"{name}.yaml") in line] == [
            shlex.split(line[2:]) for line in text.splitlines() if line.startswith("# rerankzoo fit")
        ]
        recipe = yaml.safe_load(text)
        assert "slate_size" not in recipe["model"]["init_args"]["config"]
        assert recipe["data"]["init_args"]["path"] == str(out / "mined" if name == "degre" else data_folder)

    def refuse(words: list[str]) -> None:
        raise AssertionError(words)

    (out / "pointwise.yaml").write_text("changed by hand\n")
    monkeypatch.setattr(start, "run_command", refuse)
    assert main(["start", str(data_folder), "--out", str(out)]) == 0
    assert "pointwise is done" in capsys.readouterr().out
    assert (out / "pointwise.yaml").read_text() == "changed by hand\n"
    shutil.copytree(data_folder, tmp_path / "other")
    assert main(["start", str(tmp_path / "other"), "--out", str(out)]) == 2
    assert f"field 'data': {out} was begun with {shown(str(data_folder))}, not" in capsys.readouterr().err


def test_trains_everything_and_goes_on_where_it_was_stopped(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out, ran = tmp_path / "log", tmp_path / "out", list[str]()
    shutil.copytree(data_folder, folder)
    held_out = pq.read_table(folder / "train.parquet")
    pq.write_table(pa.concat_tables([held_out, held_out]), folder / "test.parquet")  # enough to tell anything

    def promise(words: list[str], broken: str = "") -> None:
        """Runs a command; a diagnosis is told what to find."""
        assert words[0] != "fit" or "--try" in words or words[-2:] == ["--ckpt_path", "last"]
        if words[0] == broken:
            raise OSError("no space left")
        ran.append(words[0])
        if words[0] == "diagnose":
            found = {"verdict": {"kind": "worth an A/B test", "text": "worth an A/B test", "reasons": []}}
            (out / "diagnosis.json").write_text(json.dumps(found))
        else:
            run_command(words)

    monkeypatch.setattr(start, "run_command", lambda words: promise(words, broken="mine"))
    assert main(["start", str(folder), "--out", str(out)]) == 2
    assert ran == ["diagnose", "fit", "fit", "fit"]
    ran.clear()
    monkeypatch.setattr(start, "run_command", promise)
    assert main(["start", str(folder), "--out", str(out)]) == 0
    assert ran == ["mine", "fit", "evaluate"]
    rows = json.loads((out / "evaluation" / "results.json").read_text())["rows"]
    greedy = {row["model"]: row["metrics"]["ndcg@4"] for row in rows if row["decoding"] == "greedy"}
    assert greedy.keys() == {"pointwise", "prm", "degre"}
    better = "degre" if greedy["degre"] > greedy["pointwise"] else "pointwise"
    assert state_of(out)["recommended"] == str(out / better / "best")
    config = json.loads((out / "degre" / "best" / "config.json").read_text())
    assert config["guide"]["architectures"] == ["InteractionEvaluator"]
    assert f"ndcg@4 {greedy['degre']:.4g}, pointwise {greedy['pointwise']:.4g}" in capsys.readouterr().out


def test_a_log_without_slates_trains_the_pointwise_ranker(
    data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "log", tmp_path / "out"
    shutil.copytree(data_folder, folder)
    schema = yaml.safe_load((folder / "schema.yaml").read_text())
    schema["targets"] = [{"name": "click", "candidate_feedback": "candidate_click"}]
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema))
    for split in ("train", "validation", "test"):
        table = pq.read_table(folder / f"{split}.parquet")
        pq.write_table(table.drop_columns(["slate", "click", "order"]), folder / f"{split}.parquet")
    assert main(["start", str(folder), "--out", str(out)]) == 0
    assert "the log has no whole slates" in capsys.readouterr().out
    assert list(state_of(out)["done"]) == ["pointwise", "evaluation"]
    assert (out / "evaluation" / "results.md").is_file()


def test_a_folder_without_a_split_is_named(
    data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data_folder, tmp_path / "log")
    (tmp_path / "log" / "validation.parquet").unlink()
    assert main(["start", str(tmp_path / "log"), "--out", str(tmp_path / "out")]) == 2
    assert "has no validation*.parquet; it has ['test', 'train']" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_log_decides_recipes_and_mining() -> None:
    rows = [{"item_id": [7, 8, 9], "slate": [0, 1]}, {"item_id": [7, 8], "slate": [1]}]
    size = LogSize.of(Dataset(pa.Table.from_pylist(rows)), TINY_SCHEMA)
    assert size == LogSize(requests=2, candidates=3, positions=2, views=1.0)
    settings = [
        dict(zip(words[::2], words[1::2], strict=True))
        for words in (
            LogSize(requests, candidates, positions, 1.0).mining()
            for requests, candidates, positions in ((5_000, 10, 4), (10**6, 10, 10), (10**6, 50, 10), (10**6, 500, 50))
        )
    ]
    assert [one["--num-requests"] for one in settings] == ["5000", "24000", "4800", "2000"]
    assert [one["--num-beams"] for one in settings] == ["16", "16", "16", "4"]
