"""Every error a user can meet.

::

    HubPruneError
    |-- UsageError (also ValueError)      the request cannot be carried out as written
    |   |-- ConfigError                   a field of a config breaks a rule
    |   |-- CorpusError                   calibration or evaluation text is missing, too short or unusable
    |   `-- UnsupportedModelError         this model cannot be pruned
    |-- AccessError                       the Hub refuses: private, gated, no write permission, unpaid
    |-- NotFoundError                     the Hub has no such repository, revision or file
    |-- OfflineError                      the network is needed and is switched off or out of reach
    |-- NumericalError                    NaN or infinity, or a Hessian that cannot be factorised
    |-- OutputError                       the output folder or the target repository cannot be written
    |-- ProcessError                      another process of a run that is spread over several has ended
    |-- SpaceError                        the model is published, its Space is not
    |-- JobError                          a job on the Hub's machines ended without its result
    `-- VerificationError                 what must hold before publishing does not hold

A message states the rule, the value found and the remedy. The command line prints it on one line and exits
with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class HubPruneError(Exception):
    """Base class of every error that hubprune raises on purpose."""


class UsageError(HubPruneError, ValueError):
    """The request cannot be carried out as written."""


class ConfigError(UsageError):
    """One or more fields of a config break a rule; the message lists all of them.

    Args:
        problems: One sentence for each broken rule.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("; ".join(self.problems))


class CorpusError(UsageError):
    """Calibration or evaluation text is missing, too short or unusable."""


class UnsupportedModelError(UsageError):
    """The model has no decoder blocks to prune, or is already quantised."""


class AccessError(HubPruneError):
    """The Hub refuses access: private or gated repository, no write permission, or a paid feature."""


class NotFoundError(HubPruneError):
    """The Hub has no such repository, revision or file."""


class OfflineError(HubPruneError):
    """The network is needed and is switched off or out of reach."""


class NumericalError(HubPruneError):
    """NaN or infinity was met, or a Hessian could not be factorised."""


class OutputError(HubPruneError):
    """The output folder or the target repository cannot be written."""


class ProcessError(HubPruneError):
    """Another process of a run that is spread over several has ended."""


class SpaceError(HubPruneError):
    """The model is published, its Space is not.

    Args:
        message: What went wrong, and how to go on.
        commit_url: Address of the model's commit.
    """

    def __init__(self, message: str, commit_url: str = "") -> None:
        self.commit_url = commit_url
        super().__init__(message)


class JobError(HubPruneError):
    """A job on the Hub's machines ended without its result."""


class VerificationError(HubPruneError):
    """What must hold before publishing does not hold."""


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """Return the remedy for an unknown name: the near names, or all of them when none is near.

    Args:
        value: The name that is not known.
        known: The names that are.

    Returns:
        A phrase that completes an error message, such as ``did you mean 'd-pruner'?``.
    """
    names = sorted(known)
    near = difflib.get_close_matches(value, names, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(name) for name in near) + "?"
    return "known: " + ", ".join(names)
