"""Pushing a folder to the Hub: one commit, published once, and no fault of the network costs anything.

huggingface_hub retries uploads, but neither the making of a repository nor the commit itself; and where the answer to a
commit is lost, a caller cannot tell whether it arrived. Here every commit carries an id by which it is found again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from rerankzoo.errors import HubError
from rerankzoo.hub_errors import NetworkError, describe, redact, status_of
from rerankzoo.models.auto import EVALUATOR_FOLDER, evaluator_subfolder
from rerankzoo.text_files import read_json

logger = logging.getLogger(__name__)

#: Seconds before the second attempt, the third...
DELAYS = (1.0, 2.0, 4.0, 8.0, 16.0)
METRICS_FILE = "metrics.json"
RECIPE_FILE = "config.yaml"
#: What a folder of each kind must have.
_REQUIRED = {"model": "config.json", "dataset": "schema.yaml"}
#: Statuses that may be others a moment later; besides those from 500 on.
_PASSING = (408, 409, 412, 429)
#: Among so many of them an earlier process's pull request is looked for.
_NEWEST_PULLS = 20
_BINARY = (".safetensors", ".parquet", ".png")
#: Of an upload that failed huggingface_hub makes a RuntimeError, of a gateway's page of regret a JSONDecodeError.
_TRANSIENT = (NetworkError, OSError, RuntimeError, json.JSONDecodeError)

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
        words = ["rerankzoo", "push", str(self.folder), self.repo_id]
        words += ["--dataset"] if self.repo_type == "dataset" else []
        words += ["--private"] if self.private else []
        words += ["--create-pr"] if self.create_pr else []
        options = {"--evaluator": self.evaluator, "--revision": self.revision, "--message": self.message}
        words += [word for name, value in options.items() if value is not None for word in (name, str(value))]
        return shlex.join(words)

    def files(self) -> dict[str, Path]:
        """The files by their path in the repository.

        Raises:
            FileNotFoundError: If a folder is missing or is no checkpoint or data folder.
            FileExistsError: If there are two evaluators, or a file is a link out of the folder.
            HubError: If the evaluator is none.
        """
        found = dict(_walk(self.folder, _REQUIRED[self.repo_type]))
        if self.evaluator is not None:
            if (self.folder / EVALUATOR_FOLDER).is_dir():
                raise FileExistsError(f"{self.folder} has an evaluator already; {self.evaluator} cannot be a second")
            beside = _walk(self.evaluator / evaluator_subfolder(str(self.evaluator)), _REQUIRED["model"])
            found.update({f"{EVALUATOR_FOLDER}/{name}": path for name, path in beside})
        return found


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Attributes:
        url: Of the pull request, or else of the commit.
        commit: Its hash; where nothing had changed, that of the branch as it was.
        changed: Whether there was anything to push.
    """

    url: str
    commit: str
    changed: bool


def push_folder(push: Push, token: str | bool | None = None, snapshot: Path | None = None) -> Pushed:
    """Pushes a folder in one commit.

    The Hub's passing faults are waited out. Files of the repository that the folder lacks are kept.

    Args:
        push: What to push where.
        token: Of huggingface_hub; default: HF_TOKEN, or that of `hf auth login`. It appears in no message.
        snapshot: A copy of the folder to read, where the folder itself may change meanwhile.

    Returns:
        Where it is now.

    Raises:
        FileNotFoundError: If the folder is missing or is no checkpoint or data folder.
        FileExistsError: If there are two evaluators.
        HubError: If a file holds the token; or if the Hub refuses or stays unreachable: then the message ends with the
            command that pushes the folder later.
        ValueError: If `create_pr` is asked for on a branch.
    """
    try:
        validate_repo_id(push.repo_id)
    except HFValidationError as error:
        raise HubError(f"{push.repo_id!r} is no name of a repository; one is like org/name") from error
    if push.create_pr and push.revision not in (None, "main"):
        raise ValueError(f"a pull request goes to main; it cannot have revision {push.revision!r}")
    source = push if snapshot is None else replace(push, folder=snapshot)
    files = source.files()
    _refuse_token(files, token)
    try:
        return _push(replace(source, message=push.message or default_message(source.folder)), files, HfApi(token=token))
    except (*_TRANSIENT, ValueError) as error:  # a ValueError: the card's metadata is invalid
        reason = redact(describe(error, push.repo_id, push.revision), token)
    # Outside the handler: the error's own text and request may hold the token.
    raise HubError(f"{push.folder} was not pushed: {reason}. The folder is kept; push it later with: {push.command}")


def default_message(folder: Path) -> str:
    """What a commit is called: the architecture and the metric that its checkpoint was chosen by."""
    config = _read_json(folder / "config.json")
    name = (config.get("architectures") or [config.get("model_type") or folder.name])[0]
    chosen = _read_json(folder / METRICS_FILE)
    if chosen.get("monitor") is None or chosen.get("value") is None:
        return f"Upload {name}"
    return f"Upload {name}: {chosen['monitor']} {chosen['value']:.4g}"


def _push(push: Push, files: dict[str, Path], api: HfApi) -> Pushed:
    made = _persist(
        lambda: api.create_repo(push.repo_id, private=push.private, repo_type=push.repo_type, exist_ok=True)
    )
    where: dict[str, Any] = {"repo_id": made.repo_id, "repo_type": push.repo_type}
    if push.revision and not push.revision.startswith("refs/pr/"):
        _persist(lambda: api.create_branch(branch=str(push.revision), exist_ok=True, **where))
    kept = {path for path in push.keep if _persist(partial(_exists, api, push, where, path))}
    operations = {path: str(source) for path, source in sorted(files.items()) if path not in kept}
    name, attempts = uuid.uuid4().hex, 0
    if push.create_pr:
        # A process that was killed may have opened it. (On a branch there is then nothing left to change.)
        name = _contents_id(operations, _persist(lambda: str(api.repo_info(**where).sha)))
        if opened := _persist(lambda: _find(api, push, where, name)):
            return replace(opened, changed=False)

    def commit() -> Pushed:
        nonlocal attempts
        attempts += 1
        if attempts > 1 and (arrived := _find(api, push, where, name)):
            return arrived
        head = api.repo_info(revision=push.revision, **where).sha
        found = api.create_commit(
            operations=[CommitOperationAdd(path, source) for path, source in operations.items()],
            commit_message=str(push.message),
            commit_description=_description(name),
            revision=push.revision,
            create_pr=push.create_pr,
            parent_commit=head,  # a commit that the Hub works on after it seemed lost is not followed by its double
            **where,
        )
        return Pushed(found.pr_url or found.commit_url, found.oid, changed=found.oid != head)

    try:
        return _persist(commit)
    except _TRANSIENT:
        arrived = _persist(lambda: _find(api, push, where, name), delays=())  # the last answer was lost
        if arrived is None:
            raise
        return arrived


def _exists(api: HfApi, push: Push, where: dict[str, Any], path: str) -> bool:
    return bool(api.file_exists(filename=path, revision=push.revision, **where))


def _persist(action: Callable[[], T], delays: tuple[float, ...] | None = None) -> T:
    """Does something until it works, fails for good, or failed too often."""
    for delay in DELAYS if delays is None else delays:
        try:
            return action()
        except _TRANSIENT as error:
            if not _may_pass(error):
                raise
            logger.warning("the Hub failed (%s); trying again in %g s", redact(_short(error)), delay)
            time.sleep(delay)
    return action()


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, OfflineModeIsEnabled | LocalTokenNotFoundError):
        return False
    status = status_of(error)
    return status is None or status >= 500 or status in _PASSING


def _short(error: BaseException) -> str:
    status = status_of(error)
    return type(error).__name__ if status is None else f"status {status}"


def _contents_id(operations: dict[str, str], head: str) -> str:
    """Names a pull request by what it changes: the files, and the commit that they are put upon."""
    digest = hashlib.sha256(head.encode())
    for path, source in operations.items():
        digest.update(f"/{path}/".encode() + hashlib.sha256(Path(source).read_bytes()).digest())
    return digest.hexdigest()


def _find(api: HfApi, push: Push, where: dict[str, Any], name: str) -> Pushed | None:
    """The commit of this push, if it arrived: on the branch, or in one of the newest pull requests."""
    revisions = _pull_requests(api, where)[:_NEWEST_PULLS] if push.create_pr else [push.revision]
    for revision in revisions:
        for commit in api.list_repo_commits(revision=revision, **where):
            if _description(name) in commit.message:
                prefix = "datasets/" if push.repo_type == "dataset" else ""
                page = f"{api.endpoint}/{prefix}{where['repo_id']}"
                number = str(revision).removeprefix("refs/pr/")
                url = f"{page}/discussions/{number}" if push.create_pr else f"{page}/commit/{commit.commit_id}"
                return Pushed(url, commit.commit_id, changed=True)
    return None


def _pull_requests(api: HfApi, where: dict[str, Any]) -> list[str]:
    """The pull requests, the newest first."""
    refs = api.list_repo_refs(include_pull_requests=True, **where)
    pulls = [str(pull.ref) for pull in refs.pull_requests or []]
    return sorted(pulls, key=lambda ref: int(ref.removeprefix("refs/pr/")), reverse=True)


def _description(name: str) -> str:
    return f"Push-Id: {name}"


def _walk(folder: Path, required: str) -> Iterator[tuple[str, Path]]:
    """The files below a folder, without hidden ones, by their relative paths."""
    if not (folder / required).is_file():
        kind = "checkpoint" if required == "config.json" else "data folder"
        raise FileNotFoundError(f"{folder / required} is missing: {folder} is no {kind}")
    root = folder.resolve()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            if not path.resolve().is_relative_to(root):
                raise FileExistsError(f"{path} is a link to {path.resolve()}, outside the folder: put a copy there")
            yield relative.as_posix(), path


def _refuse_token(files: dict[str, Path], token: str | bool | None) -> None:
    secrets = [secret.encode() for secret in (token, get_token()) if isinstance(secret, str) and secret]
    for path in files.values():
        if path.suffix not in _BINARY and any(secret in path.read_bytes() for secret in secrets):
            raise HubError(f"{path} holds your token for the Hub, which would be published: take it out first")


def _read_json(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}
