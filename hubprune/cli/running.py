"""What ``hubprune prune`` does: every check first, then the weights, and nothing of the work is lost at the end."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from hubprune import environment, flow, publisher, ranks, runs, saving, space_publisher
from hubprune.cli import tables
from hubprune.cli.folder import rewrite_card
from hubprune.cli.prune import Request
from hubprune.environment import free_gpu_memory
from hubprune.errors import SpaceError
from hubprune.estimate import choose, estimate
from hubprune.footprint import peak_memory
from hubprune.opening import Opening
from hubprune.report import PruningReport
from hubprune.verifier import verify
from hubprune.work import WorkFolder


def run(request: Request) -> None:
    """Carry out a request, or for a dry run say what would be done.

    Raises:
        HubPruneError: The request is refused, or the run failed.
    """
    ranks.start()
    try:
        _run(request, progress=sys.stderr.isatty() and ranks.rank() == 0)
    finally:
        ranks.finish()


def forecast(request: Request) -> None:
    """Say what a request would take.

    Raises:
        HubPruneError: The request is refused, or does not fit into memory.
    """
    base = Opening(request.base, request.revision, request.loading)
    outline = flow.draw(base, request.config)
    plan = _prepare(base, request, progress=sys.stderr.isatty())
    found = estimate(plan, request.max_memory, request.activation_budget)
    tables.show(tables.forecast(plan, outline, found, environment.hardware()["threads"]))


def _run(request: Request, *, progress: bool) -> None:
    if request.out is not None:
        ranks.in_first(lambda: saving.check_output(Path(str(request.out))))
    base = Opening(request.base, request.revision, request.loading)
    outline = flow.draw(base, request.config)
    is_new = request.push is not None and publisher.check_push(
        request.push,
        outline.facts,
        outline.parameters,
        token=request.publishing["token"],
        create_pr=request.publishing["create_pr"],
        space=request.publishing["space"],
    )
    plan = _prepare(base, request, progress=progress)
    if request.dry_run:
        ranks.in_first(lambda: _say_what_would_be(request, plan, outline, bool(is_new)))
        return
    room = request.max_memory, request.activation_budget, free_gpu_memory(base.gpus)
    choice = ranks.from_first(lambda: choose(peak_memory(plan), *room))
    ranks.in_first(lambda: tables.warn(plan.warnings))
    ranks.in_first(lambda: _say(str(choice)))
    folder = request.out if request.out is not None else _waiting_room(str(request.push)) / "model"
    about, waits = runs.fingerprint(plan), request.out is None  # with --push alone, the Hub is its place
    with WorkFolder(runs.work_folder(folder), about, fresh=request.fresh, unpublished=waits) as work:
        ranks.in_first(lambda: _say(work.story))
        try:
            runs.produce(
                plan,
                folder,
                work,
                streamed=choice.streamed,
                activation_budget=choice.budget,
                repo_id=request.push,
                progress=progress,
            )
        except BaseException:
            if work.worth_keeping and ranks.rank() == 0:
                _say(f"What is finished is kept in {work.folder}: repeat the command to go on.")
            raise
        late = ranks.in_first(lambda: _deliver(folder, plan, request))
        work.remove()
        if request.out is None:
            ranks.in_first(lambda: shutil.rmtree(folder.parent, ignore_errors=True))
        if late is not None:
            raise late


def _prepare(base: Opening, request: Request, *, progress: bool) -> flow.Plan:
    """Check a request and read its text."""
    return flow.prepare(
        base,
        request.config,
        request.corpora,
        settings=request.settings,
        evaluation=request.evaluation,
        progress=progress,
    )


def _say_what_would_be(request: Request, plan: flow.Plan, outline: flow.Outline, is_new: bool) -> None:
    found = estimate(plan, request.max_memory, request.activation_budget, timed=False)
    tables.show(tables.dry_run(request, plan, outline, found, is_new))


def _say(sentence: str) -> None:
    if sentence:
        print(sentence, file=sys.stderr)


def _waiting_room(repo_id: str) -> Path:
    """Where a model that is only pushed lies until it was."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "hubprune" / repo_id.replace("/", "--")


def _deliver(folder: Path, plan: flow.Plan, request: Request) -> SpaceError | None:
    """Check what was saved, push it where that was asked for, and show what came of it.

    Returns:
        What went wrong after the model was published; None where nothing did.
    """
    places, late = {"folder": str(request.out)} if request.out is not None else {}, None
    if request.push is not None:
        try:
            places["on the Hub"] = _push(folder, request.push, request)
            if request.publishing["space"]:
                places["its Space"] = space_publisher.page(str(PruningReport.load(folder).space))
        except SpaceError as error:
            places["on the Hub"], late = error.commit_url, error
    else:
        verify(folder, trust_remote_code=plan.base.keywords["trust_remote_code"], max_memory=request.max_memory)
        rewrite_card(folder, None)
    tables.show(*tables.result(PruningReport.load(folder), places))
    return late


def _push(folder: Path, repo_id: str, request: Request) -> str:
    print(f"The pruned model is in {folder}; checking and pushing it.", file=sys.stderr)
    try:
        return tables.destination(
            publisher.publish_folder(folder, repo_id, max_memory=request.max_memory, **request.publishing)
        )
    except SpaceError:
        raise
    except Exception as error:
        again = shlex.join(["hubprune", "push", str(folder), repo_id])
        error.add_note(f"the pruned model is in {folder}, push it again with: {again}")
        raise
