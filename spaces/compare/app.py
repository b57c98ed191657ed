"""A pruned language model beside the one it was made from.

What is shown, and which commits of the two models are loaded, stands in ``space.json``; nothing else is fetched.
Runs on a processor, on a GPU and on ZeroGPU. ``PRUNED_MODEL`` names a folder to load instead of the pruned model's
repository, ``MEMORY_GIB`` the memory that the models may take where the machine's own should not count.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

try:
    from spaces import GPU  # on ZeroGPU, where it must come before torch
except ImportError:
    GPU = None

import gradio as gr
import torch
from huggingface_hub import constants
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

HERE = Path(__file__).resolve().parent
SPACE: dict[str, Any] = json.loads((HERE / "space.json").read_text(encoding="utf-8"))
VARIANTS = ("base", "pruned")
LOADERS = {"AutoModelForCausalLM": AutoModelForCausalLM, "AutoModelForSeq2SeqLM": AutoModelForSeq2SeqLM}

MAX_CHARACTERS = 4_000  # of a prompt
MAX_INPUT_TOKENS = 1_024
MAX_NEW_TOKENS = 256
MAX_TEMPERATURE = 2.0
MIN_TOP_P = 0.05
MAX_WAITING = 16  # visitors in the queue
PAUSE = 0.05  # seconds between two looks at an answer: showing it takes time from the model
GPU_SECONDS = 120  # that both answers take at most on ZeroGPU
SILENCE = 120.0  # seconds without a token after which an answer is given up
SHARE_OF_MEMORY = 0.8  # for the weights; the rest is for everything else
ZERO_GPU_BYTES = 40 * 2**30  # of one ZeroGPU slice, which cannot be asked before a GPU is there
FLOAT32_BYTES = 4


@dataclass
class Side:
    """One of the two models.

    Attributes:
        variant: ``base`` or ``pruned``.
        model: The model; None where it is not loaded.
        why: Why it is not loaded.
    """

    variant: str
    model: Any = None
    why: str = ""


@dataclass
class Answer:
    """What a model has written so far.

    Attributes:
        text: The text.
        tokens: Tokens of it.
        first: Seconds until the first token; None before it.
        rate: Tokens a second from the first one on; None before the second.
        state: ``waiting``, ``writing``, ``done``, ``recorded`` or ``none``.
        note: What the visitor should know about it.
    """

    text: str = ""
    tokens: int = 0
    first: float | None = None
    rate: float | None = None
    state: str = "waiting"
    note: str = ""


@dataclass
class TokenTimes:
    """Moments at which tokens came out, in seconds."""

    started: float = field(default_factory=time.perf_counter)
    moments: list[float] = field(default_factory=list)

    def fill(self, answer: Answer) -> None:
        """Write into an answer how fast it comes."""
        moments = list(self.moments)
        answer.tokens = len(moments)
        if moments:
            answer.first = moments[0] - self.started
        if len(moments) > 1 and moments[-1] > moments[0]:
            answer.rate = (len(moments) - 1) / (moments[-1] - moments[0])


class TimedStreamer(TextIteratorStreamer):
    """A streamer that notes when each token came out; text is handed out in whole words."""

    def __init__(self, tokenizer: Any, times: TokenTimes) -> None:
        super().__init__(tokenizer, skip_prompt=True, timeout=SILENCE, skip_special_tokens=True)
        self.times = times

    def put(self, value: Any) -> None:
        """Take a token, or at first the prompt."""
        if not self.next_tokens_are_prompt:
            self.times.moments.append(time.perf_counter())
        super().put(value)


class Stop(StoppingCriteria):
    """Ends an answer that nobody waits for any more."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Say for each sequence whether it ends."""
        return torch.full((input_ids.shape[0],), self.asked.is_set(), device=input_ids.device)


def on_zero_gpu() -> bool:
    """Whether a GPU is lent for each answer."""
    return GPU is not None and bool(os.environ.get("SPACES_ZERO_GPU"))


def memory_bytes() -> int:
    """Memory that the models may take together."""
    if os.environ.get("MEMORY_GIB"):
        return int(float(os.environ["MEMORY_GIB"]) * 2**30)
    if on_zero_gpu():
        return ZERO_GPU_BYTES
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(limit).read_text(encoding="utf-8").strip() if Path(limit).is_file() else ""
        sizes += [int(text)] if text.isdigit() else []
    return min(sizes)


def gigabytes(count: float) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def place(variant: str) -> tuple[str, str | None]:
    """Where a model is loaded from: a repository and its commit, or a folder."""
    if variant == "pruned" and os.environ.get("PRUNED_MODEL"):
        return os.environ["PRUNED_MODEL"], None
    return SPACE[variant]["repo"], SPACE[variant]["revision"]


def load_side(variant: str, taken: int, room: int, device: str) -> Side:
    """Load a model, unless it does not fit.

    Args:
        variant: ``base`` or ``pruned``.
        taken: Bytes that are kept for the other one.
        room: Bytes for both.
        device: Where it goes.
    """
    facts = SPACE[variant]
    repo, revision = place(variant)
    if not repo:
        return Side(variant, why="it is in no repository that could be loaded")
    # Processors are slow in half precision; where there is room, weights are widened.
    wide = device == "cpu" and taken + facts["parameters"] * FLOAT32_BYTES <= room
    needed = facts["parameters"] * (FLOAT32_BYTES if wide else facts["item_bytes"])
    if taken + needed > room:
        return Side(variant, why=f"it takes {gigabytes(needed)}, and {gigabytes(max(0, room - taken))} are free here")
    try:
        model = LOADERS[SPACE["loader"]].from_pretrained(
            repo,
            revision=revision,
            dtype=torch.float32 if wide else "auto",
            trust_remote_code=SPACE["trust_remote_code"],
        )
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        print(f"{repo} cannot be loaded: {error}")
        return Side(variant, why=f"it cannot be loaded ({reason})")
    return Side(variant, model.to(device).eval())


def load() -> tuple[dict[str, Side], Any]:
    """Load both models and the tokenizer; the pruned model comes first where there is room for one only."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    room = int(SHARE_OF_MEMORY * memory_bytes())
    both = {name: SPACE[name]["parameters"] * FLOAT32_BYTES for name in VARIANTS}
    fits = sum(both.values()) <= room
    pruned = load_side("pruned", both["base"] if fits else 0, room, device)
    used = 0 if pruned.model is None else sum(p.numel() * p.element_size() for p in pruned.model.parameters())
    base = load_side("base", used, room, device)
    for side in (base, pruned):
        if side.model is not None and not on_zero_gpu():
            start = torch.tensor([[0]], device=device)
            side.model.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=2, pad_token_id=0)
    return {"base": base, "pruned": pruned}, load_tokenizer()


def load_tokenizer() -> Any:
    """Load the tokenizer of the pruned model, which is the base's."""
    for variant in reversed(VARIANTS):
        repo, revision = place(variant)
        if repo:
            try:
                return AutoTokenizer.from_pretrained(
                    repo, revision=revision, trust_remote_code=SPACE["trust_remote_code"]
                )
            except (OSError, ValueError) as error:
                print(f"{repo} has no tokenizer that can be loaded: {error}")
    return None


SIDES, TOKENIZER = load()


def encode(prompt: str, as_chat: bool, new_tokens: int, model: Any) -> dict[str, torch.Tensor]:
    """Return the prompt as tokens, its beginning cut away where it is too long."""
    if as_chat and TOKENIZER.chat_template:
        text = TOKENIZER.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    else:
        ids = TOKENIZER(prompt)["input_ids"]
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or MAX_INPUT_TOKENS
    kept = ids[-max(1, min(MAX_INPUT_TOKENS, context - new_tokens)) :]
    tokens = torch.tensor([kept], device=model.device)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def write(side: Side, prompt: str, as_chat: bool, settings: dict[str, Any], seed: int) -> Iterator[Answer]:
    """Let a model answer.

    Args:
        side: The model.
        prompt: The prompt.
        as_chat: Whether to put the prompt through the tokenizer's chat template.
        settings: Keywords of ``generate``.
        seed: Seed of the sampling.

    Yields:
        The answer as far as it is; the same object each time.
    """
    inputs = encode(prompt, as_chat, settings["max_new_tokens"], side.model)
    answer, stop, failed = Answer(state="writing"), Stop(), []
    times = TokenTimes()
    streamer = TimedStreamer(TOKENIZER, times)

    def generate() -> None:
        try:
            torch.manual_seed(seed)
            side.model.generate(
                **inputs, **settings, streamer=streamer, stopping_criteria=StoppingCriteriaList([stop])
            )
        except Exception as error:  # shown to the visitor, who would wait for ever otherwise
            failed.append(error)
            streamer.end()

    thread = threading.Thread(target=generate, daemon=True)
    thread.start()
    shown = 0.0
    try:
        for part in streamer:
            answer.text += part
            if time.perf_counter() - shown >= PAUSE:
                times.fill(answer)
                yield answer
                shown = time.perf_counter()
    finally:
        stop.asked.set()
        thread.join()
    times.fill(answer)
    answer.state = "done"
    if failed:
        print(f"{side.variant}: {failed[0]!r}")
        answer.note = f"it failed: {failed[0]}"
    yield answer


def recorded(variant: str, prompt: str, why: str) -> Answer:
    """Return what a model that is not loaded wrote after this prompt when it was measured, if it did."""
    said = next((row for row in SPACE["recorded"][variant] if row["prompt"].strip() == prompt.strip()), None)
    if said is not None:
        return Answer(text=said["text"], tokens=said["tokens"], state="recorded")
    more = " Some of the examples have a recorded answer." if SPACE["recorded"][variant] else ""
    return Answer(state="none", note=f"This model is not run here: {why}.{more}")


def compare(
    prompt: str, as_chat: bool, temperature: float, top_p: float, new_tokens: float
) -> Iterator[tuple[str, str]]:
    """Let both models answer, one after the other, so that neither slows the other down.

    Args:
        prompt: The prompt; what is beyond the limits is cut off.
        as_chat: Whether to put it through the chat template.
        temperature: 0 for the likeliest token each time.
        top_p: Share of the probability that tokens are drawn from.
        new_tokens: Tokens that each model writes at most.

    Yields:
        The two answers, as HTML.
    """
    prompt = prompt[-MAX_CHARACTERS:]
    if not prompt.strip():
        raise gr.Error("Write a prompt, or take an example.", print_exception=False)
    temperature = min(max(float(temperature), 0.0), MAX_TEMPERATURE)
    settings: dict[str, Any] = {
        "max_new_tokens": int(min(max(new_tokens, 1), MAX_NEW_TOKENS)),
        "do_sample": temperature > 0,
        "temperature": temperature if temperature > 0 else None,
        "top_p": min(max(float(top_p), MIN_TOP_P), 1.0) if temperature > 0 else None,
        "top_k": None,
    }
    if TOKENIZER is not None:
        settings["pad_token_id"] = TOKENIZER.pad_token_id if TOKENIZER.pad_token_id is not None else 0
    seed = secrets.randbelow(2**31)  # both draw with the same random numbers
    answers = {name: Answer() for name in VARIANTS}
    for name, side in SIDES.items():
        if side.model is None or TOKENIZER is None:
            answers[name] = recorded(name, prompt, side.why or "there is no tokenizer")
    yield show(prompt, answers)
    for name, side in SIDES.items():
        if answers[name].state == "waiting":
            for answers[name] in write(side, prompt, as_chat, settings, seed):
                yield show(prompt, answers)


def lent(function: Callable[..., Any]) -> Callable[..., Any]:
    """Ask for a GPU while the function runs, where GPUs are lent."""
    return function if GPU is None else GPU(duration=GPU_SECONDS)(function)


def show(prompt: str, answers: dict[str, Answer]) -> tuple[str, str]:
    """Return both answers as HTML."""
    return card("base", prompt, answers["base"]), card("pruned", prompt, answers["pruned"])


def card(variant: str, prompt: str = "", answer: Answer | None = None) -> str:
    """Return one answer as HTML; without one, the empty card."""
    facts = SPACE[variant]
    name = escape(facts["name"])
    title = f'<a href="{constants.ENDPOINT}/{escape(facts["repo"])}">{name}</a>' if facts["repo"] else name
    head = f'<header><span class="role">{variant}</span><h3>{title}</h3><p>{escape(facts["about"])}</p></header>'
    if answer is None:
        why = SIDES[variant].why
        said = f"Not run here: {escape(why)}." if why else "Its answer appears here."
        return f'<article class="answer {variant} empty">{head}<p class="text">{said}</p></article>'
    caret = '<span class="caret"></span>' if answer.state in ("waiting", "writing") else ""
    # An encoder-decoder answers; the others go on with the prompt.
    gap = "\n\n" if SPACE["loader"] == "AutoModelForSeq2SeqLM" else ""
    asked = f'<span class="prompt">{escape(prompt)}{gap}</span>' if answer.state != "none" else ""
    text = f"{asked}{escape(answer.text)}{caret}" + (
        f'<span class="note">{escape(answer.note)}</span>' if answer.note else ""
    )
    body = f'<p class="text" aria-live="polite">{text}</p>'
    return f'<article class="answer {variant} {answer.state}">{head}{body}<footer>{speed(answer)}</footer></article>'


def speed(answer: Answer) -> str:
    """Return how fast an answer came, as HTML."""
    if answer.state == "recorded":
        return "<span>recorded when the model was measured, the likeliest token each time</span>"
    if answer.state == "none":
        return "<span>no answer</span>"
    if answer.first is None:
        return "<span>waiting</span>"
    rate = f"{answer.rate:,.1f}" if answer.rate is not None else "–"
    return (
        f"<span><b>{rate}</b> tokens/s</span><span>first token <b>{answer.first:.2f} s</b></span>"
        f"<span><b>{answer.tokens}</b> tokens</span>"
    )


def heading() -> str:
    """Return the title, what was done, and the figures that sum it up, as HTML."""
    tiles = "".join(f"<li><b>{escape(value)}</b><span>{escape(what)}</span></li>" for value, what in SPACE["facts"])
    links = [f'<a href="{constants.ENDPOINT}/{escape(SPACE["pruned"]["repo"] or "")}">Model card</a>']
    links += [f'<a href="{constants.ENDPOINT}/{escape(SPACE["base"]["repo"] or "")}">Base model</a>']
    shown = [link for link, name in zip(links, reversed(VARIANTS), strict=True) if SPACE[name]["repo"]]
    return (
        f'<div class="heading"><h1>{escape(SPACE["title"])}</h1><p>{escape(SPACE["lead"])}</p>'
        f"<ul>{tiles}</ul><nav>{''.join(shown)}</nav></div>"
    )


def results() -> str:
    """Return the tables of the run and its figure, as HTML."""
    parts = []
    for table in SPACE["tables"]:
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table["head"])
        rows = "".join(
            f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
            for row in table["rows"]
        )
        note = f"<p>{escape(table['note'])}</p>" if table["note"] else ""
        parts.append(
            f'<section><h2>{escape(table["title"])}</h2><div class="wide"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div>{note}</section>"
        )
    for figure in SPACE["figures"]:
        data = base64.b64encode((HERE / figure["file"]).read_bytes()).decode()
        parts.append(
            f"<section><h2>{escape(figure['title'])}</h2><figure>"
            f'<img src="data:image/png;base64,{data}" alt="{escape(figure["title"])}">'
            f"<figcaption>{escape(figure['caption'])}</figcaption></figure></section>"
        )
    return f'<div class="results">{"".join(parts)}</div>'


def notices() -> str:
    """Return what a visitor should know about models that are not loaded, as HTML; empty where both are."""
    lines = [
        f"The {name} model is not run here: {side.why}. "
        + ("Its column shows what it wrote when it was measured. " if SPACE["recorded"][name] else "")
        for name, side in SIDES.items()
        if side.why
    ]
    secret = (
        "A private or gated model needs the secret HF_TOKEN in the settings of this Space: a token that may read it."
    )
    denied = any("cannot be loaded" in line for line in lines) and not os.environ.get("HF_TOKEN")
    said = [*lines, *([secret] if denied else [])]
    return (
        f'<div class="notice" role="status">{"".join(f"<p>{escape(line)}</p>" for line in said)}</div>' if said else ""
    )


def build() -> gr.Blocks:
    """Return the page."""
    with gr.Blocks(title=SPACE["title"], analytics_enabled=False) as page:
        gr.HTML(heading())
        if notices():
            gr.HTML(notices())
        prompt = gr.Textbox(
            label="Prompt",
            placeholder="Both models go on with what stands here",
            value=SPACE["examples"][0] if SPACE["examples"] else "",
            lines=3,
            max_lines=10,
            max_length=MAX_CHARACTERS,
            elem_id="prompt",
        )
        with gr.Row(elem_id="buttons"):
            run = gr.Button("Compare", variant="primary", elem_id="compare")
            stop = gr.Button("Stop", elem_id="stop")
        with gr.Row(elem_id="examples"):
            for text in SPACE["examples"]:
                # In the browser, so that a click on Compare right after it finds the new prompt.
                gr.Button(text, size="sm", elem_classes="example").click(
                    None, None, prompt, js=f"() => {json.dumps(text)}", api_visibility="private"
                )
        with gr.Accordion("Sampling", open=False, elem_id="sampling"), gr.Row():
            temperature = gr.Slider(
                0, MAX_TEMPERATURE, value=0, step=0.05, label="Temperature", info="0: the likeliest token each time"
            )
            top_p = gr.Slider(MIN_TOP_P, 1, value=1, step=0.05, label="Top-p", info="Share of the probability kept")
            new_tokens = gr.Slider(
                1, MAX_NEW_TOKENS, value=64, step=1, label="New tokens", info="At most, by each model"
            )
            as_chat = gr.Checkbox(
                value=True,
                label="Chat template",
                info="The prompt is a user's message",
                visible=bool(TOKENIZER is not None and TOKENIZER.chat_template),
            )
        with gr.Row(elem_id="answers", equal_height=True):
            outputs = [gr.HTML(card(name), elem_id=f"answer-{name}", min_width=300) for name in VARIANTS]
        gr.HTML(results())
        asked = gr.on(
            [run.click, prompt.submit],
            lent(compare),
            [prompt, as_chat, temperature, top_p, new_tokens],
            outputs,
            api_name="compare",
            concurrency_limit=1,
            show_progress="hidden",
        )
        stop.click(None, cancels=[asked], api_visibility="private")
    return page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)


LETTERS = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
THEME = gr.themes.Base(
    primary_hue="orange", neutral_hue="slate", radius_size="lg", font=LETTERS, font_mono=["ui-monospace", "monospace"]
).set(
    body_text_color_subdued="*neutral_500",
    body_text_color_subdued_dark="*neutral_400",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_600",
    button_primary_background_fill_dark="*primary_600",
    button_primary_text_color="white",
    block_border_width="1px",
    block_radius="12px",
)
demo = build()

if __name__ == "__main__":
    demo.launch(
        theme=THEME,
        css_paths=HERE / "style.css",
        footer_links=["api", "gradio"],
        ssr_mode=False,
        max_file_size="1kb",  # nothing is uploaded
    )
