"""How threads share the samples of a linear problem, and a task that several of them draw."""

from __future__ import annotations

import numpy as np

from fastmtl.linear_problem import empty_samples
from fastmtl.linear_state import zero_vectors
from fastmtl.task_columns import ragged

UNEVEN = 0.05  # of a thread's work; beyond, a task is split between threads


class Team:
    """Thread k draws the samples ``cuts[k]:cuts[k + 1]``, as much work as those of any other.

    Samples are in task order, so all but a few tasks are one thread's. To the core, what another
    thread draws of a task is a task of its own, with heads of its own; that they are merged as the
    shared part is, `split` says (see ``reference.linear_sgd``).
    """

    def __init__(self, problem, n_threads):
        self.cuts = _cuts(problem, n_threads)
        self.samples, self.arguments = problem.samples, problem.arguments
        self.order = np.empty(len(self.samples), dtype=np.int64)  # of each epoch in turn
        n_tasks, first = len(problem.kappa), self.cuts[1:-1]
        task = self.samples["task"][first]
        inside = problem.task_start[task] < first
        first, task = first[inside], task[inside]
        self.tasks = np.append(np.arange(n_tasks), task)  # of each task of the core
        self.heads = None
        self.split = np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0)
        if len(task):
            self.samples = empty_samples(len(self.samples), self.samples.dtype)
            self.samples[:] = problem.samples
            ends = self.cuts[np.searchsorted(self.cuts, first) + 1]
            for copy, (begin, end) in enumerate(zip(first, ends)):
                own = self.samples["task"][begin:end]
                own[own == task[copy]] = n_tasks + copy
            self._copy_heads(problem)

    def _copy_heads(self, problem):
        (mixing, kappa), (head_start, head_class, *vectors), loss, penalty = problem.arguments
        alpha, task_rarity, class_rarity, kind, task_alpha = penalty
        of = self.tasks
        sizes = np.diff(head_start)[of]
        start = np.concatenate([[0], np.cumsum(sizes)])
        self.heads = ragged(head_start[of], sizes)
        self.arguments = (
            (mixing[of], kappa[of]),
            (start, head_class[self.heads], *self._copy_vectors(*vectors)),
            loss,
            (alpha, task_rarity[of], class_rarity, kind, task_alpha[of]),
        )
        copies = np.bincount(self.heads)
        member = np.argsort(self.heads, kind="stable")
        member = member[copies[self.heads[member]] > 1]
        begin = np.concatenate([[0], np.cumsum(copies[copies > 1])])
        drawn = np.bincount(self.samples["task"], problem.probability, len(of))
        drawn = np.repeat(drawn, sizes)[member]
        together = np.add.reduceat(drawn, begin[:-1])
        self.split = begin, member, drawn / np.repeat(together, np.diff(begin))

    def _copy_vectors(self, start=None):
        if start is None:
            return ()
        sizes = np.diff(start)[self.heads]
        self._coordinates = ragged(start[self.heads], sizes)
        return (np.concatenate([[0], np.cumsum(sizes)]),)

    def with_copies(self, vectors):
        """Vectors of heads, one a row or one after the other, and those of copies behind them."""
        if self.heads is None:
            return vectors
        if vectors.ndim == 1:
            return vectors[self._coordinates]
        copies = zero_vectors((len(self.heads), vectors.shape[1]), vectors.dtype)
        return np.take(vectors, self.heads, axis=0, out=copies, mode="clip")

    def regroup(self, order):
        """The order by the thread that draws each sample, and where each thread's part ends."""
        if len(self.cuts) == 2:
            return order, np.array([0, len(order)])
        thread = np.searchsorted(self.cuts[1:-1], order, side="right")
        ends = np.cumsum(np.bincount(thread, minlength=len(self.cuts) - 1))
        return order[np.argsort(thread, kind="stable")], np.append(0, ends)


def _cuts(problem, n_threads):
    """Between two tasks where that is even enough, else within a task."""
    samples, edges = problem.samples, problem.task_start[problem.present[1:]]
    if n_threads == 1:
        return np.array([0, len(samples)])
    work = problem.probability
    if not problem.dense:
        work = work * (1 + np.diff(problem.data[2])[samples["row"]])
    done = np.concatenate([[0.0], np.cumsum(work)])
    share = done[-1] / n_threads
    cuts = np.searchsorted(done, share * np.arange(1, n_threads))
    for k, cut in enumerate(cuts):
        at = np.searchsorted(edges, cut)
        near = edges[max(0, at - 1) : at + 1]
        off = np.abs(done[near] - (k + 1) * share)
        if len(near) and off.min() <= UNEVEN * share:
            cuts[k] = near[np.argmin(off)]
    return np.unique(np.concatenate([[0], cuts, [len(samples)]]))
