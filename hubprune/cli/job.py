"""``hubprune prune --job``: the same command on a machine of the Hub, which sees nothing of this one."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import typer

from hubprune import hub, jobs, space_publisher
from hubprune.cli import tables
from hubprune.cli.prune import Request, merged, read_request
from hubprune.corpora import SourceConfig, parse_corpus
from hubprune.errors import ConfigError, HubPruneError, JobError, UsageError
from hubprune.huberrors import RUN_HERE
from hubprune.jobs import JobPlan

# Options that are for this machine; what a file of options says is spelt out.
STAYS = ("config", "dry_run", "job", "out", "timeout", "token")


def submit(ctx: typer.Context) -> None:
    """Check a command, run it on a machine of the Hub and show its log; for a dry run say what would be run.

    Raises:
        HubPruneError: The command is refused, or the job failed.
    """
    plan = _plan(ctx)
    request = read_request(ctx)
    sources = _sources(request)
    _refuse_local(request.base, sources)
    api = hub.make_api(request.publishing["token"])
    is_new = not hub.check_can_write(str(request.push), api=api)
    space_publisher.find_place(
        request.publishing["space"], str(request.push), create_pr=request.publishing["create_pr"], api=api
    )
    hub.resolve_model(request.base, revision=request.revision, api=api)
    for source in sources:
        hub.resolve_dataset(source.dataset, revision=source.revision, api=api)
    if request.dry_run:
        tables.show(tables.job(plan, str(request.push), is_new))
        return
    job = jobs.submit(plan, api=api)
    say = partial(print, flush=True)
    say(f"job on {plan.flavor}: {job.url}")
    say(f"  {plan}")
    try:
        jobs.follow(job, api=api, show=say)
    except KeyboardInterrupt:
        print(f"the job goes on: {jobs.commands(job)}", file=sys.stderr)
        raise
    except JobError:
        raise
    except HubPruneError as error:
        error.add_note(f"the job goes on: {jobs.commands(job)}")
        raise
    say(f"job completed: {api.endpoint}/{request.push}")


def _plan(ctx: typer.Context) -> JobPlan:
    """The job, or every reason at once why the options cannot be those of one."""
    given, problems = merged(ctx), []
    if given["push"] is None:
        problems.append("what a job leaves on its machine is lost, got no repository to push to: give --push REPO")
    if given["out"] is not None:
        problems.append(f"what a job leaves on its machine is lost, got --out {given['out']}: give --push REPO alone")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        problems.append("--job submits one job, got several processes: start it without torchrun")
    arguments: list[str] = []
    try:
        arguments = list(_words(ctx, given))
    except ConfigError as error:
        problems += error.problems
    if given["device_map"] is None and jobs.has_gpu(given["job"]):
        arguments.append("--device-map=auto")  # the GPU is paid for
    try:
        plan = JobPlan(tuple(arguments), given["job"], given["timeout"])
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return plan


def _words(ctx: typer.Context, given: Mapping[str, Any]) -> Iterator[str]:
    """The command line that says the same, each option in one word."""
    yield "prune"
    structured: Mapping[str, Any] = ctx.obj or {}
    for parameter in ctx.command.params:
        name = str(parameter.name)
        value = given[name]
        if name in STAYS or value is None:
            continue
        if name in structured and value is structured[name]:
            yield from _labelled(name, value, given["config"])
        elif getattr(ctx.get_parameter_source(name), "name", "") != "DEFAULT":
            yield from _spelt(parameter, value)


def _spelt(parameter: Any, value: Any) -> Iterator[str]:
    """An option and its value as words; the base, which is an argument, by itself."""
    if parameter.param_type_name == "argument":
        yield str(value)
    elif isinstance(value, bool):
        yield from (parameter.opts if value else parameter.secondary_opts)[:1]
    else:
        yield from (f"{parameter.opts[0]}={one}" for one in (value if parameter.multiple else [value]))


def _labelled(name: str, value: Any, path: Path) -> Iterator[str]:
    """What a file says with structure: texts by label can be spelt out, more cannot."""
    if name != "evaluation" or not all(isinstance(text, str) for text in value.values()):
        raise ConfigError(
            f"a job sees nothing of this machine, got texts or fields in {path} ({name}): push them as a data set and "
            "write repo@revision:config:split"
        )
    yield from (f"--eval={label}={text}" for label, text in value.items())


def _sources(request: Request) -> list[SourceConfig]:
    """Every data set or file that the run reads."""
    corpora = list(request.corpora.values())
    if isinstance(request.evaluation, Mapping):
        corpora += [parse_corpus(text) for text in request.evaluation.values()]
    return [source for corpus in corpora for source in corpus.sources]


def _refuse_local(base: str, sources: Iterable[SourceConfig]) -> None:
    names = [base, *(source.dataset for source in sources)]
    files = [source.dataset for source in sources if hub.local_file(source) is not None]
    here = [name for name in names if name in files or re.match(r"[./~]", name) or hub.local_path(name).exists()]
    if here:
        raise UsageError(
            f"a job sees nothing of this machine, got {', '.join(dict.fromkeys(here))}: push it to the Hub and name "
            f"the repository, {RUN_HERE}"
        )
