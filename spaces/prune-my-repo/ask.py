"""What the Hub and hubprune are asked in a visitor's name: models, texts, rows, what a run takes, earlier runs."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError
from show import entry, notice
from transformers import AutoTokenizer
from wanted import DOMAINS, GENERAL, HERE_PARAMETERS, Refused, Wanted

import hubprune

MAX_FOUND = 12  # hits of a search
MAX_HISTORY = 30
PREVIEW_ROWS, PREVIEW_LENGTH = 2, 256


def secret(token: gr.OAuthToken | None) -> str | bool:
    """A visitor's token for the Hub's clients; False, never the Space's own, for somebody who is not logged in."""
    return token.token if token is not None else False


def client(token: gr.OAuthToken | None) -> HfApi:
    """A client of the Hub in a visitor's name."""
    return HfApi(token=secret(token), library_name="prune-my-repo", library_version=hubprune.__version__)


def search_models(typed: gr.KeyUpData, token: gr.OAuthToken | None) -> Any:
    """Offer models whose name holds what is typed."""
    found = client(token).list_models(
        search=typed.input_value or "", pipeline_tag="text-generation", sort="downloads", limit=MAX_FOUND
    )
    return gr.update(choices=[model.id for model in found])


def search_texts(presets: dict[str, str], typed: str, token: gr.OAuthToken | None) -> Any:
    """Offer data sets whose name holds what is typed, below the presets."""
    found = client(token).list_datasets(search=typed, sort="downloads", limit=MAX_FOUND) if typed else ()
    return gr.update(choices=[*options(presets), *(data.id for data in found)])


def search_domains(typed: gr.KeyUpData, token: gr.OAuthToken | None) -> Any:
    """Offer text of a domain."""
    return search_texts(DOMAINS, typed.input_value or "", token)


def search_general(typed: gr.KeyUpData, token: gr.OAuthToken | None) -> Any:
    """Offer general text."""
    return search_texts(GENERAL, typed.input_value or "", token)


def options(presets: dict[str, str]) -> list[tuple[str, str]]:
    """Presets as a dropdown takes them."""
    return [(label, name) for name, label in presets.items()]


def preview(base: str, domain: str, general: str, method: str, token: gr.OAuthToken | None) -> str:
    """Show the first rows of each text as the model will read them."""
    wanted = Wanted(base, domain, general, method, 0.5)
    if not base:
        return ""
    try:
        wanted.check()
        if not wanted.texts:
            return notice("This method reads no text.")
        tokenizer = AutoTokenizer.from_pretrained(base, token=secret(token), trust_remote_code=False)
        rows = []
        for label, text in wanted.texts.items():
            found = hubprune.load_corpus(
                text,
                tokenizer,
                name=label,
                token=secret(token),
                progress=False,
                at_most=True,
                num_samples=PREVIEW_ROWS * (1 + text.count("+") + (text in (*DOMAINS, *GENERAL))),
                sequence_length=PREVIEW_LENGTH,
            )
            rows += [(label, sample) for sample in found.facts.samples[:PREVIEW_ROWS]]
    except (Refused, hubprune.HubPruneError, OSError, ValueError) as error:
        return notice(str(error), bad=True)
    cells = "".join(f'<li class="{label}"><b>{label}</b><p>{escape(text)}</p></li>' for label, text in rows)
    return f'<ul class="rows">{cells}</ul>'


def forecast(wanted: Wanted, token: gr.OAuthToken | None, **more: Any) -> Any:
    """What ``hubprune.plan`` says of a run; nothing large is downloaded."""
    return hubprune.plan(
        wanted.base,
        config=hubprune.PruningConfig(wanted.method, sparsity=wanted.sparsity),
        corpora=wanted.texts,
        num_samples=wanted.samples,
        sequence_length=wanted.length,
        evaluation=None,
        progress=False,
        token=secret(token),
        **more,
    )


def timed_here(
    wanted: Wanted, token: gr.OAuthToken | None, parameters: int, *, timed: bool = True
) -> tuple[float | None, bool]:
    """The seconds that the pruning takes on this hardware, None where that is not known, and whether it fits here."""
    if parameters > HERE_PARAMETERS:
        return None, False
    try:
        return forecast(wanted, token, timed=timed).seconds, True
    except hubprune.HubPruneError:  # all else was in order a moment ago: this memory is too small
        return None, False


def may_run_jobs(token: gr.OAuthToken | None) -> bool:
    """Whether a visitor allowed this Space to run jobs."""
    return token is not None and "jobs" in token.scope.split()


def cancel(job: tuple[str, str], token: gr.OAuthToken | None) -> str:
    """Cancel a visitor's job, by its owner and number, and say so."""
    owner, number = job
    try:
        client(token).cancel_job(job_id=number, namespace=owner)
    except (HfHubHTTPError, OSError) as error:
        page = f"{constants.ENDPOINT}/jobs/{owner}/{number}"
        return notice(f"The job goes on ({type(error).__name__}): cancel it on its page, {page}", bad=True)
    return notice("Stopped: the job was cancelled.")


def history(profile: gr.OAuthProfile | None, token: gr.OAuthToken | None) -> str:
    """A visitor's own models that hubprune made, the newest first; the Hub knows them, this Space does not."""
    if profile is None:
        return notice("Log in to see the models that you made.")
    try:
        found = list(
            client(token).list_models(
                author=profile.username, filter="hubprune", sort="lastModified", limit=MAX_HISTORY, cardData=True
            )
        )
    except (HfHubHTTPError, OSError) as error:
        return notice(f"the Hub does not say what you have ({type(error).__name__}): try again", bad=True)
    return f'<ul class="history">{"".join(map(entry, found))}</ul>' if found else notice("None yet.")
