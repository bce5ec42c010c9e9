"""Rows of a Gram matrix that does not fit in memory, fetched by the batch.

The dual solver asks for one row at a time, but a batch of rows costs the Gram engine little more
than one. With a row that is missing come those that the solver is likely to want next.
"""

from __future__ import annotations

import numpy as np

BATCH = 16  # more at a time push out rows that are still in use


class RowCache:
    """The recently used rows of a Gram matrix, in a bounded buffer.

    Parameters
    ----------
    compute : callable
        ``compute(rows, out)`` writes the Gram rows of the indices `rows`.
    n_rows : int
    capacity : int
        Numbers that the buffer and its scratch may hold; never fewer than two rows' worth is used.
    dtype : dtype

    Attributes
    ----------
    rows : ndarray of shape (n_slots, n_rows)
    slot_of : int32 ndarray of shape (n_rows,)
        Where each row is, -1 for nowhere.
    used : int64 ndarray of shape (n_slots,)
        When each slot was read, by a clock of the reader; the least are overwritten first.
    """

    def __init__(self, compute, n_rows, capacity, dtype):
        room = int(max(2, min(n_rows, capacity // n_rows)))
        self.batch = max(1, min(BATCH, room // 4))
        scratch = 0 if self.batch == 1 or room == n_rows else self.batch
        self.rows = np.zeros((room - scratch, n_rows), dtype=dtype)
        self.slot_of = np.full(n_rows, -1, dtype=np.int32)
        self.used = np.zeros(room - scratch, dtype=np.int64)
        self._row_of = np.full(room - scratch, -1, dtype=np.int64)
        self._scratch = np.empty((scratch, n_rows), dtype=dtype)
        self._compute = compute

    def fetch(self, row, others, urgency):
        """Fetch a row, and with it the most urgent of others that are not there.

        Parameters
        ----------
        row : int
        others : int32 array of shape (k,)
            Rows, perhaps repeated.
        urgency : float64 array of shape (k,)
            Only positive entries count.
        """
        wanted = np.array([row])
        if self.batch > 1:
            likely = np.flatnonzero((self.slot_of[others] < 0) & (urgency > 0))
            if len(likely) >= self.batch:
                most = np.argpartition(-urgency[likely], self.batch - 1)[: self.batch - 1]
                likely = likely[most]
            wanted = np.unique(np.append(others[likely], row))
        slots = np.flatnonzero(self._row_of < 0)[: len(wanted)]
        if len(slots) < len(wanted):
            slots = np.sort(np.argpartition(self.used, len(wanted) - 1)[: len(wanted)])
        gone = self._row_of[slots]
        self.slot_of[gone[gone >= 0]] = -1
        self._row_of[slots] = -1
        if slots[-1] - slots[0] == len(slots) - 1:
            self._compute(wanted, self.rows[slots[0] : slots[-1] + 1])
        else:
            self._compute(wanted, self._scratch[: len(wanted)])
            self.rows[slots] = self._scratch[: len(wanted)]
        self._row_of[slots] = wanted
        self.slot_of[wanted] = slots
        self.used[slots] = self.used.max()
