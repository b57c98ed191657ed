"""Criteria of units against their definitions: what removing a unit does, what autograd says, what eigenvalues say."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F

from hubprune import PruningConfig, masks, prune
from hubprune.calibration import corpus_from_tokens
from hubprune.criteria.attribution import Attribution
from hubprune.criteria.cus_prun import CusPrun
from hubprune.criteria.mutual_information import MutualInformation, information, pairwise_information
from hubprune.errors import ConfigError
from hubprune.unit_criterion import Example, UnitCriterion, UnitView
from hubprune.unit_ranking import Ranking, agreement
from hubprune.units import find_groups
from tests.families import FAMILIES, build, token_ids

CORPORA = {name: token_ids(6, 20, seed=seed) for seed, name in enumerate(("language", "domain", "task"))}


def view_of(weight: torch.Tensor, width: int = 1) -> UnitView:
    """A group whose units are neighbouring columns of a writer ``(d_out, d_in)``."""
    columns = torch.arange(weight.shape[1]).reshape(-1, width)
    return UnitView("a.group", weight[:, columns], columns, len(columns))


@pytest.mark.parametrize("width", [1, 3])
def test_cus_prun_sees_what_removing_a_unit_does_to_the_output(width):
    torch.manual_seed(0)
    weight, inputs = torch.randn(5, 12), torch.randn(7, 12)
    rows = CusPrun().observe(view_of(weight, width), inputs)
    for unit in range(12 // width):
        without = inputs.clone()
        without[:, unit * width : (unit + 1) * width] = 0
        change = torch.linalg.norm(F.linear(inputs, weight) - F.linear(without, weight)) / 7**0.5
        assert rows[0, unit] == pytest.approx(float(change), rel=1e-5)


def test_cus_prun_removes_what_matters_to_no_dimension():
    rows = {"language": torch.tensor([[1.0, 9, 2, 8, 3, 7]]), "domain": torch.tensor([[1.0, 2, 9, 8, 3, 7]])}
    view = UnitView("a", None, torch.arange(6)[:, None], 6)
    scores = CusPrun().unit_scores(view, rows, {}, {})
    assert scores.argsort()[:2].tolist() == [0, 4]  # low in both; 1 and 2 are low in one only
    keep = torch.ones(6, dtype=torch.bool)
    keep[scores.argsort()[:2]] = False
    alone = {name: CusPrun().unit_scores(view, {name: each}, {}, {}) for name, each in rows.items()}
    ranking = Ranking(scores, keep, alone, {name: masks.keep_block(each[None], 2)[0] for name, each in alone.items()})
    found = agreement(ranking, intersects=True)
    assert found["reached"] == pytest.approx(3 / 6)  # unit 4 is third in both rankings
    assert found["overlap"] == {"language/domain": pytest.approx(1 / 3, abs=1e-4)}  # {0, 2} and {0, 1}


@pytest.mark.parametrize(("documents", "expected"), [("max", [4.0, 2.0]), ("mean", [2.0, 2.0]), ("p95", [3.7, 2.0])])
def test_cus_prun_asks_the_documents_in_three_ways(documents, expected):
    rows = torch.tensor([[4.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    assert CusPrun(documents)._importance(rows).tolist() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("names", [n for size in (1, 2, 3) for n in itertools.combinations(CORPORA, size)])
def test_one_two_or_three_dimensions(names):
    model = build("llama")
    config = PruningConfig("cus-prun", application="zero")
    report = prune(model, None, config, {name: CORPORA[name] for name in names}, progress=False)
    pairs = {f"{left}/{right}" for left, right in itertools.combinations(names, 2)}
    for row in report.units:
        assert set(row.overlap) == pairs
        assert row.reached == pytest.approx(0.25) if len(names) == 1 else row.reached >= 0.25


def test_dimensions_that_disagree_are_told():
    two = {"language": CORPORA["language"], "domain": CORPORA["domain"]}
    for sparsity, told in ((0.1, False), (0.85, True)):
        report = prune(build("llama"), None, PruningConfig("cus-prun", sparsity=sparsity, application="zero"), two)
        assert any("the dimensions disagree in " in warning for warning in report.warnings) == told


def test_one_dimension_has_none_to_disagree_with():
    config = PruningConfig("cus-prun", sparsity=0.95, application="zero")
    report = prune(build("llama"), None, config, {"domain": CORPORA["domain"]}, progress=False)
    assert [warning for warning in report.warnings if "disagree" in warning] == []


@pytest.mark.parametrize("method", ["cus-prun", "mutual-information"])
def test_neurons_of_an_expert_that_no_token_was_sent_to_go_by_their_size(method):
    model = build("mixtral")
    text = {"domain": torch.full((4, 12), 7)}  # all tokens alike, so that the router sees one vector in each block
    seen = {}
    routers = [layer.mlp.gate for layer in model.model.layers]
    for index, router in enumerate(routers):
        router.register_forward_pre_hook(
            lambda _, given, index=index: seen.update({index: given[0].reshape(-1, 32)[0]})
        )
    with torch.no_grad():
        for index, router in enumerate(routers):
            model(input_ids=text["domain"])
            router.weight.zero_()
            router.weight[2] = -seen[index]
    report = prune(model, None, PruningConfig(method, sparsity=0.25, application="zero"), text, progress=False)
    assert [told for told in report.warnings if "model.layers.0.mlp.experts[2]" in told and "by the size" in told]
    (row,) = (row for row in report.units if row.name == "model.layers.0.mlp.experts[2]")
    assert len(row.removed_indices) == row.count // 4
    assert row.removed_indices != list(range(row.count // 4))


# Attribution


def answered(sequences: int = 4) -> dict:
    """A task of random questions and answers."""
    corpus = corpus_from_tokens(token_ids(sequences, 16, seed=5), "task")
    labels = ("yes", "no") * (sequences // 2)
    return {"task": dataclasses.replace(corpus, answers=(12,) * sequences, labels=labels)}


class Noted(UnitCriterion):
    """Keeps what the engine shows of gradients."""

    gradients, answers_only = "task", True

    def __init__(self) -> None:
        self.found: dict[str, list] = {}

    def attribute(self, view, gradient, inputs, inputs_gradient):
        shown = (gradient, inputs, inputs_gradient)
        self.found.setdefault(view.name, []).append([None if each is None else each.clone() for each in shown])
        return torch.rand(view.count)

    def unit_scores(self, view, observed, attributed, examples):
        self.examples = examples
        return attributed["task"].sum(dim=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_log_probability_of_the_answer(family):
    """Against one backward of the whole model, through a hook of torch's own."""
    corpus, criterion, model = answered()["task"], Noted(), build(family)
    prune(model, None, PruningConfig("random"), {"task": corpus}, criterion=criterion, progress=False)
    model = build(family)
    groups = {group.name: group for group in find_groups(model, ("ffn_neuron",))}
    for position, ids in enumerate(corpus.sequences):
        model.zero_grad()
        logits = model(input_ids=ids[None], use_cache=False).logits[0, 11:-1]
        total = -F.cross_entropy(logits.float(), ids[12:], reduction="sum")
        total.backward()
        assert criterion.examples["task"][position].weight == pytest.approx(float(total.exp().detach()), rel=1e-3)
        for name, group in groups.items():
            gradient, inputs, back = criterion.found[name][position]
            writer = group.writer
            whole = writer.parameter.grad
            expected = writer.part(whole)
            scale = float(whole.abs().max())
            assert torch.allclose(gradient, expected, atol=1e-5 * scale, rtol=1e-4)
            if writer.expert is None:
                # sum_t h dF/dh is the product of the weights with their gradient, unit by unit
                direct = (inputs * back).sum(dim=0)
                identity = (writer.view() * expected).sum(dim=0)
                assert torch.allclose(direct, identity, atol=1e-4 * float(identity.abs().max()))
            else:
                assert inputs is None


def attributed_rows() -> tuple[UnitView, dict, dict]:
    view = view_of(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    rows = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.5], [0.0, 0.2, 0.5]])
    examples = [Example(0.9, "yes"), Example(0.6, "yes"), Example(0.3, "no"), Example(0.2, "no")]
    return view, {"task": rows}, {"task": examples}


def test_examples_count_alike_or_by_the_probability_of_their_answer():
    view, rows, examples = attributed_rows()
    alike = Attribution().unit_scores(view, {}, rows, examples)
    assert alike.tolist() == pytest.approx([1.0, 0.55, 0.25])
    weighted = Attribution(target="prob").unit_scores(view, {}, rows, examples)
    assert weighted.tolist() == pytest.approx([2.7 / 4, (1.8 + 0.04) / 4, 0.25 / 4])


def test_a_unit_counts_for_the_label_that_it_matters_most_for():
    view, rows, examples = attributed_rows()
    together = Attribution().unit_scores(view, {}, rows, examples)
    by_label = Attribution(per_label="yes").unit_scores(view, {}, rows, examples)
    assert int(together.argmin()) == 2
    assert int(by_label.argmin()) == 1  # the third unit is all that answers "no"


def test_signed_contributions_cancel_and_absolute_ones_do_not():
    weight, inputs = torch.ones(1, 2), torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    back = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
    gradient = (back[:, :, None] * inputs[:, :, None]).sum(dim=0).T
    view = view_of(weight)
    assert Attribution("signed").attribute(view, gradient, inputs, back).tolist() == [0.0, 2.0]
    assert Attribution("abs").attribute(view, gradient, inputs, back).tolist() == [2.0, 2.0]
    assert Attribution("abs").attribute(view, gradient, None, None).tolist() == [0.0, 2.0]


def test_attribution_needs_a_task():
    with pytest.raises(ConfigError, match="needs a task corpus, got general"):
        PruningConfig("attribution").check_corpora(("general",))


# Mutual information


def test_the_matrix_product_gives_what_eigenvalues_give():
    torch.manual_seed(0)
    values = torch.randn(40, 6)
    values[:, 3] = values[:, 0] + 0.05 * torch.randn(40)
    table = pairwise_information(values)
    for left, right in itertools.combinations(range(6), 2):
        assert float(table[left, right]) == pytest.approx(
            information(values[:, left], values[:, right], 2.0), abs=1e-3
        )
    assert torch.allclose(table, table.T, atol=1e-5)
    table = table.fill_diagonal_(0)
    assert sorted(divmod(int(table.argmax()), 6)) == [0, 3]


@pytest.mark.parametrize(
    ("strategy", "alpha"), [("stand-in", 2.0), ("greedy", 2.0), ("greedy", 1.01), ("random", 2.0), ("random", 1.01)]
)
def test_of_two_neurons_that_say_the_same_the_weaker_one_goes(strategy, alpha):
    torch.manual_seed(0)
    values = torch.randn(64, 4)
    values[:, 2] = -values[:, 1] * 0.5  # the same up to a factor
    view = view_of(torch.ones(3, 4))
    criterion = MutualInformation(strategy, alpha, positions=64)
    rows = {"domain": values}
    scores = criterion.unit_scores(view, rows, {}, {})
    keep = criterion.select(view, scores, rows, 1)
    assert int((~keep).sum()) == 1
    if strategy != "random":
        assert keep.tolist() == [True, True, False, True]
        ((gone, stand_in, bits),) = criterion.explain(view, keep, rows, {}, {})["stand_ins"]
        assert (gone, stand_in) == (2, 1)
        assert bits > 1


def test_the_weakest_stays_where_nothing_stands_in_for_it():
    torch.manual_seed(0)
    values = torch.randn(64, 5)
    values[:, 2] = values[:, 1] * 0.5
    values[:, 4] = values[:, 3] * 0.6
    values[:, 0] *= 0.1
    view, rows = view_of(torch.ones(3, 5)), {"domain": values}
    criterion = MutualInformation(positions=64)
    scores = criterion.unit_scores(view, rows, {}, {})
    assert int(scores.argmin()) == 0
    assert criterion.select(view, scores, rows, 2).tolist() == [True, True, False, True, False]
    assert criterion.select(view, scores, rows, 3).tolist() == [False, True, False, True, False]


def test_another_alpha_is_for_pairs():
    with pytest.raises(ConfigError, match="alpha is for strategies that visit pairs, got 1.01: add strategy='greedy'"):
        PruningConfig("mutual-information", options={"alpha": 1.01})
    for strategy in ("greedy", "random"):
        PruningConfig("mutual-information", options={"alpha": 1.01, "strategy": strategy})
        with pytest.raises(ConfigError, match="alpha must be above 0 and not 1, got 1"):
            PruningConfig("mutual-information", options={"alpha": 1, "strategy": strategy})


def test_pairs_drawn_by_lot_come_first_where_another_alpha_finds_much_in_common():
    torch.manual_seed(0)
    values = torch.randn(32, 12)
    values[:, 6:] = values[:, :6] + 0.3 * torch.randn(32, 6)
    view, rows = view_of(torch.ones(3, 12)), {"domain": values}
    pairs = MutualInformation("random", 1.01, positions=32)._pairs(view, rows).tolist()
    plain = MutualInformation("random", positions=32)._pairs(view, rows).tolist()
    bits = [information(values[:, left], values[:, right], 1.01) for left, right in pairs]
    middle = sorted(bits)[len(bits) // 2]
    above = [bit >= middle for bit in bits]
    assert above == sorted(above, reverse=True)
    assert [pair for pair in plain if pair in pairs[: sum(above)]] == pairs[: sum(above)]  # in the order of the lot


def test_few_examples_are_held_against_all():
    rows = torch.tensor([[1.0, 2, 3, 4]]).repeat(20, 1)
    rows[[turn * 20 // 8 for turn in range(8)]] = torch.tensor([3.0, 1, 2, 4])  # evenly spread, as 8 are taken
    examples, view, criterion = {"task": [Example()] * 20}, view_of(torch.ones(2, 4)), Attribution()
    keep = torch.ones(4, dtype=torch.bool)
    # Ranks by all 20: 1 0 2 3; by those 8: 2 0 1 3, so that rho = 1 - 6 * 2 / (4 * 15); by 16 as by all.
    assert criterion.explain(view, keep, {}, {"task": rows}, examples) == {"fewer": {"8": 0.8, "16": 1.0}}
    assert criterion.explain(view, keep, {}, {"task": rows[:8]}, {"task": [Example()] * 8}) == {"fewer": {}}


def test_positions_are_spread_over_all_sequences():
    criterion = MutualInformation(positions=12)
    criterion.prepare({"general": 4, "domain": 2})
    view = view_of(torch.ones(2, 5))
    rows = criterion.observe(view, torch.arange(50.0).reshape(10, 5))
    assert rows[:, 0].tolist() == [15.0, 45.0]


def test_stand_ins_are_kept_neurons():
    report = prune(
        build("llama"), None, PruningConfig("mutual-information", application="zero"), {"domain": token_ids(8, 24)}
    )
    for row in report.units:
        assert [gone for gone, _, _ in row.stand_ins] == row.removed_indices
        assert not {other for _, other, _ in row.stand_ins} & set(row.removed_indices)


# Attention dimensions


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma2", "phi3", "opt", "gpt2", "gpt_neox"])
def test_dimensions_of_queries_and_keys_are_scored_by_what_attention_loses(family):
    """Against the weights the model gives by itself, with and without the rows of the unit."""
    ids = token_ids(1, 10, seed=7)
    seen: dict[str, torch.Tensor] = {}

    class Seen(CusPrun):
        def unit_scores(self, view, observed, attributed, examples):
            seen[view.name] = observed["domain"]
            return super().unit_scores(view, observed, attributed, examples)

    def weights(model):
        with torch.no_grad():
            return model(input_ids=ids, output_attentions=True).attentions[0][0]

    model = build(family, num_hidden_layers=1)
    config = PruningConfig("cus-prun", unit="attention_dim", sparsity=0.25, application="zero")
    prune(model, None, config, {"domain": ids}, criterion=Seen(), progress=False)
    model = build(family, num_hidden_layers=1)
    model.set_attn_implementation("eager")
    dense = weights(model)
    (group,) = [each for each in find_groups(model, ("attention_dim",)) if each.writer is None]
    for unit in range(0, group.count, 3):
        changed = build(family, num_hidden_layers=1)
        changed.set_attn_implementation("eager")
        (same,) = [each for each in find_groups(changed, ("attention_dim",)) if each.writer is None]
        for part in same.slices:
            part.stored().index_fill_(part.axis, part.index[unit], 0)
        expected = float((weights(changed) - dense).norm()) / 10**0.5
        assert float(seen[group.name][0, unit]) == pytest.approx(expected, rel=2e-3, abs=1e-6)


class BrokenOff(CusPrun):
    def observe(self, view, inputs):
        raise RuntimeError("broken off")


def test_attention_dimensions_are_masked_and_the_model_stays_as_large():
    model = build("llama")
    config = PruningConfig("cus-prun", unit="ffn_neuron+attention_dim", sparsity=0.25, application="zero")
    report = prune(model, None, config, CORPORA, progress=False)
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(RuntimeError, match="broken off"):
        prune(model, None, config, CORPORA, criterion=BrokenOff(), progress=False)
    assert model.config._attn_implementation == "sdpa"
    kinds = [(row.unit, row.name.rpartition(".")[2], row.count, row.count - row.kept) for row in report.units[:3]]
    assert kinds == [
        ("ffn_neuron", "mlp", 48, 12),
        ("attention_dim", "values", 16, 4),
        ("attention_dim", "keys", 8, 2),
    ]
    for row, group in zip(report.units, find_groups(model, ("ffn_neuron", "attention_dim")), strict=True):
        assert row.name == group.name
        for part in group.slices:
            assert not part.stored().index_select(part.axis, part.index[row.removed_indices].flatten()).any()
