"""The zeros that recovery must keep: noted before it, checked after it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from hubprune.architecture import Matrix
from hubprune.errors import VerificationError
from hubprune.sparsity import NM


class Zeros:
    """Where the zeros of some matrices are, eight weights to a byte.

    Args:
        pattern: The N:M pattern that every group must keep, None for none.

    Attributes:
        kept: Zeros that were checked, and found to be zero still.
        groups: Groups that were checked, and found to hold at most N weights.
    """

    def __init__(self, pattern: NM | None = None) -> None:
        self.pattern = pattern
        self.kept = self.groups = 0
        self._before: dict[str, np.ndarray] = {}

    def note(self, matrices: Iterable[Matrix]) -> int:
        """Note the zeros of matrices, and return how many there are."""
        count = 0
        for matrix in matrices:
            zero = matrix.view() == 0
            count += int(zero.sum())
            self._before[matrix.name] = np.packbits(zero.cpu().numpy(), axis=1)
        return count

    def mask(self, matrix: Matrix) -> torch.Tensor:
        """Where a matrix had zeros, boolean ``(d_out, d_in)``, on its device."""
        bits = np.unpackbits(self._before[matrix.name], axis=1, count=matrix.shape[1])
        return torch.from_numpy(bits.astype(bool)).to(matrix.parameter.device)

    def check(self, matrices: Iterable[Matrix]) -> None:
        """Check that every zero that was noted is zero still, and every group right.

        Raises:
            VerificationError: One is not.
        """
        for matrix in matrices:
            before, zero = self.mask(matrix), matrix.view() == 0
            lost = int(torch.count_nonzero(before & ~zero))
            if lost:
                raise VerificationError(
                    f"recovery must keep every zero, and {lost} of {int(before.sum())} in {matrix.name} are zero no "
                    "more: the model in memory is spoilt, load it again"
                )
            self.kept += int(before.sum())
            if self.pattern is not None:
                groups = (~zero).reshape(zero.shape[0], -1, self.pattern.group).sum(-1)
                if bool((groups > self.pattern.keep).any()):
                    raise VerificationError(
                        f"recovery must keep the pattern {self.pattern}, and {matrix.name} breaks it: the model in "
                        "memory is spoilt, load it again"
                    )
                self.groups += groups.numel()
