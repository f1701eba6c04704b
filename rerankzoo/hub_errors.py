"""What went wrong with the Hub, in one line that says what to do."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError

from rerankzoo.errors import HubError, error_chain, in_one_line

#: The base of what the HTTP library of huggingface_hub raises, whichever that is.
NetworkError = HTTPError

#: What transformers, safetensors, torch and json raise about files that are not what they should be.
_DAMAGED = (
    SafetensorError,
    StrictDataclassError,
    ValueError,
    TypeError,
    RuntimeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
)

_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
#: What errors mean; of an error of several of these classes, the first.
_MEANINGS: dict[type | tuple[type, ...], str] = {
    GatedRepoError: "the owner of {repo} asks for consent: request access on its page, then {log_in}",
    RepositoryNotFoundError: "the Hub shows no repository {repo}: there is none, or it is private and hidden from you "
    "(the Hub does not tell which); check the name, or {log_in}",
    RevisionNotFoundError: "{repo} has no revision {revision!r}: no branch, tag or commit has this name",
    (
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    ): "{repo} is not in the cache and the Hub cannot be reached; load it once online",
    HFValidationError: "{repo!r} is neither a folder here nor the name of a repository, which is like org/name",
    EntryNotFoundError: "{repo} has no file {file} at revision {revision!r}",
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
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    raised_in = "" if place is None else str(place.tb_frame.f_globals.get("__name__", ""))
    own = isinstance(error, ValueError | TypeError) and raised_in.split(".")[0] == __name__.split(".")[0]
    return own or isinstance(error, StrictDataclassError)  # which our configs raise


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error; `None` where the Hub did not answer."""
    answers = [link for link in error_chain(error) if isinstance(link, HfHubHTTPError)]
    return int(answers[0].response.status_code) if answers else None


def describe(error: BaseException, repo_id: str, revision: str | None = None) -> str:
    """Says in one line what an error of huggingface_hub or transformers means for a repository."""
    for link in error_chain(error):
        for kind, meaning in _MEANINGS.items():
            if isinstance(link, kind):
                file = re.search(r"/resolve/[^/]+/(\S+?)\.?(?:\s|$)", str(link))
                asked = revision or "main"
                return meaning.format(repo=repo_id, revision=asked, log_in=_LOG_IN, file=file[1] if file else "")
    if isinstance(error, json.JSONDecodeError):
        return "the Hub's answer is unreadable; try again"
    if isinstance(error, ValueError) and not isinstance(error, HfHubHTTPError):
        return redact(" ".join(str(error).split()))  # of the client, which knows better than the answer behind it
    status = status_of(error)
    if status == 401:
        return f"the Hub does not accept the token: it is missing, wrong or expired; {_LOG_IN}"
    if status == 403:
        return f"the token may not do this with {repo_id}: use one with write access to it"
    if status is not None:
        message = next(link.server_message for link in error_chain(error) if isinstance(link, HfHubHTTPError))
        return f"the Hub answers with status {status}" + (f" ({redact(' '.join(message.split()))})" if message else "")
    if any(isinstance(link, NetworkError) for link in error_chain(error)):
        return f"the Hub cannot be reached ({type(error).__name__}); try again"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    """What an error says, without an address of a page that there may not be."""
    return redact(str(error).strip().split("\n", 1)[0]).split(". Checkout", 1)[0] or type(error).__name__


@contextmanager
def one_line_errors(
    path: str | os.PathLike[str], revision: str | None = None, subfolder: str | None = None
) -> Iterator[None]:
    """Turns the errors of loading a checkpoint into a `HubError` of one line.

    Args:
        path: The folder or Hub id that is loaded.
        revision: The branch, tag or commit asked for.
        subfolder: Where in it.

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
    except _DAMAGED as error:
        if str(error).startswith("Unrecognized model"):
            file = f"{subfolder}/config.json" if subfolder else "config.json"
            raise HubError(f"cannot load {name}: it has no {file} that tells of a model") from error
        if is_refusal(error) and not isinstance(error, StrictDataclassError):
            raise
        reason = redact(in_one_line(error))
        raise HubError(f"cannot load {name}: {type(error).__name__}: {reason}") from error
