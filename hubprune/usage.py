"""The lines that use a model: with plain transformers, with vLLM, with this library."""

from __future__ import annotations

import re
import shlex
from typing import NamedTuple

from hubprune.recipe import quote
from hubprune.report import PruningReport

LONGEST_PROMPT = 280  # characters of a row that is shown whole up to its answer
WORDS = 12  # of one that is longer
NEW_TOKENS = 60


class Usage(NamedTuple):
    """Lines of Python and of a shell that use one model; vLLM serves no encoder-decoders."""

    transformers: str
    hubprune: str
    vllm: str | None
    serve: str | None


def usage(report: PruningReport, place: str) -> Usage:
    """The lines for one model.

    Args:
        report: Its report.
        place: Its repository or folder.
    """
    trusted, prompt, loader = report.base.trust_remote_code, quote(example_prompt(report)), report.base.loader
    trust = ", trust_remote_code=True" if trusted else ""
    name, door = quote(place), loader.replace("Auto", "AutoPruned")
    vllm = f"""from vllm import LLM, SamplingParams

model = LLM({name}{trust})
prompt = {prompt}
print(model.generate([prompt], SamplingParams(max_tokens={NEW_TOKENS}))[0].outputs[0].text)"""
    serve = shlex.join(["vllm", "serve", place, *(["--trust-remote-code"] if trusted else [])])
    return Usage(
        transformers=f"""from transformers import {loader}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name}{trust})
model = {loader}.from_pretrained({name}, dtype="auto"{trust})
prompt = {prompt}
inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
written = model.generate(**inputs, max_new_tokens={NEW_TOKENS})
print(tokenizer.decode(written[0], skip_special_tokens=True))""",
        hubprune=f"""from hubprune import {door}

model = {door}.from_pretrained({name}{trust})
print(model.hubprune_report.totals)  # the record of the run that made it""",
        vllm=None if report.base.paired else vllm,
        serve=None if report.base.paired else serve,
    )


def example_prompt(report: PruningReport) -> str:
    """A prompt of the kind that the model was made for.

    It is the user's own, or else the first row of the text that the model was calibrated on, up to its answer.
    """
    if report.model_card is not None and report.model_card.prompt:
        return report.model_card.prompt
    by_name = {corpus.name: corpus for corpus in report.corpora if corpus.samples}
    found = [by_name[name] for name in ("task", "domain", "language", "general") if name in by_name]
    if not found:
        return "The"
    row = found[0].samples[0].strip()
    for source in found[0].sources:
        if source.template and source.answer and source.template.endswith(source.answer):
            before = re.split(r"[{}]", source.template[: -len(source.answer)])[-1].rstrip()
            asked, mark, _ = row.partition(before) if before.strip() else (row, "", "")
            if mark and len(asked) <= LONGEST_PROMPT:
                return asked + mark
    return " ".join(row.split()[:WORDS]) or "The"
