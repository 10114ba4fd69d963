"""The error of a loss or gradient that is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddvi_fast._checks import InputError
from ddvi_fast.objectives import Terms


class NonFinite(InputError):
    """A loss or gradient is not finite. Parameters are those before the update in which it appeared.

    Args:
        what: ``"loss"`` or ``"gradient"``.
        names: Names of the terms, or of the parameters, that are not finite.
        rows: Rows of the whole batch in which a term is not finite by itself.
    """

    info: Any = None  # `StepInfo` of the failed step, where it is known

    def __init__(self, what: str, names: Sequence[str], rows: Sequence[int] = ()) -> None:
        self.what, self.names, self.rows = what, list(names), list(rows)
        where = ", ".join(self.names[:4]) + (" ..." if len(self.names) > 4 else "")
        super().__init__(f"{what}: expected a finite number, got NaN or infinity in {where or 'the sum'} (a smaller lr or max_norm may help)")


def bad_terms(terms: Terms) -> list[str]:
    """Names of the terms that are not finite."""
    return [name for name, value in terms.values.items() if not bool(torch.isfinite(value).all())]


def bad_rows(terms: Terms, rows: int) -> Tensor:
    """Rows of a batch in which a term is not finite, bool [rows]. Terms that are not one value per row are left out."""
    bad = torch.zeros(rows, dtype=torch.bool, device="cpu")
    for value in terms.values.values():
        if value.shape == (rows,):
            bad |= ~torch.isfinite(value.detach()).cpu()
    return bad
