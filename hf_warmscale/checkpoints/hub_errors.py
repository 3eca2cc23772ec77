"""Errors of the Hub as one sentence: what was asked for, what is wrong and what to do.

The one place where they are explained. Models, tokenizers and datasets are read within `explained_reading`; every push
runs within `explained_writing`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: of the client the library chose
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_warmscale.compat.huggingface_hub import limit_waits

Kind = Literal["model", "tokenizer", "dataset"]

TOO_MANY_REQUESTS = 429
TELLING = (HTTPError, HFValidationError, OfflineModeIsEnabled, UnicodeEncodeError)
"""What a client raises where the Hub, the network or a name is at fault. A token must be ASCII to be sent."""


@contextmanager
def explained_reading(repo_id: str, revision: str | None = None, *, kind: Kind = "model") -> Iterator[None]:
    """Explain why a repository cannot be read.

    Args:
        repo_id (`str`): its id.
        revision (`str`, *optional*): a branch, a tag or a commit.
        kind (`str`): what it should hold: `"model"`, `"tokenizer"` or `"dataset"`.

    Raises:
        FileNotFoundError: if there is no such repository or revision, or it is not in the cache and out of reach.
        OSError: if the Hub refuses, fails or does not answer.
    """
    limit_waits()
    try:
        yield
    except Exception as error:  # libraries wrap what the client raised in errors of their own
        found = _telling(error)
        if found is None and not isinstance(error, EntryNotFoundError):
            raise
        raise _reading_error(found or error, repo_id, revision, kind) from error


@contextmanager
def explained_writing(repo_id: str, token: str | None = None) -> Iterator[None]:
    """Explain why a push to a repository fails.

    Args:
        repo_id (`str`): its id.
        token (`str`, *optional*): the token of the push; by default the stored one.

    Raises:
        ValueError: if the id is not a possible one.
        OSError: if the Hub refuses, fails or cannot be reached.
    """
    limit_waits()
    try:
        yield
    except TELLING as error:
        raise _writing_error(error, repo_id, token) from error


def refuse_silence(repo_id: str) -> None:
    """Ask the Hub for a dataset once: where it does not answer, `datasets` asks a dozen times, with six tries each.

    Args:
        repo_id (`str`): its id; whatever else is wrong with it, `datasets` finds out.

    Raises:
        OSError: if the Hub does not answer in time.
    """
    try:
        with explained_reading(repo_id, kind="dataset"):
            HfApi().dataset_info(repo_id)
    except OSError as error:
        if _is_late(error.__cause__):
            raise


def _is_late(error: BaseException | None) -> bool:
    """Tell whether a wait had an end; the classes of the HTTP client change with the version of huggingface_hub."""
    return type(error).__name__.endswith("Timeout")


def _telling(error: BaseException) -> Exception | None:
    """Return the first error of a chain that says what is wrong; a file that is missing may well be optional."""
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        if isinstance(link, TELLING) and not isinstance(link, EntryNotFoundError):
            return link
        seen.add(id(link))
        link = link.__cause__ or link.__context__
    return None


def _reading_error(error: Exception, repo_id: str, revision: str | None, kind: Kind) -> OSError:
    at = f"{repo_id} at revision {revision}" if revision else repo_id
    if isinstance(error, HFValidationError):
        return FileNotFoundError(f"{repo_id} is neither a folder nor a possible Hub id; check the name.")
    if isinstance(error, GatedRepoError):
        return OSError(f"{at} is gated: accept its terms on {_page(repo_id, kind)} and log in with `hf auth login`.")
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(
            f"{repo_id} has no revision {revision} on the Hub; name one of its branches, tags or commits."
        )
    if isinstance(error, RepositoryNotFoundError):
        return FileNotFoundError(_no_such(repo_id, kind))
    if isinstance(error, DisabledRepoError):
        return OSError(f"{at} was disabled on the Hub; name another {kind}.")
    if isinstance(error, HfHubHTTPError) and error.response.status_code == 403:
        return OSError(
            f"Your Hub token may not read {at} ({_reason(error)}); give it read access to that repository on "
            f"{constants.ENDPOINT}/settings/tokens."
        )
    if (general := _general(error, f"{at} cannot be read")) is not None:
        return general
    return FileNotFoundError(_out_of_reach(at, kind))


def _writing_error(error: Exception, repo_id: str, token: str | None) -> OSError | ValueError:
    if isinstance(error, HFValidationError):
        return ValueError(f"{repo_id} is not a possible repository id; use the form organisation/name.")
    if isinstance(error, RepositoryNotFoundError):
        return OSError(
            f"The Hub has no repository {repo_id} that your token may write to; check the name and the token."
        )
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 403:
        return OSError(_no_right(_reason(error), repo_id, token))
    if status == 412:
        return OSError(f"{repo_id} was changed while it was pushed to; look at what is there now, then push again.")
    if (general := _general(error, f"The push to {repo_id} failed")) is not None:
        return general
    name = type(error).__name__
    return OSError(f"The push to {repo_id} failed: the Hub cannot be reached ({name}); push again with a network.")


def _general(error: Exception, failed: str) -> OSError | None:
    """Return what reading and writing have in common, or `None` if the Hub was not reached at all.

    Args:
        error (`Exception`): what the client raised.
        failed (`str`): the beginning of the sentence.
    """
    name = type(error).__name__
    if isinstance(error, UnicodeEncodeError) or name == "LocalProtocolError":
        return OSError(f"{failed}: the Hub token holds a character that no token has; copy it again.")
    if _is_late(error):
        return OSError(f"{failed}: the Hub did not answer in time ({name}); check the network and try again.")
    if not isinstance(error, HfHubHTTPError):
        return None
    status = error.response.status_code
    if status == 401:
        return OSError(
            f"{failed}: the Hub wants a valid token ({_reason(error)}); log in with `hf auth login`, or correct "
            "HF_TOKEN."
        )
    if status == TOO_MANY_REQUESTS:
        return OSError(
            f"{failed}: too many requests were sent to the Hub (HTTP status {status}); wait some minutes, and log in "
            "with `hf auth login` for a higher limit."
        )
    if status >= 500:
        return OSError(f"{failed}: the Hub has a fault of its own (HTTP status {status}); try again later.")
    return OSError(f"{failed}: the Hub refused ({_reason(error)}).")


def _no_such(repo_id: str, kind: Kind) -> str:
    if _is_a(repo_id, other := "model" if kind == "dataset" else "dataset"):
        remedy = "a dataset or local files" if kind == "dataset" else "a model; `warmscale data pack` reads datasets"
        return f"{repo_id} is a {other} on the Hub, not a {kind}: name {remedy}."
    local = "local file" if kind == "dataset" else "folder"
    return (
        f"There is neither a {local} nor a {kind} {repo_id} on the Hub; check the name, and log in with "
        "`hf auth login` if it is private."
    )


def _is_a(repo_id: str, kind: str) -> bool:
    with suppress(HTTPError, OSError):  # one more question to the Hub, which may not answer it
        return HfApi().repo_exists(repo_id, repo_type=kind)
    return False


def _no_right(reason: str, repo_id: str, token: str | None) -> str:
    """Tell a token that only reads from an account without the right."""
    role = None
    with suppress(HTTPError, OSError, KeyError):
        role = HfApi(token=token).whoami()["auth"]["accessToken"]["role"]
    if role == "read":
        return (
            f"The push to {repo_id} was refused: your Hub token may only read; make one that may write on "
            f"{constants.ENDPOINT}/settings/tokens and log in with `hf auth login`."
        )
    return (
        f"Your Hub token may not write to {repo_id} ({reason}); name a repository of your own, or get write access to "
        "this one for your account and for the token."
    )


def _out_of_reach(at: str, kind: Kind) -> str:
    local = "local file" if kind == "dataset" else "folder"
    if constants.HF_HUB_OFFLINE:
        return (
            f"There is no {local} {at}, and the Hub cache has no such {kind}; check the name, or unset HF_HUB_OFFLINE "
            "to download it."
        )
    return (
        f"{at} is neither a {local} nor in the Hub cache, and it cannot be downloaded; check the name and the network."
    )


def _page(repo_id: str, kind: Kind) -> str:
    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"


def _reason(error: Exception) -> str:
    """Return what the Hub said, on one line and without anything that looks like a token."""
    said = error.server_message if isinstance(error, HfHubHTTPError) else None
    lines = [line.strip() for line in (said or "").splitlines() if line.strip()]
    status = f"HTTP status {error.response.status_code}" if isinstance(error, HfHubHTTPError) else type(error).__name__
    return re.sub(r"hf_\w+", "hf_...", lines[0].rstrip(".")) if lines else status
