"""The loop: exact counts on every family and pattern, what is left alone, what does not matter, what is refused."""

from __future__ import annotations

import pytest
import torch

from hubprune import PruningConfig, prune
from hubprune.architecture import find_matrices
from hubprune.calibration import corpus_from_tokens
from hubprune.errors import ConfigError, CorpusError, NumericalError, UnsupportedModelError
from hubprune.evaluation import perplexity
from hubprune.masks import removed_count
from hubprune.presets import WEIGHT_METHODS
from hubprune.weights import Weights, touched_by
from tests.families import FAMILIES, build, token_ids

GENERAL, DOMAIN = token_ids(8, 32, seed=1), token_ids(8, 32, seed=2)


def run(model, general=GENERAL, domain=DOMAIN, *, method="d-pruner", **config):
    corpora = {name: ids for name, ids in (("general", general), ("domain", domain)) if ids is not None}
    return prune(model, None, PruningConfig(method, **config), corpora, progress=False)


def masks_of(model):
    return {m.name: m.view() != 0 for m in find_matrices(model)}


def agreement(left, right):
    total = sum(m.numel() for m in left.values())
    return sum(int((left[name] == right[name]).sum()) for name in left) / total


def assert_nm(model, n, m):
    for matrix in find_matrices(model):
        kept = (matrix.view() != 0).reshape(-1, m).sum(dim=1)
        assert (kept <= n).all(), matrix.name
        assert (kept == n).float().mean() > 0.99, matrix.name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["d-pruner", "wanda", "sparsegpt"])
def test_every_family_reaches_the_sparsity_exactly_and_touches_nothing_else(family, method):
    model = build(family)
    before = Weights(model).untouched_sha256(touched_by(find_matrices(model)))
    report = run(model, method=method, sparsity=0.6)
    for row, matrix in zip(report.matrices, find_matrices(model), strict=True):
        assert (row.name, row.shape) == (matrix.name, matrix.shape)
        assert row.pruned == removed_count(row.numel, 0.6)
        assert int((matrix.view() == 0).sum()) == row.zeros >= row.pruned
    assert Weights(model).untouched_sha256(touched_by(find_matrices(model))) == before == report.untouched_sha256
    with torch.no_grad():
        assert torch.isfinite(model(DOMAIN[:1]).logits).all()


@pytest.mark.parametrize("method", WEIGHT_METHODS)
@pytest.mark.parametrize("application", ["zero", "compensate"])
@pytest.mark.parametrize("pattern", ["row", "block", "matrix", "model", "2:4", "1:4"])
def test_every_method_in_every_pattern_and_application(method, pattern, application):
    model = build("llama")
    chosen = {"pattern": pattern} if ":" in pattern else {"scope": pattern, "sparsity": 0.7}
    report = run(model, method=method, application=application, block_size=16, **chosen)
    if ":" in pattern:
        assert_nm(model, int(pattern[0]), int(pattern[2]))
    expected = report.totals.targeted * (1 - int(pattern[0]) / 4 if ":" in pattern else 0.7)
    assert report.totals.pruned == pytest.approx(expected, abs=len(report.matrices))
    if pattern == "model":
        assert report.totals.pruned == removed_count(report.totals.targeted, 0.7)
        assert len({round(row.sparsity, 2) for row in report.matrices}) > 1
    assert report.totals.zeros == sum(int((m.view() == 0).sum()) for m in find_matrices(model))
    assert report.config["method"] == method
    assert model.config.hubprune["sparsity"] == pytest.approx(report.totals.sparsity, abs=1e-6)


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_batch_size_and_order_of_the_sequences_do_not_matter(method):
    base = build("llama")
    run(base, method=method)
    shuffled = build("llama")
    order = torch.randperm(len(GENERAL), generator=torch.Generator().manual_seed(0))
    run(shuffled, GENERAL[order], DOMAIN[order], method=method, batch_size=3)
    assert agreement(masks_of(base), masks_of(shuffled)) > 0.999


@pytest.mark.parametrize("method", [name for name, row in WEIGHT_METHODS.items() if row.application == "zero"])
def test_pruning_twice_changes_nothing(method):
    model = build("llama")
    run(model, method=method)
    once = {name: p.clone() for name, p in model.state_dict().items()}
    run(model, method=method)
    assert all(torch.equal(p, once[name]) for name, p in model.state_dict().items())


def test_same_seed_same_masks_in_bfloat16():
    left, right = build("qwen2", torch.bfloat16), build("qwen2", torch.bfloat16)
    run(left)
    run(right)
    assert agreement(masks_of(left), masks_of(right)) == 1.0


def test_calibration_text_changes_the_masks():
    left, right = build("llama"), build("llama")
    run(left)
    run(right, domain=token_ids(8, 32, seed=9))
    assert agreement(masks_of(left), masks_of(right)) < 0.999


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "ria", "gblm", "d-pruner"])
def test_experts_that_no_token_reaches_are_ranked_by_magnitude_and_named(method):
    """Three tokens can reach 6 of 16 experts: a warning names the others, and none is silently emptied."""
    model = build("qwen3_moe", num_experts=16)
    dense = {m.name: m.view().clone() for m in find_matrices(model)}
    few = token_ids(1, 3)
    report = run(model, few, few, method=method, sparsity=0.5, scope="block" if method == "sparsegpt" else "matrix")
    (warning,) = report.warnings
    assert "ranked by magnitude" in warning
    unseen = [m for m in find_matrices(model) if m.name in warning]
    assert len(unseen) == 5
    assert int(warning.split(" matrices")[0].split()[-1]) >= 3 * 2 * (16 - 6)
    for matrix in unseen:
        gone = matrix.view() == 0
        assert dense[matrix.name][gone].abs().max() <= dense[matrix.name][~gone].abs().min()


def test_targets_and_ignore_choose_the_matrices():
    model = build("llama")
    report = run(model, targets=("re:.*mlp", "q_proj"), ignore=("model.layers.1.mlp.up_proj",))
    names = {row.name for row in report.matrices}
    assert names == {
        f"model.layers.{i}.{n}"
        for i in range(3)
        for n in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "self_attn.q_proj")
        if (i, n) != (1, "mlp.up_proj")
    }
    assert (model.model.layers[1].mlp.up_proj.weight != 0).all()


def test_report_holds_the_facts_of_the_run():
    model = build("llama")
    report = run(model, sparsity=0.5)
    totals = report.totals
    assert totals.parameters == sum(p.numel() for p in model.parameters())
    assert totals.sparsity == 0.5
    assert totals.share_of_all == totals.pruned / totals.parameters < 0.5
    assert [c.name for c in report.corpora] == ["general", "domain"]
    assert [c.tokens for c in report.corpora] == [GENERAL.numel(), DOMAIN.numel()]
    assert report.timings.keys() == {"forward", "backward"}
    assert report.peak_memory_bytes > 2**20
    assert {"torch", "transformers", "hubprune"} <= report.versions.keys()
    assert report.options == {"general_weight": 10.0, "form": "dual", "terms": "both"}
    assert type(report).from_dict(report.to_dict()) == report


class TestRefused:
    """Each mistake gives one error that names the rule, the value and the remedy, and leaves the weights alone."""

    def refused(self, error, match, *, model=None, **given):
        model = model or build("llama")
        before = {name: p.clone() for name, p in model.state_dict().items()}
        with pytest.raises(error, match=match):
            run(model, **given)
        assert all(torch.equal(p.nan_to_num(), before[name].nan_to_num()) for name, p in model.state_dict().items())

    def test_missing_corpus(self):
        self.refused(ConfigError, "needs a domain corpus, got general", domain=None)
        self.refused(ConfigError, "needs calibration text, got none", method="wanda", general=None, domain=None)

    def test_width_not_divisible(self):
        self.refused(ConfigError, "divisible by 5, and q_proj has 32", pattern="2:5")

    def test_unknown_target(self):
        self.refused(
            ConfigError, r"targets pattern 'q_porj' matches no linear map.*did you mean 'q_proj'", targets=("q_porj",)
        )
        self.refused(ConfigError, "ignore pattern 're:.*lm_head'", ignore=("re:.*lm_head",))
        self.refused(ConfigError, "leaves nothing to prune", ignore=("re:.*",))

    def test_nan_weight(self):
        model = build("llama")
        with torch.no_grad():
            model.model.layers[2].self_attn.k_proj.weight[1, 1] = float("nan")
        self.refused(NumericalError, r"model\.layers\.2\.self_attn\.k_proj\.weight holds NaN", model=model)

    def test_token_outside_the_vocabulary(self):
        self.refused(CorpusError, "vocabulary of 61, and the domain corpus has 61", domain=torch.full((2, 8), 61))
        self.refused(CorpusError, "and the domain corpus has -100: .* no padding", domain=torch.full((2, 8), -100))

    def test_sequences_longer_than_the_model_reads(self):
        words = "at most the 64 tokens that the model can read, and the domain corpus has 65"
        self.refused(CorpusError, words, domain=torch.ones(2, 65, dtype=torch.long))

    def test_quantised_and_other_models(self):
        model = build("llama")
        model.config.quantization_config = {"quant_method": "fp8"}
        self.refused(UnsupportedModelError, "already quantised", model=model)
        model = build("llama")
        model.config.model_type, model.config.architectures = "bert", ["BertForMaskedLM"]
        self.refused(UnsupportedModelError, "BertForMaskedLM", model=model)

    def test_text_without_a_tokenizer(self):
        self.refused(ConfigError, "needs a tokenizer", domain=["some text"])


@pytest.mark.parametrize(("pattern", "block_size"), [("2:4", 6), ("2:4", 10), ("3:6", 16), ("1:3", 128)])
@pytest.mark.parametrize("method", ["sparsegpt", "wanda"])
def test_groups_hold_whatever_the_block_size(method, pattern, block_size):
    """A group never spans two blocks of the column sweep."""
    model = build("llama", hidden_size=48, head_dim=12)
    run(model, method=method, pattern=pattern, block_size=block_size, application="compensate")
    assert_nm(model, int(pattern[0]), int(pattern[2]))


@pytest.mark.parametrize("method", ["sparsegpt", "d-pruner", "cross-calibration"])
def test_weights_that_read_nothing_go_first(method):
    """Half of the inputs of OPT's fc2 are never active: removing their weights costs nothing."""
    model = build("opt")
    for block in model.model.decoder.layers:
        with torch.no_grad():
            block.fc1.bias[::2] = -1e4
    report = run(model, method=method, sparsity=0.5, scope="matrix", application="zero")
    for block in model.model.decoder.layers:
        assert int((block.fc2.weight[:, ::2] != 0).sum()) == 0
        assert int((block.fc2.weight[:, 1::2] == 0).sum()) == 0
    assert report.totals.zeros == report.totals.pruned


def test_matrices_without_evidence_get_their_own_share_in_the_model_scope():
    """Magnitudes are no match for the scores of other matrices, so they do not compete with them."""
    model = build("mixtral", num_local_experts=8)
    tokens = token_ids(1, 2)
    report = run(model, method="d-pruner", sparsity=0.5, scope="model", general=tokens, domain=tokens)
    assert report.totals.pruned == removed_count(report.totals.targeted, 0.5)
    named = next(w for w in report.warnings if "ranked by magnitude" in w)
    blind = [row for row in report.matrices if f"{row.name}," in named or f"{row.name})" in named]
    assert blind
    assert all(row.pruned == removed_count(row.numel, 0.5) for row in blind)


def test_damping_that_was_needed_is_recorded_whatever_is_done_to_the_weights(monkeypatch):
    from hubprune import evidence

    monkeypatch.setattr(evidence, "inverse_cholesky", lambda h, damping: (torch.eye(len(h)) + 0 * h, 10 * damping))
    report = run(build("llama"), method="d-pruner", application="zero")
    assert {row.damping for row in report.matrices} == {0.1}
    assert {row.damping for row in run(build("llama"), method="wanda").matrices} == {None}


def test_seed_and_names_of_the_corpora_are_those_of_the_run():
    from hubprune.calibration import corpus_from_tokens

    corpora = {"general": corpus_from_tokens(GENERAL), "domain": corpus_from_tokens(DOMAIN)}
    report = prune(build("llama"), None, PruningConfig("d-pruner"), corpora, progress=False)
    assert [corpus.name for corpus in report.corpora] == ["general", "domain"]
    assert corpora["general"].facts.name == "corpus"


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_the_loss_of_routers_counts_nowhere_and_stays_as_it_was_set(family):
    """A config may ask for the loss that balances experts; it is no part of what the text costs."""
    plain, asked = build(family), build(family)
    asked.config.output_router_logits = True
    text = corpus_from_tokens(token_ids(4, 12), "general")
    config = PruningConfig("d-pruner")
    for model in (plain, asked):
        prune(model, None, config, {"general": token_ids(4, 12), "domain": token_ids(4, 12, seed=1)}, progress=False)
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, asked.get_parameter(name))
    assert perplexity(asked, text, progress=False) == perplexity(plain, text, progress=False)
    assert asked.config.output_router_logits is True
