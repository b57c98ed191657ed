"""Units: found in every family, masked without a leak, and a model without them answers as one in which they are 0."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

from hubprune import PruningConfig, prune, shrink
from hubprune.allocation import allocate
from hubprune.apply import fold, zero_lines
from hubprune.errors import ConfigError, UnsupportedModelError, UsageError
from hubprune.facts import UnitFacts, pack_removed
from hubprune.removal import kept_of, legal_kv_counts, shrunk
from hubprune.units import find_groups, rotated_pairs
from tests.families import FAMILIES, VOCABULARY, build, token_ids

T5 = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
BERT = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
CORPORA = {"general": token_ids(6, 24, seed=1), "domain": token_ids(6, 24, seed=2)}
# Families whose heads cannot be cut out: their width follows from their number, or a norm spans all of them.
WITHOUT_HEADS = ("olmo2", "opt", "gpt2", "gpt_neox")


def model_of(name: str) -> tf.PreTrainedModel:
    """A tiny random model of a decoder family, T5 or BERT."""
    if name in FAMILIES:
        return build(name)
    torch.manual_seed(0)
    if name.startswith("t5"):
        kind = "gated-gelu" if name == "t5-gated" else "relu"
        config = tf.T5Config(**T5, feed_forward_proj=kind, decoder_start_token_id=0)
        return tf.AutoModelForSeq2SeqLM.from_config(config).eval()
    config = tf.BertConfig(**BERT, num_attention_heads=4, max_position_embeddings=64)
    return tf.AutoModelForMaskedLM.from_config(config).eval()


def answer(model: tf.PreTrainedModel) -> torch.Tensor:
    """Logits for a fixed input."""
    more = {"decoder_input_ids": token_ids(seed=3)} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=token_ids(), **more).logits


def rows_of(model: tf.PreTrainedModel, unit: str, share: float) -> list[UnitFacts]:
    """Draw units to remove; groups that are tied lose the same ones."""
    generator, tied, rows = torch.Generator().manual_seed(0), {}, []
    for group in find_groups(model, (unit,)):
        count = max(1, int(group.count * share))
        gone = tied.setdefault(
            group.tied or group.name, set(torch.randperm(group.count, generator=generator)[:count].tolist())
        )
        removed = pack_removed([index in gone for index in range(group.count)])
        rows.append(UnitFacts(group.name, group.block, unit, group.count, removed, group.unit_size))
    return rows


def mask(model: tf.PreTrainedModel, rows: list[UnitFacts]) -> None:
    """Set all that belongs to removed units to zero."""
    kept = kept_of(rows)
    for group in find_groups(model, dict.fromkeys(row.unit for row in rows)):
        for part in group.slices:
            zero_lines(part.stored(), part.axis, part.index[~kept[group.name]].flatten())


@pytest.mark.parametrize("unit", ["ffn_neuron", "kv_group"])
@pytest.mark.parametrize("name", [*FAMILIES, "t5", "t5-gated", "bert"])
def test_masked_removed_and_reloaded_answer_alike(name, unit, tmp_path):
    model = model_of(name)
    if unit == "kv_group" and name in {*WITHOUT_HEADS, "bert"}:
        with pytest.raises((ConfigError, UnsupportedModelError), match="remove FFN neurons|unit='weight'"):
            shrunk(model, rows_of(model, unit, 0.25))
        return
    rows = rows_of(model, unit, 0.25)
    before = sum(parameter.numel() for parameter in model.parameters())
    mask(model, rows)
    masked = answer(model)
    small = shrunk(model, rows)
    lost = sum((row.count - row.kept) * row.weights for row in rows)
    assert sum(parameter.numel() for parameter in small.parameters()) == before - lost
    small.save_pretrained(tmp_path)
    again, info = type(small).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    size = masked.abs().max()
    assert (answer(small) - masked).abs().max() <= 1e-5 * size
    assert (answer(again.eval()) - masked).abs().max() <= 1e-5 * size


@pytest.mark.parametrize("name", FAMILIES)
def test_a_unit_that_is_masked_does_not_reach_the_residual_stream(name):
    """Whatever flows into a removed neuron, the model answers the same: nothing leaks, no bias either."""
    model = model_of(name)
    rows = rows_of(model, "ffn_neuron", 0.25)
    mask(model, rows)
    masked, kept = answer(model), kept_of(rows)
    for group in find_groups(model, ("ffn_neuron",)):
        for part in group.slices:
            if part.matrix is not group.writer:
                part.stored().index_fill_(part.axis, part.index[~kept[group.name]].flatten(), 0.5)
    assert torch.equal(answer(model), masked)


@pytest.mark.parametrize(
    ("name", "counts"), [("llama", [1, 2]), ("olmo2", []), ("gpt2", [4]), ("t5", [1, 2, 3, 4]), ("qwen3", [1, 2])]
)
def test_legal_head_counts_are_those_the_class_can_be_built_with(name, counts):
    assert legal_kv_counts(model_of(name)) == counts


@pytest.mark.parametrize("family", WITHOUT_HEADS)
def test_heads_that_cannot_be_cut_are_refused_with_what_can_be_done(family):
    config = PruningConfig("random", unit="kv_group", sparsity=0.5)
    with pytest.raises((ConfigError, UnsupportedModelError), match="remove FFN neurons"):
        allocate(model_of(family), config)


def test_an_illegal_head_count_is_refused_with_the_legal_ones():
    config = tf.LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=8
    )
    model = tf.LlamaForCausalLM(config)
    legal = r"6 of 8 KV groups cannot .* 1 .*, 2 \(sparsity 0\.75\), 4 \(sparsity 0\.5"
    with pytest.raises(ConfigError, match=legal):
        allocate(model, PruningConfig("random", unit="kv_group", sparsity=0.25))
    masked = PruningConfig("random", unit="kv_group", sparsity=0.25, application="zero")
    report = prune(model, None, masked, {}, progress=False)
    with pytest.raises(ConfigError, match=legal):  # masked it can be, but not cut out afterwards
        shrink(model, report)


def test_rotated_dimensions_come_in_pairs():
    assert rotated_pairs(FAMILIES["llama"]()).tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert rotated_pairs(FAMILIES["gpt2"]()).tolist() == [[index] for index in range(8)]
    neox = FAMILIES["gpt_neox"]()
    assert sorted(rotated_pairs(neox).flatten().tolist()) == list(range(8))


# How many go


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({"sparsity": 0.25}, 36),  # a multiple of 4, as 8 is too coarse for 48
        ({"sparsity": 0.25, "multiple": 16}, 32),
        ({"sparsity": 0.25, "multiple": 1}, 36),
        ({"sparsity": 0.26, "multiple": 1}, 36),
        ({"sparsity": 0.26, "application": "zero"}, 36),
        ({"sparsity": 0.3, "application": "zero"}, 34),
    ],
)
def test_as_many_units_are_left_as_the_model_size_suits(settings, left):
    found = allocate(build("llama"), PruningConfig("random", **settings))
    assert {group.count - found.removed[group.name] for group in found.groups} == {left}


def test_a_share_of_all_parameters_is_met_with_units():
    model = build("llama")
    total = sum(parameter.numel() for parameter in model.parameters())
    for share_of in ("blocks", "model"):
        config = PruningConfig("random", sparsity=0.1, share_of=share_of, multiple=1)
        found = allocate(model, config)
        gone = sum(found.removed[group.name] * group.unit_size for group in found.groups)
        whole = total if share_of == "model" else sum(p.numel() for p in model.model.layers.parameters())
        assert gone / whole == pytest.approx(0.1, abs=0.01)
    with pytest.raises(ConfigError, match=r"hold 5\d\.\d% of all parameters, so 60\.0% of them cannot"):
        allocate(model, PruningConfig("random", sparsity=0.6, share_of="model"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "cus-prun", "pattern": "2:4"}, "goes with single weights"),
        ({"method": "cus-prun", "scope": "row"}, "goes with single weights"),
        ({"method": "wanda", "application": "remove"}, "single weights cannot be cut out"),
        ({"method": "wanda", "repair": True}, "goes with units"),
        ({"method": "cus-prun", "unit": "weight"}, "scores units"),
        ({"method": "cus-prun", "unit": "neuron"}, "a unit is one of"),
        ({"method": "cus-prun", "unit": "layer"}, "scores ffn_neuron"),
        ({"method": "block-influence", "unit": "ffn_neuron"}, "scores layer"),
        ({"method": "random", "unit": "attention_dim", "application": "remove"}, "only be masked"),
        ({"method": "wanda", "unit": "attention_dim", "application": "zero"}, "scored by cus-prun and random"),
        ({"method": "mutual-information", "unit": "kv_group"}, "compares neurons"),
        ({"method": "random", "targets": ("q_proj",)}, "go with single weights"),
        ({"method": "random", "application": "compensate", "repair": False}, "repairs, got repair=False"),
        ({"method": "random", "share_of": "all"}, "share_of must be one of"),
        ({"method": "block-influence", "application": "zero"}, "layers are removed as they are"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        PruningConfig(**settings)


def test_a_share_that_takes_no_unit_is_refused():
    with pytest.raises(ConfigError, match=r"0\.1 of 2 KV groups is less than one KV group .* 0\.5"):
        allocate(build("llama"), PruningConfig("random", unit="kv_group", sparsity=0.1))


# Repair


def test_folding_is_the_least_squares_answer():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 12, generator=generator) @ torch.randn(12, 12, generator=generator)
    weight = torch.randn(5, 12, generator=generator)
    gone = torch.zeros(12, dtype=torch.bool)
    gone[[1, 4, 9]] = True
    repaired = weight.clone()
    fold(repaired, inputs.T @ inputs / 400, gone, 1e-7)
    best = torch.linalg.lstsq(inputs[:, ~gone], inputs @ weight.T).solution.T
    assert torch.allclose(repaired[:, ~gone], best, atol=1e-3)
    assert not repaired[:, gone].any()


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize("unit", ["ffn_neuron", "kv_group"])
def test_repair_brings_the_answer_closer(family, unit):
    text = torch.cat(list(CORPORA.values()))
    with torch.no_grad():
        before = build(family, num_hidden_layers=1)(input_ids=text).logits
    errors = []
    for application in ("zero", "compensate"):
        model = build(family, num_hidden_layers=1)
        prune(model, None, PruningConfig("random", unit=unit, sparsity=0.5, application=application), CORPORA)
        with torch.no_grad():
            errors.append(float((model(input_ids=text).logits - before).square().mean()))
    assert errors[1] < errors[0]


# Runs in memory

UNIT_METHODS = ["random", "magnitude", "wanda-sp", "taylor", "cus-prun", "mutual-information", "d-pruner", "sparsegpt"]


@pytest.mark.parametrize("application", ["zero", "compensate"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("method", UNIT_METHODS)
def test_every_method_removes_exactly_as_many_units(method, family, application):
    model = build(family)
    config = PruningConfig(method, unit="ffn_neuron", sparsity=0.25, application=application)
    report = prune(model, None, config, CORPORA, progress=False)
    groups = {group.name: group for group in find_groups(model, ("ffn_neuron",))}
    assert [row.name for row in report.units] == list(groups)
    for row in report.units:
        assert row.count - row.kept == round(row.count * 0.25)
        for part in groups[row.name].slices:
            gone = part.index[row.removed_indices].flatten()
            assert not part.stored().index_select(part.axis, gone).any()
        assert row.scores["min"] <= row.scores["threshold"] <= row.scores["max"]
        assert (row.damping is not None) == (application == "compensate")
    totals = report.totals
    assert totals.pruned == sum((row.count - row.kept) * row.weights for row in report.units)
    assert totals.sparsity == pytest.approx(0.25)
    assert 0 < totals.share_of_all < totals.share_of_blocks < totals.sparsity
    assert sum(row.pruned for row in report.matrices) <= totals.pruned


def test_shrinking_brings_the_report_up_to_date():
    model = build("llama")
    report = prune(model, None, PruningConfig("wanda-sp", application="compensate"), CORPORA, progress=False)
    small = shrink(model, report)
    assert report.application == "remove"
    assert small.config.intermediate_size == report.units[0].kept == 36
    assert report.totals.left == sum(parameter.numel() for parameter in small.parameters())
    assert report.totals.parameters - report.totals.left == report.totals.pruned
    assert {row.shape for row in report.matrices if row.kind == "down_proj"} == {(32, 36)}
    assert small.config.hubprune["application"] == "remove"
    with pytest.raises(UsageError, match="only masked units can be cut out"):
        shrink(small, report)


def test_a_model_in_memory_is_not_cut_in_place():
    with pytest.raises(UsageError, match=r"small = hubprune\.shrink\(model, report\)"):
        prune(build("llama"), None, PruningConfig("random"), CORPORA)


def test_attention_and_neurons_go_together():
    model = build("llama")
    config = PruningConfig("cus-prun", unit="ffn_neuron+kv_group", sparsity=0.5, application="compensate")
    report = prune(model, None, config, CORPORA, progress=False)
    masked, small = answer(model), shrink(model, report)
    assert (small.config.intermediate_size, small.config.num_key_value_heads) == (24, 1)
    assert torch.allclose(answer(small), masked, atol=1e-4)


def test_the_same_seed_draws_the_same_units():
    removed = []
    for seed in (0, 0, 1):
        report = prune(build("llama"), None, PruningConfig("random", application="zero", seed=seed), CORPORA)
        removed.append([row.removed for row in report.units])
    assert removed[0] == removed[1] != removed[2]
    assert len(set(removed[0])) == 3  # every layer draws anew
