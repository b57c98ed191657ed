"""What the Hub's clients raise, turned into one error that says what to do."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hubprune.errors import AccessError, HubPruneError, NotFoundError, OfflineError, OutputError, UsageError

LOG_IN = "log in (hf auth login, HF_TOKEN or token=...)"
NOT_CACHED = "the cache does not hold it"
RUN_HERE = "or leave --job out to run here"
JOB_PRICES = "https://huggingface.co/docs/hub/jobs-pricing"
UNWRITABLE = (errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EPERM, errno.EROFS)


@contextmanager
def hub_errors(what: str, repo_id: str, repo_type: str = "model", *, api: Any = None) -> Iterator[None]:
    """Turn what the client raises inside the block into one error that says what to do; no message holds a token.

    Args:
        what: What is being done, a verb that the repository completes, such as ``push to``.
        repo_id: The repository.
        repo_type: ``model``, ``dataset`` or ``space``.
        api: The client, an ``HfApi``, for the address of its Hub.

    Raises:
        AccessError: The repository is gated or private, or the token may not do this.
        NotFoundError: There is no such repository, revision or file.
        OfflineError: The network is switched off, or the Hub is out of reach.
        OutputError: The cache cannot be written.
        UsageError: The name cannot be one of a repository.
    """
    try:
        yield
    except HubPruneError:
        raise
    except Exception as error:
        from huggingface_hub import constants

        endpoint = api.endpoint if api is not None else constants.ENDPOINT
        page = f"{endpoint}/{'' if repo_type == 'model' else repo_type + 's/'}{repo_id}"
        start = f"cannot {what} {repo_id}: "
        for link in _chain(error):
            found = _translate(link, start, page, "data set" if repo_type == "dataset" else repo_type)
            if found is not None:
                raise found from error
        if type(error) is OSError and error.errno is None:  # how transformers says that a file is missing
            raise NotFoundError(start + one_line(error)) from error
        raise


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those it came from; transformers and datasets put their own in front of the client's."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (link.__context__ if isinstance(link, OSError) else None)


def _translate(error: BaseException, start: str, page: str, kind: str) -> HubPruneError | None:
    from huggingface_hub import errors, is_offline_mode
    from huggingface_hub.utils import httpx

    match error:
        case errors.GatedRepoError():
            return AccessError(f"{start}it is gated; ask for access at {page} and {LOG_IN} as a user who has it")
        case errors.RepositoryNotFoundError() if error.response.status_code == 401:
            return AccessError(
                f"{start}there is no public {kind} at {page}; check the name, or {LOG_IN} if it is private"
            )
        case errors.RepositoryNotFoundError():
            return NotFoundError(f"{start}there is no {kind} at {page} that your token may see; check name and token")
        case errors.RevisionNotFoundError():
            return NotFoundError(f"{start}it has no such branch, tag or commit; {page} lists what it has")
        case errors.EntryNotFoundError() if not isinstance(error, errors.LocalEntryNotFoundError):
            return NotFoundError(start + one_line(error, last=True))
        case errors.LocalTokenNotFoundError():
            return AccessError(f"{start}it needs a token and there is none; {LOG_IN}")
        case errors.HfHubHTTPError():
            return _translate_status(error.response.status_code, error.server_message, start)
        case errors.HFValidationError():
            return UsageError(f"{start}that is neither a folder nor the name of a repository, 'owner/name'; check it")
        case httpx.TransportError() | errors.LocalEntryNotFoundError() | ConnectionError() | TimeoutError():
            if is_offline_mode():
                remedy = f"the network is switched off (HF_HUB_OFFLINE) and {NOT_CACHED}; run once with the network"
            else:
                remedy = (
                    f"{page} is out of reach; check the network, or set HF_HUB_OFFLINE=1 to use what is in the cache"
                )
            return OfflineError(start + remedy)
        case OSError(errno=number) if number in UNWRITABLE:
            place = error.filename or "the cache"
            return OutputError(f"{start}{place} cannot be written ({error.strerror}); make room, or set HF_HOME")
    return None


def _translate_status(status: int, message: str | None, start: str) -> HubPruneError:
    said = f"{start}the Hub answers {status}" + (f" ({redact(message)})" if message else "")
    match status:
        case 401:
            return AccessError(f"{said}; {LOG_IN} with a token that is valid")
        case 402:
            return AccessError(f"{said}: this needs a paid plan; take one, or do without")
        case 403:
            return AccessError(f"{said}; take a token that may do this, or a repository of your own")
        case _ if status == 429 or status >= 500:
            return OfflineError(f"{said}; try again later")
    return HubPruneError(said)


@contextmanager
def job_errors(what: str, *, api: Any) -> Iterator[None]:
    """Turn what the client raises about a job into one error that says what to do; no message holds a token.

    Args:
        what: What is being done, such as ``run a job``.
        api: The client, an ``HfApi``.

    Raises:
        AccessError: The token is not valid or may not do this, or nobody pays for the job.
        NotFoundError: The Hub has no jobs, or not this one.
        OfflineError: The network is switched off, or the Hub is out of reach.
    """
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx

    start = f"cannot {what}: "
    try:
        yield
    except errors.HfHubHTTPError as error:
        raise _translate_job_status(error.response.status_code, error.server_message, start) from error
    except (httpx.TransportError, ConnectionError, TimeoutError) as error:
        raise OfflineError(
            f"{start}{api.endpoint} is out of reach, or the network is switched off (HF_HUB_OFFLINE); check it, "
            + RUN_HERE
        ) from error


def _translate_job_status(status: int, message: str | None, start: str) -> HubPruneError:
    said = f"{start}the Hub answers {status}" + (f" ({redact(message)})" if message else "")
    match status:
        case 402 | 403:
            return AccessError(
                f"{said}; a job needs credit or a plan that pays for it ({JOB_PRICES}) and a token that may run "
                f"jobs: get them, {RUN_HERE}"
            )
        case 404:
            return NotFoundError(f"{said}; this Hub has no jobs, or not this one: check HF_ENDPOINT, {RUN_HERE}")
    return _translate_status(status, message, start)


def redact(text: str) -> str:
    """Return text without tokens."""
    return re.sub(r"hf_\w+", "hf_...", text)


def one_line(error: BaseException, *, last: bool = False) -> str:
    """Return the first or last line of a message, without tokens."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return redact(lines[-1 if last else 0])
