"""Every criterion against a slow, obvious reference: whole-model passes in float64, loops over weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from hubprune import pruner
from hubprune.architecture import find_matrices
from hubprune.config import PruningConfig
from hubprune.criterion import Criterion, load_criterion
from tests.families import build, token_ids

GENERAL, DOMAIN = token_ids(14, 48, seed=1), token_ids(12, 40, seed=2)
DAMPING = 0.01


# -- the references: double precision, one weight at a time -----------------------------------------------------------


def inputs_of(model, ids):
    """Inputs of every matrix over whole-model passes, ``{name: (tokens, d_in)}``."""
    seen = {}
    handles = [
        m.module.register_forward_hook(
            lambda _m, args, _o, m=m: seen.setdefault(m.name, []).append(args[0].reshape(-1, m.shape[1]))
        )
        for m in find_matrices(model)
    ]
    with torch.no_grad():
        for row in ids:
            model(input_ids=row[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts).numpy() for name, parts in seen.items()}


def gradients_of(model, ids):
    """Gradient of each sequence's own mean loss, ``{name: [(d_out, d_in), ...]}``."""
    found = {m.name: [] for m in find_matrices(model)}
    for row in ids:
        model.zero_grad()
        model(input_ids=row[None], labels=row[None], use_cache=False).loss.backward()
        for m in find_matrices(model):
            found[m.name].append(m.part(m.parameter.grad).clone().numpy())
    return found


def second_moment(x):
    total = np.zeros((x.shape[1], x.shape[1]))
    for token in x:
        total += np.outer(token, token)
    return 2 * total / len(x)


def inverse_of(hessian):
    return np.linalg.inv(hessian + DAMPING * hessian.diagonal().mean() * np.eye(len(hessian)))


def loop(weight, score):
    """Fill a score matrix one weight at a time."""
    return np.array([[score(i, j) for j in range(weight.shape[1])] for i in range(weight.shape[0])])


def norm(x, j):
    return sum(v * v for v in x[:, j]) ** 0.5 / len(x) ** 0.5


def general_importance(w, x):
    inverse = inverse_of(second_moment(x))
    g = loop(w, lambda i, j: 0.5 * w[i, j] ** 2 / inverse[j, j])
    return g, g / g.mean()


def reference_magnitude(w, x, g):
    return loop(w, lambda i, j: abs(w[i, j]))


def reference_wanda(w, x, g):
    norms = [norm(x["all"], j) for j in range(w.shape[1])]
    return loop(w, lambda i, j: abs(w[i, j]) * norms[j])


def reference_ria(w, x, g):
    rows, columns = np.abs(w).sum(1), np.abs(w).sum(0)
    norms = [norm(x["all"], j) for j in range(w.shape[1])]
    return loop(w, lambda i, j: (abs(w[i, j]) / columns[j] + abs(w[i, j]) / rows[i]) * norms[j] ** 0.5)


def reference_sparsegpt(w, x, g):
    inverse = inverse_of(second_moment(x["all"]))
    return loop(w, lambda i, j: w[i, j] ** 2 / inverse[j, j])


def reference_cross_calibration(w, x, g, ratio=0.25):
    mixed = (1 - ratio) * second_moment(x["general"]) + ratio * second_moment(x["domain"])
    inverse = inverse_of(mixed)
    return loop(w, lambda i, j: w[i, j] ** 2 / inverse[j, j])


def reference_gblm(w, x, g):
    both = g["general"] + g["domain"]
    norms = [norm(x["all"], j) for j in range(w.shape[1])]
    return loop(w, lambda i, j: abs(w[i, j]) * (norms[j] + 3.0 * sum(n[i, j] ** 2 for n in both) ** 0.5))


def reference_dual(w, x, g):
    _, relative = general_importance(w, x["general"])
    return loop(w, lambda i, j: sum(abs(n[i, j] * w[i, j]) for n in g["domain"]) * (1 + 10 * relative[i, j]))


def reference_no_general(w, x, g):
    return loop(w, lambda i, j: sum(abs(n[i, j] * w[i, j]) for n in g["domain"]))


def reference_general_only(w, x, g):
    _, relative = general_importance(w, x["general"])
    return loop(w, lambda i, j: sum(abs(n[i, j] * w[i, j]) for n in g["general"]) * (1 + 10 * relative[i, j]))


def reference_no_domain(w, x, g):
    return general_importance(w, x["general"])[0]


def reference_additive(w, x, g):
    _, relative = general_importance(w, x["general"])
    domain = reference_no_general(w, x, g)
    mean = domain.mean()
    return loop(w, lambda i, j: domain[i, j] / mean + 2 * relative[i, j])


def reference_paper(w, x, g):
    _, relative = general_importance(w, x["general"])
    means = [(n**2).mean() for n in g["domain"]]

    def score(i, j):
        total = 0.0
        for n, mean in zip(g["domain"], means, strict=True):
            fisher = n[i, j] ** 2
            refined = n[i, j] * (1 + 10 * relative[i, j] * fisher / mean)
            total += abs(refined * w[i, j] - 0.5 * w[i, j] ** 2 * fisher)
        return total

    return loop(w, score)


# name: (config, reference)
CASES = {
    "magnitude": (PruningConfig("magnitude"), reference_magnitude),
    "wanda": (PruningConfig("wanda"), reference_wanda),
    "ria": (PruningConfig("ria"), reference_ria),
    "gblm": (PruningConfig("gblm", options={"gradient_weight": 3.0}), reference_gblm),
    "sparsegpt-zero": (PruningConfig("sparsegpt", application="zero", scope="matrix"), reference_sparsegpt),
    "cross-calibration-zero": (
        PruningConfig("cross-calibration", application="zero", scope="matrix", options={"domain_ratio": 0.25}),
        reference_cross_calibration,
    ),
    "dual": (PruningConfig(), reference_dual),
    "no-general": (PruningConfig(options={"terms": "no-general"}), reference_no_general),
    "no-domain": (PruningConfig(options={"terms": "no-domain"}), reference_no_domain),
    "general-only": (PruningConfig(options={"terms": "general-only"}), reference_general_only),
    "additive": (PruningConfig(options={"form": "additive", "general_weight": 2.0}), reference_additive),
    "paper": (PruningConfig(options={"form": "paper"}), reference_paper),
}


def slow_mask(scores, config):
    """Keep mask by sorting, for the row and matrix scopes at 50 % of an even width."""
    rows = scores if config.resolved_pattern().scope == "row" else scores.reshape(1, -1)
    keep = torch.ones_like(rows, dtype=torch.bool)
    for i, row in enumerate(rows):
        keep[i, row.sort(stable=True).indices[: len(row) // 2]] = False
    return keep.reshape(scores.shape)


def evidence_of(model):
    general, domain = inputs_of(model, GENERAL), inputs_of(model, DOMAIN)
    return {n: {"general": x, "domain": domain[n], "all": np.concatenate([x, domain[n]])} for n, x in general.items()}


def expected_run(family, config, reference):
    """Scores and masks of the whole run; block by block on pruned inputs, unless the criterion uses gradients."""
    model = copy.deepcopy(build(family)).double()
    on_dense = load_criterion(config).gradients is not None
    gradients = {}
    if on_dense:
        general, domain = gradients_of(model, GENERAL), gradients_of(model, DOMAIN)
        gradients = {n: {"general": general[n], "domain": domain[n]} for n in general}
    dense_inputs = evidence_of(model)
    scores, masks = {}, {}
    for block in range(3):
        inputs = dense_inputs if on_dense else evidence_of(model)
        for m in (m for m in find_matrices(model) if m.block == block):
            scores[m.name] = torch.from_numpy(reference(m.view().numpy(), inputs[m.name], gradients.get(m.name)))
            masks[m.name] = slow_mask(scores[m.name], config)
            m.view().masked_fill_(~masks[m.name], 0)
    return scores, masks


@pytest.fixture
def recorded(monkeypatch):
    """Collect the scores that a run computes, by the dense weights they belong to."""
    seen = []

    def load(config):
        criterion = load_criterion(config)
        original = criterion.scores

        def scores(weight, summary, gradient):
            result = original(weight, summary, gradient)
            seen.append((weight.clone(), result.clone()))
            return result

        criterion.scores = scores
        return criterion

    monkeypatch.setattr(pruner, "load_criterion", load)
    return seen


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("case", CASES)
def test_scores_and_masks_are_the_references(case, family, recorded):
    config, reference = CASES[case]
    scores, masks = expected_run(family, config, reference)
    model = build(family)
    dense = {m.name: m.view().clone() for m in find_matrices(model)}
    pruner.prune(model, None, config, {"general": GENERAL, "domain": DOMAIN}, progress=False)
    for m in find_matrices(model):
        (found,) = (s for w, s in recorded if w.shape == m.shape and torch.equal(w, dense[m.name]))
        torch.testing.assert_close(found.double(), scores[m.name], rtol=1e-5, atol=1e-5 * scores[m.name].max().item())
        assert torch.equal(m.view() != 0, masks[m.name]), m.name
        assert torch.equal(m.view()[masks[m.name]], dense[m.name][masks[m.name]])


def test_general_weight_changes_the_mask_and_the_scale_of_the_loss_does_not():
    """lambda matters; multiplying the loss (and so every gradient) by a constant does not."""

    def masks(options, scale=1.0):
        model = build("llama")
        criterion = load_criterion(PruningConfig(options=options))
        original = criterion.contribution
        criterion.contribution = lambda w, g, s: original(w, g * scale, s)
        pruner.prune(
            model,
            None,
            PruningConfig(scope="matrix"),
            {"general": GENERAL, "domain": DOMAIN},
            criterion=criterion,
            progress=False,
        )
        return [m.view() != 0 for m in find_matrices(model)]

    base = masks({})
    assert any(not torch.equal(a, b) for a, b in zip(base, masks({"general_weight": 0.0}), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(base, masks({}, scale=64.0), strict=True))


def test_a_criterion_of_ones_own():
    """Any object with scores works; what it declares is what it receives."""

    class Smallest(Criterion):
        summary = "norm"
        corpora = ("domain",)

        def scores(self, weight, summary, gradient):
            assert gradient is None
            assert summary.shape == (weight.shape[1],)
            return -weight.abs()

    model = build("llama")
    dense = {m.name: m.view().clone() for m in find_matrices(model)}
    report = pruner.prune(
        model, None, PruningConfig(sparsity=0.25), {"domain": DOMAIN}, criterion=Smallest(), progress=False
    )
    assert report.method == "Smallest"
    for m in find_matrices(model):
        gone = m.view() == 0
        assert dense[m.name][gone].abs().min() >= m.view()[~gone].abs().max()
