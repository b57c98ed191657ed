"""What must hold before anything is published, measured on the saved files instead of the model in memory.

Every check returns one sentence with what it measured, or fails with one; all failures are reported together.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hubprune.architecture import Matrix, evaluation_mode, find_matrices, max_length
from hubprune.environment import free_memory
from hubprune.errors import NumericalError, VerificationError
from hubprune.exportrecord import exports_in, weights_sha256
from hubprune.facts import MatrixFacts, Probe, Verification
from hubprune.opening import Opening
from hubprune.report import PruningReport
from hubprune.sparsity import parse_pattern
from hubprune.weights import Weights, blocks_on_disk, weights_of

PROBE_TOKENS = 16
PROBE_LOGITS = 64
PROBE_STRIDE = 7919  # a prime, so that successive ids spread over any vocabulary

# Largest difference allowed between the probe's logits in memory and after reloading, as a fraction of the largest
# logit. The weights are bit-identical; what may differ is the order of summation (another device, another number of
# threads). In float32 that stays under 1e-4. In the half types every activation is rounded to one part in 2**8
# (bfloat16) or 2**11 (float16), and a reordered sum flips such roundings in each layer: four units in the last place.
TOLERANCES = {"float64": 1e-6, "float32": 1e-4, "float16": 4 * 2.0**-10, "bfloat16": 4 * 2.0**-7}

UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".joblib")
COMPRESSION_KEYS = ("quantization_config", "sparsity_config", "compression_config")
RELOAD_TIMEOUT = 3600  # seconds

# Runs in a process of its own, where nothing of this library is loaded: what a stranger's plain transformers does.
_RELOAD = """
import json, sys
import torch
from transformers import AutoModelForCausalLM
folder, ids, size, trust, places, offload = json.loads(sys.argv[1])
placed = {"device_map": places, "offload_folder": offload} if places else {}
model, info = AutoModelForCausalLM.from_pretrained(
    folder, dtype="auto", trust_remote_code=trust, local_files_only=True, output_loading_info=True, **placed
)
model.eval()
with torch.no_grad():
    logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1, :size].float().tolist()
kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
keys = {kind: sorted(str(key) for key in info[kind]) for kind in kinds}
stranger = not any(name.partition(".")[0] == "hubprune" for name in sys.modules)
dtype = str(model.dtype).removeprefix("torch.")
answer = {"logits": logits, "keys": keys, "dtype": dtype, "class": type(model).__name__, "stranger": stranger}
print("\\n" + json.dumps(answer))
"""


class _Failed(Exception):
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
        output = model(torch.tensor([ids], device=model.device), use_cache=False)
    logits = output.logits[0, -1, :PROBE_LOGITS].float().cpu()
    if not bool(torch.isfinite(logits).all()):
        raise NumericalError("the pruned model answers a fixed input with NaN or infinity: prune less, or in float32")
    return Probe(token_ids=ids, logits=logits.tolist())


class _Saved:
    """A saved folder under inspection."""

    def __init__(self, folder: Path, report: PruningReport, trust_remote_code: bool, room: int) -> None:
        self.room = room
        self.folder = folder
        self.report = report
        self.trust_remote_code = trust_remote_code
        place = folder.resolve()
        # One name, so that what a killed check leaves is gone after the next.
        self.offload = place.parent / f".{place.name}-verify"

    @property
    def weight_files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text(encoding="utf-8"))

    @functools.cached_property
    def opening(self) -> Opening:
        keywords = {"dtype": "auto", "trust_remote_code": self.trust_remote_code, "local_files_only": True}
        return Opening(str(self.folder), None, keywords)

    @functools.cached_property
    def weights(self) -> Weights:
        """The reloaded model, its blocks on disk: what is checked need not fit into memory."""
        return weights_of(self.opening.weights_on_disk(self.offload))

    @functools.cached_property
    def matrices(self) -> list[tuple[MatrixFacts, Matrix]]:
        """The report's matrices with those of the reloaded model."""
        if not self.report.matrices:
            raise _Failed("the report lists no pruned matrix: prune again")
        found = {matrix.name: matrix for matrix in find_matrices(self.weights.model)}
        lost = [facts.name for facts in self.report.matrices if facts.name not in found]
        if lost:
            raise _Failed(f"the saved model has no {_some(lost)}, which the report says were pruned")
        return [(facts, found[facts.name]) for facts in self.report.matrices]

    def pruned(self) -> Iterator[tuple[MatrixFacts, torch.Tensor]]:
        """Yield the report's matrices with the saved weights, ``(d_out, d_in)``, a block at a time."""
        for block, rows in itertools.groupby(self.matrices, key=lambda pair: pair[1].block):
            with self.weights.block(block):
                for facts, matrix in rows:
                    yield facts, matrix.view()

    def release(self) -> None:
        """Drop the reloaded model."""
        for name in ("matrices", "weights"):
            self.__dict__.pop(name, None)
        shutil.rmtree(self.offload, ignore_errors=True)


def _some(items: list[str], limit: int = 3) -> str:
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def _check_files(saved: _Saved) -> str:
    found = (p for p in saved.folder.rglob("*") if p.suffix in UNSAFE_SUFFIXES)
    # The weights of an OpenVINO graph are plain numbers, whatever their name.
    unsafe = sorted(str(p.relative_to(saved.folder)) for p in found if not p.with_suffix(".xml").is_file())
    if unsafe:
        raise _Failed(f"weights are published as safetensors only, and the folder holds {_some(unsafe)}: remove them")
    names = {path.name for path in saved.weight_files}
    index = saved.folder / "model.safetensors.index.json"
    if index.is_file():
        expected = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    else:
        expected = {"model.safetensors"}
    if names != expected:
        missing, stale = sorted(expected - names), sorted(names - expected)
        raise _Failed(
            f"the weight files do not fit together: missing {missing or 'none'}, left over {stale or 'none'}"
        )
    return f"{len(names)} safetensors file(s), no pickle"


def _check_config(saved: _Saved) -> str:
    nested = [saved.config, *(value for value in saved.config.values() if isinstance(value, dict))]
    left = [key for key in COMPRESSION_KEYS if any(key in part for part in nested)]
    if left:
        raise _Failed(f"config.json must be that of a plain dense model and has {', '.join(left)}: remove it")
    names = saved.config.get("architectures") or []
    own_code = saved.trust_remote_code and "AutoModelForCausalLM" in (saved.config.get("auto_map") or {})
    if not names or not (own_code or all(hasattr(transformers, name) for name in names)):
        raise _Failed(f"architectures must name a class of transformers {transformers.__version__}, got {names}")
    if saved.config.get("hubprune") != json.loads(json.dumps(saved.report.summary())):
        raise _Failed("config.hubprune is not the summary of this report: save the model again")
    return f"architecture {names[0]}, no quantisation or sparsity format"


def _check_finite(saved: _Saved) -> str:
    count, bad = 0, []
    for path in saved.weight_files:
        with safe_open(path, framework="pt") as tensors:
            names = list(tensors.keys())
        for name in names:
            with safe_open(path, framework="pt") as tensors:  # anew: what was read stays mapped
                tensor = tensors.get_tensor(name)
            count += 1
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                bad.append(name)
            del tensor
    if bad:
        raise _Failed(f"NaN or infinity in {_some(bad)}")
    return f"{count} tensors, all finite"


def _check_zeros(saved: _Saved) -> str:
    wrong, zeros = [], 0
    for facts, view in saved.pruned():
        found = int((view == 0).sum())
        zeros += found
        if tuple(view.shape) != tuple(facts.shape):
            wrong.append(f"{facts.name} is {tuple(view.shape)}, reported {tuple(facts.shape)}")
        elif found != facts.zeros or found < facts.pruned:
            wrong.append(f"{facts.name} has {found} zeros, reported {facts.zeros} with {facts.pruned} pruned")
    totals, matrices = saved.report.totals, saved.report.matrices
    summed = (sum(m.numel for m in matrices), sum(m.pruned for m in matrices), zeros)
    if summed != (totals.targeted, totals.pruned, totals.zeros):
        reported = (totals.targeted, totals.pruned, totals.zeros)
        wrong.append(f"the totals (targeted, pruned, zeros) are {summed}, reported {reported}")
    if wrong:
        raise _Failed("; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""))
    return f"{zeros:,} zeros in {len(matrices)} matrices, each exactly as reported"


def _check_groups(saved: _Saved) -> str | None:
    if saved.report.config.get("pattern") is None:
        return None
    pattern = parse_pattern(saved.report.config["pattern"])
    wrong, groups = [], 0
    for facts, view in saved.pruned():
        if view.shape[1] % pattern.group:
            raise _Failed(f"{facts.name} has {view.shape[1]} input columns, not divisible by {pattern.group}")
        kept = (view != 0).reshape(view.shape[0], -1, pattern.group).sum(-1)
        groups += kept.numel()
        broken = int((kept > pattern.keep).sum())
        if broken:
            wrong.append(f"{facts.name} ({broken} groups)")
    if wrong:
        raise _Failed(f"more than {pattern.keep} of {pattern.group} weights are kept in {_some(wrong)}")
    return f"{groups:,} groups of {pattern.group}, none with more than {pattern.keep} weights kept"


def _check_untouched(saved: _Saved) -> str:
    digest = saved.weights.untouched_sha256([matrix for _, matrix in saved.matrices])
    if digest != saved.report.untouched_sha256:
        raise _Failed(
            "embeddings, norms, biases, the head and ignored matrices must be the base's own, and their hash is "
            f"{digest[:12]} instead of {saved.report.untouched_sha256[:12] or 'one in the report'}"
        )
    return f"every parameter outside the pruned matrices is the base's own (sha256 {digest[:12]})"


def _check_reload(saved: _Saved) -> str:
    saved.release()
    probe = saved.report.probe
    if probe is None:
        raise _Failed("the report holds no probe to compare with: make one with make_probe before saving")
    places = None  # as anybody would load it, unless it is too large for that here
    if sum(path.stat().st_size for path in saved.weight_files) > saved.room:
        places = blocks_on_disk(saved.opening.outline)
    folder = str(saved.folder.resolve())
    offload = str(saved.offload)
    request = json.dumps([folder, probe.token_ids, len(probe.logits), saved.trust_remote_code, places, offload])
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    # -P keeps the current folder off the path: a local transformers/ or hubprune/ must not be picked up.
    command = [sys.executable, "-P", "-c", _RELOAD, request]
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            encoding="utf-8",
            env=environment,
            timeout=RELOAD_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise _Failed(f"reloading in a fresh process took more than {RELOAD_TIMEOUT} s") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise _Failed(f"plain transformers cannot load and run the folder: {last}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return _judge_reload(probe, answer)


def _judge_reload(probe: Probe, answer: dict[str, Any]) -> str:
    if not answer["stranger"]:
        raise _Failed("the fresh process loaded hubprune: the files would not load without it")
    bad = [f"{kind.replace('_', ' ')}: {_some(names)}" for kind, names in answer["keys"].items() if names]
    if bad:
        raise _Failed("the saved weights do not fit the model; " + "; ".join(bad))
    expected, got = torch.tensor(probe.logits), torch.tensor(answer["logits"])
    tolerance = TOLERANCES.get(answer["dtype"], TOLERANCES["float32"])
    if expected.shape != got.shape:
        raise _Failed(f"the reloaded model gives {len(got)} logits, the model in memory gave {len(expected)}")
    difference = float((expected - got).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny))
    if not difference <= tolerance:
        raise _Failed(
            f"the reloaded model's logits differ by {difference:.2g} of the largest, allowed {tolerance:.2g} "
            f"in {answer['dtype']}"
        )
    return (
        f"{answer['class']} loads in a fresh process with plain transformers, "
        f"no missing, unexpected or mismatched key; "
        f"logits differ by {difference:.2g} of the largest (allowed in {answer['dtype']}: {tolerance:.2g})"
    )


def _check_exports(saved: _Saved) -> str | None:
    records = exports_in(saved.folder)
    stale = [name for name, record in records.items() if record.weights != weights_sha256(saved.folder)]
    if stale:
        raise _Failed(f"the graphs in {_some(stale)} are of other weights: export again, or remove them")
    return f"the graphs in {_some(list(records))} are of these weights" if records else None


CHECKS: dict[str, Callable[[_Saved], str | None]] = {
    "files": _check_files,
    "config": _check_config,
    "finite": _check_finite,
    "zeros": _check_zeros,
    "groups": _check_groups,
    "untouched": _check_untouched,
    "exports": _check_exports,
    "reload": _check_reload,
}


def verify(
    folder: str | os.PathLike[str],
    *,
    report: PruningReport | None = None,
    trust_remote_code: bool = False,
    max_memory: int | None = None,
) -> Verification:
    """Check a saved pruned model and write the stamp into its report.

    Args:
        folder: Where the model was saved.
        report: The run's report; read from the folder when None. The stamp is written into it as well.
        trust_remote_code: Let the folder's own modelling code run.
        max_memory: Bytes that the reloaded model may take; beyond it, or what is free, its blocks stay on disk.

    Returns:
        The stamp, with one sentence for each check.

    Raises:
        UsageError: The folder holds no report.
        VerificationError: Some checks failed; the message lists every one. The report says so too.
        OutputError: The stamp cannot be written.
    """
    path = Path(folder)
    report = PruningReport.load(path) if report is None else report
    saved = _Saved(path, report, trust_remote_code, min(free_memory(), max_memory or sys.maxsize))
    passed: dict[str, str] = {}
    failures = []
    for name, check in CHECKS.items():
        try:
            sentence = check(saved)
        except _Failed as error:
            failures.append(f"{name}: {error}")
        except Exception as error:  # a check that cannot be carried out has not passed, whatever stopped it
            message = re.sub(r"\s+", " ", str(error))
            failures.append(f"{name}: cannot be checked ({type(error).__name__}: {message:.300})")
        else:
            if sentence is not None:
                passed[name] = sentence
    saved.release()
    report.verification = Verification(passed, not failures, transformers.__version__)
    report.save(path)
    if failures:
        raise VerificationError(f"{path} does not hold what its report says. " + "; ".join(failures))
    return report.verification
