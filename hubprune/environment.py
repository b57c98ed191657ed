"""Where a run took place: versions, hardware, memory. Facts for the report."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hubprune

# Options of mallopt: the size from which memory is mapped for itself, how much free memory behind the last piece in
# use is kept, and how much is taken at a time; how often the first the other two are.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD = -3, -1, -2
KEPT, TAKEN = 32, 4
# From so many bytes on a tensor is large; the second where memory is what is short.
LARGE, NARROW = 2**22, 2**18
LIBRARIES = ("torch", "transformers", "huggingface_hub", "accelerate", "safetensors", "datasets", "tokenizers", "peft")


def versions() -> dict[str, str]:
    """Versions of hubprune, Python and the libraries whose behaviour a result depends on."""
    found = {"hubprune": hubprune.__version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def hardware() -> dict[str, Any]:
    """Processor, cores, threads in use, GPU (None without one), processes of the run and operating system."""
    import torch

    from hubprune import ranks

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processes": ranks.size(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def peak_memory() -> int:
    """Highest resident memory of this process so far, in bytes, as the operating system reports it, or 0."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory() -> int:
    """Resident memory of this process now, in bytes."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def free_memory() -> int:
    """Memory that programs can still take without swapping, in bytes."""
    import psutil

    return int(psutil.virtual_memory().available)


def total_memory() -> int:
    """Memory of this machine, in bytes."""
    import psutil

    return int(psutil.virtual_memory().total)


def accelerators() -> list[tuple[str, str]]:
    """What torch could run models on besides the processor: the device, and what it is with its memory.

    Raises:
        ImportError, OSError: torch cannot be loaded.
    """
    import torch

    found = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(number)
        memory = f"{free / 2**30:.1f} GiB free of {total / 2**30:.1f} GiB"
        found.append((f"cuda:{number}", f"{torch.cuda.get_device_name(number)}, {memory}"))
    if not found and torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        found = [(f"{kind}:{number}", "") for number in range(torch.accelerator.device_count())]
    return found


def free_gpu_memory(gpus: Sequence[int]) -> int | None:
    """Memory that is free on some GPUs together, in bytes; None for none of them."""
    import torch

    return sum(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus) if gpus else None


def return_large_memory_at_once(large: int = LARGE) -> None:
    """From now on, give memory back to the operating system when a large tensor is freed, and keep that of small ones.

    The C library of Linux keeps what is freed in pieces that later tensors do not fit into, and grows. Memory that it
    maps for a tensor alone goes back at once; each of its pages is then a page fault, little beside what a large
    tensor is used for. For small ones it is much: with all above 256 KiB mapped, a run in memory on blocks of 13 MB
    took 42 s instead of 29 s (``benchmarks.processes``); with only those above 4 MiB mapped, one on blocks on disk
    took 0.2 GB more (``benchmarks.memory``).

    Args:
        large: Bytes from which a tensor is large.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, times in ((M_MMAP_THRESHOLD, 1), (M_TRIM_THRESHOLD, KEPT), (M_TOP_PAD, TAKEN)):
            mallopt(option, times * large)


def peak_gpu_memory() -> int | None:
    """Highest memory that torch allocated on the GPUs so far, in bytes, added up; None where none was used."""
    import torch

    cards = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return sum(torch.cuda.max_memory_allocated(card) for card in cards) or None
