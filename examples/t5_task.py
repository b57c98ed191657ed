"""A T5 for one task: neurons and heads go that contribute least to its answers, in both stacks (Attribution).

python examples/t5_task.py --unit ffn_neuron+kv_group
"""

import argparse

from hubprune import AutoPrunedModelForSeq2SeqLM, CorpusConfig, SourceConfig

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("--base", default="google/flan-t5-base")
parser.add_argument("--data", default="lavita/MedQuAD", help="data set with a question and an answer in each row")
parser.add_argument("--unit", default="ffn_neuron", help="what goes: ffn_neuron, kv_group, or both with a +")
parser.add_argument("--sparsity", type=float, default=0.25)
parser.add_argument("--num-samples", type=int, default=128)
parser.add_argument("--sequence-length", type=int, default=512)
parser.add_argument("--out", default="t5-task")
args = parser.parse_args()

form = {"template": "Question: {question}\nAnswer: {answer}", "answer": "{answer}"}
model = AutoPrunedModelForSeq2SeqLM.from_pretrained(
    args.base,
    method="attribution",
    unit=args.unit,
    sparsity=args.sparsity,
    task=CorpusConfig(
        SourceConfig(args.data, split="train", **form),
        num_samples=args.num_samples,
        sequence_length=args.sequence_length,
    ),
)
report = model.hubprune_report
print(f"{report.totals.left:,} of {report.totals.parameters:,} parameters are left")
for text, row in report.perplexities().items():
    print(f"{text} text: perplexity {row['base'].perplexity:.2f} before, {row['pruned'].perplexity:.2f} after")
question = model.tokenizer("Question: What is asthma?\nAnswer:", return_tensors="pt").to(model.device)
print(model.tokenizer.decode(model.generate(**question, max_new_tokens=40)[0], skip_special_tokens=True))
model.save_pretrained(args.out)  # loads with AutoModelForSeq2SeqLM, without this library
