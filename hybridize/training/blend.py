"""Several sources in fixed shares, spread evenly over the rows; and what two sources share."""

import logging
from collections.abc import Sequence
from math import floor

import numpy as np

from hybridize.core.errors import RecipeError
from hybridize.training.data import Row, TokenSource
from hybridize.training.text_rows import TextRows

LOG = logging.getLogger("hybridize.data")


class BlendRows:
    """Rows of several sources; which source row `i` is of depends on `i` and the shares alone."""

    def __init__(self, sources: Sequence[TokenSource], shares: Sequence[float]) -> None:
        """Blend sources of one sequence length.

        Shares are of rows, padding included, as budgets are: of any n rows from the first on, each
        source has its share of n but for less than one row for each source before it.

        Raises:
            RecipeError: shares that are not positive, do not add up to 1, or are too few or many.
        """
        if len(shares) != len(sources) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise RecipeError(
                f"a blend of {len(sources)} sources has the shares {list(shares)}. Give one share "
                "above 0 a source; together they are 1."
            )
        lengths = {source.sequence_length for source in sources}
        if len(lengths) != 1:
            raise RecipeError(f"a blend has rows of {sorted(lengths)} tokens. Use one length.")
        self.sources, self.shares = tuple(sources), tuple(shares)
        self.sequence_length = sources[0].sequence_length
        self.identity = {
            "kind": "blend",
            "shares": self.shares,
            "sources": [source.identity for source in sources],
        }
        left = [sum(shares[n:]) for n in range(len(shares))]
        self._of_rest = [share / rest for share, rest in zip(shares, left, strict=True)]
        self._of_rest[-1] = 1.0

    @property
    def rows_per_pass(self) -> int | None:
        """Rows until documents of any source come again, about; None where they never do."""
        passes = [source.rows_per_pass for source in self.sources]
        ends = [n / share for n, share in zip(passes, self.shares, strict=True) if n is not None]
        return max(1, floor(min(ends))) if ends else None

    @property
    def has_thoughts(self) -> bool:
        """Whether any source shows visible reasoning."""
        return any(getattr(source, "has_thoughts", False) for source in self.sources)

    @property
    def largest_token(self) -> int:
        """Largest token id of the sources that know theirs."""
        return max(getattr(source, "largest_token", 0) for source in self.sources)

    @property
    def summary(self) -> str:
        """Say in a line a source what there is."""
        lines = [
            f"{share:.1%} {getattr(source, 'summary', type(source).__name__)}"
            for source, share in zip(self.sources, self.shares, strict=True)
        ]
        return "\n".join(lines)

    def place(self, index: int) -> tuple[int, int]:
        """Return the source that row `index` is of, and the row's number there."""
        for number, share in enumerate(self._of_rest):
            before, after = floor(index * share + 0.5), floor((index + 1) * share + 0.5)
            if after > before:
                return number, before
            index -= before
        raise AssertionError("the last source takes every row that is left")

    def row(self, index: int) -> Row:
        """Return row number `index`; the same row every time."""
        source, row = self.place(index)
        return self.sources[source].row(row)


def warn_of_overlap(train: TokenSource, heldout: TokenSource) -> None:
    """Log a warning where prompts that are measured on are trained on too."""
    trained, measured = _prompts(train), _prompts(heldout)
    shared = int(np.isin(measured, trained).sum())
    if shared:
        LOG.warning(
            "data: %d of %d held-out prompts are trained on too, so held-out losses will look too "
            "good. Take them out of one of the files, or hold out a heldout_share.",
            shared,
            len(measured),
        )


def _prompts(source: TokenSource) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Return the hash of each prompt of stored text, once."""
    sources = source.sources if isinstance(source, BlendRows) else (source,)
    found = [part.prompts for part in sources if isinstance(part, TextRows)]
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *found]))
