"""A page on which anyone prunes a model of the Hub for a domain, into an account of their own.

Visitors log in with Hugging Face; their token is used for their own requests and handed to the process of their run,
and is kept nowhere. ``wanted`` holds what may be asked for, ``work`` runs the command.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from ask import (
    cancel,
    forecast,
    history,
    may_run_jobs,
    options,
    preview,
    search_domains,
    search_general,
    search_models,
    timed_here,
)
from huggingface_hub import constants
from show import HEADING, notice, shown, state, tiles
from wanted import (
    AUTOMATIC,
    DOMAINS,
    GENERAL,
    HERE,
    LEAST_SPARSITY,
    MACHINES,
    MAX_LENGTH,
    MAX_SAMPLES,
    MOST_SPARSITY,
    WAYS,
    Refused,
    Wanted,
    choose_place,
)
from work import follow

import hubprune

FOLDER = Path(__file__).resolve().parent
PUBLIC = "https://huggingface.co"
MAX_WAITING = 20  # visitors in the queue
MAX_RUNS = 8  # runs that are followed at once, most of them jobs elsewhere
UNLIMITED = 2**50  # bytes: what a run would take where memory is no matter
METHOD, SPARSITY = "d-pruner", 0.5

# One run at a time on this hardware; the others wait. Who has a run under way starts no second one.
HARDWARE = threading.Lock()
BUSY: set[str] = set()
BUSY_LOCK = threading.Lock()
# The job that a visitor's run has become, so that it can be stopped; one that nobody follows any more goes on.
JOBS: dict[str, tuple[str, str]] = {}


def method_chosen(method: str) -> tuple[Any, str, Any]:
    """Set the slider to where the method starts, say what it does, and ask for the texts that it needs."""
    way = WAYS[method]
    kind = "fewer parameters" if way.shrinks else "zeros among the weights"
    about = f'<p class="about">{escape(way.about)} <span>{kind}</span></p>'
    return gr.update(value=way.sparsity), about, gr.update(visible="general" in way.texts)


def estimate(
    base: str,
    domain: str,
    general: str,
    method: str,
    sparsity: float,
    samples: float,
    length: float,
    place: str,
    token: gr.OAuthToken | None,
) -> Iterator[str]:
    """Say what the run would take, as far as it is known; the time at last."""
    if not base:
        yield notice("Choose a model to see what it takes.")
        return
    wanted = Wanted(base, domain, general, method, sparsity, int(samples), int(length), place=place)
    try:
        wanted.check()
        whole = forecast(wanted, token, max_memory=UNLIMITED, timed=False)
        yield tiles(whole, None, "…")
        here, fits = timed_here(wanted, token, whole.parameters)
        machine = choose_place(wanted, whole.parameters, fits, may_run_jobs(token) or token is None)
        yield tiles(whole, here, "this Space" if machine is None else f"a job on {machine}")
    except (Refused, hubprune.HubPruneError) as error:
        yield notice(str(error), bad=True)


def start(
    base: str,
    domain: str,
    general: str,
    method: str,
    sparsity: float,
    samples: float,
    length: float,
    name: str,
    private: bool,
    space: bool,
    place: str,
    profile: gr.OAuthProfile | None,
    token: gr.OAuthToken | None,
) -> Iterator[tuple[str, str]]:
    """Carry out a run and show how it goes on: its state, and its log."""
    if profile is None or token is None:
        yield notice("Log in with Hugging Face first: the result goes into your account.", bad=True), ""
        return
    wanted = Wanted(
        base, domain, general, method, sparsity, int(samples), int(length), name.strip(), private, space, place
    )
    try:
        wanted.check()
        with one_run_of(profile.username):
            yield state("Checking", "Reading the model's outline and the text"), ""
            parameters = forecast(wanted, token, max_memory=UNLIMITED, timed=False).parameters
            fits = timed_here(wanted, token, parameters, timed=False)[1]
            machine = choose_place(wanted, parameters, fits, may_run_jobs(token))
            arguments = wanted.arguments(profile.username, machine)
            yield from run(arguments, f"{profile.username}/{name.strip() or wanted.suggestion}", token.token, machine)
    except (Refused, hubprune.HubPruneError) as error:
        yield notice(str(error).replace(token.token, "hf_…"), bad=True), ""


def run(arguments: list[str], target: str, token: str, machine: str | None) -> Iterator[tuple[str, str]]:
    """Run the command, here when it is this hardware's turn, or as a job."""
    user = target.partition("/")[0]
    JOBS.pop(user, None)
    if machine is not None:
        for moment in follow(arguments, token, None):
            if moment.output.job is not None:
                JOBS[user] = moment.output.job
            if moment.code is not None:
                JOBS.pop(user, None)
            yield shown(moment, target, f"Job on {machine}")
        return
    while not HARDWARE.acquire(timeout=1):
        yield state("Waiting", "Another run is on this hardware; yours is next or soon"), ""
    try:
        for moment in follow(arguments, token):
            yield shown(moment, target, "Pruning")
    finally:
        HARDWARE.release()


def stop(profile: gr.OAuthProfile | None, token: gr.OAuthToken | None) -> str:
    """Say that a run was stopped, as its process just was; a job is cancelled too, for it would go on and cost."""
    job = None if profile is None else JOBS.pop(profile.username, None)
    return notice("Stopped.") if job is None else cancel(job, token)


@contextmanager
def one_run_of(user: str) -> Iterator[None]:
    """Let a visitor have one run at a time.

    Raises:
        Refused: One is under way.
    """
    with BUSY_LOCK:
        if user in BUSY:
            raise Refused("a run of yours is under way: wait for its end, or stop it")
        BUSY.add(user)
    try:
        yield
    finally:
        with BUSY_LOCK:
            BUSY.discard(user)


def command(
    base: str,
    domain: str,
    general: str,
    method: str,
    sparsity: float,
    samples: float,
    length: float,
    name: str,
    private: bool,
    space: bool,
) -> tuple[str, Any]:
    """The same on a machine of one's own, and what the result is called unless something else is written."""
    wanted = Wanted(
        base or "", domain, general, method, sparsity, int(samples), int(length), name.strip(), private, space
    )
    try:
        wanted.check()
    except Refused:
        return "", gr.update(placeholder="my-model")
    return "hubprune " + " \\\n    ".join(wanted.arguments("me", None)), gr.update(placeholder=wanted.suggestion)


def build() -> gr.Blocks:
    """Return the page."""
    with gr.Blocks(title="Prune my repo", analytics_enabled=False) as page:
        with gr.Row(elem_id="top"):
            gr.HTML(HEADING, elem_id="heading")
            gr.LoginButton(elem_id="login", size="md")
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=5, elem_classes="steps"):
                fields = questions()
            with gr.Column(scale=4, elem_id="side"):
                said = gr.HTML(notice("Choose a model to see what it takes."), elem_id="estimate")
                with gr.Row(elem_id="buttons"):
                    go = gr.Button("Prune and publish", variant="primary", elem_id="go")
                    halt = gr.Button("Stop", elem_id="stop")
                progress = gr.HTML("", elem_id="progress")
                log = gr.Textbox(label="Log", lines=8, max_lines=14, interactive=False, autoscroll=True, elem_id="log")
                with gr.Accordion("The same on your machine", open=False):
                    told = gr.Code(language="shell", show_label=False, interactive=False, elem_id="command")
        with gr.Column(elem_id="mine"):
            gr.HTML("<h2>Your models</h2>")
            mine = gr.HTML(notice("Log in to see the models that you made."), elem_id="history")
        wire(page, fields, said, (go, halt), (progress, log), told, mine)
    if constants.ENDPOINT != PUBLIC:
        page.space_id = None  # Gradio's page would ask the public Hub about this Space
    return page.queue(max_size=MAX_WAITING, default_concurrency_limit=4)


def questions() -> dict[str, Any]:
    """Lay out what a visitor chooses; the names are those of ``Wanted``."""
    fields: dict[str, Any] = {}
    with gr.Group(elem_classes="step"):
        gr.HTML("<h2><i>1</i>Model</h2>")
        fields["base"] = gr.Dropdown(
            [], value=None, label="Base model", info="Type to search the Hub", allow_custom_value=True, elem_id="base"
        )
    with gr.Group(elem_classes="step"):
        gr.HTML("<h2><i>2</i>Domain</h2>")
        with gr.Row():
            fields["domain"] = gr.Dropdown(
                options(DOMAINS),
                value="medical",
                label="What it is for",
                info="A preset, or type to search data sets",
                allow_custom_value=True,
                elem_id="domain",
            )
            fields["general"] = gr.Dropdown(
                options(GENERAL),
                value="general",
                label="General text",
                info="What it must not forget",
                allow_custom_value=True,
                elem_id="general",
            )
        fields["preview"] = gr.HTML("", elem_id="preview")
    with gr.Group(elem_classes="step"):
        gr.HTML("<h2><i>3</i>Method</h2>")
        fields["method"] = gr.Dropdown(
            [(way.label, name) for name, way in WAYS.items()], value=METHOD, label="Method", elem_id="method"
        )
        fields["about"] = gr.HTML(method_chosen(METHOD)[1])
        fields["sparsity"] = gr.Slider(
            LEAST_SPARSITY, MOST_SPARSITY, value=SPARSITY, step=0.05, label="Fraction to remove", elem_id="sparsity"
        )
        with gr.Accordion("Amount of text", open=False, elem_id="amount"), gr.Row():
            fields["samples"] = gr.Slider(
                4, MAX_SAMPLES, value=128, step=4, label="Sequences of each text", elem_id="samples"
            )
            fields["length"] = gr.Slider(
                32, MAX_LENGTH, value=512, step=32, label="Tokens in a sequence", elem_id="length"
            )
    with gr.Group(elem_classes="step"):
        gr.HTML("<h2><i>4</i>Result</h2>")
        with gr.Row():
            fields["name"] = gr.Textbox(
                label="Name", placeholder="my-model", max_length=96, info="In your account", elem_id="name"
            )
            places = [("Automatic", AUTOMATIC), ("This Space", HERE), *((f"Job on {name}", name) for name in MACHINES)]
            fields["place"] = gr.Dropdown(
                places, value=AUTOMATIC, label="Where", info="Jobs are paid by you", elem_id="place"
            )
        with gr.Row():
            fields["private"] = gr.Checkbox(False, label="Private", elem_id="private")
            fields["space"] = gr.Checkbox(False, label="With a Space to try it", elem_id="space")
    return fields


def wire(
    page: gr.Blocks,
    fields: dict[str, Any],
    said: gr.HTML,
    buttons: tuple[gr.Button, gr.Button],
    shown_run: tuple[gr.HTML, gr.Textbox],
    told: gr.Code,
    mine: gr.HTML,
) -> None:
    """Connect what is on the page."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    pick = fields.__getitem__
    text = [pick(name) for name in ("base", "domain", "general", "method")]
    amount = [pick(name) for name in ("sparsity", "samples", "length")]
    fields["base"].key_up(search_models, None, fields["base"], concurrency_id="search", **quiet)
    fields["domain"].key_up(search_domains, None, fields["domain"], concurrency_id="search", **quiet)
    fields["general"].key_up(search_general, None, fields["general"], concurrency_id="search", **quiet)
    fields["method"].change(
        method_chosen, fields["method"], [fields["sparsity"], fields["about"], fields["general"]], **quiet
    )
    late: dict[str, Any] = {**quiet, "trigger_mode": "always_last"}
    gr.on([field.change for field in text], preview, text, fields["preview"], concurrency_id="look", **late)
    gr.on(
        [field.change for field in (*text, *amount, fields["place"])],
        estimate,
        [*text, *amount, fields["place"]],
        said,
        concurrency_id="look",
        **late,
    )
    result = [fields["name"], fields["private"], fields["space"]]
    gr.on(
        [field.change for field in (*text, *amount, *result)],
        command,
        [*text, *amount, *result],
        [told, fields["name"]],
        **late,
    )
    running = buttons[0].click(
        start,
        [*text, *amount, *result, fields["place"]],
        list(shown_run),
        concurrency_id="run",
        concurrency_limit=MAX_RUNS,
        **quiet,
    )
    running.then(history, None, mine, **quiet)
    buttons[1].click(stop, None, shown_run[0], cancels=[running], **quiet)
    page.load(history, None, mine, **quiet)


LETTERS = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
THEME = gr.themes.Base(
    primary_hue="orange", neutral_hue="stone", radius_size="lg", font=LETTERS, font_mono=["ui-monospace", "monospace"]
).set(body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400")

if __name__ == "__main__":
    build().launch(
        theme=THEME,
        css_paths=FOLDER / "style.css",
        footer_links=["gradio"],
        ssr_mode=False,
        max_file_size="1kb",  # nothing is uploaded
    )
