"""The doors: the Auto class, a class of one's own, transformers' own from_pretrained, and functions."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import hubprune
from hubprune import (
    AutoPrunedModelForCausalLM,
    CorpusConfig,
    PruneOnLoadConfig,
    PrunerMixin,
    PruningConfig,
    SourceConfig,
)
from hubprune.architecture import find_matrices
from hubprune.demo import GENERAL_ID, LEGAL_ID, MEDICAL_ID, MODEL_ID
from hubprune.errors import (
    AccessError,
    ConfigError,
    CorpusError,
    NotFoundError,
    NumericalError,
    OfflineError,
    OutputError,
    UnsupportedModelError,
    UsageError,
)

CORPORA = {"general": GENERAL_ID, "domain": MEDICAL_ID}
SMALL = {"num_samples": 8, "sequence_length": 64, "progress": False}

pytestmark = pytest.mark.usefixtures("demo_hub")


@pytest.fixture(scope="module")
def model(demo_hub):
    return AutoPrunedModelForCausalLM.from_pretrained(MODEL_ID, method="d-pruner", sparsity=0.5, **CORPORA, **SMALL)


def same_weights(one, other) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def zeros(model) -> int:
    return sum(int((matrix.view() == 0).sum()) for matrix in find_matrices(model))


def test_one_line_prunes_and_the_report_says_what_was_done(model, hub_api):
    report = model.hubprune_report
    assert isinstance(model, PrunerMixin)
    assert isinstance(model, LlamaForCausalLM)
    assert zeros(model) == report.totals.zeros >= report.totals.pruned == report.totals.targeted // 2
    assert report.base.model_id == MODEL_ID
    assert report.base.commit == hub_api().model_info(MODEL_ID).sha
    assert [corpus.name for corpus in report.corpora] == ["general", "domain"]
    assert set(report.perplexities()) == {"general", "domain"}
    assert all(set(row) == {"base", "pruned"} for row in report.perplexities().values())
    assert {"prepare", "forward", "backward", "evaluate base", "evaluate pruned"} <= set(report.timings)
    assert model.config.hubprune == json.loads(json.dumps(report.summary()))
    assert not hasattr(model.config, "quantization_config")
    assert len(model.tokenizer) == 2048


def test_pushed_model_loads_in_plain_transformers_and_back_here(model, hub, hub_api, tmp_path: Path):
    repo_id = "me/tiny-medical-50"
    commit = model.push_to_hub(repo_id, token=hub.token("me"), commit_message="First")
    assert commit.commit_message == "First"
    plain = AutoModelForCausalLM.from_pretrained(repo_id)
    assert type(plain) is LlamaForCausalLM
    assert plain.config.architectures == ["LlamaForCausalLM"]
    assert same_weights(plain, model)
    assert AutoTokenizer.from_pretrained(repo_id)("a b")["input_ids"] == model.tokenizer("a b")["input_ids"]
    again = AutoPrunedModelForCausalLM.from_pretrained(repo_id)
    assert same_weights(again, model)
    assert again.hubprune_report.totals == model.hubprune_report.totals
    assert again.tokenizer is not None
    card = Path(hub_api().hf_hub_download(repo_id, "README.md")).read_text(encoding="utf-8")
    assert f"{model.hubprune_report.perplexities()['domain']['pruned'].perplexity:.2f}" in card


def test_an_already_pruned_repository_is_loaded_as_it_is(model, tmp_path: Path, caplog):
    model.save_pretrained(tmp_path / "saved")
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        again = AutoPrunedModelForCausalLM.from_pretrained(tmp_path / "saved", method="magnitude", sparsity=0.9)
    finally:
        logger.removeHandler(caplog.handler)
    assert same_weights(again, model)
    assert "already pruned" in caplog.text


def test_a_class_of_ones_own_saves_the_plain_class_name(model, tmp_path: Path):
    class MyLlama(PrunerMixin, LlamaForCausalLM):
        pass

    mine = MyLlama.from_pretrained(MODEL_ID, method="d-pruner", sparsity=0.5, **CORPORA, **SMALL)
    assert type(mine) is MyLlama
    assert same_weights(mine, model)
    mine.save_pretrained(tmp_path / "mine")
    saved = json.loads((tmp_path / "mine" / "config.json").read_text(encoding="utf-8"))
    assert saved["architectures"] == ["LlamaForCausalLM"]
    assert {"README.md", "hubprune_report.json", "tokenizer.json"} <= {p.name for p in (tmp_path / "mine").iterdir()}
    assert same_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "mine"), mine)


def test_the_door_inside_transformers_gives_the_same_plain_model(model, tmp_path: Path):
    config = PruneOnLoadConfig(
        method="d-pruner", sparsity=0.5, evaluation=None, num_samples=8, sequence_length=64, **CORPORA
    )
    pruned = AutoModelForCausalLM.from_pretrained(MODEL_ID, quantization_config=config)
    assert type(pruned) is LlamaForCausalLM
    assert same_weights(pruned, model)
    assert pruned.hubprune_report.base.commit == model.hubprune_report.base.commit
    pruned.save_pretrained(tmp_path / "plain")
    saved = json.loads((tmp_path / "plain" / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in saved
    assert saved["hubprune"]["method"] == "d-pruner"
    assert not getattr(pruned, "is_quantized", False)


def test_the_door_inside_transformers_refuses_at_once_and_keeps_the_token_to_itself():
    with pytest.raises(
        ConfigError, match=r"unknown method 'wander': did you mean 'wanda' or 'wanda-sp' or 'magnitude'\?"
    ):
        PruneOnLoadConfig(method="wander")
    with pytest.raises(ConfigError, match="needs a general corpus"):
        PruneOnLoadConfig(method="d-pruner", domain=MEDICAL_ID)
    config = PruneOnLoadConfig(method="magnitude", token="hf_secret")
    assert "hf_secret" not in json.dumps(config.to_dict()) + repr(config) + str(config)


def test_text_of_a_language_and_of_a_task_come_in_by_every_door():
    task = {
        "sources": {
            "dataset": MEDICAL_ID,
            "template": "Question: {question}\nAnswer: {answer}",
            "answer": "{answer}",
        }
    }
    texts = {"language": GENERAL_ID, "task": task}
    asked = {"method": "wanda", "sparsity": 0.5, "num_samples": 6, "sequence_length": 64}
    mine = AutoPrunedModelForCausalLM.from_pretrained(MODEL_ID, **texts, **asked, progress=False)
    config = PruneOnLoadConfig(**texts, **asked, evaluation=None)
    assert set(config.to_dict()["corpora"]) == {"language", "task"}
    plain = AutoModelForCausalLM.from_pretrained(MODEL_ID, quantization_config=config)
    assert same_weights(mine, plain)
    report = mine.hubprune_report
    assert [(c.name, c.packing, c.examples) for c in report.corpora] == [("language", True, 0), ("task", False, 6)]
    assert report.corpora == plain.hubprune_report.corpora
    assert set(report.perplexities()) == {"language", "task"}
    with pytest.raises(ConfigError, match="corpora are called general, domain, language, task, got tasks: name them"):
        hubprune.prune(
            MODEL_ID, config=PruningConfig("wanda"), corpora={"tasks": GENERAL_ID}, out="nowhere", progress=False
        )


def test_cus_prun_has_a_length_of_its_own_by_every_door(tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(MODEL_ID)
    model.config.max_position_embeddings = 4096
    model.save_pretrained(tmp_path / "long")
    tokenizer = AutoTokenizer.from_pretrained(MODEL_ID)
    tokenizer.save_pretrained(tmp_path / "long")
    source = CorpusConfig(sources=SourceConfig(MEDICAL_ID), num_samples=2)
    asked = {"domain": source, "evaluation": None, "sparsity": 0.25, "progress": False}
    lengths = {}
    for method in ("cus-prun", "wanda-sp"):
        report = AutoPrunedModelForCausalLM.from_pretrained(tmp_path / "long", method=method, **asked).hubprune_report
        config = PruningConfig(method, application="zero")
        in_memory = hubprune.prune(model, tokenizer, config, {"domain": source}, progress=False)
        assert in_memory.corpora == report.corpora
        lengths[method] = report.corpora[0].sequence_length
    assert lengths == {"cus-prun": 512, "wanda-sp": 2048}
    said = AutoPrunedModelForCausalLM.from_pretrained(
        tmp_path / "long", method="cus-prun", sequence_length=64, num_samples=2, **{**asked, "domain": MEDICAL_ID}
    )
    assert said.hubprune_report.corpora[0].sequence_length == 64


def test_functions_prune_a_model_in_memory_and_publish_it(hub):
    model = AutoModelForCausalLM.from_pretrained(MODEL_ID)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_ID)
    tokens = torch.randint(3, 2048, (4, 32), generator=torch.Generator().manual_seed(0))
    report = hubprune.prune(
        model, tokenizer, PruningConfig("wanda", pattern="2:4"), {"domain": tokens}, progress=False
    )
    assert report.totals.pruned * 2 == report.totals.targeted
    hubprune.publish(model, "me/in-memory", tokenizer=tokenizer, report=report, token=hub.token("me"))
    assert same_weights(AutoModelForCausalLM.from_pretrained("me/in-memory"), model)


def test_keywords_of_transformers_and_words_of_peers_pass_through(tmp_path: Path):
    pruned = AutoPrunedModelForCausalLM.from_pretrained(
        MODEL_ID,
        method="wanda",
        mask_structure="2:4",
        nsamples=4,
        max_seq_length=32,
        domain=MEDICAL_ID,
        evaluation=None,
        progress=False,
        dtype="float32",
        device_map="cpu",
        revision="main",
        cache_dir=tmp_path / "cache",
        attn_implementation="eager",
    )
    assert pruned.dtype == torch.float32
    assert pruned.config._attn_implementation == "eager"
    assert (tmp_path / "cache" / f"models--{MODEL_ID.replace('/', '--')}").is_dir()
    facts = pruned.hubprune_report.corpora[0]
    assert (facts.num_sequences, facts.sequence_length) == (4, 32)
    assert pruned.hubprune_report.base.revision == "main"


def test_evaluation_text_by_label_is_measured_under_its_label():
    texts = {"legal": f"{LEGAL_ID}:default:test"}
    pruned = AutoPrunedModelForCausalLM.from_pretrained(MODEL_ID, method="magnitude", evaluation=texts, **SMALL)
    assert list(pruned.hubprune_report.perplexities()) == ["legal"]


def test_text_without_a_held_out_split_is_measured_nowhere_and_said_so():
    pruned = AutoPrunedModelForCausalLM.from_pretrained(
        MODEL_ID,
        method="wanda",
        domain=["some words in a row " * 40],
        num_samples=1,
        sequence_length=64,
        progress=False,
    )
    assert pruned.hubprune_report.evaluation == []
    assert any("no held-out split" in warning for warning in pruned.hubprune_report.warnings)


class TestRefused:
    """One error, before weights are fetched: nothing is downloaded but a config and rows."""

    @pytest.fixture(autouse=True)
    def _no_weights(self, monkeypatch):
        def fetch(*_args, **_kwargs):
            pytest.fail("the weights were fetched")

        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fetch)

    def refused(self, error, words, base=MODEL_ID, **request):
        with pytest.raises(error, match=words):
            AutoPrunedModelForCausalLM.from_pretrained(base, **{**SMALL, **request})

    def test_unknown_method(self):
        self.refused(
            ConfigError,
            r"unknown method 'd-prunner': did you mean 'd-pruner' or 'cus-prun'\?",
            method="d-prunner",
            **CORPORA,
        )

    @pytest.mark.parametrize("sparsity", [1.0, -0.1, 50])
    def test_sparsity_outside_its_range(self, sparsity):
        self.refused(ConfigError, rf"at least 0 and below 1, got {sparsity}", sparsity=sparsity, **CORPORA)

    def test_both_a_pattern_and_a_sparsity(self):
        self.refused(ConfigError, "fixes the sparsity by itself", sparsity=0.5, pattern="2:4", **CORPORA)

    def test_a_config_and_its_fields(self):
        self.refused(ConfigError, "give pruning_config or its fields", pruning_config=PruningConfig(), sparsity=0.5)

    def test_a_missing_corpus(self):
        self.refused(ConfigError, r"needs a domain corpus, got general: give domain=", general=GENERAL_ID)

    def test_a_data_set_that_does_not_exist(self, hub):
        request = {"general": GENERAL_ID, "domain": "me/nothing"}
        self.refused(CorpusError, "no data set at .*datasets/me/nothing", token=hub.token("me"), **request)
        self.refused(AccessError, "no public data set at .*datasets/me/nothing", token=False, **request)

    def test_a_split_that_does_not_exist(self):
        domain = f"{MEDICAL_ID}:default:dev"
        self.refused(CorpusError, "has no split 'dev'.* it has train, test", general=GENERAL_ID, domain=domain)

    def test_a_configuration_that_does_not_exist(self):
        self.refused(
            CorpusError, "has no configuration 'x'.* it has default", general=GENERAL_ID, domain=f"{MEDICAL_ID}:x"
        )

    def test_a_column_that_does_not_exist(self):
        domain = {"sources": [{"dataset": MEDICAL_ID, "template": "{abstract}"}]}
        self.refused(CorpusError, "'abstract'.* columns are text, question, answer", general=GENERAL_ID, domain=domain)

    def test_empty_texts(self):
        self.refused(CorpusError, "holds no text that can be used", method="wanda", domain=["", " "], num_samples=1)

    def test_evaluation_on_calibration_text(self):
        evaluation = {"medical": f"{MEDICAL_ID}:default:train"}
        self.refused(CorpusError, "evaluation text must not be calibration text", evaluation=evaluation, **CORPORA)

    def test_a_repository_that_does_not_exist(self, hub):
        token = hub.token("me")
        self.refused(NotFoundError, "no model at .*/me/absent", "me/absent", method="magnitude", token=token)

    def test_a_private_repository(self, hub_api):
        hub_api().create_repo("me/secret-base", private=True, exist_ok=True)
        self.refused(
            AccessError, "no public model at .*/me/secret-base", "me/secret-base", method="magnitude", token=False
        )

    def test_an_encoder(self, tmp_path: Path):
        config = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        self.refused(UnsupportedModelError, "needs a decoder language model", tmp_path, method="magnitude")

    def test_a_quantised_model(self, tmp_path: Path):
        config = {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        self.refused(
            UnsupportedModelError,
            r"already quantised \(gptq\): prune the model it was made from",
            tmp_path,
            method="magnitude",
        )

    def test_building_the_auto_class_by_itself(self):
        with pytest.raises(UsageError, match="from_pretrained"):
            AutoPrunedModelForCausalLM()


def test_pushing_a_model_that_was_not_pruned_is_refused():
    plain = AutoModelForCausalLM.from_pretrained(MODEL_ID)
    with pytest.raises(UsageError, match="has none: give report="):
        hubprune.publish(plain, "me/nothing")


def test_a_push_without_permission_is_refused_before_any_work(model, hub, monkeypatch):
    monkeypatch.setattr(
        "hubprune.publisher.save", lambda *_a, **_k: pytest.fail("saved before the permission was known")
    )
    with pytest.raises(AccessError, match="guest may not create it; push to a repository of guest"):
        model.push_to_hub("me/not-yours", token=hub.token("guest"))


def test_the_seed_of_a_config_chooses_the_text_too():
    facts = [
        AutoPrunedModelForCausalLM.from_pretrained(
            MODEL_ID, domain=MEDICAL_ID, evaluation=None, **request, **SMALL
        ).hubprune_report.corpora[0]
        for request in (
            {"pruning_config": PruningConfig("wanda", seed=5)},
            {"method": "wanda", "seed": 5},
            {"method": "wanda"},
        )
    ]
    assert [found.seed for found in facts] == [5, 5, 0]
    assert facts[0].token_sha256 == facts[1].token_sha256 != facts[2].token_sha256


def test_broken_weights_are_named_before_anything_is_measured(tmp_path: Path):
    broken = AutoModelForCausalLM.from_pretrained(MODEL_ID)
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    broken.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(MODEL_ID).save_pretrained(tmp_path)
    with pytest.raises(NumericalError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN"):
        AutoPrunedModelForCausalLM.from_pretrained(tmp_path, method="d-pruner", **CORPORA, **SMALL)


def test_a_model_without_a_tokenizer_is_pruned_saved_and_loaded_again(tmp_path: Path):
    AutoModelForCausalLM.from_pretrained(MODEL_ID).save_pretrained(tmp_path / "base")
    request = {"method": "magnitude", "sparsity": 0.5, "evaluation": None}
    pruned = AutoPrunedModelForCausalLM.from_pretrained(tmp_path / "base", **request)
    assert pruned.tokenizer is None
    assert any("without a tokenizer" in warning for warning in pruned.hubprune_report.warnings)
    pruned.save_pretrained(tmp_path / "pruned")
    again = AutoPrunedModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert again.tokenizer is None
    assert again.hubprune_report.totals == pruned.hubprune_report.totals


def test_the_cache_asked_for_serves_a_run_without_the_network(tmp_path: Path):
    request = {"method": "magnitude", "evaluation": None, "cache_dir": tmp_path / "cache"}
    first = AutoPrunedModelForCausalLM.from_pretrained(MODEL_ID, **request)
    again = AutoPrunedModelForCausalLM.from_pretrained(MODEL_ID, local_files_only=True, **request)
    assert same_weights(first, again)
    with pytest.raises(OfflineError, match="local_files_only is set and the cache does not hold it"):
        AutoPrunedModelForCausalLM.from_pretrained(
            MODEL_ID, method="magnitude", local_files_only=True, cache_dir=tmp_path / "empty"
        )


def test_a_mistyped_keyword_is_refused():
    with pytest.raises(ConfigError, match=r"no keyword 'sparsityy': did you mean 'sparsity'\?"):
        AutoPrunedModelForCausalLM.from_pretrained(MODEL_ID, method="magnitude", sparsityy=0.5)


def test_the_door_inside_transformers_checks_before_the_weights(model, tmp_path: Path, monkeypatch):
    config = PruneOnLoadConfig(method="wanda", domain=f"{MEDICAL_ID}:default:dev")
    monkeypatch.setattr(
        "transformers.modeling_utils.load_state_dict", lambda *_a, **_k: pytest.fail("weights were read")
    )
    with pytest.raises(CorpusError, match="has no split 'dev'"):
        AutoModelForCausalLM.from_pretrained(MODEL_ID, quantization_config=config)
    monkeypatch.undo()
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="was already pruned"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=PruneOnLoadConfig(method="magnitude"))


def test_saving_into_what_is_no_folder_is_one_clear_error(model, tmp_path: Path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="cannot write .*file/inside"):
        model.save_pretrained(tmp_path / "file" / "inside")


def test_a_gated_data_set_is_refused_with_a_link(hub, hub_api):
    api = hub_api()
    api.create_repo("me/gated-set", repo_type="dataset", exist_ok=True)
    api.upload_file(
        path_or_fileobj=b'{"text": "a row"}\n', path_in_repo="data.jsonl", repo_id="me/gated-set", repo_type="dataset"
    )
    api.update_repo_settings("me/gated-set", gated="auto", repo_type="dataset")
    with pytest.raises(AccessError, match=r"gated; ask for access at .*/datasets/me/gated-set"):
        AutoPrunedModelForCausalLM.from_pretrained(
            MODEL_ID, method="wanda", domain="me/gated-set", token=hub.token("guest"), **SMALL
        )
