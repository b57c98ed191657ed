"""A folder is there whole or not at all; a repository is in its old state or the new one; what users wrote stays."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import CommitInfo, HfApi, ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from hubprune import publisher as publishing
from hubprune import saving
from hubprune.carddata import PrunedModelCardData
from hubprune.errors import AccessError, OutputError, UsageError, VerificationError
from hubprune.publisher import UploadPlan, publish, publish_folder
from hubprune.report import REPORT_NAME, PruningReport
from hubprune.saving import save, write_record
from hubprune.verifier import CHECKS, verify
from tests.pruned import prune_by_hand, tiny_model, tiny_tokenizer

MODEL_FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    REPORT_NAME,
    "README.md",
    "figures/sparsity.png",
}


@pytest.fixture(autouse=True)
def without_reload(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Leave out the check that starts a process; test_verify.py holds it."""
    monkeypatch.delitem(CHECKS, "reload")


@pytest.fixture
def model() -> LlamaForCausalLM:
    return tiny_model()


@pytest.fixture
def report(model: LlamaForCausalLM) -> PruningReport:
    return prune_by_hand(model)


@pytest.fixture
def repo_id(hub: Any, hub_api: Callable[..., HfApi], request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"me/{request.node.name[:60].replace('[', '-').replace(']', '')}"
    yield name
    hub_api("me").delete_repo(name, missing_ok=True)


@pytest.fixture
def api(hub_api: Callable[..., HfApi]) -> HfApi:
    return hub_api("me")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# Saving


def test_a_saved_folder_is_a_plain_checkpoint_with_its_record(
    model: LlamaForCausalLM, report: PruningReport, tmp_path: Path
) -> None:
    folder = save(model, tmp_path / "a" / "out", report=report, tokenizer=tiny_tokenizer())
    assert set(snapshot(folder)) == MODEL_FILES | {"tokenizer.json", "tokenizer_config.json"}
    config = json.loads((folder / "config.json").read_text())
    assert config["hubprune"] == json.loads(json.dumps(report.summary()))
    assert "quantization_config" not in config
    assert PruningReport.load(folder) == report
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(folder)("w5 w6")["input_ids"] == [5, 6]
    assert {oct(p.stat().st_mode & 0o777) for p in folder.rglob("*") if p.is_file()} == {"0o644"}
    assert oct(folder.stat().st_mode & 0o777) == "0o755"
    assert [p.name for p in folder.parent.iterdir()] == ["out"]


def test_a_users_subclass_is_saved_under_the_class_others_have(report: PruningReport, tmp_path: Path) -> None:
    class MyLlama(LlamaForCausalLM):
        def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
            raise AssertionError("would end here again")

    mine = MyLlama(tiny_model().config).eval()
    own = prune_by_hand(mine)
    assert json.loads((save(mine, tmp_path / "out", report=own) / "config.json").read_text())["architectures"] == [
        "LlamaForCausalLM"
    ]


def test_saving_again_drops_stale_shards_and_keeps_what_is_the_users(
    model: LlamaForCausalLM, report: PruningReport, tmp_path: Path
) -> None:
    folder = save(model, tmp_path / "out", report=report, max_shard_size="30KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.md").write_text("mine")
    (folder / ".eval_results").mkdir()
    (folder / ".eval_results" / "exam.yaml").write_text("exam")
    (folder / "figures" / "mine.png").write_text("mine")
    (folder / "figures" / "kept_units.png").write_text("of units that this run did not remove")
    readme = folder / "README.md"
    readme.write_text(readme.read_text() + "\n## My own words\n")
    verify(folder)
    save(model, folder, report=report)
    assert set(snapshot(folder)) == MODEL_FILES | {
        "notes/mine.md",
        ".eval_results/exam.yaml",
        "figures/mine.png",
    }
    assert readme.read_text().endswith("## My own words\n")
    assert PruningReport.load(folder).verification is None  # the stamp was for the files before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_with_something_else_is_refused(
    model: LlamaForCausalLM, report: PruningReport, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="must be empty or hold a model pruned by hubprune"):
        save(model, tmp_path, report=report)
    with pytest.raises(OutputError, match="is a file"):
        save(model, tmp_path / "thesis.tex", report=report)
    with pytest.raises(OutputError, match="cannot write"):
        save(model, tmp_path / "thesis.tex" / "out", report=report)
    assert snapshot(tmp_path) == {"thesis.tex": b"years of work"}


def test_the_folder_may_be_a_link_but_not_the_current_one(
    model: LlamaForCausalLM, report: PruningReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    save(model, tmp_path / "link", report=report)
    assert set(snapshot(tmp_path / "real")) == MODEL_FILES
    assert (tmp_path / "link").is_symlink()
    monkeypatch.chdir(tmp_path / "real")
    with pytest.raises(OutputError, match="where this program runs"):
        save(model, ".", report=report)
    with pytest.raises(OutputError, match="mount point"):
        save(model, "/", report=report)


def test_a_full_disk_is_found_before_writing(
    model: LlamaForCausalLM, report: PruningReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OutputError, match=r"saving needs 6\d\.\d MiB, and .* has 1,000 bytes free"):
        save(model, tmp_path / "out", report=report)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_half_way_leaves_the_old_folder(
    model: LlamaForCausalLM, report: PruningReport, tmp_path: Path
) -> None:
    folder = save(model, tmp_path / "out", report=report)
    before = snapshot(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OutputError, match="cannot write"):
            save(model, folder, report=report)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert snapshot(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_move_that_fails_puts_the_old_folder_back(
    model: LlamaForCausalLM, report: PruningReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(model, tmp_path / "out", report=report)
    before = snapshot(folder)
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if "-new-" in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OutputError, match="Input/output error"):
        save(model, folder, report=report)
    assert snapshot(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_quantised_model_is_not_saved(model: LlamaForCausalLM, report: PruningReport, tmp_path: Path) -> None:
    model.config.quantization_config = {"quant_method": "other"}
    with pytest.raises(UsageError, match="saved dense"):
        save(model, tmp_path / "out", report=report)


def test_a_folder_saved_by_transformers_is_completed(
    model: LlamaForCausalLM, report: PruningReport, tmp_path: Path
) -> None:
    model.config.hubprune = report.summary()
    model.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("# Mine\n")
    report.probe = None
    write_record(tmp_path, report, tiny_tokenizer(), model=model)
    assert verify(tmp_path).passed
    assert PruningReport.load(tmp_path).probe is not None
    assert (tmp_path / "tokenizer.json").is_file()
    assert (tmp_path / "README.md").read_text().count("# Mine\n") == 1


# Publishing


def test_a_new_repository_gets_one_commit_that_loads(
    model: LlamaForCausalLM, report: PruningReport, api: HfApi, repo_id: str
) -> None:
    done = publish(model, repo_id, tokenizer=tiny_tokenizer(), report=report, private=True, api=api)
    assert isinstance(done, CommitInfo)
    info = api.repo_info(repo_id)
    assert (done.oid, info.private) == (info.sha, True)
    assert len(api.list_repo_commits(repo_id)) == 2  # the Hub's own first one and ours
    local = Path(api.snapshot_download(repo_id))
    loaded = AutoModelForCausalLM.from_pretrained(local)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    sent = PruningReport.load(local)
    assert sent.verification is not None
    assert sent.verification.passed
    assert report.verification == sent.verification
    data = ModelCard((local / "README.md").read_text()).data
    assert (data.base_model, data.license, data.model_name) == ("org/base", "mit", repo_id.removeprefix("me/"))
    assert "All checks on the saved files passed" in (local / "README.md").read_text()


def test_pushing_again_replaces_what_is_ours_and_keeps_the_rest(
    model: LlamaForCausalLM, report: PruningReport, api: HfApi, repo_id: str, tmp_path: Path
) -> None:
    publish(model, repo_id, tokenizer=tiny_tokenizer(), report=report, max_shard_size="30KB", api=api)
    old = api.list_repo_files(repo_id)
    assert sum(name.startswith("model-") for name in old) > 1
    readme = Path(api.hf_hub_download(repo_id, "README.md")).read_text()
    replaced = "of a run that is replaced"
    earlier = {"figures/overlap.png": replaced, ".eval_results/gsm8k-hubprune.yaml": f"- {replaced}"}
    theirs = {".eval_results/exam.yaml": "exam", "figure.txt": "a figure", "README.md": f"{readme}\n## My own words\n"}
    for name, text in {**theirs, **earlier}.items():
        api.upload_file(path_or_fileobj=text.encode(), path_in_repo=name, repo_id=repo_id)

    commits = len(api.list_repo_commits(repo_id))
    words = PrunedModelCardData(title="Said at the push")
    publish(model, repo_id, tokenizer=tiny_tokenizer(), report=report, model_card=words, api=api)
    assert len(api.list_repo_commits(repo_id)) == commits + 1
    files = set(api.list_repo_files(repo_id))
    assert files == MODEL_FILES | {"tokenizer.json", "tokenizer_config.json", ".gitattributes"} | set(theirs)
    readme = Path(api.hf_hub_download(repo_id, "README.md")).read_text()
    assert readme.count("## My own words") == 1
    assert "# Said at the push\n" in readme


def test_words_in_the_folders_readme_are_pushed_and_those_in_the_repository_stay(
    model: LlamaForCausalLM, report: PruningReport, api: HfApi, repo_id: str, tmp_path: Path
) -> None:
    folder = save(model, tmp_path / "out", report=report)
    publish_folder(folder, repo_id, api=api)
    readme = folder / "README.md"
    api.upload_file(
        path_or_fileobj=(readme.read_text() + "\n## Web\n").encode(), path_in_repo="README.md", repo_id=repo_id
    )
    readme.write_text(readme.read_text() + "\n## Local\n")
    publish_folder(folder, repo_id, api=api)
    pushed = Path(api.hf_hub_download(repo_id, "README.md")).read_text()
    assert pushed.endswith("## Web\n\n## Local\n")
    assert readme.read_text() == pushed


@pytest.mark.parametrize("files", [{"model.safetensors": b"theirs"}, {"config.json": b"{}"}])
def test_another_model_is_not_overwritten(
    model: LlamaForCausalLM, report: PruningReport, api: HfApi, repo_id: str, files: dict[str, bytes]
) -> None:
    api.create_repo(repo_id)
    for name, content in files.items():
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=repo_id)
    head = api.repo_info(repo_id).sha
    with pytest.raises(OutputError, match="holds a model that hubprune did not make"):
        publish(model, repo_id, report=report, api=api)
    assert api.repo_info(repo_id).sha == head

    done = publish(model, repo_id, report=report, create_pr=True, api=api)
    assert isinstance(done, CommitInfo)
    assert done.pr_num == 1
    assert api.repo_info(repo_id).sha == head
    assert REPORT_NAME in api.list_repo_files(repo_id, revision="refs/pr/1")


def test_a_repository_whose_record_cannot_be_read_is_left_alone(
    model: LlamaForCausalLM, report: PruningReport, api: HfApi, repo_id: str
) -> None:
    api.create_repo(repo_id)
    api.upload_file(path_or_fileobj=b"{broken", path_in_repo=REPORT_NAME, repo_id=repo_id)
    with pytest.raises(OutputError, match="cannot be read"):
        publish(model, repo_id, report=report, api=api)


def test_a_pruned_model_of_another_base_is_not_overwritten(api: HfApi, repo_id: str) -> None:
    first, second = tiny_model(), tiny_model(layers=3)
    publish(first, repo_id, report=prune_by_hand(first), api=api)
    with pytest.raises(OutputError, match="holds a pruned org/base, not org/other"):
        publish(second, repo_id, report=prune_by_hand(second, base_id="org/other"), api=api)
    publish(second, repo_id, report=prune_by_hand(second, base_id="org/other"), revision="other", api=api)
    assert len(load_file(api.hf_hub_download(repo_id, "model.safetensors", revision="other"))) > len(
        load_file(api.hf_hub_download(repo_id, "model.safetensors"))
    )


def test_a_new_branch_is_made_and_the_default_one_left_alone(
    model: LlamaForCausalLM, report: PruningReport, api: HfApi, repo_id: str
) -> None:
    publish(model, repo_id, report=report, revision="v2", commit_message="second", api=api)
    assert "model.safetensors" in api.list_repo_files(repo_id, revision="v2")
    assert "model.safetensors" not in api.list_repo_files(repo_id)
    assert api.list_repo_commits(repo_id, revision="v2")[0].title == "second"


def test_a_dry_run_sends_nothing(
    model: LlamaForCausalLM, report: PruningReport, api: HfApi, repo_id: str, tmp_path: Path
) -> None:
    folder = save(model, tmp_path / "out", report=report)
    (folder / ".secret").write_text("not for others")
    plan = publish_folder(folder, repo_id, dry_run=True, api=api)
    assert isinstance(plan, UploadPlan)
    assert not api.repo_exists(repo_id)
    assert dict(plan.files) == {name: (folder / name).stat().st_size for name in MODEL_FILES}
    weights = (folder / "model.safetensors").stat().st_size
    assert f"{repo_id}, new: 6 files" in str(plan)
    assert f"upload model.safetensors  {weights / 1024:.1f} KiB" in str(plan)
    publish_folder(folder, repo_id, api=api)
    assert {s.rfilename for s in api.repo_info(repo_id).siblings} == MODEL_FILES | {".gitattributes"}


def test_nothing_is_sent_when_verification_fails(
    model: LlamaForCausalLM, report: PruningReport, api: HfApi, repo_id: str
) -> None:
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(1.0)
    with pytest.raises(VerificationError, match="zeros"):
        publish(model, repo_id, report=report, api=api)
    assert not api.repo_exists(repo_id)


class Interrupted(Exception):
    """The network breaks."""


def test_a_push_that_fails_leaves_no_new_repository(
    model: LlamaForCausalLM,
    report: PruningReport,
    api: HfApi,
    repo_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        assert api.repo_exists(repo_id)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(api, "create_commit", fails)
        with pytest.raises(Interrupted):
            publish(model, repo_id, report=report, api=api)
    assert not api.repo_exists(repo_id)

    publish(model, repo_id, report=report, api=api)
    head = api.repo_info(repo_id).sha
    with monkeypatch.context() as patch:
        patch.setattr(api, "create_commit", fails)
        with pytest.raises(Interrupted):
            publish(model, repo_id, report=report, revision="v2", api=api)
    assert [branch.name for branch in api.list_repo_refs(repo_id).branches] == ["main"]
    assert api.repo_info(repo_id).sha == head


def test_a_repository_that_changes_meanwhile_is_not_overwritten(
    model: LlamaForCausalLM,
    report: PruningReport,
    api: HfApi,
    repo_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish(model, repo_id, report=report, api=api)

    def slow(*args: Any, **kwargs: Any) -> Any:
        api.upload_file(path_or_fileobj=b"news", path_in_repo="news.txt", repo_id=repo_id)
        return verify(*args, **kwargs)

    monkeypatch.setattr(publishing, "verify", slow)
    report.warnings.append("something new to push")
    with pytest.raises(OutputError, match="changed while the model was being pushed: push again"):
        publish(model, repo_id, report=report, api=api)
    text = Path(api.hf_hub_download(repo_id, "README.md")).read_text()
    assert "something new to push" not in text


def test_no_permission_is_found_before_anything_is_saved(
    model: LlamaForCausalLM,
    report: PruningReport,
    hub_api: Callable[..., HfApi],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publishing, "save", lambda *args, **kwargs: pytest.fail("work was done in vain"))
    with pytest.raises(AccessError, match="me/theirs"):
        publish(model, "me/theirs", report=report, api=hub_api("guest"))


def test_a_guest_may_open_a_pull_request(
    model: LlamaForCausalLM,
    report: PruningReport,
    api: HfApi,
    hub_api: Callable[..., HfApi],
    repo_id: str,
) -> None:
    publish(model, repo_id, report=report, api=api)
    head = api.repo_info(repo_id).sha
    report.warnings.append("a correction")
    done = publish(model, repo_id, report=report, create_pr=True, api=hub_api("guest"))
    assert isinstance(done, CommitInfo)
    assert done.pr_num == 1
    assert api.repo_info(repo_id).sha == head


def test_a_model_without_a_report_is_refused(model: LlamaForCausalLM, api: HfApi) -> None:
    with pytest.raises(UsageError, match="give report="):
        publish(model, "me/x", api=api)


def test_a_readme_that_cannot_be_read_is_refused_before_any_work(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "hubprune_report.json").write_text("{}", encoding="utf-8")
    (folder / "README.md").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(OutputError, match="cannot read .*README.md .*whose text would be lost: mend it"):
        saving.check_output(folder)
