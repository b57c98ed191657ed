"""The lines in a card that use a model do so: each is run, vLLM's against its signature."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from hubprune.carddata import PrunedModelCardData
from hubprune.facts import CorpusFacts, SourceFacts
from hubprune.report import PruningReport
from hubprune.saving import save
from hubprune.usage import LONGEST_PROMPT, example_prompt, usage
from tests.pruned import prune_by_hand, tiny_model, tiny_tokenizer

FORM = {"template": "Question: {question}\nAnswer: {answer}", "answer": "{answer}"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[PruningReport, Path]:
    model = tiny_model()
    report = prune_by_hand(model)
    report.corpora[0].samples = report.corpora[1].samples = ["w4 w5 w6 w7", "w8"]
    folder = tmp_path_factory.mktemp("usage") / "model"
    return report, save(model, folder, report=report, tokenizer=tiny_tokenizer())


def test_plain_transformers_writes_on(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    report, folder = made
    exec(usage(report, str(folder)).transformers, {})
    assert capsys.readouterr().out.startswith("w4 w5 w6 w7")


def test_this_library_brings_the_record_along(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    report, folder = made
    exec(usage(report, str(folder)).hubprune, {})
    assert capsys.readouterr().out.strip() == str(report.totals)


def test_vllm_is_called_as_it_wants_to_be(
    made: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []

    class SamplingParams:
        def __init__(self, *, temperature: float = 1.0, top_p: float = 1.0, max_tokens: int = 16) -> None:
            self.max_tokens = max_tokens

    class LLM:
        def __init__(self, model: str, *, trust_remote_code: bool = False, dtype: str = "auto") -> None:
            calls.append((model, trust_remote_code))

        def generate(self, prompts: list[str], sampling_params: SamplingParams) -> list[Any]:
            calls.append((prompts, sampling_params.max_tokens))
            answer = types.SimpleNamespace(text="an answer")
            return [types.SimpleNamespace(outputs=[answer]) for _ in prompts]

    module = types.ModuleType("vllm")
    monkeypatch.setattr(module, "LLM", LLM, raising=False)
    monkeypatch.setattr(module, "SamplingParams", SamplingParams, raising=False)
    monkeypatch.setitem(sys.modules, "vllm", module)
    report = PruningReport(corpora=made[0].corpora)
    report.base.trust_remote_code = True
    exec(usage(report, "me/name").vllm, {})
    assert calls == [("me/name", True), (["w4 w5 w6 w7"], 60)]
    assert capsys.readouterr().out == "an answer\n"


@pytest.mark.parametrize("place", ["me/name", "a folder/with ' and $(signs)"])
def test_the_shell_reads_the_command_as_it_is_meant(place: str) -> None:
    report = PruningReport()
    report.base.trust_remote_code = True
    script = f'vllm() {{ printf "%s\\n" "$@"; }}; {usage(report, place).serve}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["serve", place, "--trust-remote-code"]


def corpus(name: str, row: str, **source: Any) -> CorpusFacts:
    return CorpusFacts(name, [SourceFacts("org/text", **source)], samples=[row, "other"])


def test_the_prompt_is_a_row_of_the_models_own_text_up_to_its_answer() -> None:
    general = corpus("general", "Once upon a time")
    domain = corpus("domain", "Question: What is it?\nAnswer: A cold.", **FORM)
    assert example_prompt(PruningReport(corpora=[general, domain])) == "Question: What is it?\nAnswer:"
    domain.samples = ["Question: " + "very long " * LONGEST_PROMPT]
    assert example_prompt(PruningReport(corpora=[general, domain])) == " ".join(
        ["Question:", *["very", "long"] * 5, "very"]
    )
    assert example_prompt(PruningReport(corpora=[general])) == "Once upon a time"
    assert example_prompt(PruningReport()) == "The"
    given = PrunedModelCardData(prompt="Mine:")
    assert example_prompt(PruningReport(corpora=[domain], model_card=given)) == "Mine:"
