"""What went wrong with the Hub, in one line that says what to do."""

from __future__ import annotations

import json
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import errors as hub
from huggingface_hub import get_token
from safetensors import SafetensorError

from rerankzoo.errors import LIBRARY_ERRORS, HubError, error_chain, in_one_line

_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
_UNREACHABLE = "{repo} is not in the cache and the Hub cannot be reached; load it once online"
#: What errors mean; of an error of several of these classes, the first.
_MEANINGS: dict[type[BaseException], str] = {
    hub.GatedRepoError: f"the owner of {{repo}} asks for consent: request access on its page, then {_LOG_IN}",
    hub.RepositoryNotFoundError: "the Hub shows no repository {repo}: there is none, or it is private and hidden from "
    f"you (the Hub does not tell which); check the name, or {_LOG_IN}",
    hub.RevisionNotFoundError: "{repo} has no revision {revision!r}: no branch, tag or commit has this name",
    hub.LocalEntryNotFoundError: _UNREACHABLE,
    hub.OfflineModeIsEnabled: _UNREACHABLE,
    hub.HFValidationError: "{repo!r} is neither a folder here nor the name of a repository, which is like org/name",
    hub.EntryNotFoundError: "{repo} has no file {file} at revision {revision!r}",
}
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")


def redact(text: str, token: str | bool | None = None) -> str:
    """A text without tokens: neither the given one, nor this machine's, nor anything that looks like one."""
    for secret in (token, get_token()):
        if isinstance(secret, str) and secret:
            text = text.replace(secret, "(token)")
    return _TOKEN.sub("(token)", text)


def is_refusal(error: Exception) -> bool:
    """Whether this package itself raised an error about a value, so that its text says all there is to know.

    An error out of another library may as well be a mistake of ours; of that one wants to see the traceback.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = bool(frames) and str(frames[-1].f_globals.get("__name__")).split(".")[0] == "rerankzoo"
    return (ours and isinstance(error, ValueError | TypeError)) or isinstance(error, hub.StrictDataclassError)


def answer_of(error: BaseException) -> hub.HfHubHTTPError | None:
    """The Hub's answer behind an error; `None` where it gave none."""
    return next((link for link in error_chain(error) if isinstance(link, hub.HfHubHTTPError)), None)


def describe(error: BaseException, repo_id: str, revision: str | None = None) -> str:
    """Says in one line what an error of huggingface_hub or transformers means for a repository."""
    for link in error_chain(error):
        for kind, meaning in _MEANINGS.items():
            if isinstance(link, kind):
                file = "".join(re.findall(r"/resolve/[^/]+/(\S+?)\.?(?:\s|$)", str(link))[:1])
                return meaning.format(repo=repo_id, revision=revision or "main", file=file)
    if isinstance(error, json.JSONDecodeError):
        return "the Hub's answer is unreadable; try again"
    if isinstance(error, ValueError) and not isinstance(error, hub.HfHubHTTPError):
        return redact(" ".join(str(error).split()))  # of the client, which knows better than the answer behind it
    if (answer := answer_of(error)) is not None:
        status, said = answer.response.status_code, " ".join((answer.server_message or "").split())
        if status == 401:
            return f"the Hub does not accept the token: it is missing, wrong or expired; {_LOG_IN}"
        if status == 403:
            return f"the token may not do this with {repo_id}: use one with write access to it"
        return f"the Hub answers with status {status}" + (f" ({redact(said)})" if said else "")
    if any(isinstance(link, hub.HTTPError) for link in error_chain(error)):
        return f"the Hub cannot be reached ({type(error).__name__}); try again"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    """What an error says, without an address of a page that there may not be."""
    return redact(str(error).strip().split("\n", 1)[0]).split(". Checkout", 1)[0] or type(error).__name__


@contextmanager
def one_line_errors(
    path: str | os.PathLike[str], revision: str | None = None, subfolder: str | None = None
) -> Iterator[None]:
    """Turns the errors of loading a checkpoint from a folder or Hub id into a `HubError` of one line.

    Raises:
        HubError: Instead of any `OSError`, where there is no config of a model, and instead of whatever other libraries
            raise about a file that is damaged. What this package itself says of a value, it says in one line already.
    """
    name = os.fspath(path)
    try:
        yield
    except HubError:
        raise
    except OSError as error:
        reason = _first_line(error) if Path(name).is_dir() else describe(error, name, revision)
        raise HubError(f"cannot load {name}: {reason}") from error
    except (SafetensorError, hub.StrictDataclassError, *LIBRARY_ERRORS) as error:
        if str(error).startswith("Unrecognized model"):
            folder = f"{subfolder}/" if subfolder else ""
            raise HubError(f"cannot load {name}: it has no {folder}config.json that tells of a model") from error
        if is_refusal(error) and not isinstance(error, hub.StrictDataclassError):
            raise
        raise HubError(f"cannot load {name}: {type(error).__name__}: {redact(in_one_line(error))}") from error
