"""A pruned language model beside the one it was made from.

What is shown, and which commits of the two models are loaded, stands in ``space.json``; nothing else is fetched.
Runs on a processor, on a GPU and on ZeroGPU. ``PRUNED_MODEL`` names a folder to load instead of the pruned model's
repository, ``MEMORY_GIB`` the memory that the models may take where the machine's own should not count.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from typing import Any

try:
    from spaces import GPU  # on ZeroGPU, where it must come before torch
except ImportError:
    GPU = None

import gradio as gr
from answers import Answer, recorded, write
from facts import (
    HERE,
    MAX_CHARACTERS,
    MAX_NEW_TOKENS,
    MAX_TEMPERATURE,
    MAX_WAITING,
    MIN_TOP_P,
    SPACE,
    VARIANTS,
)
from models import SIDES, TOKENIZER
from show import card, heading, notices, results, show

GPU_SECONDS = 120  # that both answers take at most on ZeroGPU


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
