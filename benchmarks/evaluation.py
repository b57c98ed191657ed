"""Dense against pruned, measured by the project itself: text, tasks, size and speed, held against the harness.

    python -m benchmarks.evaluation [--model hubprune-real/stories3M-llama] [--pairs 402]

Three models: the dense one, the same with 60 % of its weights zero, and one whose feed-forward layers are really
smaller (random weights: for size and speed it does not matter what they are). Targets: perplexity and task scores are
those of lm-evaluation-harness and of our own scoring; zeros move fewer bytes; a smaller model is faster and takes less
memory, zeros alone do neither.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import tempfile
from pathlib import Path

from benchmarks.common import REAL, Targets, real_hub, table

TEXTS = 24
PAIRS = """\
task: minimal_pairs
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: ""
doc_to_target: 0
doc_to_choice: "{{{{[good, bad]}}}}"
target_delimiter: ""
num_fewshot: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
ROLLING = """\
task: rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: byte_perplexity}}]
"""


def lines_of(name: str) -> list[dict[str, str]]:
    """The rows of one of the real data sets."""
    path = REAL / "datasets" / "hubprune-real" / name / "data" / "test.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def task_file(folder: Path, form: str, rows: list[dict[str, str]]) -> str:
    """A task file of the harness, with its data beside it."""
    name = form.partition("\n")[0].removeprefix("task: ")
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / f"{name}.yaml").write_text(form.format(file=data), encoding="utf-8")
    return str(folder / f"{name}.yaml")


def own_accuracy(model, tokenizer, pairs: list[dict[str, str]]) -> float:
    """The share of pairs whose good sentence is likelier behind the start token, by our own scoring."""
    import torch

    from hubprune.evaluation import Window, log_losses

    def nats(text: str) -> float:
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
        return log_losses(model, [Window(torch.tensor(ids))])[0]

    return sum(nats(pair["good"]) < nats(pair["bad"]) for pair in pairs) / len(pairs)


def smaller(folder: Path, model_id: str, share: float) -> str:
    """A model of the same shape with a narrower feed-forward layer, and random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(model_id)
    config.intermediate_size = int(config.intermediate_size * share) // 8 * 8
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_id).save_pretrained(folder)
    return str(folder)


def main() -> None:
    """Print the tables and the targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="hubprune-real/stories3M-llama")
    parser.add_argument("--pairs", type=int, default=402, help="minimal pairs of BLiMP")
    options = parser.parse_args()
    with real_hub(), tempfile.TemporaryDirectory() as place:
        _measure(options, Path(place))


def _measure(options: argparse.Namespace, place: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hubprune import AutoPrunedModelForCausalLM, evaluate
    from hubprune.cli import results, tables

    every = lines_of("blimp")
    pairs = every[:: max(1, len(every) // options.pairs)][: options.pairs]
    texts = [row["text"] for row in lines_of("wikitext_heldout")[:TEXTS]]
    model = AutoPrunedModelForCausalLM.from_pretrained(
        options.model,
        method="wanda",
        sparsity=0.6,
        domain="roneneldan/TinyStories",
        num_samples=32,
        sequence_length=256,
        evaluation=None,
        progress=False,
    )
    model.save_pretrained(place / "pruned")
    models = {"base": options.model, "pruned": str(place / "pruned")}
    tasks = [
        task_file(place, PAIRS, pairs),
        task_file(place, ROLLING, [{"text": text} for text in texts]),
    ]
    found = evaluate(
        models, {"texts": texts}, protocol="harness", tasks=tasks, answers=True, batch_size=16, progress=False
    )
    stories = {"wikitext2": "wikitext2", "stories": "roneneldan/TinyStories:default:validation"}
    told = evaluate(models, stories, sequence_length=256, num_samples=40, progress=False)
    models["smaller"] = smaller(place / "smaller", options.model, 0.5)
    weighed = evaluate(models, size=True, speed=True, progress=False)
    tables.show(*results.measured(told), *results.measured(found), *results.measured(weighed))
    targets = Targets()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    scores = {(row.task, row.metric, row.variant): row.value for row in found.tasks}
    words, rows = sum(len(re.split(r"\s+", text)) for text in texts), []
    for row in found.perplexities:
        nats = math.log(row.perplexity) * row.tokens
        ours = {"word_perplexity": math.exp(nats / words), "byte_perplexity": math.exp(nats / (row.text_bytes or 1))}
        for metric, value in ours.items():
            theirs = scores["rolling", metric, row.variant]
            targets.at_most(f"{row.variant}: {metric} against the harness, relative", abs(value / theirs - 1), 1e-3)
            rows.append((row.variant, metric, f"{value:.6g}", f"{theirs:.6g}"))
        dense = AutoModelForCausalLM.from_pretrained(models[row.variant])
        own, theirs = own_accuracy(dense, tokenizer, pairs), scores["minimal_pairs", "acc", row.variant]
        targets.at_most(f"{row.variant}: accuracy on {len(pairs)} minimal pairs against our own", abs(own - theirs), 0)
        rows.append((row.variant, "accuracy on minimal pairs", f"{own:.6g}", f"{theirs:.6g}"))
    table("Our own scoring and lm-evaluation-harness", ("model", "metric", "ours", "harness"), rows)
    sizes = {row.variant: row for row in weighed.sizes}
    speeds = {row.variant: row for row in weighed.speeds}
    base, sparse, small = (sizes[name] for name in ("base", "pruned", "smaller"))
    targets.at_most("transfer of 60 % zeros / of the dense model", sparse.transfer_bytes / base.transfer_bytes, 0.85)
    targets.between("files of 60 % zeros / of the dense model", sparse.file_bytes / base.file_bytes, 0.99, 1.01)
    targets.at_most("files of the smaller model / of the dense one", small.file_bytes / base.file_bytes, 0.9)
    targets.between(
        "decode of 60 % zeros / of the dense model", speeds["pruned"].decode / speeds["base"].decode, 0.8, 1.25
    )
    faster = speeds["smaller"].decode / speeds["base"].decode
    targets.at_least("decode of the smaller model / of the dense one", faster, 1.0)
    targets.exit()


if __name__ == "__main__":
    main()
