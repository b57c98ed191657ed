"""A command on the Hub's own machines: submitted with ``run_uv_job``, its log shown, its end told.

Such a machine starts bare and is gone at the end: uv installs hubprune there, the token comes as the secret
``HF_TOKEN``, and of the work only what the command pushes stays.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hubprune import __version__
from hubprune.errors import AccessError, ConfigError, JobError, UsageError, did_you_mean
from hubprune.huberrors import LOG_IN, RUN_HERE, job_errors, redact

if TYPE_CHECKING:
    from huggingface_hub import HfApi, JobInfo

COMMAND = "hubprune"
REQUIREMENT = "HUBPRUNE_JOB_REQUIREMENT"  # environment variable
# The client looks for words that end so among the files of this machine.
FILE_SUFFIXES = (".py", ".sh", ".toml", ".yaml", ".yml")


def requirement() -> str:
    """What uv installs on the machine: this version, unless ``HUBPRUNE_JOB_REQUIREMENT`` says otherwise."""
    return os.environ.get(REQUIREMENT) or f"{COMMAND}=={__version__}"


def has_gpu(flavor: str) -> bool:
    """Whether a machine has a GPU."""
    return not flavor.startswith("cpu-")


@dataclass(frozen=True)
class JobPlan:
    """What a machine of the Hub is to run.

    Attributes:
        arguments: What follows ``hubprune``; anybody who may see the job reads them.
        flavor: The machine, such as ``a10g-large``.
        timeout: When the Hub ends it, such as ``2h``; None for the Hub's own limit.
        requirement: What uv installs.

    Raises:
        ConfigError: There is no such machine, the time cannot be read, or a word would be taken for a file.
    """

    arguments: tuple[str, ...]
    flavor: str
    timeout: str | None = None
    requirement: str = field(default_factory=requirement)

    def __post_init__(self) -> None:
        from huggingface_hub import JobHardware

        problems = []
        flavors = [flavor.value for flavor in JobHardware]
        if self.flavor not in flavors:
            problems.append(f"the Hub has no machine {self.flavor!r}: {did_you_mean(self.flavor, flavors)}")
        if self.timeout is not None:
            match = re.fullmatch(r"(\d+(?:\.\d+)?)[smhd]", self.timeout)
            if match is None or float(match[1]) == 0:
                problems.append(
                    f"a timeout is a number above 0 with s, m, h or d, got {self.timeout!r}: write 2h for two hours"
                )
        if re.search(r"://[^/\s]*:[^/\s]*@", self.requirement):
            problems.append(f"{REQUIREMENT} is shown on the job's page, and holds a password: take an open address")
        problems += [
            f"the Hub's client takes the word {word!r:.60} for a file of this machine: choose another word or run "
            f"from another folder, {RUN_HERE}"
            for word in (COMMAND, *self.arguments)
            if _is_file(word)
        ]
        if problems:
            raise ConfigError(problems)

    def __str__(self) -> str:
        """The command line."""
        return shlex.join([COMMAND, *self.arguments])


def _is_file(word: str) -> bool:
    """Whether ``run_uv_job`` would send a file along in place of the word, or fail to find it."""
    try:
        return Path(word).suffix in FILE_SUFFIXES or Path(word).is_file()
    except OSError:  # a word longer than the name of a file may be, at which the client fails
        return True


def submit(plan: JobPlan, *, api: HfApi) -> JobInfo:
    """Submit a job in the name of the client's user.

    Args:
        plan: The job.
        api: The client; its token, or that of the user who is logged in, goes along as a secret.

    Raises:
        UsageError: The token stands in the arguments.
        AccessError: There is no token, or the Hub runs no jobs for its user.
        NotFoundError: The Hub has no jobs at all.
        OfflineError: The Hub is out of reach.
    """
    token = _token(api)
    if any(token in word for word in (*plan.arguments, plan.requirement)):
        raise UsageError("the arguments of a job are shown on its page, and one holds your token: leave it out")
    with job_errors(f"run a job on {plan.flavor}", api=api), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the client calls run_uv_job experimental
        return api.run_uv_job(
            COMMAND,
            script_args=list(plan.arguments),
            dependencies=[plan.requirement],
            env={
                "COLUMNS": str(shutil.get_terminal_size().columns),  # the log is read here
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "PYTHONUNBUFFERED": "1",
            },
            secrets={"HF_TOKEN": token},
            flavor=plan.flavor,
            timeout=plan.timeout,
            namespace=api.whoami()["name"],
        )


def follow(job: JobInfo, *, api: HfApi, show: Callable[[str], object]) -> None:
    """Show the log of a job, line by line, until the job has ended well.

    Args:
        job: The job.
        api: The client that submitted it.
        show: Takes each line.

    Raises:
        JobError: It failed, was cancelled or took too long.
        AccessError, NotFoundError, OfflineError: The log can no longer be read; the job goes on.
    """
    token = _token(api)
    with job_errors(f"follow the job {job.url}", api=api):
        for line in api.fetch_job_logs(job_id=job.id, namespace=job.owner.name, follow=True):
            show(line.replace(token, "hf_..."))
        status = api.wait_for_job(job.id, namespace=job.owner.name).status
    if status.stage != "COMPLETED":
        reason = f" ({redact(status.message)})" if status.message else ""
        raise JobError(
            f"the job ended as {status.stage}{reason} without its result: mend "
            f"what its log says, {job.url}, or give it more time with --timeout"
        )


def commands(job: JobInfo) -> str:
    """How to look at a job that goes on, and how to end it."""
    return f"see it with hf jobs logs -f {job.id}, end it with hf jobs cancel {job.id}"


def _token(api: HfApi) -> str:
    from huggingface_hub import get_token

    token = api.token if api.token is not None and api.token is not True else get_token()
    if not token:
        raise AccessError(f"a job needs a token and there is none; {LOG_IN}")
    return str(token)
