"""The parameters of the linear models: where they lie, and how to go on from earlier ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fastmtl.task_columns import TaskColumns, ragged

LINE = 64


@dataclass
class State:
    """Parameters as the core sees them: vectors are padded, and last comes their intercept."""

    shared: np.ndarray  # (R, K, stride)
    specific: np.ndarray  # (heads, stride), or with `columns` all heads' own one after the other
    intercept: np.ndarray  # (K,)
    head_start: np.ndarray
    head_class: np.ndarray
    steps: int = 0
    # Float64, each like the parameters: AdaGrad's sums of squares, and how far averages lag behind
    squares: tuple | None = None
    drift: tuple | None = None
    average_from: int = 0
    running: State | None = None  # where steps go on, if the parameters are averages
    columns: TaskColumns | None = None  # where specific vectors are not zero, for a sparse X

    @cached_property
    def vector_start(self):
        """Where each head's vector begins in `specific`, flattened."""
        if self.columns is not None:
            return self.columns.vector_start(self.head_start)
        return np.arange(len(self.specific) + 1, dtype=np.int64) * self.specific.shape[1]

    @property
    def intercept_place(self):
        """Where each head's own intercept lies in `specific`, flattened: last in its vector."""
        return self.vector_start[1:] - 1

    def of_heads(self, values):
        """A value of each head, for each coordinate of `specific`."""
        if self.columns is None:
            return values[:, None]
        return np.repeat(values, np.diff(self.vector_start))

    def dense(self, d):
        """The state with specific vectors of all `d` features; itself, if it has these."""
        if self.columns is None:
            return self
        vectors = self.columns.matrix(self.specific, self.head_start, d).toarray()
        specific = np.zeros((len(vectors), self.shared.shape[2]), dtype=self.specific.dtype)
        specific[:, :d] = vectors
        specific[:, -1] = self.specific[self.intercept_place]
        return replace(self, specific=specific, columns=None)

    def take(self, wide):
        """Set the specific vectors to those of the dense state `wide`."""
        if wide is not self:
            begin = self.vector_start
            sizes = np.diff(begin) - 1
            heads = np.repeat(np.arange(len(sizes)), sizes)
            starts = np.repeat(self.columns.start[:-1], np.diff(self.head_start))
            columns = self.columns.column[ragged(starts, sizes)]
            self.specific[ragged(begin[:-1], sizes)] = wide.specific[heads, columns]
            self.specific[begin[1:] - 1] = wide.specific[:, -1]

    @property
    def parameters(self):
        return self.shared, self.specific, self.intercept

    def carry_on(self, previous, move, *, adagrad, average):
        """Take `squares` and `drift` over from an earlier state, or begin them, as asked for."""
        names = ("shared", "specific", "intercept")
        for name, wanted in (("squares", adagrad), ("drift", average is not False)):
            if wanted:
                arrays = tuple(np.zeros(array.shape) for array in self.parameters)
                earlier = getattr(previous, name, None)
                if earlier is not None:
                    old = replace(previous, **dict(zip(names, earlier)))
                    move(old, replace(self, **dict(zip(names, arrays))))
                setattr(self, name, arrays)
        for array in self.squares or ():
            np.abs(array, out=array)  # halves of one score for two classes have its sign
        if getattr(previous, "drift", None) is not None:
            self.average_from = previous.average_from
        else:
            self.average_from = max(0 if average is True else int(average), self.steps)

    def averaged(self):
        """The state with the parameters' averages so far, where there are any."""
        count = self.steps - self.average_from
        if self.drift is None or count <= 0:
            return self
        means = [w - (d / count).astype(w.dtype) for w, d in zip(self.parameters, self.drift)]
        names = ("shared", "specific", "intercept")
        return replace(self, **dict(zip(names, means)), running=self)


def zero_vectors(shape, dtype):
    """Zeros that begin with a cache line, so that a vector lies in no more lines than it must."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + LINE, dtype=np.uint8)
    begin = -memory.ctypes.data % LINE
    return memory[begin : begin + size].view(dtype).reshape(shape)


def carry(earlier, now, d):
    """Start a state from an earlier one, class by class of each task, as their labels say.

    `earlier` and `now` are (State, Classes, task labels); `d` is the number of features.
    """
    (old, old_classes, old_tasks), (new, classes, tasks) = earlier, now
    if len(old.shared) != len(new.shared) or (classes.binary and not old_classes.binary):
        raise ValueError(
            "the earlier fit had another coupling or more classes; fit anew (warm_start=False)"
        )
    if classes.binary and len(classes.classes) > 1:
        firsts = {old_classes.classes[own[0]] for own in old_classes.task_classes}
        if firsts & {classes.classes[own[1]] for own in classes.task_classes}:
            raise ValueError(
                "the first of two classes in the earlier fit is now the second; fit anew "
                "(warm_start=False)"
            )
    position = {label: t for t, label in enumerate(tasks.tolist())}
    task_now = np.array([position.get(label, -1) for label in old_tasks.tolist()])
    position = {label: k for k, label in enumerate(classes.classes.tolist())}
    class_now = np.array([position.get(label, -1) for label in old_classes.classes.tolist()])
    old_task = np.repeat(np.arange(len(old_tasks)), np.diff(old.head_start))
    if classes.binary:
        head, share, class_of = np.arange(len(old_task)), 1.0, np.zeros(len(old_task), dtype=int)
    elif not old_classes.binary:
        head, share, class_of = np.arange(len(old_task)), 1.0, class_now[old.head_class]
    else:  # one score for the second of two classes against the first: half of it for each
        head, share = np.repeat(np.arange(len(old_task)), 2), np.tile([-0.5, 0.5], len(old_task))
        class_of = class_now[np.concatenate(old_classes.task_classes)]
    share = np.broadcast_to(share, head.shape)
    stays = (task_now[old_task[head]] >= 0) & (class_of >= 0)
    head, share, class_of = head[stays], share[stays], class_of[stays]

    mix = np.zeros((len(new.intercept), len(old.intercept)))
    mix[class_of, old.head_class[head]] = share
    used = slice(d), slice(-1, None)  # what lies between is padding
    for part in used:
        new.shared[..., part] = np.einsum("kc,rcj->rkj", mix, old.shared[..., part])
    new.intercept[:] = mix @ old.intercept

    n_classes = len(new.intercept)
    new_task = np.repeat(np.arange(len(tasks)), np.diff(new.head_start))
    new_key = new_task * n_classes + new.head_class  # increasing
    key = task_now[old_task[head]] * n_classes + class_of
    at = np.minimum(np.searchsorted(new_key, key), len(new_key) - 1)
    found = new_key[at] == key
    head, share, at = head[found], share[found], at[found]
    if new.columns is None:
        specific = old.dense(d).specific
        for part in used:
            new.specific[at, part] = share[:, None] * specific[head, part]
    else:  # columns known before come first
        begin, begin_now = old.vector_start, new.vector_start
        sizes = np.diff(begin)[head] - 1
        moved = np.repeat(share, sizes) * old.specific[ragged(begin[head], sizes)]
        new.specific[ragged(begin_now[at], sizes)] = moved
        new.specific[begin_now[at + 1] - 1] = share * old.specific[begin[head + 1] - 1]
    new.steps = old.steps
