"""What ``hubprune prune`` does: every check first, then the weights, and nothing of the work is lost at the end."""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from hubprune import flow, publisher, saving
from hubprune.architecture import check_pattern_fits, check_supported, describe, find_matrices
from hubprune.cli import tables
from hubprune.cli.folder import rewrite_card
from hubprune.cli.opening import Opening
from hubprune.cli.prune import Request
from hubprune.errors import NotFoundError, UnsupportedModelError, UsageError
from hubprune.report import BaseFacts, PruningReport
from hubprune.verifier import verify


@dataclass(frozen=True)
class Outline:
    """What a run will meet, known before any weight is downloaded.

    Attributes:
        matrices: Matrices to prune.
        targeted: Weights in them.
        parameters: Parameters of the model; tied ones count once.
        facts: The model, as a report records it.
    """

    matrices: int
    targeted: int
    parameters: int
    facts: BaseFacts


def run(request: Request) -> None:
    """Carry out a request, or for a dry run say what would be done.

    Raises:
        HubPruneError: The request is refused, or the run failed.
    """
    progress = sys.stderr.isatty()
    if request.out is not None:
        saving.check_output(request.out)
    base = Opening(request.base, request.revision, request.loading)
    outline = draw(request, base)
    is_new = request.push is not None and publisher.check_push(
        request.push,
        outline.facts,
        outline.parameters,
        token=request.publishing["token"],
        create_pr=request.publishing["create_pr"],
    )
    plan = flow.prepare(
        request.base,
        base.repo,
        base.config,
        request.config,
        request.corpora,
        settings=request.settings,
        evaluation=request.evaluation,
        tokenizer=_tokenizer(request, base),
        keywords=base.keywords,
        progress=progress,
    )
    if request.dry_run:
        tables.show(tables.plan(request, plan, outline, is_new))
        return
    with _folder(request.out) as folder:
        model = base.weights()
        saving.check_output(folder, model)
        report = flow.execute(model, plan, progress=progress)
        saving.save(model, folder, report=report, tokenizer=plan.tokenizer, repo_id=request.push)
        del model  # the checks reload it from the folder
        places = {"folder": str(request.out)} if request.out is not None else {}
        if request.push is not None:
            places["on the Hub"] = _push(folder, request.push, request)
        else:
            verify(folder, trust_remote_code=plan.trust_remote_code)
            rewrite_card(folder, None)
        report = PruningReport.load(folder)
    tables.show(*tables.result(report, places))


def draw(request: Request, base: Opening) -> Outline:
    """Find out from the config alone what would be pruned.

    Raises:
        UsageError: The model was pruned before.
        UnsupportedModelError: It is quantised, or not a decoder language model.
        ConfigError: The pattern or a name of a matrix does not fit it.
    """
    done = getattr(base.config, "hubprune", None)
    if done:
        raise UsageError(
            f"{base.name} was already pruned ({done['method']}, {done['pattern']}): prune {done['base_model']} instead"
        )
    check_supported(base.config)
    model = base.outline()
    matrices = find_matrices(model, request.config.targets, request.config.ignore)
    check_pattern_fits(matrices, request.config.resolved_pattern())
    return Outline(
        matrices=len(matrices),
        targeted=sum(matrix.view().numel() for matrix in matrices),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        facts=describe(model, model_id=base.repo.repo_id, commit=base.repo.commit),
    )


def _tokenizer(request: Request, base: Opening) -> PreTrainedTokenizerBase | None:
    """The base's tokenizer, which goes with the pruned model; only where no text is read may there be none."""
    try:
        return base.tokenizer
    except (NotFoundError, UnsupportedModelError) as error:
        if request.corpora or isinstance(request.evaluation, Mapping):
            raise
        tables.warn([f"the result goes without a tokenizer: {error}"])
        return None


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
