"""What a stranger does with a pushed model: ask it something with plain transformers.

Run by its path in a fresh process with a prompt and repositories; prints each one's answer as JSON. Nothing of
hubprune is loaded.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

NEW_TOKENS = 40


def answer(repo_id: str, prompt: str) -> str:
    """Load a model from the Hub and continue a prompt, always with the likeliest token."""
    tokenizer = AutoTokenizer.from_pretrained(repo_id)
    model: Any = AutoModelForCausalLM.from_pretrained(repo_id)
    inputs = tokenizer(prompt, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[0]
    return str(tokenizer.decode(tokens[inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def main() -> None:
    """Answer for the repositories on the command line; leave with 1 when hubprune had a hand in it."""
    prompt, *repo_ids = sys.argv[1:]
    print(json.dumps({repo_id: answer(repo_id, prompt) for repo_id in repo_ids}))
    sys.exit(any(name.partition(".")[0] == "hubprune" for name in sys.modules))


if __name__ == "__main__":
    main()
