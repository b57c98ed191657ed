"""A model for code in the 2:4 pattern of sparse tensor cores, with some training afterwards that keeps every zero.

python examples/code_expert.py --steps 500    (needs the extra peft)
"""

import argparse

from hubprune import AutoPrunedModelForCausalLM, RecoveryConfig

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("--base", default="Qwen/Qwen2.5-Coder-0.5B")
parser.add_argument("--general", default="Salesforce/wikitext:wikitext-2-raw-v1", help="what must not be lost")
parser.add_argument("--domain", default="code", help="a preset, or a data set of the Hub")
parser.add_argument("--steps", type=int, default=200, help="steps of the training")
parser.add_argument("--num-samples", type=int, default=128)
parser.add_argument("--sequence-length", type=int, default=512)
parser.add_argument("--out", default="code-expert")
args = parser.parse_args()

model = AutoPrunedModelForCausalLM.from_pretrained(
    args.base,
    method="cross-calibration",  # SparseGPT on both texts: the weights that stay are repaired
    pattern="2:4",
    general=args.general,
    domain=args.domain,
    num_samples=args.num_samples,
    sequence_length=args.sequence_length,
    recovery=RecoveryConfig(adapter="lora", steps=args.steps, num_samples=4 * args.num_samples),
)
report = model.hubprune_report
print(f"all {report.recovery.groups_kept:,} groups hold two weights of four")
for text, row in report.perplexities().items():
    print(f"{text} text: perplexity " + ", ".join(f"{one.perplexity:.2f} {name}" for name, one in row.items()))
model.save_pretrained(args.out)
