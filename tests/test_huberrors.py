"""Whatever a client of the Hub raises, the user reads one line: what failed, why, what to do; and never a token."""

from __future__ import annotations

import errno

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub import errors as client
from huggingface_hub.utils import httpx

from hubprune.errors import (
    AccessError,
    ConfigError,
    HubPruneError,
    NotFoundError,
    OfflineError,
    OutputError,
    UsageError,
)
from hubprune.huberrors import hub_errors

API = HfApi(endpoint="https://hub.example")
PAGE = "https://hub.example/org/x"
LOG_IN = "log in (hf auth login, HF_TOKEN or token=...)"
OUT_OF_REACH = f"{PAGE} is out of reach; check the network, or set HF_HUB_OFFLINE=1 to use what is in the cache"
SWITCHED_OFF = "the network is switched off (HF_HUB_OFFLINE) and the cache does not hold it; run once with the network"
TOKEN = "hf_" + "Secret0" * 5


def answer(kind: type[client.HfHubHTTPError], status: int, said: str | None = None) -> client.HfHubHTTPError:
    """What the client raises for an answer of the Hub."""
    response = httpx.Response(status, request=httpx.Request("GET", PAGE))
    return kind("404 Client Error.\n\nEntry Not Found for url.", response=response, server_message=said)


def raised(error: Exception, repo_type: str = "model") -> HubPruneError:
    """What the user gets when a client raises this."""
    with pytest.raises(HubPruneError) as caught, hub_errors("read", "org/x", repo_type, api=API):
        raise error
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            answer(client.GatedRepoError, 403),
            AccessError,
            f"it is gated; ask for access at {PAGE} and {LOG_IN} as a user who has it",
        ),
        (
            answer(client.RepositoryNotFoundError, 401),
            AccessError,
            f"there is no public model at {PAGE}; check the name, or {LOG_IN} if it is private",
        ),
        (
            answer(client.RepositoryNotFoundError, 404),
            NotFoundError,
            f"there is no model at {PAGE} that your token may see; check name and token",
        ),
        (
            answer(client.RevisionNotFoundError, 404),
            NotFoundError,
            f"it has no such branch, tag or commit; {PAGE} lists what it has",
        ),
        (answer(client.RemoteEntryNotFoundError, 404), NotFoundError, "Entry Not Found for url."),
        (client.LocalTokenNotFoundError(), AccessError, f"it needs a token and there is none; {LOG_IN}"),
        (
            answer(client.HfHubHTTPError, 401, "bad credentials"),
            AccessError,
            f"the Hub answers 401 (bad credentials); {LOG_IN} with a token that is valid",
        ),
        (
            answer(client.HfHubHTTPError, 402, "PRO only"),
            AccessError,
            "the Hub answers 402 (PRO only): this needs a paid plan; take one, or do without",
        ),
        (
            answer(client.HfHubHTTPError, 403),
            AccessError,
            "the Hub answers 403; take a token that may do this, or a repository of your own",
        ),
        (answer(client.HfHubHTTPError, 429), OfflineError, "the Hub answers 429; try again later"),
        (answer(client.HfHubHTTPError, 503), OfflineError, "the Hub answers 503; try again later"),
        (answer(client.HfHubHTTPError, 409, "taken"), HubPruneError, "the Hub answers 409 (taken)"),
        (
            client.HFValidationError("no such form"),
            UsageError,
            "that is neither a folder nor the name of a repository, 'owner/name'; check it",
        ),
        (httpx.ConnectError("refused"), OfflineError, OUT_OF_REACH),
        (TimeoutError(), OfflineError, OUT_OF_REACH),
        (client.LocalEntryNotFoundError("not in the cache"), OfflineError, OUT_OF_REACH),
        (
            OSError(errno.ENOSPC, "No space left on device", "cache/x"),
            OutputError,
            "cache/x cannot be written (No space left on device); make room, or set HF_HOME",
        ),
        (OSError("org/x has no file config.json.\nSee the page."), NotFoundError, "org/x has no file config.json."),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_a_client_raises_becomes_one_line(error: Exception, kind: type[HubPruneError], message: str) -> None:
    found = raised(error)
    assert type(found) is kind
    assert str(found) == f"cannot read org/x: {message}"


def test_a_data_set_has_its_own_page_and_name() -> None:
    found = raised(answer(client.RepositoryNotFoundError, 404), "dataset")
    assert "there is no data set at https://hub.example/datasets/org/x that" in str(found)


def test_the_reason_is_found_behind_the_error_of_another_library() -> None:
    def wrapped(reason: Exception) -> Exception:
        try:
            try:
                raise reason
            except Exception as error:
                raise OSError("Can't load the config. See the documentation.") from error
        except OSError as error:
            return error

    assert isinstance(raised(wrapped(answer(client.GatedRepoError, 403))), AccessError)
    assert isinstance(raised(wrapped(httpx.ConnectError("refused"))), OfflineError)
    assert isinstance(raised(wrapped(ValueError("any"))), NotFoundError)


@pytest.mark.parametrize("error", [client.OfflineModeIsEnabled("x"), client.LocalEntryNotFoundError("x")])
def test_a_network_that_is_switched_off_is_not_called_out_of_reach(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = raised(error)
    assert type(found) is OfflineError
    assert str(found) == f"cannot read org/x: {SWITCHED_OFF}"


def test_what_is_said_already_is_not_said_again() -> None:
    mistake = ConfigError("a rule is broken")
    assert raised(mistake) is mistake


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError(errno.EIO, "Input/output error"), KeyError("x")])
def test_an_error_of_the_program_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, hub_errors("read", "org/x"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [
        answer(client.HfHubHTTPError, 401, f"{TOKEN} is not valid"),
        answer(client.HfHubHTTPError, 500, f"{TOKEN} broke it"),
        OSError(f"org/x has no file config.json for {TOKEN}"),
    ],
)
def test_a_token_is_never_shown(error: Exception) -> None:
    found = raised(error)
    assert "hf_..." in str(found)
    assert "Secret0" not in str(found)


def test_the_page_is_that_of_the_clients_hub_or_of_the_settings() -> None:
    with pytest.raises(NotFoundError, match=constants.ENDPOINT), hub_errors("read", "org/x"):
        raise answer(client.RepositoryNotFoundError, 404)
