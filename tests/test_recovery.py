"""Recovery through every door: text in shares, zeros kept, all of it recorded, gone on with after a kill."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import hubprune
from hubprune import AutoPrunedModelForCausalLM, PruningReport, RecoveryConfig, recover, verify
from hubprune.architecture import find_matrices
from hubprune.card import render_card
from hubprune.cli import main
from hubprune.demo import GENERAL_ID, LEGAL_ID, MEDICAL_ID, MODEL_ID
from hubprune.errors import ConfigError, CorpusError, UsageError
from hubprune.readme import read_readme
from hubprune.training import distillation
from hubprune.verifier import CHECKS

ROOT = Path(__file__).resolve().parents[1]
CORPORA = {"general": GENERAL_ID, "domain": MEDICAL_ID}
SMALL = {"num_samples": 4, "sequence_length": 32, "progress": False}
BRIEF = {"steps": 6, "evaluate_every": 3, "num_samples": 24, "batch_size": 4, "rank": 4}
PATTERN = {"method": "wanda", "pattern": "2:4"}
TESTS = {"general": f"{GENERAL_ID}:default:test", "domain": f"{MEDICAL_ID}:default:test"}

pytestmark = pytest.mark.usefixtures("demo_hub")


@pytest.fixture(scope="module")
def pruned(demo_hub, tmp_path_factory) -> Any:
    """A pruned model that was measured, and its folder."""
    model = AutoPrunedModelForCausalLM.from_pretrained(MODEL_ID, **PATTERN, **CORPORA, **SMALL, dtype="float32")
    folder = tmp_path_factory.mktemp("recovery") / "pruned"
    model.save_pretrained(folder)
    return model, folder


def zeros(model: Any) -> int:
    return sum(int((matrix.view() == 0).sum()) for matrix in find_matrices(model))


@pytest.mark.parametrize("way", ["lora", "shira", "hira", "reconstruct"])
def test_every_way_lowers_the_perplexity_keeps_the_zeros_and_is_recorded(way: str, pruned: Any) -> None:
    model = copy.deepcopy(pruned[0])
    fields = {**BRIEF, "steps": 16, "evaluate_every": 8} | (
        {"method": "reconstruct"} if way == "reconstruct" else {"adapter": way}
    )
    report = model.recover(**fields, progress=False)
    facts, table = report.recovery, report.perplexities()
    assert report is model.hubprune_report
    for row in table.values():
        assert list(row) == ["base", "pruned", "recovered"]
        assert row["base"].fingerprint == row["recovered"].fingerprint
        assert row["recovered"].perplexity < row["pruned"].perplexity
    assert zeros(model) == report.totals.zeros == facts.zeros_kept == report.totals.targeted // 2
    assert facts.groups_kept == report.totals.targeted // 4
    assert [corpus.num_sequences for corpus in facts.corpora] == [12, 12]
    assert facts.trained + facts.held_out == 24
    assert facts.adapter == {"lora": "masked lora", "reconstruct": ""}.get(way, way)
    losses = [point.held_out for point in facts.curve if point.held_out is not None]
    assert len(losses) == {"reconstruct": model.config.num_hidden_layers}.get(way, 3)
    assert model.config.hubprune["recovery"] == facts.what
    with pytest.raises(UsageError, match="already recovered"):
        model.recover(progress=False)


def test_text_of_another_label_than_the_calibration_is_measured_again() -> None:
    texts = {"law": f"{LEGAL_ID}:default:test", "kept": ["only in memory, " * 40]}
    model = AutoPrunedModelForCausalLM.from_pretrained(MODEL_ID, **PATTERN, **CORPORA, **SMALL, evaluation=texts)
    report = model.recover(**BRIEF, progress=False)
    measured = report.perplexities()
    assert measured["law"]["recovered"].fingerprint == measured["law"]["pruned"].fingerprint
    assert "recovered" not in measured["kept"]
    assert [told for told in report.warnings if "cannot be had again" in told] == [
        "the kept text cannot be had again: no perplexity on it was measured after recovery"
    ]


def test_one_line_prunes_and_recovers_and_what_is_pushed_is_verified(hub, hub_api) -> None:
    model = AutoPrunedModelForCausalLM.from_pretrained(
        MODEL_ID, **PATTERN, **CORPORA, **SMALL, recovery=RecoveryConfig(**BRIEF, distill=True)
    )
    facts = model.hubprune_report.recovery
    assert facts.teacher == "in memory"
    assert {"teacher", "train"} <= set(facts.timings)
    assert next(model.parameters()).dtype == torch.bfloat16  # trained on float32 copies, and back
    model.push_to_hub("me/recovered", token=hub.token("me"))
    assert model.hubprune_report.verification.passed
    card = Path(hub_api().hf_hub_download("me/recovered", "README.md")).read_text(encoding="utf-8")
    last = model.hubprune_report.perplexities()["domain"]["recovered"].perplexity
    for said in (
        "masked LoRA with distillation",
        "| text | base | pruned | recovered | recovery | won back |",
        f"{last:.2f}",
        f"all {facts.zeros_kept:,} zeros stayed zero",
        "model.recover(rank=4, steps=6",
    ):
        assert said in card
    assert f"value: {last:.4f}".rstrip("0") in card
    assert "The model was not trained after pruning" not in card
    plain = AutoModelForCausalLM.from_pretrained("me/recovered")
    assert zeros(plain) == model.hubprune_report.totals.zeros


def test_a_folder_is_recovered_in_its_place_and_verified(
    pruned: Any, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    folder = shutil.copytree(pruned[1], tmp_path / "model")
    words = ["recover", str(folder), *(f"--{key.replace('_', '-')}={value}" for key, value in BRIEF.items())]
    words += ["--adapter", "shira", "--token", "hf_test_me"]
    assert main([*words, "--dry-run"]) == 0
    assert "Nothing was recovered" in capsys.readouterr().out
    assert PruningReport.load(folder).recovery is None
    assert main([*words, "--adapter-out", str(tmp_path / "adapter")]) == 0
    out = capsys.readouterr().out
    report = PruningReport.load(folder)
    assert report.verification.passed
    assert f"all {report.recovery.zeros_kept:,} still zero" in out
    assert "recovered / base" in out
    assert "All checks on the saved files passed" in read_readme(folder)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "model"]
    assert main(words) == 2
    assert "already recovered (SHiRA)" in capsys.readouterr().err


def test_a_reconstruction_gives_the_same_weights_in_memory_and_streamed(pruned: Any, tmp_path: Path) -> None:
    config = RecoveryConfig("reconstruct", steps=4, num_samples=8, batch_size=4)
    more = {"evaluation": None, "progress": False, "dtype": "float32"}
    reports = [
        recover(pruned[1], config, out=tmp_path / name, max_memory=limit, **more)
        for name, limit in (("whole", None), ("streamed", "1MB"))
    ]
    assert [report.recovery.teacher for report in reports] == ["in memory", "on disk"]
    assert all(report.verification.passed for report in reports)
    whole, streamed = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "streamed"))
    assert whole == streamed


# Runs hubprune, and ends the process without warning at a checkpoint: before it is whole, or after.
KILLED = """
import os, signal, sys
from hubprune import training
mark = training._Watcher.on_save
def on_save(self, args, state, control, **more):
    if state.global_step == 6 and sys.argv[1] == "after":
        mark(self, args, state, control, **more)
    if state.global_step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    mark(self, args, state, control, **more)
training._Watcher.on_save = on_save
from hubprune.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def alone(pruned: Any) -> tuple[list[str], Any]:
    """The words of a recovery, and the record of one that was left alone."""
    brief = {**BRIEF, "steps": 9}
    words = ["recover", str(pruned[1]), *(f"--{key.replace('_', '-')}={value}" for key, value in brief.items())]
    words += ["--eval", "none"]
    assert main([*words, "--out", str(pruned[1].parent / "alone")]) == 0
    return words, PruningReport.load(pruned[1].parent / "alone").recovery


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_a_checkpoint_a_recovery_ends_with_the_same_losses(
    when: str, alone: Any, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(CHECKS, "reload")  # it starts one more process
    words, whole = [*alone[0], "--out", str(tmp_path / "killed")], alone[1]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, when, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert not (tmp_path / "killed").exists()
    assert (tmp_path / ".killed-recovery" / "checkpoints" / "checkpoint-3" / "whole").is_file()
    assert main([*words, "--rank", "2"]) == 2
    assert "unfinished run about something else" in capsys.readouterr().err
    assert main(words) == 0
    again = PruningReport.load(tmp_path / "killed").recovery
    assert [point.step for point in again.curve] == [point.step for point in whole.curve]
    assert again.curve[-1].training == pytest.approx(whole.curve[-1].training, abs=1e-4)
    assert again.curve[-1].held_out == pytest.approx(whole.curve[-1].held_out, abs=1e-4)
    assert not (tmp_path / ".killed-recovery").exists()


def test_a_recovery_in_memory_goes_on_with_its_checkpoints(pruned: Any, tmp_path: Path, monkeypatch) -> None:
    from hubprune import recovery

    model = copy.deepcopy(pruned[0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = {**BRIEF, "checkpoints": tmp_path / "work", "evaluation": None, "progress": False}
    with monkeypatch.context() as patched:
        patched.setattr(recovery, "train", _interrupted(recovery.train))
        with pytest.raises(KeyboardInterrupt):
            model.recover(**settings)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (tmp_path / "work" / "checkpoints" / "checkpoint-6").is_dir()
    assert model.recover(**settings).recovery.steps == BRIEF["steps"]
    assert not (tmp_path / "work").exists()


def _interrupted(train: Any) -> Any:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        train(*args, **kwargs)
        raise KeyboardInterrupt

    return wrapped


def test_training_that_only_does_harm_leaves_the_weights_as_they_were_pruned(pruned: Any) -> None:
    model = copy.deepcopy(pruned[0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = model.recover(**{**BRIEF, "steps": 2, "learning_rate": 30.0}, evaluation=None, progress=False)
    assert report.recovery.kept_step == 0
    card = render_card(report)
    assert "the weights are those of the pruned model" in card
    assert "(" + f"{report.recovery.tokens:,}" + " tokens) and thrown away" in card
    assert "were recovered by" not in card
    assert any("never lowered the held-out loss" in warning for warning in report.warnings)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_training_ends_early_when_the_held_out_loss_no_longer_falls(pruned: Any) -> None:
    model = copy.deepcopy(pruned[0])
    brief = {**BRIEF, "steps": 40, "evaluate_every": 2, "patience": 1, "num_samples": 8, "learning_rate": 0.03}
    facts = model.recover(**brief, evaluation=None, progress=False).recovery
    assert facts.steps < 40
    seen = {point.step: point.held_out for point in facts.curve if point.held_out is not None}
    assert min(seen, key=seen.__getitem__) == facts.kept_step < facts.steps


def test_the_trainer_reports_where_the_user_says(pruned: Any, monkeypatch) -> None:
    from transformers import TrainerCallback, integrations
    from transformers.integrations import integration_utils

    told: list[dict[str, Any]] = []

    class Ledger(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            told.append(dict(logs))

    model = copy.deepcopy(pruned[0])
    with pytest.raises(ConfigError, match="got 'ledger': install its package"):
        model.recover(**BRIEF, report_to="ledger", evaluation=None, progress=False)
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "ledger", Ledger)
    monkeypatch.setattr(integrations, "get_available_reporting_integrations", lambda: ["ledger"])
    model.recover(**BRIEF, report_to="ledger", evaluation=None, progress=False)
    assert {"loss", "eval_loss"} <= {name for logs in told for name in logs}


@pytest.mark.parametrize(("ratio", "counts"), [(0.25, {"general": 18, "domain": 6}), (1.0, {"domain": 24})])
def test_text_comes_in_the_shares_asked_for(ratio: float, counts: dict[str, int], pruned: Any) -> None:
    model = copy.deepcopy(pruned[0])
    facts = model.recover(**{**BRIEF, "steps": 1, "domain_ratio": ratio}, evaluation=None, progress=False).recovery
    assert {corpus.name: corpus.num_sequences for corpus in facts.corpora} == counts


def test_token_ids_of_the_users_own_are_cut_to_the_shares(pruned: Any) -> None:
    model = copy.deepcopy(pruned[0])
    ids = torch.randint(3, 500, (10, 16), generator=torch.Generator().manual_seed(0))
    fields = {**BRIEF, "steps": 1, "domain_ratio": 0.75}
    facts = model.recover(**fields, general=ids, domain=ids + 1, evaluation=None, progress=False).recovery
    assert {corpus.name: corpus.num_sequences for corpus in facts.corpora} == {"general": 3, "domain": 10}


def test_a_model_is_not_measured_on_text_that_it_was_recovered_on(pruned: Any) -> None:
    model = copy.deepcopy(pruned[0])
    model.recover(**{**BRIEF, "steps": 1, "domain_ratio": 1.0}, domain=LEGAL_ID, evaluation=None, progress=False)
    with pytest.raises(CorpusError, match="law evaluation text shares .* of its documents with the domain corpus"):
        model.evaluate({"law": f"{LEGAL_ID}:default:train"}, base=None, num_samples=4, progress=False)
    found = model.evaluate({"law": f"{LEGAL_ID}:default:test"}, base=None, num_samples=2, progress=False)
    assert [row.variant for row in found.perplexities] == ["recovered"]


def test_recovered_and_pruned_are_compared_in_the_way_both_were_measured(pruned: Any) -> None:
    model = copy.deepcopy(pruned[0])
    texts = {"domain": TESTS["domain"]}
    strided = model.evaluate(texts, base=None, num_samples=2, sequence_length=32, stride=8, progress=False)
    model.hubprune_report.evaluation = []
    model.hubprune_report.record(strided)
    texts = {
        "domain": hubprune.CorpusConfig.from_dict(
            {"sources": [TESTS["domain"]], "num_samples": 2, "sequence_length": 32}
        )
    }
    report = model.recover(**{**BRIEF, "steps": 1}, evaluation=texts, progress=False)
    rows = report.perplexities()["domain"]
    assert rows["pruned"].protocol == rows["recovered"].protocol
    assert rows["pruned"].stride == 32


def test_text_that_is_measured_on_is_not_trained_on(pruned: Any) -> None:
    ids = torch.randint(3, 500, (8, 16), generator=torch.Generator().manual_seed(0))
    with pytest.raises(CorpusError, match="evaluation text must not be calibration text"):
        copy.deepcopy(pruned[0]).recover(domain=ids, evaluation={"same": ids}, progress=False)
    texts = [f"note {number} of a ward " * 20 for number in range(8)]
    model = copy.deepcopy(pruned[0])
    fields = {**BRIEF, "steps": 1, "sequence_length": 16, "domain_ratio": 1.0}
    facts = model.recover(**fields, domain=texts, evaluation={"two": texts[:2]}, progress=False).recovery
    assert not any(sample.startswith(("note 0", "note 1")) for corpus in facts.corpora for sample in corpus.samples)


def test_what_cannot_be_recovered_is_refused_before_anything_is_done(pruned: Any, tmp_path: Path) -> None:
    model, folder = pruned
    with pytest.raises(UsageError, match="by the report of its own pruning, got none"):
        recover(AutoModelForCausalLM.from_pretrained(MODEL_ID))
    with pytest.raises(UsageError, match="out goes with a model by its name"):
        recover(model, out=tmp_path)
    with pytest.raises(UsageError, match="checkpoints= and report= go with a model in memory"):
        recover(folder, checkpoints=tmp_path)
    with pytest.raises(UsageError, match="holds no report of a pruning"):
        recover(MODEL_ID, out=tmp_path)
    with pytest.raises(ConfigError, match="give a recovery config or its fields, got both: rank"):
        model.recover("lora", rank=2)
    with pytest.raises(UsageError, match="would run a masked LoRA adapter without its mask"):
        copy.deepcopy(model).recover(**BRIEF, evaluation=None, adapter_out=tmp_path / "adapter", progress=False)
    shallow = copy.deepcopy(model.config)
    shallow.num_hidden_layers = 1
    base = AutoModelForCausalLM.from_config(shallow)
    with pytest.raises(UsageError, match="must have the blocks and the vocabulary of the pruned model"):
        model.recover("reconstruct", base=base, progress=False)
    assert model.hubprune_report.recovery is None


def test_the_record_says_how_to_repeat_it(pruned: Any, tmp_path: Path) -> None:
    report = recover(
        pruned[1],
        RecoveryConfig("reconstruct", steps=2, num_samples=4),
        out=tmp_path / "out",
        **{"evaluation": None, "progress": False},
    )
    lines = hubprune.card.python_recipe(report, None)
    assert lines.endswith('model.recover(method="reconstruct", steps=2, num_samples=4)')
    words = hubprune.card.cli_recipe(report, "me/name").splitlines()
    assert words[0].endswith("--out pruned-model")
    assert words[1:] == [
        "hubprune recover pruned-model --method reconstruct --steps 2 --num-samples 4",
        "hubprune push pruned-model me/name",
    ]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["hubprune"]["recovery"]
    assert verify(tmp_path / "out").passed


def test_distillation_is_the_divergence_and_nothing_where_both_agree() -> None:
    torch.manual_seed(0)
    one, other = torch.randn(5, 7), torch.randn(5, 7)
    assert distillation(one, one, 3.0).item() == pytest.approx(0, abs=1e-5)
    p, q = (torch.softmax(logits / 3.0, -1) for logits in (other, one))
    assert distillation(one, other, 3.0).item() == pytest.approx(9 * (p * (p / q).log()).sum().item(), rel=1e-4)
