"""What the page shows, as HTML; everything that comes from elsewhere is escaped."""

from __future__ import annotations

from html import escape
from typing import Any

from huggingface_hub import constants
from wanted import DOMAINS, WAYS
from work import Moment

SHOWN_LINES = 200  # of a log

HEADING = """
<div class="brand"><svg viewBox="0 0 48 48" aria-hidden="true">
<g fill="none" stroke="currentColor" stroke-width="3.4" stroke-linecap="round">
<path d="M24 44V20M24 30 13 19M24 24l11-11"/><path class="cut" d="M13 19V9M24 20v-8" stroke-dasharray="1 6.5"/></g>
</svg>
<div><h1>Prune my repo</h1>
<p>Any language model of the Hub, made leaner for your domain, published with its card in your own account.</p>
</div></div>
"""


def notice(text: str, *, bad: bool = False) -> str:
    """A sentence for the visitor."""
    return f'<div class="notice{" bad" if bad else ""}" role="status">{escape(text)}</div>' if text else ""


def tiles(found: Any, seconds: float | None, where: str) -> str:
    """The estimate as it is shown."""
    share = found.left / found.parameters
    smaller = f"{count(found.parameters)} → {count(found.left)}" if share < 1 else count(found.parameters)
    rows = [
        ("Parameters", smaller, f"{100 * share:.0f} % stay" if share < 1 else "as many, some of them zero"),
        ("Memory", size(found.memory.resident()), f"or {size(found.memory.streamed(0))} block by block"),
        ("Time", duration(seconds), "to prune, without download and measuring"),
        ("Download", size(found.download), "weights of the base"),
    ]
    cells = "".join(f"<li><span>{name}</span><b>{value}</b><small>{note}</small></li>" for name, value, note in rows)
    bar = f'<div class="kept"><i style="width:{100 * share:.1f}%"></i></div>'
    return f'<div class="estimate">{bar}<ul>{cells}</ul><p>Runs on <b>{escape(where)}</b></p></div>'


def state(what: str, detail: str, fraction: float | None = None, seconds: float | None = None) -> str:
    """A run that goes on."""
    width = "" if fraction is None else f' style="width:{100 * fraction:.0f}%"'
    kind = "bar" if fraction is not None else "bar unknown"
    since = "" if seconds is None else f"<span>{duration(seconds)}</span>"
    percent = "" if fraction is None else f" · {100 * fraction:.0f} %"
    return (
        f'<div class="state" role="status"><h3>{escape(what)}{since}</h3><p>{escape(detail)}{percent}</p>'
        f'<div class="{kind}"><i{width}></i></div></div>'
    )


def shown(moment: Moment, target: str, what: str) -> tuple[str, str]:
    """A run at one moment, as the page shows it."""
    output = moment.output
    log = "\n".join(output.lines[-SHOWN_LINES:])
    if moment.code is None:
        said = output.label or (output.lines[-1] if output.job is not None else "Starting")  # a job draws no bars
        return state(what, said, output.fraction, moment.seconds), log
    if moment.late:
        return notice(f"It was ended after {duration(moment.seconds)}: choose a job, or less text.", bad=True), log
    if moment.code != 0:
        return notice(output.error, bad=True), log
    address = f"{constants.ENDPOINT}/{target}"
    code = f'AutoModelForCausalLM.from_pretrained("{target}")'
    return (
        f'<div class="done"><h3>Published</h3><a href="{escape(address)}" target="_blank" rel="noopener">'
        f"{escape(target)}</a><p>Its card says what was done and what it cost, in {duration(moment.seconds)}.</p>"
        f"<pre>{escape(code)}</pre></div>"
    ), log


def entry(model: Any) -> str:
    """One line of the history."""
    card = model.card_data or {}
    base = card.get("base_model") or ""
    base = base[0] if isinstance(base, list) else base
    tags = [tag for tag in card.get("tags") or () if tag in (*WAYS, *DOMAINS)]
    chips = "".join(f"<em>{escape(tag)}</em>" for tag in [*tags, *(["private"] if model.private else [])])
    when = f"{model.last_modified:%d %b %Y}" if model.last_modified else ""
    address = escape(f"{constants.ENDPOINT}/{model.id}")
    return (
        f'<li><a href="{address}" target="_blank" rel="noopener">{escape(model.id)}</a>'
        f"<span>from {escape(str(base))}</span>{chips}<time>{when}</time></li>"
    )


def size(count_of_bytes: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count_of_bytes < 1000:
            return f"{count_of_bytes:.3g} {unit}"
        count_of_bytes /= 1000
    return f"{count_of_bytes:.3g} TB"


def count(number: float) -> str:
    """A number of parameters as people read it."""
    for unit in ("", "k", "M"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}B"


def duration(seconds: float | None) -> str:
    """Seconds as people read them."""
    if seconds is None:
        return "…"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
