"""A saved folder loaded as a stranger would: plain transformers in a process of its own, asked a fixed question."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hubprune.architecture import evaluation_mode, max_length, reading
from hubprune.errors import NumericalError
from hubprune.facts import Probe

PROBE_TOKENS = 16
PROBE_LOGITS = 64
PROBE_STRIDE = 7919  # a prime, so that successive ids spread over any vocabulary

# Largest difference allowed between the probe's logits in memory and after reloading, as a fraction of the largest
# logit. The weights are bit-identical; what may differ is the order of summation (another device, another number of
# threads). In float32 that stays under 1e-4. In the half types every activation is rounded to one part in 2**8
# (bfloat16) or 2**11 (float16), and a reordered sum flips such roundings in each layer: four units in the last place.
TOLERANCES = {"float64": 1e-6, "float32": 1e-4, "float16": 4 * 2.0**-10, "bfloat16": 4 * 2.0**-7}

RELOAD_TIMEOUT = 3600  # seconds

# Runs in a process of its own, where nothing of this library is loaded: what a stranger's plain transformers does.
RELOAD = """
import json, sys
import torch
import transformers
folder, loader, ids, size, trust, places, offload = json.loads(sys.argv[1])
placed = {"device_map": places, "offload_folder": offload} if places else {}
model, info = getattr(transformers, loader).from_pretrained(
    folder, dtype="auto", trust_remote_code=trust, local_files_only=True, output_loading_info=True, **placed
)
model.eval()
with torch.no_grad():
    read = {"input_ids": torch.tensor([ids])}
    if model.config.is_encoder_decoder:
        read["decoder_input_ids"] = read["input_ids"]
    logits = model(**read, use_cache=False).logits[0, -1, :size].float().tolist()
kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
keys = {kind: sorted(str(key) for key in info[kind]) for kind in kinds}
stranger = not any(name.partition(".")[0] == "hubprune" for name in sys.modules)
dtype = str(model.dtype).removeprefix("torch.")
answer = {"logits": logits, "keys": keys, "dtype": dtype, "class": type(model).__name__, "stranger": stranger}
print("\\n" + json.dumps(answer))
"""


class CheckFailed(Exception):
    """A check found something wrong; the message says what."""


def make_probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> Probe:
    """Ask a model a fixed question, to compare its saved files with later.

    Args:
        model: The pruned model; training mode is switched off meanwhile.
        tokenizer: Its tokenizer; keeps the token ids below its size where the embedding has more rows.

    Returns:
        16 token ids from a fixed arithmetic pattern (fewer when the model cannot read as many), and the logits at the
        last position, ``(64,)``, in float32.

    Raises:
        NumericalError: The logits hold NaN or infinity.
    """
    vocabulary = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    if tokenizer is not None:
        vocabulary = min(vocabulary, len(tokenizer))
    length = min(PROBE_TOKENS, max_length(model.config) or PROBE_TOKENS)
    ids = [(PROBE_STRIDE * (position + 1)) % vocabulary for position in range(length)]
    with evaluation_mode(model), torch.no_grad():
        output = model(**reading(model, torch.tensor([ids], device=model.device)), use_cache=False)
    # Those of an encoder that has no head for words are whatever it gives instead.
    found = output.logits if "logits" in output else output[0]
    logits = found.reshape(-1, found.shape[-1])[-1, :PROBE_LOGITS].float().cpu()
    if not bool(torch.isfinite(logits).all()):
        raise NumericalError("the pruned model answers a fixed input with NaN or infinity: prune less, or in float32")
    return Probe(token_ids=ids, logits=logits.tolist())


def some(items: list[str], limit: int = 3) -> str:
    """The first items of a list, and how many more there are."""
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def reload(
    folder: Path,
    loader: str,
    probe: Probe | None,
    trust_remote_code: bool,
    places: dict[str, str | int] | None,
    offload: Path,
) -> str:
    """Load a folder in a fresh process with plain transformers and ask it what the model in memory was asked.

    Args:
        folder: The folder.
        loader: Class of transformers that loads it.
        probe: The question and the answer.
        trust_remote_code: Let the folder's own modelling code run.
        places: ``device_map`` to load with; None for none.
        offload: Where blocks may go that are converted.

    Returns:
        One sentence with what was measured.

    Raises:
        CheckFailed: It does not load, or answers something else.
    """
    if probe is None:
        raise CheckFailed("the report holds no probe to compare with: make one with make_probe before saving")
    request = json.dumps(
        [str(folder.resolve()), loader, probe.token_ids, len(probe.logits), trust_remote_code, places, str(offload)]
    )
    done = ask_stranger(request)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckFailed(f"plain transformers cannot load and run the folder: {last}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return _judge_reload(probe, answer)


def ask_stranger(request: str) -> subprocess.CompletedProcess[str]:
    """Put a question to a process of its own that knows no Hub and nothing of this library.

    Raises:
        CheckFailed: It takes too long.
    """
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    # -P keeps the current folder off the path: a local transformers/ or hubprune/ must not be picked up.
    command = [sys.executable, "-P", "-c", RELOAD, request]
    try:
        return subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            encoding="utf-8",
            env=environment,
            timeout=RELOAD_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise CheckFailed(f"reloading in a fresh process took more than {RELOAD_TIMEOUT} s") from None


def _judge_reload(probe: Probe, answer: dict[str, Any]) -> str:
    if not answer["stranger"]:
        raise CheckFailed("the fresh process loaded hubprune: the files would not load without it")
    bad = [f"{kind.replace('_', ' ')}: {some(names)}" for kind, names in answer["keys"].items() if names]
    if bad:
        raise CheckFailed("the saved weights do not fit the model; " + "; ".join(bad))
    expected, got = torch.tensor(probe.logits), torch.tensor(answer["logits"])
    tolerance = TOLERANCES.get(answer["dtype"], TOLERANCES["float32"])
    if expected.shape != got.shape:
        raise CheckFailed(f"the reloaded model gives {len(got)} logits, the model in memory gave {len(expected)}")
    difference = float((expected - got).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny))
    if not difference <= tolerance:
        raise CheckFailed(
            f"the reloaded model's logits differ by {difference:.2g} of the largest, allowed {tolerance:.2g} "
            f"in {answer['dtype']}"
        )
    return (
        f"{answer['class']} loads in a fresh process with plain transformers, "
        f"no missing, unexpected or mismatched key; "
        f"logits differ by {difference:.2g} of the largest (allowed in {answer['dtype']}: {tolerance:.2g})"
    )
