"""What the page of a repository shows beside its README: facts, metadata, commands to use it."""

from __future__ import annotations

import json
import shlex
from typing import Any

from hubprune.localhub import cards
from hubprune.localhub.history import Entry
from hubprune.localhub.render import human_bytes, human_count
from hubprune.localhub.store import Repo

MAX_CELL = 240
"""Longest text of one cell of the metadata table, in characters."""
SPACE_PORT = 7860


def metadata_rows(card: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the metadata of a README as rows of a table: a key and its values."""
    rows = [(key, _results(value) if key == "model-index" else _cells(value)) for key, value in card.items()]
    return [(key, cells) for key, cells in rows if cells]


def chips(card: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what a repository is at a glance: a kind and a word for each chip below its name."""
    singles = [(key, word) for key in ("pipeline_tag", "library_name", "sdk") for word in cards.strings(card.get(key))]
    licenses = [("license", name) for name in cards.strings(card.get("license"))]
    languages = [("language", word) for word in cards.strings(card.get("language"))]
    shown = {word for _, word in (*singles, *languages)}
    return [
        *singles,
        *languages,
        *licenses,
        *(("tag", tag) for tag in cards.strings(card.get("tags")) if tag not in shown),
    ]


def _cells(value: Any) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [_cell(item) for item in items if item is not None]


def _cell(item: Any) -> str:
    text = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…"


def _results(index: Any) -> list[str]:
    """Return the results of a `model-index`, one a cell; what has another shape is shown as it is."""
    try:
        return [
            f"{result['dataset'].get('name', result['dataset'].get('type'))}: "
            f"{metric.get('name', metric.get('type'))} = {metric['value']}"
            for model in index
            for result in model["results"]
            for metric in result["metrics"]
        ]
    except (KeyError, TypeError, AttributeError):
        return _cells(index)


def facts(repo: Repo, info: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what is worth knowing at a glance."""
    card = info["cardData"]
    rows = []
    if info.get("safetensors"):
        rows.append(("Parameters", human_count(info["safetensors"]["total"])))
        rows.append(("Tensor types", ", ".join(info["safetensors"]["parameters"])))
    if info.get("config"):
        rows.append(("Architecture", ", ".join(cards.strings(info["config"].get("architectures"))) or "unknown"))
    for label, key in (("Base model", "base_model"), ("License", "license"), ("Language", "language")):
        if cards.strings(card.get(key)):
            rows.append((label, ", ".join(cards.strings(card[key]))))
    if repo.type == "space":
        rows.append(("SDK", str(info["sdk"])))
        rows.append(("Hardware asked for", info["runtime"]["hardware"]["requested"]))
    rows.append(("Size", human_bytes(info["usedStorage"])))
    rows.append(("Files", str(len(info["siblings"]))))
    if info["sha"]:
        rows.append(("Commit", info["sha"][:12]))
    return rows


def short_facts(repo: Repo, info: dict[str, Any]) -> list[str]:
    """Return the few facts that a list shows."""
    shown = []
    if info.get("safetensors"):
        shown.append(f"{human_count(info['safetensors']['total'])} parameters")
    if repo.type == "space":
        shown.append(str(info["sdk"]))
    return [*shown, human_bytes(info["usedStorage"])]


def badges(repo: Repo) -> list[str]:
    """Return what restricts access to a repository."""
    return [*(["private"] if repo.private else []), *([f"gated ({repo.gated})"] if repo.gated else [])]


def commands(repo: Repo, info: dict[str, Any], files: dict[str, Entry], endpoint: str) -> list[tuple[str, str]]:
    """Return the ways to use a repository from a shell or from Python: a title and the text."""
    point = f"export HF_ENDPOINT={endpoint}"
    if repo.type == "space":
        return [("Run this Space on your machine", _space_command(repo, info, files, point))]
    if repo.type == "dataset":
        configs = [
            item.get("config_name")
            for item in cards.strings(info["cardData"].get("configs"), keep=True)
            if isinstance(item, dict)
        ]
        config = f', "{configs[0]}"' if len(configs) > 1 and isinstance(configs[0], str) else ""
        use = f'from datasets import load_dataset\n\nrows = load_dataset(\n    "{repo.id}"{config}\n)'
        return [("Shell", point), ("Load it", use)]
    found = [("Shell", point)]
    if "adapter_config.json" in files:
        load = (
            "from peft import AutoPeftModelForCausalLM\n\n"
            f'model = AutoPeftModelForCausalLM.from_pretrained(\n    "{repo.id}"\n)'
        )
        found.append(("Load it", load))
    elif "config.json" in files:
        kind = "AutoModelForCausalLM" if _is_causal(info) else "AutoModel"
        load = (
            f"from transformers import (\n    {kind},\n    AutoTokenizer,\n)\n\n"
            f'name = "{repo.id}"\nmodel = {kind}.from_pretrained(\n    name\n)\n'
            "tokenizer = AutoTokenizer.from_pretrained(name)"
        )
        found.append(("Load it", load))
    return [*found, ("Download it", f"hf download {repo.id}")]


def _is_causal(info: dict[str, Any]) -> bool:
    return any("CausalLM" in name or "LMHead" in name for name in cards.strings(info["config"].get("architectures")))


def _space_command(repo: Repo, info: dict[str, Any], files: dict[str, Entry], point: str) -> str:
    card = info["cardData"]
    folder = shlex.quote(repo.name)
    lines = [point, f"hf download {repo.id} \\\n  --repo-type space --local-dir {folder}", f"cd {folder}"]
    if info["sdk"] == "docker":
        port = card.get("app_port") if isinstance(card.get("app_port"), int) else SPACE_PORT
        return "\n".join([*lines, "docker build -t space .", f"docker run -p {port}:{port} space"])
    if info["sdk"] == "static":
        return "\n".join([*lines, f"python -m http.server {SPACE_PORT} \\\n  --bind 127.0.0.1"])
    version = card.get("sdk_version")
    gradio = f"gradio=={version}" if isinstance(version, (str, int, float)) else "gradio"
    wanted = f"{shlex.quote(gradio)}{' -r requirements.txt' if 'requirements.txt' in files else ''}"
    app = card.get("app_file") if isinstance(card.get("app_file"), str) else "app.py"
    return "\n".join([*lines, f"pip install {wanted}", f"python {shlex.quote(app)}"])
