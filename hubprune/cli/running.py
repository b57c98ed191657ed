"""What ``hubprune prune`` does: every check first, then the weights, and nothing of the work is lost at the end."""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from hubprune import flow, publisher, ranks, saving
from hubprune.cli import tables
from hubprune.cli.folder import rewrite_card
from hubprune.cli.prune import Request
from hubprune.errors import UsageError
from hubprune.opening import Opening
from hubprune.report import PruningReport
from hubprune.verifier import verify


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


def _run(request: Request, *, progress: bool) -> None:
    if request.out is not None:
        ranks.in_first(lambda: saving.check_output(Path(str(request.out))))
    base = Opening(request.base, request.revision, request.loading)
    _refuse_pruned(base)
    outline = flow.draw(base, request.config)
    is_new = request.push is not None and publisher.check_push(
        request.push,
        outline.facts,
        outline.parameters,
        token=request.publishing["token"],
        create_pr=request.publishing["create_pr"],
    )
    plan = flow.prepare(
        base,
        request.config,
        request.corpora,
        settings=request.settings,
        evaluation=request.evaluation,
        progress=progress,
    )
    if request.dry_run:
        ranks.in_first(lambda: tables.show(tables.plan(request, plan, outline, is_new)))
        return
    ranks.in_first(lambda: tables.warn(plan.warnings))
    with _folder(request.out) as folder:
        model = base.weights()
        ranks.in_first(partial(saving.check_output, folder, model))
        report = flow.execute(model, plan, progress=progress)
        save = partial(saving.save, report=report, tokenizer=plan.tokenizer, repo_id=request.push)
        ranks.in_first(partial(save, model, folder))
        del model  # the checks reload it from the folder
        ranks.in_first(lambda: _deliver(folder, plan, request))


def _deliver(folder: Path, plan: flow.Plan, request: Request) -> None:
    """Check what was saved, push it where that was asked for, and show what came of it."""
    places = {"folder": str(request.out)} if request.out is not None else {}
    if request.push is not None:
        places["on the Hub"] = _push(folder, request.push, request)
    else:
        verify(folder, trust_remote_code=plan.base.keywords["trust_remote_code"])
        rewrite_card(folder, None)
    tables.show(*tables.result(PruningReport.load(folder), places))


def _refuse_pruned(base: Opening) -> None:
    done = getattr(base.config, "hubprune", None)
    if done:
        raise UsageError(
            f"{base.name} was already pruned ({done['method']}, {done['pattern']}): prune {done['base_model']} instead"
        )


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """Where the model is written; without a folder of the user's, a temporary one that goes once it was pushed.

    When that fails the temporary folder stays, as it holds the work of the run.
    """
    if out is not None:
        yield out
        return
    place = Path(tempfile.mkdtemp(prefix="hubprune-"))
    pushed = False
    try:
        yield place / "model"
        pushed = True
    finally:
        if pushed or not (place / "model").is_dir():
            shutil.rmtree(place, ignore_errors=True)


def _push(folder: Path, repo_id: str, request: Request) -> str:
    print(f"The pruned model is in {folder}; checking and pushing it.", file=sys.stderr)
    try:
        return tables.destination(publisher.publish_folder(folder, repo_id, **request.publishing))
    except Exception as error:
        again = shlex.join(["hubprune", "push", str(folder), repo_id])
        error.add_note(f"the pruned model is in {folder}, push it again with: {again}")
        raise
