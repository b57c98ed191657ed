"""The config of a recovery checks itself, says every mistake at once and travels as JSON."""

from __future__ import annotations

import json

import pytest
from peft import HiraConfig, LoraConfig

from hubprune import RecoveryConfig
from hubprune.errors import ConfigError


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"method": "distil"}, "method must be one of adapter, reconstruct, got 'distil'"),
        ({"adapter": "dora"}, "adapter must be lora, shira, hira or a peft.LoraConfig, got 'dora'"),
        ({"adapter": HiraConfig()}, "adapter must be lora, shira, hira or a peft.LoraConfig"),
        ({"rank": 0}, "rank must be a whole number, at least 1, got 0"),
        ({"steps": 0}, "steps must be a whole number, at least 1 step, got 0"),
        ({"num_samples": 1}, "num_samples must be a whole number, at least 2 sequences"),
        ({"learning_rate": 0.0}, "learning_rate must be a number above 0"),
        ({"temperature": float("inf")}, "temperature must be a number above 0"),
        ({"domain_ratio": 1.5}, "domain_ratio must be between 0 and 1, got 1.5"),
        ({"held_out": 0.75}, "held_out must be at least 0 and at most 0.5"),
        ({"held_out": 0.0}, "ending early needs text to look at, got held_out=0 with patience=3"),
        ({"method": "reconstruct", "distill": True}, "distill goes with method 'adapter'"),
        ({"adapter": LoraConfig(use_dora=True)}, "the LoraConfig has use_dora=True: leave it out"),
        ({"adapter": LoraConfig(modules_to_save=["lm_head"])}, "modules_to_save=.'lm_head'.: leave it out"),
        ({"adapter": LoraConfig(init_lora_weights="pissa")}, "init_lora_weights='pissa'"),
    ],
)
def test_broken_rules_are_named(fields: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RecoveryConfig(**fields)


def test_every_mistake_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        RecoveryConfig(adapter="x", rank=-1, batch_size=0, distill_weight=2)
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    "config",
    [
        RecoveryConfig(),
        RecoveryConfig("reconstruct", steps=10),
        RecoveryConfig(adapter="shira", report_to="trackio", sequence_length=64),
        RecoveryConfig(adapter=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)),
    ],
)
def test_a_config_comes_back_from_json(config: RecoveryConfig) -> None:
    again = RecoveryConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again.to_dict() == config.to_dict()
    assert again.kind == config.kind


def test_defaults_depend_on_what_is_done() -> None:
    rates = {way: RecoveryConfig.of(way).resolved().learning_rate for way in ("lora", "shira", "hira", "reconstruct")}
    assert rates["hira"] > rates["lora"] > rates["reconstruct"]
    assert RecoveryConfig(rank=8).resolved().alpha == 16
    assert RecoveryConfig.of("reconstruct").resolved().steps < RecoveryConfig.of(True).resolved().steps


def test_words_fields_and_configs_are_read_and_nothing_else() -> None:
    assert RecoveryConfig.of({"adapter": "hira", "nsamples": 4}).num_samples == 4
    assert RecoveryConfig.of(LoraConfig(r=3)).own_lora["r"] == 3
    with pytest.raises(ConfigError, match="has no field 'stepz': did you mean 'steps'"):
        RecoveryConfig.of({"stepz": 4})
    with pytest.raises(ConfigError, match="recovery is a RecoveryConfig, its fields, lora"):
        RecoveryConfig.of(3.5)
