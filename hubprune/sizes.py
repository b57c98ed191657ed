"""How large a model is: parameters, zeros, files, transfers, memory."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hubprune import environment
from hubprune.architecture import auto_class, max_length, reading
from hubprune.errors import NumericalError
from hubprune.outcomes import SizeFacts

# The Hub's storage cuts files into chunks of about this many bytes and compresses each with LZ4, the bytes as they are
# or grouped by their place in a word of four, whichever is smaller (huggingface.co/docs/xet).
CHUNK = 2**16
WORD = 4
ZSTD_LEVEL = 3
# Weights that an estimate is made from, at most, taken evenly from all tensors.
SAMPLE = 64 * 2**20
WEIGHT_SUFFIXES = (".safetensors", ".bin")
# Tokens of the one run after which resident memory is taken.
RUN_TOKENS = 128


def measure_size(model: Any, *, variant: str, folder: str | os.PathLike[str] | None = None) -> SizeFacts:
    """Count parameters and bytes of a model in memory.

    Args:
        model: The model.
        variant: What the row is called.
        folder: Folder of its weight files; None where it has none.
    """
    parameters = nonzeros = memory = 0
    kinds: Counter[str] = Counter()
    for tensor in _tensors(model):
        parameters += tensor.numel()
        nonzeros += int(torch.count_nonzero(tensor))
        memory += tensor.numel() * tensor.element_size()
        kinds[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    transfer, zstd, seen = compressed(_tensors(model), memory)
    return SizeFacts(
        variant=variant,
        parameters=parameters,
        nonzeros=nonzeros,
        dtype=kinds.most_common(1)[0][0],
        memory_bytes=memory,
        file_bytes=None if folder is None else file_bytes(Path(folder)),
        transfer_bytes=transfer,
        zstd_bytes=zstd,
        estimated_from=seen,
    )


def _tensors(model: Any) -> Iterator[torch.Tensor]:
    """The parameters, tied ones once, in an order that does not depend on where they lie."""
    for parameter in model.parameters():
        yield parameter.detach()


def file_bytes(folder: Path) -> int | None:
    """Bytes of the weight files that transformers would load from a folder; None when there are none."""
    for suffix in WEIGHT_SUFFIXES:
        sizes = [path.stat().st_size for path in folder.glob(f"*{suffix}")]
        if sizes:
            return sum(sizes)
    return None


def compressed(tensors: Iterable[torch.Tensor], total: int) -> tuple[int | None, int | None, int]:
    """Estimate what is left of the weights after compression, from a sample spread evenly over all tensors.

    Args:
        tensors: The weights.
        total: Bytes of all of them.

    Returns:
        Bytes after LZ4 in chunks, bytes after zstandard, and bytes that the estimate was made from. None where the
        library is not installed.
    """
    block, zstandard = _library("lz4.block"), _library("zstandard")
    if block is None and zstandard is None:
        return None, None, 0
    every = max(1, -(-total // SAMPLE))
    squeeze = None if zstandard is None else zstandard.ZstdCompressor(level=ZSTD_LEVEL)
    seen = small = tiny = 0
    for turn, chunk in enumerate(chunk for tensor in tensors for chunk in _chunks(tensor)):
        if turn % every:
            continue
        seen += len(chunk)
        if block is not None:
            small += min(len(chunk), *(len(block.compress(form, store_size=False)) for form in _forms(chunk)))
        if squeeze is not None:
            tiny += len(squeeze.compress(chunk))
    return (
        None if block is None else round(total * small / seen),
        None if squeeze is None else round(total * tiny / seen),
        seen,
    )


def _library(name: str) -> Any:
    """A library that may be missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


def _chunks(tensor: torch.Tensor) -> Iterator[bytes]:
    flat = tensor.reshape(-1)
    step = max(1, CHUNK // tensor.element_size())
    for start in range(0, flat.numel(), step):
        yield flat[start : start + step].cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _forms(chunk: bytes) -> Iterator[bytes]:
    """A chunk as it is, and with its bytes grouped by their place in a word."""
    yield chunk
    rest = len(chunk) % WORD
    whole = np.frombuffer(chunk[: len(chunk) - rest], dtype=np.uint8).reshape(-1, WORD)
    yield whole.T.tobytes() + chunk[len(chunk) - rest :]


def resident_bytes(folder: str | os.PathLike[str], *, dtype: str = "auto", trust_remote_code: bool = False) -> int:
    """Resident memory of a process of its own that loads a model on the CPU and runs it once.

    Args:
        folder: Folder of the model.
        dtype: Type of the weights in memory.
        trust_remote_code: Whether to run the code that the model brings along.

    Raises:
        NumericalError: The process did not end well.
    """
    words = [sys.executable, "-m", "hubprune.sizes", os.fspath(folder), dtype, str(int(trust_remote_code))]
    place = str(Path(__file__).resolve().parents[1])
    paths = [place, *filter(None, [os.environ.get("PYTHONPATH")])]
    alone = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(words, env={**os.environ, **alone}, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise NumericalError(
            f"the process that measures the memory of {folder} ended with {done.returncode} ({last[0]}): free some "
            "memory, or leave that out"
        )
    return int(json.loads(done.stdout.splitlines()[-1]))


def _main(folder: str, dtype: str, trusted: str) -> None:
    """Load, run once, and print the resident memory in bytes."""
    from transformers import AutoConfig

    environment.return_large_memory_at_once()
    code = trusted == "1"
    loader = auto_class(AutoConfig.from_pretrained(folder, trust_remote_code=code))
    model: Any = loader.from_pretrained(folder, dtype=dtype, trust_remote_code=code)
    for parameter in model.parameters():  # touch what may only be mapped
        parameter.detach().count_nonzero()
    ids = torch.zeros((1, min(RUN_TOKENS, max_length(model.config) or RUN_TOKENS)), dtype=torch.long)
    with torch.no_grad():
        model.eval()(**reading(model, ids), use_cache=False)
    print(json.dumps(environment.resident_memory()))


if __name__ == "__main__":
    _main(*sys.argv[1:])
