"""The training of networks: epochs, the tasks' weights, and when to stop.

The estimators of ``network.py`` hand over observations and settings; whole epochs run in
``_core.network``, and what remains here happens once an epoch.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import replace

import numpy as np
from scipy import special
from sklearn.exceptions import ConvergenceWarning

from fastmtl._core import network as core
from fastmtl.config import resolve_threads
from fastmtl.coupling import resolve_coupling
from fastmtl.estimators import progress
from fastmtl.network_relations import learn_factors
from fastmtl.network_state import LOSSES, recoupled

OPTIMISERS = {"sgd": 0, "momentum": 1, "nesterov": 2, "adam": 3, "adamw": 3}
WORK_PER_CALL = 3_000_000_000  # multiply-adds, a fraction of a second, so that Ctrl-C is heard
PREDICT_BATCH = 256


def split_lengths(X, state, has_lengths):
    """The matrix and the lengths as the core takes them."""
    lengths = np.empty(0, dtype=np.int32)
    if has_lengths:
        X, lengths = X[:, :-1], np.ascontiguousarray(X[:, -1], dtype=np.int32)
    return np.ascontiguousarray(X, dtype=state.parameters.dtype), lengths


class Training:
    """Observations and settings as the core takes them, and passes of the core over them."""

    def __init__(self, model, observations, classes, state, rng, has_lengths):
        by_row = np.argsort(observations.row, kind="stable")
        row = observations.row[by_row]
        sample_row, first = np.unique(row, return_index=True)
        self.model = model
        self.task = np.ascontiguousarray(observations.task[by_row])
        self.target = state.standardised(classes.code[by_row].astype(np.float64), self.task)
        self.weight = observations.weight[by_row]
        self.start = np.append(first, len(row)).astype(np.int64)
        self.n_tasks = observations.n_tasks
        self.training, self.held_out = _hold_out(model, len(sample_row), rng)
        self.norms = np.zeros(len(state.trunk.table) + 1)
        self.observations, self.classes = observations, classes
        X, lengths = split_lengths(observations.X, state, has_lengths)
        codes = model._loss_codes(observations, classes)
        self.poisson = codes == LOSSES["poisson"]
        parameters = model._loss_parameters(codes)
        parameters[codes == LOSSES["huber"]] /= state.units[1, 0]  # a delta is in units of y
        widths = np.diff(state.head_start)[self.task]
        self.fixed = {
            "layers": state.trunk.table,
            "X": X,
            "lengths": lengths,
            "sample_row": sample_row.astype(np.int64),
            "sample_start": self.start,
            "task": self.task,
            "target": self.target,
            "head_start": state.head_start,
            "loss": codes,
            "loss_parameter": parameters,
            "head_offset": state.trunk.n_parameters,
            "max_outputs": int(np.add.reduceat(widths, self.start[:-1]).max()),
            "n_threads": resolve_threads(model.n_threads),
        }
        self.adopt(state)
        self.settings = self._settings(rng)
        batch = int(self.settings[1])
        self.rows_per_call = max(1, WORK_PER_CALL // (3 * state.trunk.work * batch)) * batch

    def adopt(self, state):
        """Go on with these parameters, of the same trunk and the same outputs."""
        self.state = state
        self.fixed |= {
            "head_row": state.head_row,
            "head_mix": state.head_mix,
            "n_head_rows": state.n_head_rows,
            "gradient": np.zeros_like(state.parameters),
        }

    def _settings(self, rng):
        model, optimiser = self.model, OPTIMISERS[self.model.solver]
        settings = np.zeros(13)
        settings[0], settings[1] = optimiser, min(model.batch_size, len(self.training))
        settings[3], settings[4] = model.alpha, model.weight_decay
        settings[5] = model.beta_1 if optimiser == 3 else model.momentum
        settings[6], settings[7] = model.beta_2, model.epsilon
        settings[8] = model.clip_norm or 0.0
        settings[10] = rng.integers(2**31)
        settings[11] = model.solver == "adamw"
        settings[12] = model.gradient_surgery == "pcgrad"
        return settings

    def _call(self, samples, weight, settings, task_loss):
        return core.network_train(
            order=samples,
            weight=weight,
            parameters=self.state.parameters,
            state=self.state.moments,
            settings=settings,
            layer_norms=self.norms,
            task_loss=task_loss,
            **self.fixed,
        )

    def epoch(self, order, weight, rate):
        """Train on the samples of `order`; return each task's summed loss, or None: diverged."""
        task_loss = np.zeros(self.n_tasks)
        self.settings[2] = rate
        for begin in range(0, len(order), self.rows_per_call):
            part = order[begin : begin + self.rows_per_call]
            self.settings[9] = self.state.steps
            status = self._call(part, weight, self.settings, task_loss)
            if status or not np.isfinite(self.state.parameters).all():
                return None
            self.state.steps += -(-len(part) // int(self.settings[1]))
        self.state.epochs += 1
        return task_loss

    def look(self, samples, weight, rate=-1.0):
        """Each task's summed loss (with rate 0 the gradients too), or None: not finite."""
        settings, task_loss = self.settings.copy(), np.zeros(self.n_tasks)
        settings[1], settings[2], settings[12] = min(PREDICT_BATCH, len(samples)), rate, 0
        return None if self._call(samples, weight, settings, task_loss) else task_loss

    def task_counts(self, samples):
        """Summed weights of the labels of each task among the samples."""
        chosen = np.zeros(len(self.start) - 1)
        chosen[samples] = 1
        labels = np.repeat(chosen, np.diff(self.start))
        return np.bincount(self.task, self.weight * labels, self.n_tasks)

    def least_losses(self):
        """The loss of a perfect fit, which only Poisson's is not 0 for."""
        y = self.target
        own = np.where(self.poisson[self.task], y - special.xlogy(y, np.abs(y)), 0.0)
        counts = np.bincount(self.task, self.weight, self.n_tasks)
        return np.bincount(self.task, self.weight * own, self.n_tasks) / np.maximum(counts, 1e-300)


def _hold_out(model, n, rng):
    """Samples to train on, and those kept aside (None without early stopping)."""
    if not model.early_stopping:
        return np.arange(n), None
    shuffled = rng.permutation(n)
    n_held = max(1, round(model.validation_fraction * n))
    if n_held >= n:
        raise ValueError(
            f"validation_fraction is {model.validation_fraction}, which leaves no row of {n} "
            "to train on; lower it"
        )
    return np.sort(shuffled[n_held:]), np.sort(shuffled[:n_held])


class _FixedWeights:
    def __init__(self, weights):
        self.weights = weights

    def before(self, history):
        return self.weights

    def validation_loss(self, task_loss, counts, n):
        return float(self.weights @ task_loss) / n


class _LearnedWeights:
    """Task weights set anew before each epoch; validation then looks at every task's loss alike."""

    def __init__(self, problem, rng):
        self.problem = problem
        self.least = problem.least_losses()

    def excess(self, mean_loss):
        return np.maximum(mean_loss - self.least, 1e-6)

    def validation_loss(self, task_loss, counts, n):
        some = counts > 0
        return float(np.log(self.excess(task_loss / np.maximum(counts, 1e-300)))[some].mean())


class _Uncertainty(_LearnedWeights):
    """The exact minimiser of exp(-s) L + s / 2 for each task (Kendall et al., 2018)."""

    def before(self, history):
        if not history:
            return np.ones(self.problem.n_tasks)
        return 0.5 / self.excess(history[-1]["task_loss"])


class _GradNorm(_LearnedWeights):
    """The fixed point of GradNorm (Chen et al., 2018): w_t |g_t| proportional to r_t^1.5.

    g_t is the gradient of task t's part of the objective in the weights of the last shared layer,
    and r_t how much of its first loss is left; both on some of the task's rows, always the same.
    """

    RESTORING_FORCE, ROWS = 1.5, 256

    def __init__(self, problem, rng):
        super().__init__(problem, rng)
        lines = np.flatnonzero(problem.state.trunk.table[:, 7] > 0)
        if not len(lines):
            raise ValueError("task_weight='gradnorm' needs a trunk that has weights")
        self.line = lines[-1]
        self.share = problem.task_counts(problem.training) / len(problem.training)
        owner = np.repeat(np.arange(len(problem.start) - 1), np.diff(problem.start))
        trained = np.isin(owner, problem.training)
        self.labels = []
        for t in range(problem.n_tasks):
            own = np.flatnonzero((problem.task == t) & trained & (problem.weight > 0))
            some = np.sort(rng.permutation(own)[: self.ROWS])
            self.labels.append((some, owner[some]))
        self.first = None

    def before(self, history):
        problem = self.problem
        length, loss = np.zeros(problem.n_tasks), np.ones(problem.n_tasks)
        weight = np.zeros_like(problem.weight)
        for t, (labels, samples) in enumerate(self.labels):
            if not len(labels):
                continue
            weight[labels] = problem.weight[labels] / problem.weight[labels].sum()
            losses = problem.look(samples, weight, rate=0.0)
            weight[labels] = 0
            if losses is None:
                return np.ones(problem.n_tasks)  # the epoch will say that training diverged
            loss[t] = losses[t]
            length[t] = np.sqrt(problem.norms[self.line]) * len(samples) * self.share[t]
        excess = self.excess(loss)
        if self.first is None:
            self.first = excess
        left = excess / self.first
        weights = (left / left.mean()) ** self.RESTORING_FORCE
        weights /= np.maximum(length, 1e-3 * max(length.max(), 1e-300))
        return weights * problem.n_tasks / weights.sum()


LEARNED = {"uncertainty": _Uncertainty, "gradnorm": _GradNorm}


def train(model, observations, classes, state, task_weight, rng, max_iter, has_lengths):
    """Run epochs from `state`, whose arrays are overwritten; return the history and the state.

    `task_weight` is an array, or a word of `LEARNED`.
    """
    problem = Training(model, observations, classes, state, rng, has_lengths)
    learned = isinstance(task_weight, str)
    weighing = LEARNED[task_weight](problem, rng) if learned else _FixedWeights(task_weight)
    counts = problem.task_counts(problem.training)
    best = _Best(model, problem, weighing)
    learning = resolve_coupling(model.coupling).learning
    history = []
    bar = progress(max_iter) if model.verbose else None
    try:
        for epoch in range(max_iter):
            started = time.perf_counter()
            rate = _rate(model, epoch, max_iter)
            weights = weighing.before(history)
            if learning is not None and _relations_due(problem.state.epochs):
                _relate(problem, weights, learning, rng)
            sizes = _sizes(problem.state)
            order = problem.training[rng.permutation(len(problem.training))]
            loss = problem.epoch(order, problem.weight * weights[problem.task], rate)
            last = order[-int(problem.settings[1]) :]
            if loss is None or problem.look(last, problem.weight) is None:
                raise FloatingPointError(_diverged(model, problem.state, sizes, epoch))
            entry = {
                "loss": float(loss.sum() / len(order)),
                "task_loss": loss / np.maximum(weights * counts, 1e-300),
                "gradient_norms": np.sqrt(problem.norms),
                "learning_rate": float(rate),
            }
            if learned:
                entry["task_weight"] = weights
            done = best.look(entry)
            entry["seconds"] = time.perf_counter() - started
            history.append(entry)
            if bar is not None:
                bar.update()
                bar.set_postfix(loss=f"{entry['loss']:.4g}")
            if done:
                break
    finally:
        if bar is not None:
            bar.close()
    best.restore()
    if learning is not None and not problem.state.learned:
        _relate(problem, weights, learning, rng)
    _warn_if_vanished(state.trunk, history)
    return history, problem.state


def _relations_due(epochs):
    """After 4, 16, 64, … epochs: often while features are new, and seldom once they are not."""
    while epochs > 4 and epochs % 4 == 0:
        epochs //= 4
    return epochs == 4


def _relate(problem, weights, learning, rng):
    factors = learn_factors(problem, weights, learning, rng)
    if factors is not None:
        problem.adopt(recoupled(problem.state, factors))


class _Best:
    """Early stopping: the validation loss of each epoch, and the weights of the best."""

    def __init__(self, model, problem, weighing):
        self.model, self.problem, self.weighing = model, problem, weighing
        self.loss, self.state, self.waited = np.inf, None, 0
        if problem.held_out is not None:
            self.counts = problem.task_counts(problem.held_out)

    def look(self, entry):
        """Add the validation losses to the epoch's entry; return whether to stop."""
        problem = self.problem
        if problem.held_out is None:
            return False
        task_loss = problem.look(problem.held_out, problem.weight)
        if task_loss is None:  # an overflow on rows not trained on: as bad as can be
            task_loss = np.full(problem.n_tasks, np.inf)
        loss = self.weighing.validation_loss(task_loss, self.counts, len(problem.held_out))
        with np.errstate(invalid="ignore"):
            entry["validation_task_loss"] = task_loss / self.counts
        entry["validation_loss"] = loss
        self.waited = 0 if loss < self.loss - self.model.tol else self.waited + 1
        if loss < self.loss:
            self.loss = loss
            self.state = replace(problem.state, parameters=problem.state.parameters.copy())
        return self.waited >= self.model.n_iter_no_change

    def restore(self):
        """Return to the best epoch's parameters; steps and the optimiser's moments go on."""
        now = self.problem.state
        if self.state is None:
            return
        if now.factors is not self.state.factors:
            now = recoupled(now, self.state.factors)
        now.parameters[...] = self.state.parameters
        self.problem.adopt(now)


def _rate(model, epoch, max_iter):
    first = model.learning_rate_init
    if callable(model.learning_rate):
        rate = float(model.learning_rate(epoch))
        if not 0 < rate < np.inf:
            raise ValueError(f"learning_rate({epoch}) is {rate}; return a positive finite number")
        return rate
    if model.learning_rate == "cosine":
        return first * 0.5 * (1 + np.cos(np.pi * epoch / max_iter))
    if model.learning_rate == "invscaling":
        return first / np.sqrt(epoch + 1)
    return first


# -- what goes wrong -----------------------------------------------------------------------------


def _layers(trunk):
    """The lines of the table that have weights, and the names of their layers."""
    lines = np.flatnonzero(trunk.table[:, 7] > 0)
    return lines, [f"{line}.{type(trunk.layers[line]).__name__.lower()}" for line in lines]


def _sizes(state):
    """The length of each layer's parameters, and of the heads'."""
    cuts = [state.trunk.table[line, 6] for line in _layers(state.trunk)[0]]
    parts = np.split(state.parameters, [*cuts[1:], state.trunk.n_parameters] if cuts else [0])
    with np.errstate(over="ignore"):
        sizes = np.array([np.linalg.norm(part.astype(np.float64)) for part in parts])
    return sizes if cuts else sizes[1:]


def _diverged(model, state, before, epoch):
    after, names = _sizes(state), [*_layers(state.trunk)[1], "heads"]
    lost = [name for name, size in zip(names, after) if not np.isfinite(size)]
    if lost:
        where = f"the weights of {', '.join(lost)} are no longer finite"
    else:
        k = int(np.argmax(after / np.maximum(before, 1e-300)))
        where = f"the weights of {names[k]} went from length {before[k]:.3g} to {after[k]:.3g}"
    remedies = [f"lower learning_rate_init (now {model.learning_rate_init:g})"]
    if model.clip_norm is None:
        remedies.append("set clip_norm, for example to 1.0")
    remedies.append("standardise X")
    return f"training diverged in epoch {epoch + 1}: {where}; {', or '.join(remedies)}"


def _warn_if_vanished(trunk, history):
    lines, names = _layers(trunk)
    norms = np.array([entry["gradient_norms"] for entry in history[-3:]])
    without = (norms[:, lines] < 1e-7 * norms[:, -1:]).all(axis=0)
    if without.any():
        warnings.warn(
            f"the gradient does not reach {', '.join(np.array(names)[without])} (it vanished on "
            "the way, or all units above are inactive); lower learning_rate_init, use "
            "activation='leaky_relu' or add LayerNorm()",
            ConvergenceWarning,
            stacklevel=5,
        )
