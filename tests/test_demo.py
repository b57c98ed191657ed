"""The demo as a user runs it: what it prints is what it pushed, and it keeps to its folder."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from hubprune.demo import GENERAL_ID, LEGAL_ID, MEDICAL_ID, MODEL_ID, show
from hubprune.demo.client import EVALUATION, PUSHED_ID, SPARSITY
from hubprune.errors import AccessError, HubPruneError, OutputError
from hubprune.localhub import EmbeddedHub
from hubprune.report import REPORT_NAME, PruningReport

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CODE = "from pathlib import Path; from hubprune.demo.show import run_demo; run_demo(Path('hub'), serve={serve})"
PLACES = ("home", "tmp", "work")
# What a user's own environment may hold, and the demo must neither use nor be disturbed by.
USERS_OWN = {
    "HF_TOKEN": "hf_the_users_own",
    "HF_ENDPOINT": "http://127.0.0.1:9",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_CACHE": "users-cache",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
}


@dataclass(frozen=True)
class Place:
    """Where the demo runs: a home, a folder for temporary files and a working folder, all empty at first."""

    root: Path

    @property
    def folder(self) -> Path:
        return self.root / "work" / "hub"

    def start(self, serve: bool) -> subprocess.Popen[str]:
        home, tmp, work = (self.root / name for name in PLACES)
        env = {**os.environ, **USERS_OWN, "HOME": str(home), "TMPDIR": str(tmp), "COLUMNS": "100"}
        command = [sys.executable, "-c", CODE.format(serve=serve)]
        return subprocess.Popen(
            command, env=env, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def left_behind(self) -> list[str]:
        return [str(path.relative_to(self.root)) for name in PLACES for path in (self.root / name).iterdir()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("demo")
    for name in PLACES:
        (root / name).mkdir()
    return Place(root)


@pytest.fixture(scope="module")
def printed(place: Place) -> str:
    """What the first run prints."""
    with place.start(serve=False) as process:
        text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    return text


@pytest.fixture
def api(place: Place, printed: str) -> Iterator[HfApi]:
    """A client of the Hub that the first run left."""
    from huggingface_hub import HfApi

    with EmbeddedHub(place.folder) as hub:
        yield HfApi(endpoint=hub.url, token=False)


def table(printed: str) -> dict[str, list[float]]:
    """The numbers of each corpus: before, magnitude, d-pruner, recovered."""
    rows = re.findall(rf"^\s*({'|'.join(EVALUATION)})((?:\s+[\d.]+){{4}})\s*$", printed, re.MULTILINE)
    return {name: [float(number) for number in numbers.split()] for name, numbers in rows}


def test_table_states_what_the_pushed_report_states(printed: str, api: HfApi, tmp_path: Path) -> None:
    api.hf_hub_download(PUSHED_ID, REPORT_NAME, local_dir=tmp_path)
    report = PruningReport.load(tmp_path)
    found = table(printed)
    assert list(found) == list(report.perplexities()) == list(EVALUATION)
    for corpus, measured in report.perplexities().items():
        before, _, after, recovered = found[corpus]
        assert before == pytest.approx(measured["base"].perplexity, abs=0.0051)
        assert after == pytest.approx(measured["pruned"].perplexity, abs=0.0051)
        assert recovered == pytest.approx(measured["recovered"].perplexity, abs=0.0051)
    assert [f"{row.windows} windows of {row.window} tokens each" in printed for row in report.evaluation] == [True] * 9
    assert (report.base.model_id, report.method, report.config["sparsity"]) == (MODEL_ID, "d-pruner", SPARSITY)
    assert [source.dataset for corpus in report.corpora for source in corpus.sources] == [GENERAL_ID, MEDICAL_ID]
    assert report.evaluation[-1].sources == [f"{LEGAL_ID}:default:test"]


def test_d_pruner_keeps_more_of_the_domain_than_magnitude_and_recovery_brings_more_back(printed: str) -> None:
    before, magnitude, d_pruner, recovered = table(printed)["medical"]
    assert before < d_pruner < magnitude
    assert recovered < d_pruner


def test_steps_and_places_are_told(printed: str, place: Place) -> None:
    assert re.findall(r"^(\d) .* \d+\.\d s$", printed, re.MULTILINE) == list("12345678")
    assert re.search(r"Done in \d+ s", printed)
    assert f"hubprune hub serve {place.folder.name}" in printed
    for name in ("README.md", REPORT_NAME):
        assert f"{place.folder.name}/pushed/{name}" in printed
        assert (place.folder / "pushed" / name).is_file()
    assert "Question" in printed


def test_pushed_model_loads_plain_with_the_zeros_that_it_reports(api: HfApi, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    api.snapshot_download(PUSHED_ID, local_dir=tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    report = PruningReport.load(tmp_path)
    assert report.verification is not None
    assert report.verification.passed
    named = dict(model.named_parameters())
    for matrix in report.matrices:
        assert int((named[f"{matrix.name}.weight"] == 0).sum()) == matrix.zeros
    assert report.totals.sparsity == pytest.approx(SPARSITY, abs=1e-3)
    assert AutoTokenizer.from_pretrained(tmp_path)("a")["input_ids"]


def test_the_hub_accepts_the_card_and_its_client_reads_the_metadata_back(api: HfApi) -> None:
    from huggingface_hub import ModelCard
    from huggingface_hub.utils import get_session

    text = Path(api.hf_hub_download(PUSHED_ID, "README.md")).read_text(encoding="utf-8")
    answer = get_session().post(f"{api.endpoint}/api/validate-yaml", json={"content": text, "repoType": "model"})
    assert (answer.status_code, answer.json()["errors"]) == (200, [])
    written = yaml.safe_load(text.split("---\n")[1])
    read = ModelCard(text).data.to_dict()
    assert (written["base_model"], written["pipeline_tag"]) == (MODEL_ID, "text-generation")
    assert read == written
    assert "## Sample answers" in text


def test_the_space_loads_what_was_pushed(printed: str, api: HfApi) -> None:
    data = json.loads(Path(api.hf_hub_download(PUSHED_ID, "space.json", repo_type="space")).read_text())
    assert (data["pruned"]["repo"], data["pruned"]["revision"]) == (PUSHED_ID, api.model_info(PUSHED_ID).sha)
    assert f"/spaces/{PUSHED_ID}" in printed
    assert f"hubprune space {PUSHED_ID} --preview" in " ".join(printed.split())


def test_nothing_is_left_behind_outside_the_folder(printed: str, place: Place) -> None:
    assert place.left_behind() == ["work/hub"]


def commits(place: Place) -> list[str]:
    """The pushed repository's commits, the newest first."""
    from huggingface_hub import HfApi

    with EmbeddedHub(place.folder) as hub:
        found = HfApi(endpoint=hub.url, token=False).list_repo_commits(PUSHED_ID)
    return [commit.commit_id for commit in found]


def test_second_run_updates_the_repository_and_serves_it(printed: str, place: Place) -> None:
    first = commits(place)
    with place.start(serve=True) as process:
        try:
            lines = []
            while "stop the Hub" not in "".join(lines[-1:]) and process.poll() is None:
                lines.append(process.stdout.readline())
            text = "".join(lines)
            page = re.search(rf"http://[\d.:]+/{PUSHED_ID}", text)
            assert page, text
            with urllib.request.urlopen(page[0], timeout=30) as reply:
                assert MODEL_ID in reply.read().decode()
        finally:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert table(text) == table(printed)
    assert commits(place)[1:] == first
    assert place.left_behind() == ["work/hub"]


def test_unwritable_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="name another folder"):
        show.run_demo(tmp_path / "file")


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("""print('{"kind": "AccessError", "error": "the Hub refuses"}')""", AccessError, "^the Hub refuses$"),
        ("import sys; sys.exit('no luck')", HubPruneError, r"before it was done \(no luck\): .*client.log says more"),
        ("", HubPruneError, "it left no message"),
    ],
)
def test_failing_client_is_one_clear_error(
    code: str, kind: type[HubPruneError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "CLIENT", ("-c", code))
    with pytest.raises(kind, match=message) as caught:
        show.run_demo(tmp_path / "hub")
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_failing_stranger_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "PLAIN", ("-c", "raise SystemExit('cannot load')"))
    with (tmp_path / "log").open("w") as notes, pytest.raises(HubPruneError, match="cannot load"):
        show._ask("Question:", os.environ, notes)


def test_missing_extra_is_named() -> None:
    code = "import sys; sys.modules['uvicorn'] = None; from hubprune.demo.show import run_demo; run_demo()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        'hubprune.errors.UsageError: the demo needs uvicorn, which is not installed: pip install "hubprune[demo]"'
    )


def test_telling_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, hubprune.demo.show; print({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
