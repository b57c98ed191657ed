"""The facts about this machine and its libraries that a report states."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from typing import Any

import pytest
import torch

import hubprune
from hubprune import environment
from hubprune.environment import hardware, peak_gpu_memory, peak_memory, versions

MIB = 2**20


def test_versions_are_those_installed() -> None:
    found = versions()
    assert found["hubprune"] == hubprune.__version__
    assert found["python"] == platform.python_version()
    for name in ("torch", "transformers", "datasets"):
        assert found[name] == importlib.metadata.version(name)


def test_a_library_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "LIBRARIES", ("torch", "no-such-library"))
    assert list(versions()) == ["hubprune", "python", "torch"]


def test_hardware_is_described_in_plain_values() -> None:
    found = hardware()
    assert json.loads(json.dumps(found)) == found
    assert found["processor"]
    assert found["cores"] == os.cpu_count()
    assert found["threads"] == torch.get_num_threads()
    assert (found["gpu"] is None) == (not torch.cuda.is_available())
    assert found["system"].startswith(platform.system())


def test_peak_memory_holds_what_was_used_and_fits_the_machine() -> None:
    block = bytes(1) * (64 * MIB)
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert len(block) < peak_memory() <= installed


def test_the_unit_is_bytes_on_every_system(monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        ru_maxrss = 5000

    monkeypatch.setattr("resource.getrusage", lambda who: Usage())
    found: dict[str, Any] = {}
    for system in ("linux", "darwin"):
        monkeypatch.setattr(sys, "platform", system)
        found[system] = peak_memory()
    assert found == {"linux": 5000 * 1024, "darwin": 5000}


def test_gpu_memory_is_none_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert peak_gpu_memory() is None
    assert hardware()["gpu"] is None


@pytest.mark.gpu
def test_gpu_memory_is_what_torch_allocated() -> None:
    before = peak_gpu_memory()
    block = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
    assert before is not None
    assert (peak_gpu_memory() or 0) >= block.numel()
    assert hardware()["gpu"] == torch.cuda.get_device_name()
