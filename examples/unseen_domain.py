"""An expert for a domain that has no examples: score neurons on one that has them, measure on the one that matters.

Attribution keeps the neurons that contribute to the answers of questions from one source; perplexity is measured on
questions from another. The run with neurons drawn by lot tells what the examples were worth there.

python examples/unseen_domain.py --seen GARD --unseen GHR
"""

import argparse

from hubprune import AutoPrunedModelForCausalLM, CorpusConfig, SourceConfig

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("--base", default="HuggingFaceTB/SmolLM2-360M")
parser.add_argument("--data", default="lavita/MedQuAD", help="data set with a question and an answer in each row")
parser.add_argument("--column", default="document_source", help="column that tells the sources apart")
parser.add_argument("--seen", default="GARD", help="source to score on")
parser.add_argument("--unseen", default="GHR", help="source to measure on")
parser.add_argument("--sparsity", type=float, default=0.3)
parser.add_argument("--num-samples", type=int, default=128)
parser.add_argument("--sequence-length", type=int, default=512)
args = parser.parse_args()


def questions(source: str) -> CorpusConfig:
    """Questions from one source, with their answers."""
    form = {"template": "Question: {question}\nAnswer: {answer}", "answer": "{answer}"}
    rows = SourceConfig(args.data, split="train", filters=((args.column, source),), **form)
    return CorpusConfig(rows, num_samples=args.num_samples, sequence_length=args.sequence_length)


for method in ("attribution", "random"):
    text = {"task": questions(args.seen)} if method == "attribution" else {}
    model = AutoPrunedModelForCausalLM.from_pretrained(
        args.base,
        method=method,
        sparsity=args.sparsity,
        application="zero",  # without the repair, which would hide what the choice of neurons is worth
        evaluation={args.unseen: questions(args.unseen)},
        **text,
    )
    row = model.hubprune_report.perplexities()[args.unseen]
    print(f"{method}: {args.unseen} {row['base'].perplexity:.2f} before, {row['pruned'].perplexity:.2f} after")
