"""A report turned back into the lines that repeat its run: Python, and the command line where that can say it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub.utils import yaml_dump

from hubprune.config import PruningConfig
from hubprune.corpora import SourceConfig, filter_text, joins_documents, parse_corpus, parse_source
from hubprune.facts import CorpusFacts, SourceFacts
from hubprune.presets import CORPORA, METHODS
from hubprune.recovery_config import RecoveryConfig
from hubprune.report import PruningReport

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# Line ends and control characters that JSON leaves as they are.
UNSEEN = re.compile(r"[\x7f-\x9f\u2028\u2029]")


def base_on_hub(report: PruningReport) -> bool:
    """Whether the base is a repository of the Hub; a local folder has no commit."""
    return report.base.commit is not None and HUB_ID.fullmatch(report.base.model_id) is not None


def public(place: str) -> str:
    """A repository or path as strangers may see it: of an absolute path, which tells who made it, the name."""
    if place.startswith("~") or PurePosixPath(place).is_absolute() or PureWindowsPath(place).is_absolute():
        return "./" + PureWindowsPath(place).name
    return place


def quote(value: Any) -> str:
    """A Python literal on one line."""
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
        return UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return repr(value)


def _call(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={quote(value)}' for key, value in arguments.items())})"


def _spec(source: SourceFacts) -> str | None:
    """The short form of a data set, pinned to its commit; None when it cannot say everything."""
    text = public(source.dataset)
    if source.commit is not None:
        text += f"@{source.commit}"
    if source.config or source.split:
        text += f":{source.config or ''}" + (f":{source.split}" if source.split else "")
    text += filter_text(source.filters)
    read = parse_source(text.strip())  # as one of several is read
    told = {**_told(read), "revision": read.revision, "weight": source.weight}
    wanted = {**_told(source), "dataset": public(source.dataset), "revision": source.commit}
    return text if "+" not in text and told == wanted else None


def _told(source: SourceFacts | SourceConfig) -> dict[str, Any]:
    """What was asked for, but for the revision."""
    names = ("dataset", "config", "split", "template", "text_column", "weight", "answer")
    return {name: getattr(source, name) for name in names} | {"filters": tuple(source.filters)}


def _preset(corpus: CorpusFacts) -> str | None:
    """The preset that names exactly these sources, None when there is none."""
    used = [_told(source) for source in corpus.sources]
    return next((name for name in CORPORA if used == [_told(s) for s in parse_corpus(name).sources]), None)


def _short(corpus: CorpusFacts) -> str | None:
    """The corpus as one string, pinned to commits; None when a string cannot say everything."""
    specs = [_spec(source) for source in corpus.sources]
    known = [spec for spec in specs if spec is not None]
    if not specs or len(known) < len(specs) or len({source.weight for source in corpus.sources}) > 1:
        return None
    return "+".join(known)


def _shared(report: PruningReport) -> dict[str, int] | None:
    """The keywords that all corpora share; None when they differ or need others."""
    corpora, paired = report.corpora, report.base.paired
    if not corpora:
        return {}
    found = {(c.num_sequences, c.sequence_length) for c in corpora}
    if len(found) > 1 or not all(_usual_packing(c, paired) and c.seed == 0 for c in corpora):
        return None
    return {"num_samples": corpora[0].num_sequences, "sequence_length": corpora[0].sequence_length}


def _usual_packing(corpus: CorpusFacts, paired: bool = False) -> bool:
    """Whether a corpus was packed as it is where nobody says."""
    answers = [source.answer for source in corpus.sources]
    return corpus.packing == joins_documents(corpus.name, answers, pairs=paired)


def _source_fields(source: SourceFacts) -> dict[str, Any]:
    """The fields of a source that say something."""
    fields = {
        "config": source.config,
        "split": source.split,
        "revision": source.commit,
        "template": source.template,
        "text_column": source.text_column,
        "filters": tuple(source.filters) or None,
        "answer": source.answer,
        "weight": source.weight if source.weight != 1 else None,
    }
    return {"dataset": public(source.dataset)} | {key: value for key, value in fields.items() if value is not None}


def _corpus_fields(corpus: CorpusFacts, paired: bool) -> dict[str, Any]:
    """The fields of a corpus besides its sources."""
    packing = {} if _usual_packing(corpus, paired) else {"packing": corpus.packing}
    counts = {"num_samples": corpus.num_sequences, "sequence_length": corpus.sequence_length}
    return {**counts, **packing, "seed": corpus.seed}


def _corpus_expression(corpus: CorpusFacts, paired: bool = False) -> str:
    if not corpus.sources:
        return f"{re.sub(r'[^0-9A-Za-z_]', '_', corpus.name)}_texts"
    items = [_call("SourceConfig", _source_fields(source)) for source in corpus.sources]
    fields = ", ".join(f"{key}={quote(value)}" for key, value in _corpus_fields(corpus, paired).items())
    return f"CorpusConfig(sources=({', '.join(items)},), {fields})"


# Settings that are given as plain keywords and as options of the command line.
PLAIN = ("method", "sparsity", "pattern", "unit", "share_of", "application", "multiple")


def _config_arguments(config: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The settings that differ from the defaults, the method first; whether the plain keywords say it all."""
    defaults = PruningConfig().to_dict()
    plain = {key: config[key] for key in PLAIN if config.get(key) is not None}
    plain = {key: value for key, value in plain.items() if key == "method" or value != defaults[key]}
    rest = {
        key: value for key, value in config.items() if key in defaults and key not in plain and value != defaults[key]
    }
    return {**plain, **rest}, not rest


def python_recipe(report: PruningReport, repo_id: str | None) -> str | None:
    """The Python lines that repeat the run; None for a criterion of the user's own, which no report can hold."""
    if report.method not in METHODS:
        return None
    settings, plain = _config_arguments(report.config)
    shared, strings = _shared(report), {c.name: _short(c) for c in report.corpora}
    if shared is None or None in strings.values():
        corpora, shared = {c.name: _corpus_expression(c, report.base.paired) for c in report.corpora}, {}
    else:
        corpora = {name: quote(text) for name, text in strings.items()}
    base = report.base
    arguments = [quote(public(base.model_id))]
    if base_on_hub(report):
        arguments.append(f"revision={quote(base.commit)}")
    if plain:
        arguments += [f"{key}={quote(value)}" for key, value in settings.items()]
    else:
        arguments.append("pruning_config=" + _call("PruningConfig", settings))
    arguments += [f"{name}={expression}" for name, expression in corpora.items()]
    arguments += [f"{key}={quote(value)}" for key, value in shared.items()]
    if base.dtype:
        arguments.append(f"dtype={quote(base.dtype)}")
    if base.trust_remote_code:
        arguments.append("trust_remote_code=True")
    body = "".join(f"    {argument},\n" for argument in arguments)
    door = base.loader.replace("Auto", "AutoPruned")
    names = [
        door,
        *(n for n in ("CorpusConfig", "PruningConfig", "SourceConfig") if f"{n}(" in body),
    ]
    push = f"\nmodel.push_to_hub({quote(repo_id)})" if repo_id else ""
    recovery = recovery_lines(report)
    names += ["CorpusConfig"] if "CorpusConfig(" in recovery and "CorpusConfig" not in names else []
    names += ["SourceConfig"] if "SourceConfig(" in recovery and "SourceConfig" not in names else []
    load = f"model = {door}.from_pretrained(\n{body}){recovery}{push}"
    return f"from hubprune import {', '.join(names)}\n\n{load}"


def recovery_lines(report: PruningReport) -> str:
    """The Python line that repeats the recovery of the model; empty where there was none."""
    if report.recovery is None:
        return ""
    arguments = [f"{name}={quote(value)}" for name, value in recovery_settings(report.recovery.config).items()]
    if not _same_text(report):
        for corpus in report.recovery.corpora:
            short = _short(corpus)
            arguments.append(f"{corpus.name}={_corpus_expression(corpus) if short is None else quote(short)}")
    return "\nmodel.recover(" + ", ".join(arguments) + ")"


def recovery_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a recovery that differ from what they are without being given."""
    defaults = RecoveryConfig.of({key: config[key] for key in ("method", "adapter", "rank") if key in config})
    known = defaults.resolved().to_dict()
    first = {key: config[key] for key in ("method", "adapter", "rank") if key in config}
    rest = {key: value for key, value in config.items() if key in known and value != known[key]}
    start = RecoveryConfig().to_dict()
    return {key: value for key, value in first.items() if value != start[key]} | rest


def _same_text(report: PruningReport) -> bool:
    """Whether the recovery read the data sets of the calibration, which it does without being told."""
    assert report.recovery is not None
    used = {c.name: [(s.dataset, s.config, s.split, s.commit) for s in c.sources] for c in report.recovery.corpora}
    known = {c.name: [(s.dataset, s.config, s.split, s.commit) for s in c.sources] for c in report.corpora}
    return all(sources and known.get(name) == sources for name, sources in used.items())


def cli_recipe(report: PruningReport, repo_id: str | None) -> str | None:
    """The command that repeats the run; None where an option of the command line cannot say it."""
    settings, plain = _config_arguments(report.config)
    shared, corpora = _shared(report), {c.name: _short(c) or _preset(c) for c in report.corpora}
    if report.method not in METHODS or not plain or shared is None or None in corpora.values():
        return None
    words = ["hubprune", "prune", public(report.base.model_id)]
    options: dict[str, Any] = {"revision": report.base.commit if base_on_hub(report) else None, **settings}
    options |= corpora | shared | {"dtype": report.base.dtype or None}
    options |= {"push": repo_id} if repo_id and report.recovery is None else {"out": "pruned-model"}
    for key, value in options.items():
        if value is not None:
            words += [f"--{key.replace('_', '-')}", str(value)]
    words += ["--trust-remote-code"] if report.base.trust_remote_code else []
    if report.recovery is None:
        return shlex.join(words)
    again = _recovery_command(report)
    if again is None:
        return None
    code = ["--trust-remote-code"] if report.base.trust_remote_code else []
    push = "\n" + shlex.join(["hubprune", "push", "pruned-model", repo_id, *code]) if repo_id else ""
    return f"{shlex.join(words)}\n{shlex.join(again)}{push}"


def yaml_recipe(report: PruningReport, repo_id: str | None) -> str | None:
    """The file for ``hubprune prune --config`` that repeats the pruning; None where text was given in memory."""
    if report.method not in METHODS or not all(corpus.sources for corpus in report.corpora):
        return None
    base = report.base
    settings, _ = _config_arguments(report.config)
    shared, texts = _shared(report), {c.name: _short(c) for c in report.corpora}
    if shared is None or None in texts.values():
        shared, structured = {}, {c.name: _corpus_structure(c, report.base.paired) for c in report.corpora}
    else:
        structured = {}
    words: dict[str, Any] = {"base": public(base.model_id)}
    words |= {"revision": base.commit if base_on_hub(report) else None}
    words |= {"option" if key == "options" else key: value for key, value in settings.items()}
    words |= {**texts, **structured, **shared, "dtype": base.dtype or None}
    words |= {"trust_remote_code": base.trust_remote_code or None}
    words |= {"push": repo_id} if repo_id and report.recovery is None else {"out": "pruned-model"}
    told = {key: list(value) if isinstance(value, tuple) else value for key, value in words.items()}
    return yaml_dump({key: value for key, value in told.items() if value is not None}, sort_keys=False).strip()


def _corpus_structure(corpus: CorpusFacts, paired: bool) -> dict[str, Any]:
    """A corpus in the form that a run file has for it."""
    sources = [_source_fields(source) for source in corpus.sources]
    for fields in sources:
        if "filters" in fields:
            fields["filters"] = [list(pair) for pair in fields["filters"]]
    return {"sources": sources, **_corpus_fields(corpus, paired)}


def _recovery_command(report: PruningReport) -> list[str] | None:
    """The words that repeat the recovery; None where an option cannot say it."""
    assert report.recovery is not None
    words = ["hubprune", "recover", "pruned-model"]
    settings = recovery_settings(report.recovery.config)
    if not _same_text(report):
        settings |= {corpus.name: _short(corpus) for corpus in report.recovery.corpora}
    for key, value in settings.items():
        if value is None or isinstance(value, Mapping):
            return None
        option = f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(option if value else f"--no-{option[2:]}")
        else:
            for one in value if isinstance(value, list) else [value]:
                words += [option, str(one)]
    return words + (["--trust-remote-code"] if report.base.trust_remote_code else [])
