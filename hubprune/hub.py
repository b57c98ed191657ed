"""The Hub: repositories resolved to a commit, access checked, rows of data sets opened; every failure one clear error.

The client is a parameter (``api``), so that tests and air-gapped users bring their own. What is read is pinned: a
branch is resolved to a commit once, and everything afterwards asks for that commit. With ``HF_HUB_OFFLINE=1`` the same
names are looked up in the client's cache; a network that fails without that switch is an error, never a reason to use
old files.
"""

from __future__ import annotations

import functools
import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubprune import __version__
from hubprune.corpora import SourceConfig
from hubprune.errors import AccessError, CorpusError, HubPruneError, NotFoundError, OfflineError
from hubprune.huberrors import LOG_IN, NOT_CACHED, hub_errors, one_line
from hubprune.report import REPORT_NAME, PruningReport

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    Token = str | bool | None

README = "README.md"
# Weight files that transformers looks for; a repository may hold the same weights in other files besides.
LOADED = re.compile(r"(model|pytorch_model)(-\d{5}-of-\d{5})?\.(safetensors|bin)")
# Readers of datasets by suffix; a compressed file has .gz behind it.
READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
# Rows of a stream that are mixed before the first is handed out: enough to leave the order of the file, few enough to
# read in a second or two.
SHUFFLE_BUFFER = 1_000
# Files of a split that the rows of a stream are taken from in turn.
FILES_AT_ONCE = 10


@dataclass(frozen=True)
class ResolvedRepo:
    """A repository as it is at one commit, or a local folder.

    Attributes:
        repo_id: Repository, or path of the folder.
        repo_type: ``model`` or ``dataset``.
        revision: Branch, tag or commit asked for, None for the default branch.
        commit: The commit it stands for; None for a folder.
        local: Whether it is a folder.
        gated: Whether the Hub asks for consent before a download.
        private: Whether only some users see it.
        card: Metadata of its card.
    """

    repo_id: str
    repo_type: str = "model"
    revision: str | None = None
    commit: str | None = None
    local: bool = False
    gated: bool = False
    private: bool = False
    card: dict[str, Any] = field(default_factory=dict)


def make_api(token: Token = None) -> HfApi:
    """Return a client that says who it is; without a token it uses the one of the user who is logged in."""
    from huggingface_hub import HfApi

    return HfApi(token=token, library_name="hubprune", library_version=__version__)


def resolve_model(
    model_id: str,
    *,
    revision: str | None = None,
    token: Token = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    api: HfApi | None = None,
) -> ResolvedRepo:
    """Resolve a model to a commit and check that its files may be read; a local folder stands for itself.

    Args:
        model_id: Repository, or path of a folder.
        revision: Branch, tag or commit; None for the default branch.
        token: Token of the Hub; None for the one of the user who is logged in.
        cache_dir: The client's cache; None for its usual one.
        local_files_only: Ask the cache alone.
        api: Client to use instead of one made from ``token``.

    Raises:
        AccessError: The repository is private or gated.
        NotFoundError: There is none, or no such revision.
        OfflineError: The Hub is out of reach, or switched off and the cache holds nothing.
    """
    return _resolve(model_id, "model", revision, api or make_api(token), cache_dir, local_files_only)


def resolve_dataset(
    repo_id: str, *, revision: str | None = None, token: Token = None, api: HfApi | None = None
) -> ResolvedRepo:
    """Resolve a data set to a commit; arguments and errors as in ``resolve_model``."""
    return _resolve(repo_id, "dataset", revision, api or make_api(token))


def _resolve(
    repo_id: str,
    repo_type: str,
    revision: str | None,
    api: HfApi,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> ResolvedRepo:
    from huggingface_hub import errors, is_offline_mode

    folder = local_path(repo_id)
    if repo_id and folder.is_dir():
        return ResolvedRepo(repo_id, repo_type, local=True, card=_card_in(folder))
    if re.match(r"[./~]", repo_id):
        raise NotFoundError(f"there is no folder {repo_id}; check the path, or name a repository, 'owner/name'")
    with hub_errors("read", repo_id, repo_type, api=api):
        if is_offline_mode() or local_files_only:
            cache = _cache(repo_id, repo_type, cache_dir)
            commit = _cached_commit(cache, revision)
            if commit is None:
                why = "local_files_only is set" if local_files_only else "the network is switched off (HF_HUB_OFFLINE)"
                raise OfflineError(f"cannot read {repo_id}: {why} and {NOT_CACHED}; run once with the network")
            card = _card_in(cache / "snapshots" / commit)
            return ResolvedRepo(repo_id, repo_type, revision, commit, card=card)
        wanted: Any = ["sha", "gated", "private", "cardData"]
        info: Any = api.repo_info(repo_id, repo_type=repo_type, revision=revision, expand=wanted)
        if info.gated:
            api.auth_check(repo_id, repo_type=repo_type)
        # Everything later asks for the commit, and then the client does not note where the branch stood. Fetching the
        # card by the branch's name leaves that note, and the card, for a run without the network.
        with suppress(errors.RemoteEntryNotFoundError):
            api.hf_hub_download(repo_id, README, repo_type=repo_type, revision=revision, cache_dir=cache_dir)
    card = info.card_data.to_dict() if info.card_data else {}
    return ResolvedRepo(repo_id, repo_type, revision, info.sha, False, bool(info.gated), bool(info.private), card)


def _card_in(folder: Path) -> dict[str, Any]:
    from huggingface_hub import metadata_load

    path = folder / README
    return dict(metadata_load(path) or {}) if path.is_file() else {}


def _cache(repo_id: str, repo_type: str, cache_dir: str | Path | None = None) -> Path:
    from huggingface_hub import constants

    return Path(cache_dir or constants.HF_HUB_CACHE) / "--".join([f"{repo_type}s", *repo_id.split("/")])


def _cached_commit(cache: Path, revision: str | None) -> str | None:
    """The commit that a revision stood for when the network was last there; None where it never was."""
    note = cache / "refs" / (revision or "main")
    if note.is_file():
        return note.read_text(encoding="utf-8").strip()
    return revision if revision is not None and (cache / "snapshots" / revision).is_dir() else None


def read_report(
    repo: ResolvedRepo, *, token: Token = None, api: HfApi | None = None, **cache: Any
) -> PruningReport | None:
    """Read the report of a pruned model; None where it has no such file.

    Args:
        repo: The model.
        token: Token of the Hub.
        api: Client to use instead of one made from ``token``.
        cache: ``cache_dir`` and ``local_files_only``, as ``resolve_model`` takes them.

    Raises:
        UsageError: The report cannot be read.
        AccessError, OfflineError: As ``resolve_model``.
    """
    folder = local_path(repo.repo_id)
    if not repo.local:
        api = api or make_api(token)
        try:
            with hub_errors("read the report of", repo.repo_id, api=api):
                found = api.hf_hub_download(repo.repo_id, REPORT_NAME, revision=repo.commit, **cache)
                folder = Path(found).parent
        except NotFoundError:
            return None
    return PruningReport.load(folder) if (folder / REPORT_NAME).is_file() else None


def missing_bytes(
    repo: ResolvedRepo,
    *,
    token: Token = None,
    api: HfApi | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> int:
    """Bytes of the weight files that transformers loads a model from and that are still to be downloaded.

    Args:
        repo: The model.
        token: Token of the Hub.
        api: Client to use instead of one made from ``token``.
        cache_dir: The client's cache; None for its usual one.
        local_files_only: Whether nothing is downloaded; then it is 0, as where the network is switched off.

    Raises:
        AccessError, OfflineError: As ``resolve_model``.
    """
    from huggingface_hub import is_offline_mode

    if repo.local or local_files_only or is_offline_mode():
        return 0
    api = api or make_api(token)
    with hub_errors("read", repo.repo_id, api=api):
        info = api.model_info(repo.repo_id, revision=repo.commit, files_metadata=True)
    there = _cache(repo.repo_id, "model", cache_dir) / "snapshots" / str(repo.commit)
    files = [file for file in info.siblings or () if LOADED.fullmatch(file.rfilename)]
    safe = [file for file in files if file.rfilename.endswith(".safetensors")]
    return sum(file.size or 0 for file in safe or files if not (there / file.rfilename).exists())


def check_can_write(repo_id: str, *, token: Token = None, api: HfApi | None = None, repo_type: str = "model") -> bool:
    """Find out before any work whether a repository can be created or pushed to.

    Returns:
        Whether the repository exists.

    Raises:
        AccessError: There is no token, it may only read, or the repository belongs to somebody else.
        OfflineError: The Hub is out of reach.
    """
    api = api or make_api(token)
    start = f"cannot push to {repo_id}: "
    if api.token is False:
        raise AccessError(f"{start}it needs a token and there is none; {LOG_IN}")
    with hub_errors("push to", repo_id, repo_type, api=api):
        me = api.whoami()
        if me.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise AccessError(f"{start}the token may only read; make one with the role 'write'")
        if api.repo_exists(repo_id, repo_type=repo_type):
            api.auth_check(repo_id, repo_type=repo_type, write=True)
            return True
    own = [me["name"], *(org["name"] for org in me.get("orgs", ()) if org.get("roleInOrg") != "read")]
    owner, slash, _ = repo_id.partition("/")
    if slash and owner not in own:
        raise AccessError(f"{start}{me['name']} may not create it; push to a repository of {' or '.join(own)}")
    return False


def local_path(place: str) -> Path:
    """The path that a name stands for; ``~`` is the home folder, or stays as it is where there is none."""
    return Path(os.path.expanduser(place))


def model_folder(repo: ResolvedRepo, *, cache_dir: str | Path | None = None, **_: Any) -> Path:
    """Where the files of a model lie once they are here: its own folder, or that of its commit in the cache."""
    if repo.local:
        return local_path(repo.repo_id)
    return _cache(repo.repo_id, "model", cache_dir) / "snapshots" / str(repo.commit)


def local_file(source: SourceConfig) -> Path | None:
    """The path of a source that is a file, None for a data set of the Hub or a folder that holds one."""
    path = local_path(source.dataset)
    named = data_suffix(path) in READERS or re.match(r"[./~]", source.dataset) is not None
    return path if named and not path.is_dir() else None


def data_suffix(path: Path) -> str:
    """The suffix that says how a file is read, without that of its compression."""
    return Path(str(path).removesuffix(".gz")).suffix


def dataset_configs(dataset: str, *, commit: str | None = None, token: Token = None) -> list[str]:
    """List the configurations of a data set on the Hub, or of a local folder; errors as in ``open_rows``."""
    return _listed(dataset, None, commit, token)


def dataset_splits(dataset: str, config: str | None, *, commit: str | None = None, token: Token = None) -> list[str]:
    """List the splits of a configuration; errors as in ``open_rows``."""
    return _listed(dataset, config or "default", commit, token)


def _listed(dataset: str, config: str | None, commit: str | None, token: Token) -> list[str]:
    """The configurations, or the splits of one; a commit never changes, so it is asked once."""
    ask = _ask if commit is not None else _ask.__wrapped__
    return list(ask(dataset, config, commit, token))


@functools.lru_cache(maxsize=256)
def _ask(dataset: str, config: str | None, commit: str | None, token: Token) -> tuple[str, ...]:
    import datasets

    with _reading(dataset):
        address = _address(dataset, commit, token)
        if config is None:
            return tuple(datasets.get_dataset_config_names(**address))
        return tuple(datasets.get_dataset_split_names(**address, config_name=config))


def open_rows(
    source: SourceConfig,
    *,
    commit: str | None = None,
    streaming: bool = True,
    seed: int | None = 0,
    token: Token = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the rows of a source in a seeded order; the same arguments always give the same rows.

    A ``.txt`` file has one row for each line.

    Args:
        source: The source, as ``resolve_source`` returns it.
        commit: Its commit.
        streaming: Read from the Hub as needed, in an order mixed over a window of rows; otherwise download first, and
            mix all rows.
        seed: Seed of the order; None for the rows' own.
        token: Token of the Hub.

    Yields:
        The place in the order, and the row.

    Raises:
        CorpusError: There is no data that can be read.
        AccessError, OfflineError: As ``resolve_dataset``.
    """
    import datasets

    path = local_file(source)
    with _reading(source.dataset):
        rows: Any
        if path is not None:
            files = glob.escape(str(path))
            rows = datasets.load_dataset(READERS[data_suffix(path)], data_files=files, split="train", streaming=True)
        else:
            address = _address(source.dataset, commit, token)
            rows = datasets.load_dataset(**address, name=source.config, split=source.split, streaming=streaming)
        if seed is None:
            mixed: Any = rows
        elif isinstance(rows, datasets.IterableDataset):
            # Reading several files at once, datasets waits 5 s for its threads at the end; one file needs no threads.
            files_at_once = min(FILES_AT_ONCE, rows.num_shards)
            mixed = rows.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER, max_buffer_input_shards=files_at_once)
        else:
            mixed = rows.shuffle(seed=seed, keep_in_memory=True)
        yield from enumerate(mixed)


def _address(dataset: str, commit: str | None, token: Token) -> dict[str, Any]:
    """Where ``datasets`` reads from: a local folder, the Hub, or without network that commit's files in the cache."""
    from huggingface_hub import is_offline_mode

    if local_path(dataset).is_dir():
        return {"path": str(local_path(dataset))}
    if is_offline_mode():
        return {"path": str(_cache(dataset, "dataset") / "snapshots" / str(commit))}
    return {"path": dataset, "revision": commit, "token": token}


@contextmanager
def _reading(dataset: str) -> Iterator[None]:
    """Turn what ``datasets`` raises into one error."""
    from huggingface_hub import is_offline_mode

    try:
        with hub_errors("read", dataset, "dataset"):
            yield
    except HubPruneError:
        raise
    except Exception as error:
        start = f"cannot read {dataset}: "
        if "scripts are no longer supported" in str(error):
            raise CorpusError(
                f"{start}it comes with a program of its own, which is not run; take the copy that the Hub makes of "
                f"most such data sets, '{dataset}@refs/convert/parquet', or another data set"
            ) from error
        if is_offline_mode() and not local_path(dataset).exists():
            raise OfflineError(
                f"{start}the network is switched off (HF_HUB_OFFLINE) and {NOT_CACHED}, as rows that are streamed are "
                "not kept; run once with the network and without streaming (streaming=False, --no-streaming)"
            ) from error
        # Reading without streaming hides the reason behind an error of its own, and a file without rows gives none.
        reason = "it is empty" if isinstance(error, StopIteration) else one_line(error.__cause__ or error).rstrip(".")
        raise CorpusError(f"{start}{reason}; mend it, or take another data set") from error
