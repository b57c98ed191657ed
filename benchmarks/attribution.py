"""Attribution on a task with few labels: accuracy kept without part of the FFN neurons, and in unseen domains.

    python -m benchmarks.attribution [--folder build/topics] [--sparsities 0.3 0.7] [--seeds 1]

The task is to tell what an answer of MedQuAD is about (symptoms, treatment, ...), in prompt form: the text, then
``Topic:``. A language model trained on three domains is tuned to it here, once, into the folder. Neurons are then
chosen by attribution to the answers of 128 labelled examples or of 32, or to the model's own answers to the questions
of 128, beside wanda-sp and random, which see the same 128; unrepaired and repaired. The scores from 64, 32, 16 and 8
examples are compared with those from 128 by their ranks. The last table is the recipe for a domain that has no
examples: score on the texts of one publisher, and evaluate on those of another.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import Targets, real_hub, table

MODEL = "hubprune-real/tri-domain-6m"
DATASET = "lavita/MedQuAD"
TEMPLATE, ANSWER = "{answer}\nTopic: {question_type}", "{question_type}"
TOPICS = ("information", "symptoms", "treatment", "inheritance", "genetic changes", "frequency", "causes")
"""The topics with more than a hundred examples; the first token tells them apart."""
PUBLISHERS = {
    "GARD": ("GARD",),
    "GHR": ("GHR",),
    "others": ("CDC", "CancerGov", "MPlusHealthTopics", "NHLBI", "NIDDK", "NIHSeniorHealth", "NINDS"),
}
LENGTH = 128
TUNED, BATCH, LEARNING_RATE = 840, 8, 5e-4
"""Examples the model is tuned on, examples of a step, and the peak of a triangular learning rate."""
FULL = 128
FEW = (64, 32, 16, 8)
METHODS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "attribution": ("attribution", FULL, {}),
    "attribution, 32 examples": ("attribution", 32, {}),
    "attribution, pseudo-labels": ("attribution", FULL, {"labels": "pseudo", "answer_tokens": 1}),
    "wanda-sp": ("wanda-sp", FULL, {}),
    "random": ("random", FULL, {}),
}
"""Method, examples and options of each row; of a pseudo-label, one token tells the topics apart."""
APPLICATIONS = {"zero": "unrepaired", "compensate": "repaired"}
SEEN = {
    "GARD": ("information", "symptoms", "treatment", "inheritance", "causes"),
    "GHR": ("information", "treatment", "inheritance", "genetic changes", "frequency"),
}
"""Publishers with examples enough to score on, and the topics that each of them has."""
Key = tuple[float, str, str]
"""Share of the neurons that go, application, and row."""


@dataclass
class Result:
    """What is left of a model.

    Attributes:
        accuracy: By publisher, and of all examples under ``all``.
        nats: Mean loss of the right topic among all topics.
    """

    accuracy: dict[str, float]
    nats: float


def sources(split: str, *, publishers: tuple[str, ...] = (), topics: tuple[str, ...] = ()) -> tuple[Any, ...]:
    """The task as sources: one for each publisher, or each topic, or each pair."""
    from hubprune import SourceConfig

    filters: list[dict[str, str]] = [{}]
    for column, values in (("document_source", publishers), ("question_type", topics)):
        if values:
            filters = [{**given, column: value} for given in filters for value in values]
    return tuple(
        SourceConfig(DATASET, "default", split, template=TEMPLATE, answer=ANSWER, filters=tuple(each.items()))
        for each in filters
    )


def read(tokenizer, wanted: tuple[Any, ...], count: int, seed: int = 0, *, at_most: bool = False):
    """Read examples of the task, as many from each source."""
    from hubprune import CorpusConfig, load_corpus

    config = CorpusConfig(wanted, num_samples=count, sequence_length=LENGTH, seed=seed, streaming=False)
    return load_corpus(config, tokenizer, name="task", at_most=at_most, progress=False)


def tune(folder: Path) -> None:
    """Tune the model to the task and save it; the folder appears when it is complete."""
    import torch
    from tqdm import tqdm
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32").train()
    corpus = read(tokenizer, sources("train", topics=TOPICS), TUNED)
    order = torch.randperm(len(corpus.sequences)).split(BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    half = len(order) / 2
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - abs(step + 0.5 - half) / half)
    for batch in (progress := tqdm(order, desc="tuning")):
        rows = [corpus.sequences[i] for i in batch.tolist()]
        answers = [
            row.masked_fill(torch.arange(len(row)) < corpus.answers[i], -100)
            for i, row in zip(batch.tolist(), rows, strict=True)
        ]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        labels = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=-100)
        loss = model(input_ids=padded, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    unfinished = folder.with_name(folder.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.eval().save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)


class Bench:
    """The tuned model, the test examples, and what pruning makes of them."""

    def __init__(self, folder: Path, examples: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.dense = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
        self.tests = {
            name: read(self.tokenizer, sources("test", publishers=those), examples, at_most=True)
            for name, those in PUBLISHERS.items()
        }
        first = [self.tokenizer(f"Topic: {topic}")["input_ids"] for topic in TOPICS]
        start = len(self.tokenizer("Topic:")["input_ids"])
        self.first = torch.tensor([ids[start] for ids in first])
        assert len(set(self.first.tolist())) == len(TOPICS)

    def evaluate(self, model) -> Result:
        """Let a model name the topic of every test example: the likeliest first token of a topic."""
        import torch

        right: dict[str, list[bool]] = {}
        nats: list[float] = []
        with torch.no_grad():
            for name, corpus in self.tests.items():
                for ids, start, topic in zip(corpus.sequences, corpus.answers, corpus.labels, strict=True):
                    if topic in TOPICS:
                        logits = model(input_ids=ids[None, :start], use_cache=False, logits_to_keep=1).logits
                        logits = logits[0, -1, self.first]
                        truth = TOPICS.index(topic)
                        right.setdefault(name, []).append(int(logits.argmax()) == truth)
                        nats.append(-float(logits.log_softmax(0)[truth]))
        accuracy = {name: statistics.fmean(found) for name, found in right.items()}
        accuracy["all"] = statistics.fmean(hit for found in right.values() for hit in found)
        return Result(accuracy, statistics.fmean(nats))

    def topics(self) -> list[str]:
        """The right topics of the test examples."""
        return [topic for corpus in self.tests.values() for topic in corpus.labels if topic in TOPICS]

    def chance(self) -> float:
        """Accuracy of naming the most frequent topic every time."""
        topics = self.topics()
        return max(topics.count(topic) for topic in TOPICS) / len(topics)

    def pruned(self, method: str, task, sparsity: float, application: str, seed: int, **options: Any) -> Result:
        """Prune a copy of the model and evaluate it."""
        from hubprune import PruningConfig, prune

        config = PruningConfig(
            method, sparsity=sparsity, unit="ffn_neuron", application=application, seed=seed, options=options
        )
        model = copy.deepcopy(self.dense)
        prune(model, self.tokenizer, config, {"task": task}, progress=False)
        return self.evaluate(model)

    def scores(self, task) -> dict[str, Any]:
        """What attribution thinks of each neuron, by layer."""
        from hubprune import PruningConfig, prune
        from hubprune.criteria.attribution import Attribution

        class Noting(Attribution):
            """Attribution that remembers its scores."""

            def unit_scores(self, view, observed, attributed, examples):
                scores = super().unit_scores(view, observed, attributed, examples)
                found.setdefault(view.name, scores)  # later ones are by fewer examples
                return scores

        found: dict[str, Any] = {}
        config = PruningConfig("attribution", sparsity=0.0, unit="ffn_neuron", application="zero")
        prune(copy.deepcopy(self.dense), self.tokenizer, config, {"task": task}, criterion=Noting(), progress=False)
        return found


def agree(left: dict[str, Any], right: dict[str, Any]) -> float:
    """Spearman's correlation of two sets of scores, the mean of the layers."""
    from hubprune.criteria.attribution import rank_correlation

    return statistics.fmean(rank_correlation(left[name], right[name]) for name in left)


def mean(results: Sequence[Result]) -> Result:
    """The mean of several draws."""
    accuracy = {name: statistics.fmean(each.accuracy[name] for each in results) for name in results[0].accuracy}
    return Result(accuracy, statistics.fmean(each.nats for each in results))


def prune_all(bench: Bench, options: argparse.Namespace) -> tuple[dict[Key, Result], dict[int, float]]:
    """Prune by every row and with every draw, and compare the scores of few examples with those of all.

    Returns:
        What is left, and the rank correlation by the number of examples.
    """
    train, seeds = sources("train", topics=TOPICS), range(options.seeds)
    draws = {(count, seed): read(bench.tokenizer, train, count, seed) for count in (FULL, *FEW) for seed in seeds}
    found: dict[Key, Result] = {}
    for sparsity in options.sparsities:
        for application in APPLICATIONS:
            for row, (method, count, settings) in METHODS.items():
                results = [
                    bench.pruned(method, draws[count, seed], sparsity, application, seed, **settings) for seed in seeds
                ]
                found[sparsity, application, row] = mean(results)
                print(f"{sparsity:.0%} of the neurons, {application}, {row}", flush=True)
    scores = {draw: bench.scores(task) for draw, task in draws.items()}
    agreement = {
        count: statistics.fmean(agree(scores[FULL, seed], scores[count, seed]) for seed in seeds) for count in FEW
    }
    return found, agreement


def prune_for_unseen(bench: Bench, options: argparse.Namespace) -> dict[tuple[str, str], Result]:
    """Score on the texts of one publisher, at the highest sparsity; what is left by publisher and application."""
    found = {}
    for publisher, topics in SEEN.items():
        wanted = sources("train", publishers=(publisher,), topics=topics)
        for application in APPLICATIONS:
            results = [
                bench.pruned(
                    "attribution",
                    read(bench.tokenizer, wanted, FULL, seed),
                    options.sparsities[-1],
                    application,
                    seed,
                )
                for seed in range(options.seeds)
            ]
            found[publisher, application] = mean(results)
    return found


def show(
    bench: Bench, options: argparse.Namespace, dense: Result, found: dict[Key, Result], agreement: dict[int, float]
) -> None:
    """Print what each row keeps, and how far few examples agree with all."""
    rows = [("none", "dense", f"{dense.accuracy['all']:.1%}", f"{dense.nats:.2f}", "", "")]
    for sparsity in options.sparsities:
        for row in METHODS:
            left = [found[sparsity, application, row] for application in APPLICATIONS]
            cells = [cell for each in left for cell in (f"{each.accuracy['all']:.1%}", f"{each.nats:.2f}")]
            rows.append((f"{sparsity:.0%}", row, *cells))
    table(
        f"{MODEL}, tuned to the topics of {DATASET}; {FULL} examples where no other number is given; accuracy on "
        f"{len(bench.topics())} test examples, of which the most frequent topic has {bench.chance():.1%}, and loss of "
        f"the right topic in nats; mean of {options.seeds} draws",
        ("neurons removed", "method", *(word for name in APPLICATIONS.values() for word in (name, "nats"))),
        rows,
    )
    table(
        f"Spearman's rank correlation of the scores with those from {FULL} examples, mean of the layers",
        ("examples", *map(str, agreement)),
        [("correlation", *(f"{value:.3f}" for value in agreement.values()))],
    )


def show_unseen(
    options: argparse.Namespace, dense: Result, found: dict[Key, Result], unseen: dict[tuple[str, str], Result]
) -> None:
    """Print what is kept in each domain by whose texts were scored."""
    sparsity = options.sparsities[-1]
    rows: list[tuple[str, str, Result]] = [("none removed", "", dense)]
    for application, name in APPLICATIONS.items():
        rows += [(publisher, name, unseen[publisher, application]) for publisher in SEEN]
        rows += [("all", name, found[sparsity, application, "attribution"])]
        rows += [("random", name, found[sparsity, application, "random"])]
    table(
        f"{sparsity:.0%} of the neurons removed by attribution to {FULL} examples of one publisher; accuracy on the "
        "texts of each",
        ("scored on", "", *PUBLISHERS),
        [(text, name, *(f"{left.accuracy[each]:.1%}" for each in PUBLISHERS)) for text, name, left in rows],
    )


def main() -> None:
    """Tune where it is not done, prune, print the tables and the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/topics"), help="where the tuned model is kept")
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.3, 0.7])
    parser.add_argument("--seeds", type=int, default=1, help="draws of the examples, and of the random neurons")
    parser.add_argument("--examples", type=int, default=60, help="test examples of each group of publishers")
    options = parser.parse_args()
    with real_hub():
        if not options.folder.is_dir():
            options.folder.parent.mkdir(parents=True, exist_ok=True)
            tune(options.folder)
        bench = Bench(options.folder, options.examples)
        dense = bench.evaluate(bench.dense)
        found, agreement = prune_all(bench, options)
        unseen = prune_for_unseen(bench, options)
    show(bench, options, dense, found, agreement)
    show_unseen(options, dense, found, unseen)
    targets = Targets()
    above = dense.accuracy["all"] - bench.chance()
    targets.at_least("dense accuracy above that of the most frequent topic", above, 0.15)
    for sparsity in options.sparsities:
        ours = found[sparsity, "zero", "attribution"]
        for other in ("random", "wanda-sp"):
            theirs = found[sparsity, "zero", other]
            name = f"{sparsity:.0%} removed, unrepaired, attribution / {other}"
            targets.at_most(f"{name}, nats", ours.nats / theirs.nats, 1.0)
    least = min(options.sparsities)
    for row in (row for row in METHODS if row.startswith("attribution")):
        for application in APPLICATIONS:
            kept = found[least, application, row].accuracy["all"] / dense.accuracy["all"]
            targets.at_least(f"{least:.0%} removed, {application}, {row}: accuracy kept", kept, 0.95)
        gain = found[least, "zero", row].accuracy["all"] - found[least, "zero", "random"].accuracy["all"]
        targets.at_least(f"{least:.0%} removed, unrepaired, {row}: accuracy gained over random", gain, 0.0)
    targets.at_least("rank correlation of 32 examples", agreement[32], 0.8)
    random = found[options.sparsities[-1], "zero", "random"]
    for seen, other in (("GARD", "GHR"), ("GHR", "GARD")):
        gain = unseen[seen, "zero"].accuracy[other] - random.accuracy[other]
        targets.at_least(f"scored on {seen}, evaluated on {other}: accuracy gained over random", gain, 0.0)
    targets.exit()


if __name__ == "__main__":
    main()
