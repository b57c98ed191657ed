"""Rows of data sets: the same arguments give the same rows, from the Hub, from folders and from files."""

from __future__ import annotations

import gzip
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hubprune.corpora import SourceConfig
from hubprune.errors import CorpusError
from hubprune.hub import READERS, data_suffix, dataset_configs, dataset_splits, local_file, open_rows, resolve_dataset
from hubprune.localhub import EmbeddedHub, seed_folder
from tests.localhub_helpers import run_client

ROWS = 40
TABLE = [{"text": f"row {number}", "n": number} for number in range(3)]


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def card(**configs: dict[str, str]) -> str:
    """Metadata that declares configurations, each with the file of every split."""
    listed = [
        {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in files.items()]}
        for name, files in configs.items()
    ]
    return f"---\n{json.dumps({'configs': listed})}\n---\n"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets as folders."""
    root = tmp_path_factory.mktemp("sets")
    files = {
        "one/train.jsonl": jsonl([{"text": f"row {number}"} for number in range(ROWS)]),
        "parts/README.md": card(small={"train": "a.jsonl", "test": "b.jsonl"}, large={"train": "c.jsonl"}),
        "parts/a.jsonl": jsonl([{"text": "small train"}]),
        "parts/b.jsonl": jsonl([{"text": "small test"}]),
        "parts/c.jsonl": jsonl([{"text": "large train"}]),
        "files/train-0.jsonl": jsonl([{"text": f"first {number}"} for number in range(ROWS)]),
        "files/train-1.jsonl": jsonl([{"text": f"second {number}"} for number in range(ROWS)]),
        "program/program.py": "import datasets\n",
        "empty/README.md": "---\nlicense: mit\n---\n",
        "broken/train.jsonl": '{"text": "good"}\n{broken\n',
    }
    for name, text in files.items():
        path = root / "datasets" / "rows" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(scope="module", autouse=True)
def seeded(hub: EmbeddedHub, sets: Path) -> None:
    """The data sets on the Hub, as `rows/...`."""
    seed_folder(hub.store, sets)


@pytest.fixture
def commit_of() -> Callable[[str], str | None]:
    return lambda name: resolve_dataset(name, token=False).commit


def texts(source: SourceConfig, **settings: Any) -> list[str]:
    numbered = list(open_rows(source, token=False, **settings))
    assert [place for place, _ in numbered] == list(range(len(numbered)))
    return [row["text"] for _, row in numbered]


# Data sets of the Hub


@pytest.mark.parametrize("streaming", [True, False])
def test_the_seed_alone_decides_the_order(commit_of: Callable[[str], str], streaming: bool) -> None:
    source = SourceConfig("rows/one", "default", "train")
    settings = {"commit": commit_of("rows/one"), "streaming": streaming}
    first, again, other = (texts(source, seed=seed, **settings) for seed in (1, 1, 2))
    in_file = [f"row {number}" for number in range(ROWS)]
    assert first == again
    assert sorted(first) == sorted(other) == sorted(in_file)
    assert len({tuple(first), tuple(other), tuple(in_file)}) == 3


def test_rows_are_read_as_needed(commit_of: Callable[[str], str]) -> None:
    rows = open_rows(SourceConfig("rows/one", "default", "train"), commit=commit_of("rows/one"), token=False)
    assert len(list(itertools.islice(rows, 2))) == 2
    rows.close()  # type: ignore[attr-defined]


def test_the_files_of_a_split_are_mixed(commit_of: Callable[[str], str]) -> None:
    found = texts(SourceConfig("rows/files", "default", "train"), commit=commit_of("rows/files"))
    assert len(set(found)) == 2 * ROWS
    assert {text.split()[0] for text in found[:ROWS]} == {"first", "second"}


def test_one_file_is_read_without_waiting(tmp_path: Path) -> None:
    started = time.monotonic()
    assert len(texts(SourceConfig(str(write_table(tmp_path / "a.parquet"))))) == len(TABLE)
    assert time.monotonic() - started < datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN


@pytest.mark.parametrize(
    ("config", "split", "text"),
    [("small", "train", "small train"), ("small", "test", "small test"), ("large", "train", "large train")],
)
def test_a_configuration_and_a_split_are_read_apart(
    commit_of: Callable[[str], str], config: str, split: str, text: str
) -> None:
    assert texts(SourceConfig("rows/parts", config, split), commit=commit_of("rows/parts")) == [text]


def test_configurations_and_splits_are_listed(commit_of: Callable[[str], str]) -> None:
    commit = commit_of("rows/parts")
    assert dataset_configs("rows/parts", commit=commit, token=False) == ["small", "large"]
    assert dataset_splits("rows/parts", "small", commit=commit, token=False) == ["train", "test"]
    assert dataset_configs("rows/one", commit=commit_of("rows/one"), token=False) == ["default"]


def test_rows_are_those_of_the_commit(hub_api: Callable[..., Any]) -> None:
    api = hub_api("me")
    api.create_repo("me/rows-move", repo_type="dataset")
    for text in ("old", "new"):
        api.upload_file(
            path_or_fileobj=jsonl([{"text": text}]).encode(),
            path_in_repo="train.jsonl",
            repo_id="me/rows-move",
            repo_type="dataset",
        )
        if text == "old":
            old = resolve_dataset("me/rows-move", api=api).commit
    assert texts(SourceConfig("me/rows-move", "default", "train"), commit=old) == ["old"]
    new = resolve_dataset("me/rows-move", api=api).commit
    assert texts(SourceConfig("me/rows-move", "default", "train"), commit=new) == ["new"]
    api.delete_repo("me/rows-move", repo_type="dataset")


def test_the_token_opens_a_private_data_set(hub: EmbeddedHub, hub_api: Callable[..., Any]) -> None:
    api = hub_api("me")
    api.create_repo("me/rows-private", repo_type="dataset", private=True)
    api.upload_file(
        path_or_fileobj=jsonl(TABLE).encode(),
        path_in_repo="train.jsonl",
        repo_id="me/rows-private",
        repo_type="dataset",
    )
    commit = resolve_dataset("me/rows-private", api=api).commit
    source = SourceConfig("me/rows-private", "default", "train")
    rows = [row for _, row in open_rows(source, commit=commit, token=hub.token("me"))]
    assert sorted(rows, key=lambda row: row["n"]) == TABLE
    with pytest.raises(CorpusError, match=r"^cannot read me/rows-private: .* cannot be accessed; mend it, or take"):
        list(open_rows(source, commit=commit, token=hub.token("guest")))
    api.delete_repo("me/rows-private", repo_type="dataset")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "rows/program",
            "cannot read rows/program: it comes with a program of its own, which is not run; take the copy that the "
            "Hub makes of most such data sets, 'rows/program@refs/convert/parquet', or another data set",
        ),
        (
            "rows/empty",
            r"cannot read rows/empty: .* doesn't contain any data files; mend it, or take another data set",
        ),
    ],
)
def test_a_data_set_that_cannot_be_opened_is_refused(commit_of: Callable[[str], str], name: str, message: str) -> None:
    commit = commit_of(name)
    for read in (
        lambda: dataset_configs(name, commit=commit, token=False),
        lambda: list(open_rows(SourceConfig(name, "default", "train"), commit=commit, token=False)),
    ):
        with pytest.raises(CorpusError, match=message):
            read()


@pytest.mark.parametrize("streaming", [True, False])
def test_a_broken_row_is_told_with_its_place(commit_of: Callable[[str], str], streaming: bool) -> None:
    source = SourceConfig("rows/broken", "default", "train")
    with pytest.raises(
        CorpusError, match=r"^cannot read rows/broken: JSON parse error: .* row 1; mend it, or take an"
    ):
        texts(source, commit=commit_of("rows/broken"), streaming=streaming)


ONLINE = """
import sys
from hubprune.corpora import SourceConfig
from hubprune.hub import dataset_configs, dataset_splits, open_rows, resolve_dataset
commit = resolve_dataset("rows/parts").commit
print(dataset_configs("rows/parts", commit=commit), dataset_splits("rows/parts", "small", commit=commit))
rows = open_rows(SourceConfig("rows/parts", "small", "train"), commit=commit, streaming=False)
print([row["text"] for _, row in rows])
"""
REFUSED = """
from hubprune.errors import OfflineError
commit = resolve_dataset("rows/parts").commit
try:
    list(open_rows(SourceConfig("rows/parts", "large", "train"), commit=commit, streaming=False))
except OfflineError as error:
    print(error)
"""


def test_rows_that_were_downloaded_are_there_without_a_network(hub: EmbeddedHub, tmp_path: Path) -> None:
    online = run_client(hub, ONLINE, tmp_path, user=None)
    assert online == "['small', 'large'] ['train', 'test']\n['small train']\n"
    offline = run_client(hub, ONLINE + REFUSED, tmp_path, user=None, HF_HUB_OFFLINE="1")
    assert offline == online + (
        "cannot read rows/parts: the network is switched off (HF_HUB_OFFLINE) and the cache does not hold it, as rows "
        "that are streamed are not kept; run once with the network and without streaming "
        "(streaming=False, --no-streaming)\n"
    )


# Folders and files


def test_a_folder_is_a_data_set(sets: Path) -> None:
    folder = str(sets / "datasets" / "rows" / "parts")
    assert dataset_configs(folder) == ["small", "large"]
    assert dataset_splits(folder, "large") == ["train"]
    assert texts(SourceConfig(folder, "small", "test")) == ["small test"]


def write_table(path: Path) -> Path:
    """The same rows in the format that the name asks for."""
    text = {
        ".jsonl": jsonl(TABLE),
        ".json": json.dumps(TABLE),
        ".csv": "text,n\n" + "".join(f"{row['text']},{row['n']}\n" for row in TABLE),
        ".txt": "".join(f"{row['text']}\n" for row in TABLE),
    }
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(TABLE), path)
    else:
        content = text[data_suffix(path)].encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("suffix", [*READERS, ".jsonl.gz", ".csv.gz", ".txt.gz"])
def test_a_file_is_read_by_its_suffix(tmp_path: Path, suffix: str) -> None:
    path = write_table(tmp_path / f"odd name{suffix}")
    rows = [row for _, row in open_rows(SourceConfig(str(path)))]
    expected = [{"text": row["text"]} for row in TABLE] if ".txt" in suffix else TABLE
    assert sorted(rows, key=lambda row: row["text"]) == expected


def test_the_name_of_a_file_is_no_pattern(tmp_path: Path) -> None:
    path = write_table(tmp_path / "[ab]*.jsonl")
    write_table(tmp_path / "a.jsonl")
    assert len(texts(SourceConfig(str(path)))) == len(TABLE)


def test_the_seed_decides_the_order_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"line {number}\n" for number in range(ROWS)))
    orders = [tuple(texts(SourceConfig(str(path)), seed=seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert len(set(orders[0])) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b"{broken\n", "JSON parse error: .* in row 0"),
        ("a.jsonl", b"", "it is empty"),
        ("a.csv", b'a,b\n"', "Error tokenizing data.*"),
        ("a.parquet", b"nope", "Parquet file size is 4 bytes.*"),
        ("a.txt", b"caf\xe9\n", "'utf-8' codec can't decode byte 0xe9.*"),
        ("a.jsonl.gz", b"nope", "Not a gzipped file.*"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_with_the_reason(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=rf"^cannot read .*{name}: {reason}; mend it, or take another data set$"):
        texts(SourceConfig(str(path)))


def test_a_file_is_told_from_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def place(name: str) -> Path | None:
        return local_file(SourceConfig(name))

    assert place("notes.jsonl.gz") == Path("notes.jsonl.gz")
    assert place("./notes") == Path("notes")
    assert place("org/set") is None
    assert place(str(tmp_path)) is None  # a folder holds a data set
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place("~/notes.txt") == tmp_path / "notes.txt"
