"""transformers, datasets and hf against the embedded Hub, each in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from huggingface_hub import HfApi
from localhub_helpers import run_client, run_command

from hubprune.localhub import EmbeddedHub

MODEL = """
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

words = Tokenizer(models.WordLevel({"<unk>": 0, "one": 1, "two": 2}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
config = LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
torch.manual_seed(0)
model = LlamaForCausalLM(config)
model.push_to_hub("me/tiny", max_shard_size="10KB")
tokenizer.push_to_hub("me/tiny")
again = AutoModelForCausalLM.from_pretrained("me/tiny")
ids = AutoTokenizer.from_pretrained("me/tiny")("one two", return_tensors="pt").input_ids
assert ids.tolist() == [[1, 2]]
torch.testing.assert_close(again(ids).logits, model(ids).logits)
model.push_to_hub("me/tiny", commit_message="again", revision="other")
AutoModelForCausalLM.from_pretrained("me/tiny", revision="other")
print("same logits")
try:
    AutoModelForCausalLM.from_pretrained("me/nothing")
except OSError as error:
    print("missing:", "not a valid model identifier" in str(error))
"""

DATA = """
import datasets
from datasets import Dataset, DatasetDict, get_dataset_config_names, load_dataset

datasets.disable_progress_bars()
rows = DatasetDict({
    "train": Dataset.from_dict({"text": [f"row {i}" for i in range(50)]}),
    "test": Dataset.from_dict({"text": ["t"]}),
})
rows.push_to_hub("me/rows")
assert load_dataset("me/rows", split="train")["text"] == rows["train"]["text"]
streamed = load_dataset("me/rows", split="train", streaming=True)
assert [row["text"] for row in streamed.take(3)] == ["row 0", "row 1", "row 2"]
rows.push_to_hub("me/rows", config_name="second")
assert sorted(get_dataset_config_names("me/rows")) == ["default", "second"]
assert len(load_dataset("org/lines", "small", split="test")) == 3
assert next(iter(load_dataset("org/lines", "small", split="test", streaming=True))) == {"n": 0}
for name in ("me/none", "org/closed"):
    try:
        load_dataset(name)
    except datasets.exceptions.DatasetNotFoundError:
        print("missing", name)
"""


def test_transformers_pushes_and_loads(hub: EmbeddedHub, tmp_path: Path) -> None:
    assert run_client(hub, MODEL, tmp_path).splitlines() == ["same logits", "missing: True"]
    files = HfApi(endpoint=hub.url, token=hub.token("me")).list_repo_files("me/tiny")
    assert "model.safetensors.index.json" in files
    assert "tokenizer.json" in files


def test_datasets_pushes_loads_and_streams(tmp_path: Path) -> None:
    lines = tmp_path / "seed" / "datasets" / "org" / "lines"
    (lines / "data").mkdir(parents=True)
    (lines / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files:\n  - split: test\n    path: data/s.jsonl\n---\n"
    )
    (lines / "data" / "s.jsonl").write_text('{"n": 0}\n{"n": 1}\n{"n": 2}\n')
    users = {"me": "hf_a", "org": "hf_b"}
    with EmbeddedHub(tmp_path / "hub", users=users, seed=[tmp_path / "seed"]) as hub:
        HfApi(endpoint=hub.url, token="hf_b").create_repo("org/closed", repo_type="dataset", private=True)
        assert run_client(hub, DATA, tmp_path).splitlines() == ["missing me/none", "missing org/closed"]


def test_command_line_of_the_hub(hub: EmbeddedHub, tmp_path: Path) -> None:
    hf = str(Path(sys.executable).with_name("hf"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("from the command line")
    assert "me" in run_command(hub, [hf, "auth", "whoami"], tmp_path)
    run_command(hub, [hf, "upload", "me/cli", "folder", "--private"], tmp_path)
    run_command(hub, [hf, "download", "me/cli", "--local-dir", "back"], tmp_path)
    assert (tmp_path / "back" / "a.txt").read_text() == "from the command line"
