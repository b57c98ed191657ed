"""What the page is made of, as HTML."""

from __future__ import annotations

import base64
import os
from html import escape

from answers import Answer
from facts import HERE, SPACE, VARIANTS
from huggingface_hub import constants
from models import SIDES


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
