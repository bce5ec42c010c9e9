"""Learned relations in networks: C by marginal likelihood, of the heads on the trunk's features."""

from __future__ import annotations

import numpy as np

from fastmtl._core.network import network_forward
from fastmtl.coupling import Factors
from fastmtl.relations import families, learn_relations

LABELS = 2000  # of a task: with so many its vector is known, whatever the others say
BATCH = 256
EVIDENCE = {5: "poisson", 9: "log", 100: "log"}  # of other losses: that of the squared error


def learn_factors(problem, task_weight, learning, rng):
    """B and κ from the labels trained on, or None where a task has none of them.

    Parameters
    ----------
    problem : network_training.Training
    task_weight : ndarray of shape (n_tasks,)
    learning : coupling.Learning
    rng : numpy.random.Generator
        Draws the labels of tasks that have more than are looked at.

    Returns
    -------
    factors : Factors or None
    """
    observations, classes, state = problem.observations, problem.classes, problem.state
    row, task = observations.row, observations.task
    weight = observations.weight * task_weight[task]
    trained = np.zeros(len(problem.fixed["X"]), dtype=bool)
    trained[problem.fixed["sample_row"][problem.training]] = True
    able = np.flatnonzero(trained[row] & (weight > 0))
    counts = np.bincount(task[able], minlength=observations.n_tasks)
    if not counts.all():
        return None
    chosen = np.concatenate(
        [
            own if len(own) <= LABELS else np.sort(rng.choice(own, LABELS, replace=False))
            for own in np.split(able, np.cumsum(counts)[:-1])
        ]
    )
    rows, at = np.unique(row[chosen], return_inverse=True)
    X, lengths = problem.fixed["X"][rows], problem.fixed["lengths"]
    lengths = lengths[rows] if len(lengths) else lengths
    features = network_forward(state.trunk.table, X, lengths, state.parameters, BATCH)
    if not np.isfinite(features).all():
        return None
    loss = evidence_of(problem.fixed["loss"])
    if loss == "log":
        targets = families(observations, classes, weight)
    else:
        y = classes.code if loss == "poisson" else state.standardised(classes.code, task)
        targets = [(y, weight)]
    targets = [(y[chosen], w[chosen]) for y, w in targets if w.any()]
    starts = np.concatenate([[0], np.cumsum(np.minimum(counts, LABELS))])
    learned = learn_relations(features, at, starts, targets, loss, "coupled", rank=learning.rank)
    return Factors(learned.mixing, learned.kappa)


def evidence_of(codes):
    """Whose marginal likelihood speaks for the losses of these numbers; they are of one kind."""
    kinds = sorted({EVIDENCE.get(int(code), "squared") for code in codes})
    if len(kinds) > 1:
        raise ValueError(
            f"coupling is learned, but the losses of the tasks are of {len(kinds)} kinds "
            f"({', '.join(kinds)}); give a coupling, or fit a network for each kind"
        )
    return kinds[0]
