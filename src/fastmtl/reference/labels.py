"""Task labels as numbers, and samples in the order of their tasks."""

import numpy as np

__all__ = ["by_code", "encode"]


def encode(values, least, place, code):
    """Write into `code` the rank of each value among those that occur; returns how many do.

    `place` has a zero for each integer from `least` to the greatest value; left in it are the rank
    of each that occurs and -1 for the others.
    """
    labels, code[:] = np.unique(values, return_inverse=True)
    place[:] = -1
    place[labels - least] = np.arange(len(labels))
    return len(labels)


def by_code(code, start, order):
    """Write where each code's samples begin, once in order, and the stable order that puts them so.

    `start` has an entry for each code from 0, and one more. Returns whether they are in order.
    """
    order[:] = np.argsort(code, kind="stable")
    start[:] = np.searchsorted(code[order], np.arange(len(start)))
    return bool((np.diff(code) >= 0).all())
