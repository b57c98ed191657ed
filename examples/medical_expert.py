"""A medical expert with half of the weights: those go that neither medical nor general text needs (D-Pruner).

python examples/medical_expert.py --push me/smollm2-medical-50
"""

import argparse

from hubprune import AutoPrunedModelForCausalLM, PrunedModelCardData

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("--base", default="HuggingFaceTB/SmolLM2-360M")
parser.add_argument("--general", default="roneneldan/TinyStories", help="what must not be lost")
parser.add_argument("--domain", default="medical", help="a preset, or a data set of the Hub")
parser.add_argument("--sparsity", type=float, default=0.5)
parser.add_argument("--num-samples", type=int, default=128)
parser.add_argument("--sequence-length", type=int, default=1024)
parser.add_argument("--out", default="medical-expert")
parser.add_argument("--push", help="repository to publish to")
args = parser.parse_args()

model = AutoPrunedModelForCausalLM.from_pretrained(
    args.base,
    method="d-pruner",
    sparsity=args.sparsity,
    general=args.general,
    domain=args.domain,
    num_samples=args.num_samples,
    sequence_length=args.sequence_length,
)
for text, row in model.hubprune_report.perplexities().items():
    print(f"{text} text: perplexity {row['base'].perplexity:.2f} before, {row['pruned'].perplexity:.2f} after")

words = PrunedModelCardData(intended_use="Drafts that a person with medical training reads. No advice to patients.")
model.save_pretrained(args.out, model_card=words)
if args.push:
    print(model.push_to_hub(args.push))
