"""Pushing a folder over HTTP: published once, whatever the Hub does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

from rerankzoo.errors import HubError
from rerankzoo.hub.push import Push, push_folder
from rerankzoo.hub_errors import redact
from tests.hub.processes import Run
from tests.hub.server import READER, WRITER, Fault, LoopbackHub

TITLE = "Upload NAR4RecForReranking: val/loss 0.4321"
WRONG = "hf_ThisTokenIsKnownToNobodyAtAll"

CommandLine = Callable[..., list[Run]]


def write_checkpoint(folder: Path, weights: bytes, architecture: str = "NAR4RecForReranking") -> Path:
    """A folder that looks like a checkpoint to what moves files."""
    folder.mkdir(parents=True)
    config = {"model_type": "nar4rec", "architectures": [architecture]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(weights * 500)
    (folder / "metrics.json").write_text(json.dumps({"monitor": "val/loss", "value": 0.43211}), encoding="utf-8")
    (folder / "README.md").write_text("---\nlibrary_name: rerankzoo\n---\nA card.\n", encoding="utf-8")
    (folder / ".hidden").touch()
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "best", b"generator")


@pytest.fixture
def evaluator(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "judge", b"evaluator", "NAR4RecEvaluator")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.slow
def test_pushes_in_one_commit(hub: LoopbackHub, command_line: CommandLine, folder: Path, evaluator: Path) -> None:
    data = folder.parent / "data"
    data.mkdir()
    (data / "schema.yaml").write_text("name: shop\n", encoding="utf-8")
    (data / "train.parquet").write_bytes(b"PAR1" * 100)
    first, second, both, branch, pull, private, dataset = command_line(
        ["push", str(folder), "org/plain"],
        ["push", str(folder), "org/plain"],
        ["push", str(folder), "org/both", "--evaluator", str(evaluator), "--message", "Two models"],
        ["push", str(evaluator), "org/both", "--revision", "small"],
        ["push", str(evaluator), "org/both", "--create-pr", "--message", "Consider this"],
        ["push", str(folder), "org/secret", "--private"],
        ["push", str(data), "org/log", "--dataset"],
    )
    assert [run.status for run in (first, second, both, branch, pull, private, dataset)] == [0] * 7
    assert hub.titles("org/plain") == [TITLE]  # nothing had changed the second time
    assert hub.files("org/plain") == contents(folder)
    assert "up to date" in second.out
    assert re.fullmatch(rf"{hub.url}/org/plain/commit/\w{{40}}\n", first.out)
    assert hub.titles("org/both") == ["Two models"]
    beside = {f"evaluator/{name}": content for name, content in contents(evaluator).items()}
    assert hub.files("org/both") == contents(folder) | beside
    assert hub.titles("org/both", "small") == [TITLE.replace("ForReranking", "Evaluator"), "Two models"]
    assert hub.files("org/both", "small")["model.safetensors"] == (evaluator / "model.safetensors").read_bytes()
    assert hub.titles("org/both", "refs/pr/1") == ["Consider this", "Two models"]
    assert pull.out == f"{hub.url}/org/both/discussions/1\n"
    assert hub.repository("org/secret").private
    assert not hub.repository("org/plain").private
    assert set(hub.files("org/log", kind="datasets")) == {"schema.yaml", "train.parquet"}


@pytest.mark.slow
def test_faults_cost_nothing(hub: LoopbackHub, command_line: CommandLine, folder: Path) -> None:
    hub.faults = [
        Fault("create", "503", 3, "org/busy"),
        Fault("validate", "503"),
        Fault("commit", "503", 3, "org/busy"),
        Fault("commit", "drop", 1, "org/dropped"),
        Fault("commit", "drop", 1, "org/proposed"),
        Fault("create", "drop", 2, "org/created"),
        Fault("commit", "drop", 5, "org/deaf"),
    ]
    before = contents(folder)
    runs = command_line(
        ["push", str(folder), "org/busy"],
        ["push", str(folder), "org/dropped"],
        ["push", str(folder), "org/proposed", "--create-pr"],
        ["push", str(folder), "org/created"],
        ["push", str(folder), "org/deaf"],
    )
    assert [run.status for run in runs] == [0, 0, 2, 0, 0]
    for repo in ("org/busy", "org/dropped", "org/created", "org/deaf"):
        assert hub.titles(repo) == [TITLE], repo
        assert hub.files(repo) == before
    assert hub.titles("org/proposed") == []
    assert list(hub.repository("org/proposed").pulls) == ["refs/pr/1"]  # its answer was lost, and it is said so
    assert "unless the pull request is there all the same, with: rerankzoo push" in runs[2].err
    assert contents(folder) == before


@pytest.mark.slow
def test_final_failures_are_one_line_and_name_the_command(
    hub: LoopbackHub, command_line: CommandLine, folder: Path
) -> None:
    hub.faults = [Fault("*", "503", 1000, "org/down")]
    before = contents(folder)
    spoilt = write_checkpoint(folder.parent / "spoilt", b"weights")
    (spoilt / "README.md").write_text("---\nlicense: [mit]\n---\n", encoding="utf-8")
    down, reader, wrong, nobody, invalid = command_line(
        ["push", str(folder), "org/down", "--private", "--message", "It's here"],
        (READER, ["push", str(folder), "org/a"]),
        (WRONG, ["push", str(folder), "org/a"]),
        (None, ["push", str(folder), "org/a"]),
        ["push", str(spoilt), "org/invalid"],
    )
    assert "Invalid metadata in README.md" in invalid.err.splitlines()[-1]
    assert hub.titles("org/invalid") == []
    last = [run.err.splitlines()[-1] for run in (down, reader, wrong, nobody)]
    assert [run.status for run in (down, reader, wrong, nobody)] == [2] * 4
    assert "status 503" in last[0]
    assert last[0].endswith(f"rerankzoo push {folder} org/down --private --message 'It'\"'\"'s here'")
    assert "write access" in last[1]
    assert all("hf auth login" in line for line in last[2:])
    assert all("folder is kept" in line for line in last)
    assert list(hub.repositories) == [("models", "org/invalid")]
    assert contents(folder) == before
    for run in (down, reader, wrong, nobody):
        assert not [token for token in (WRITER, READER, WRONG) if token in run.out + run.err]


def test_refuses_what_is_no_checkpoint(folder: Path, evaluator: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", b"generator")
    (folder / "evaluator").mkdir()
    with pytest.raises(FileExistsError, match="has an evaluator already"):
        Push(folder, "org/a", evaluator=evaluator).files()
    (folder / "evaluator").rmdir()
    with pytest.raises(HubError, match="is no evaluator"):
        Push(evaluator, "org/a", evaluator=folder).files()
    evaluator.rename(folder / "evaluator")  # named by the generator that it is beside
    assert Push(other, "org/a", evaluator=folder).files()["evaluator/config.json"] == folder / "evaluator/config.json"
    (folder / "evaluator").rename(evaluator)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="is not a checkpoint"):
        Push(folder, "org/a").files()
    with pytest.raises(FileNotFoundError, match="is not a data folder"):
        Push(evaluator, "org/a", repo_type="dataset").files()
    with pytest.raises(OSError, match="'a/b/c' is not the name of a repository"):
        push_folder(Push(evaluator, "a/b/c"))
    with pytest.raises(ValueError, match="goes to main"):
        push_folder(Push(evaluator, "org/a", revision="b", create_pr=True))


def test_refuses_to_publish_the_token(folder: Path) -> None:
    (folder / "config.yaml").write_text(f"wandb_key: {WRITER}\n", encoding="utf-8")
    with pytest.raises(OSError, match=r"config\.yaml holds your token") as refused:
        push_folder(Push(folder, "org/a"), token=WRITER)
    assert WRITER not in str(refused.value)


def test_offline_is_said_in_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: Any, **options: Any) -> None:
        raise OfflineModeIsEnabled("Cannot reach https://hub: offline mode is enabled.")

    monkeypatch.setattr(HfApi, "create_repo", offline)
    with pytest.raises(HubError, match=r"^\S+ was not pushed: HF_HUB_OFFLINE is set; unset it to push\. The folder is"):
        push_folder(Push(folder, "org/a"))

    def unreachable(*arguments: Any, **options: Any) -> None:
        raise HTTPError(f"no route, and my token is {WRITER}")

    monkeypatch.setattr(HfApi, "create_repo", unreachable)
    monkeypatch.setattr("rerankzoo.hub.push.DELAYS", (0.0,))
    with pytest.raises(HubError, match=r"^\S+ was not pushed: the Hub cannot be reached \(\w+\); try again\. ") as said:
        push_folder(Push(folder, "org/a"), token=WRITER)
    assert WRITER not in str(said.value)


def test_redacts_tokens() -> None:
    assert redact(f"sent {WRITER}, and own-secret", "own-secret") == "sent (token), and (token)"
