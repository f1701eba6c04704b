"""Pushing a folder to the Hub: one commit, and the Hub's passing faults are waited out.

huggingface_hub sends only what the repository lacks, and makes no commit where that is nothing: a commit whose answer
was lost is simply made again.
"""

from __future__ import annotations

import json
import logging
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from rerankzoo.errors import HubError, RerankingDataError, shown
from rerankzoo.hub_errors import answer_of, describe, redact
from rerankzoo.models.auto import EVALUATOR_FOLDER, evaluator_subfolder
from rerankzoo.text_files import read_json

logger = logging.getLogger(__name__)

#: Seconds before the second attempt, the third...
DELAYS = (1.0, 2.0, 4.0, 8.0, 16.0)
METRICS_FILE = "metrics.json"
RECIPE_FILE = "config.yaml"
#: What a folder of each kind must have, and what it is called.
_REQUIRED = {"model": ("config.json", "checkpoint"), "dataset": ("schema.yaml", "data folder")}
#: Statuses that may be others a moment later.
_PASSING = (408, 409, 412, 429, *range(500, 600))
_BINARY = (".safetensors", ".parquet", ".png")
#: Of an upload that failed huggingface_hub makes a RuntimeError, of a gateway's page of regret a JSONDecodeError.
_TRANSIENT = (HTTPError, OSError, RuntimeError, json.JSONDecodeError)

T = TypeVar("T")


@dataclass(frozen=True)
class Push:
    """What to push where.

    Attributes:
        folder: A checkpoint or data folder; files whose names begin with a dot stay.
        repo_id: The repository, made if there is none.
        private: Whether to make it private; `None`: as the owner's default says.
        revision: The branch, made if there is none; default: main.
        create_pr: Open a pull request instead.
        message: Title of the commit; default: what the folder holds, with the metric it was chosen by.
        evaluator: Folder of an evaluator, or of a generator with one beside it; becomes the subfolder `evaluator`.
        repo_type: `"model"` or `"dataset"`.
        keep: Files that are not replaced where the repository has them.
    """

    folder: Path
    repo_id: str
    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False
    message: str | None = None
    evaluator: Path | None = None
    repo_type: str = "model"
    keep: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command line that does the same."""
        flags = {"--dataset": self.repo_type == "dataset", "--private": self.private, "--create-pr": self.create_pr}
        options = {"--evaluator": self.evaluator, "--revision": self.revision, "--message": self.message}
        words = [name for name, value in flags.items() if value]
        words += [word for name, value in options.items() if value is not None for word in (name, str(value))]
        return shlex.join(["rerankzoo", "push", str(self.folder), self.repo_id, *words])

    def files(self) -> dict[str, Path]:
        """The files by their path in the repository; raises as `push_folder`."""
        files = dict(_walk(self.folder, *_REQUIRED[self.repo_type]))
        if self.evaluator is not None:
            if (self.folder / EVALUATOR_FOLDER).is_dir():
                raise FileExistsError(f"{self.folder} has an evaluator already; {self.evaluator} cannot be a second")
            beside = _walk(self.evaluator / evaluator_subfolder(str(self.evaluator)), *_REQUIRED["model"])
            files.update({f"{EVALUATOR_FOLDER}/{name}": path for name, path in beside})
        return files


def _walk(folder: Path, required: str, kind: str) -> Iterator[tuple[str, Path]]:
    """The files below a folder, without hidden ones, by their relative paths."""
    if not (folder / required).is_file():
        raise FileNotFoundError(f"{folder / required} not found: {folder} is not a {kind}")
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            if not path.resolve().is_relative_to(folder.resolve()):
                raise FileExistsError(f"{path} is a link to {path.resolve()}, outside the folder: put a copy there")
            yield relative.as_posix(), path


class Pushed(NamedTuple):
    """What a push did."""

    url: str  # of the pull request, or else of the commit
    commit: str  # its hash; where nothing had changed, that of the branch as it was
    changed: bool  # whether there was anything to push


def push_folder(push: Push, token: str | bool | None = None, snapshot: Path | None = None) -> Pushed:
    """Pushes a folder in one commit.

    The Hub's passing faults are waited out; where the answer to a pull request is lost, it is not asked for again.
    Files of the repository that the folder lacks are kept.

    Args:
        push: What to push where.
        token: Of huggingface_hub; default: HF_TOKEN, or that of `hf auth login`. It appears in no message.
        snapshot: A copy of the folder to read, where the folder itself may change meanwhile.

    Raises:
        FileNotFoundError: If the folder is missing or is no checkpoint or data folder.
        FileExistsError: If there are two evaluators, or a file is a link out of the folder.
        HubError: If the evaluator is none, or a file holds the token; or if the Hub refuses or stays unreachable: then
            the message ends with the command that pushes the folder later.
        ValueError: If `create_pr` is asked for on a branch.
    """
    try:
        validate_repo_id(push.repo_id)
    except HFValidationError as error:
        raise HubError(f"{push.repo_id!r} is not the name of a repository, which is like org/name") from error
    if push.create_pr and push.revision not in (None, "main"):
        raise ValueError(f"a pull request goes to main; it cannot have revision {push.revision!r}")
    source = replace(push, folder=snapshot or push.folder)
    files = source.files()
    secrets = [secret.encode() for secret in (token, get_token()) if isinstance(secret, str) and secret]
    for path in files.values():
        if path.suffix not in _BINARY and any(secret in path.read_bytes() for secret in secrets):
            raise HubError(f"{path} holds your token for the Hub, which would be published: take it out first")
    try:
        return _push(replace(source, message=push.message or _message(source.folder)), files, HfApi(token=token))
    except OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE is set; unset it to push"
    except (*_TRANSIENT, ValueError) as error:  # a ValueError: the card's metadata is invalid
        reason = redact(describe(error, push.repo_id, push.revision), token)
    # Outside the handler: the error's own text and request may hold the token.
    look = ", unless the pull request is there all the same," if push.create_pr else ""
    raise HubError(
        f"{push.folder} was not pushed: {reason}. The folder is kept; push it later{look} with: {push.command}"
    )


def _message(folder: Path) -> str:
    """What a commit is called: the architecture and the metric that its checkpoint was chosen by."""
    config, chosen = read_object(folder / "config.json"), read_object(folder / METRICS_FILE)
    name = (config.get("architectures") or [config.get("model_type") or folder.name])[0]
    if chosen.get("monitor") is None or chosen.get("value") is None:
        return f"Upload {name}"
    return f"Upload {name}: {chosen['monitor']} {chosen['value']:.4g}"


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint; empty where there is no such file."""
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise RerankingDataError(f"expected a JSON object, got {shown(values)}", field=str(path))
    return values


def _push(push: Push, files: dict[str, Path], api: HfApi) -> Pushed:
    where: dict[str, Any] = {"repo_id": push.repo_id, "repo_type": push.repo_type}
    where["repo_id"] = _persist(partial(api.create_repo, private=push.private, exist_ok=True, **where)).repo_id
    if push.revision and not push.revision.startswith("refs/pr/"):
        _persist(lambda: api.create_branch(branch=str(push.revision), exist_ok=True, **where))
    where["revision"] = push.revision
    kept = [path for path in push.keep if _persist(partial(api.file_exists, filename=path, **where))]
    heads: list[str] = []

    def commit() -> CommitInfo:
        heads.append(str(api.repo_info(**where).sha))
        return api.create_commit(
            operations=[CommitOperationAdd(path, str(files[path])) for path in sorted(files) if path not in kept],
            commit_message=str(push.message),
            create_pr=push.create_pr,
            parent_commit=heads[-1],  # refused where a commit that seemed lost has been made meanwhile
            **where,
        )

    # Asked for again, a pull request would be a second one, so only where the Hub has refused the first.
    info = _persist(commit, if_lost=not push.create_pr)
    return Pushed(info.pr_url or info.commit_url, info.oid, changed=info.oid != heads[0])


def _persist(action: Callable[[], T], if_lost: bool = True) -> T:
    """Does something until it works, fails for good, or failed too often."""
    for delay in DELAYS:
        try:
            return action()
        except _TRANSIENT as error:
            status = None if (answer := answer_of(error)) is None else answer.response.status_code
            passing = if_lost if status is None else status in _PASSING
            if not passing or isinstance(error, OfflineModeIsEnabled | LocalTokenNotFoundError):
                raise
            logger.warning("the Hub failed (%s); trying again in %g s", status or type(error).__name__, delay)
            time.sleep(delay)
    return action()
