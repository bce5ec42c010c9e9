"""``python -m fastmtl demo`` and ``python -m fastmtl info``."""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.multioutput import MultiOutputClassifier

import fastmtl
from fastmtl import datasets

SEEDS = range(5)


def demo():
    """Fit shared + specific models against the usual choices, on data that scikit-learn ships."""
    print("fastmtl demo: one model for many related tasks\n")
    _digits()
    _diabetes()
    print("\nNext: help(fastmtl.MultiTaskSGDRegressor), help(fastmtl.MultiTaskSGDClassifier)")


COUPLINGS = {
    "shared + specific": fastmtl.TaskCoupling.mean(kappa=1.0),
    "pooled": "pooled",
    "independent": "independent",
}


def _digits():
    X, y, tasks = datasets.load_digits_tasks(return_X_y=True)
    n_train = 360
    print(f"Digits through 9 blurred cameras, 10 classes; {n_train} images train, 40 a camera.")
    print("Accuracy on the other images, mean over 5 splits")
    results = {}
    for seed in SEEDS:
        X_train, X_test, y_train, y_test, train, test = train_test_split(
            X, y, tasks, train_size=n_train, stratify=tasks, random_state=seed
        )
        for name, coupling in COUPLINGS.items():
            model = fastmtl.MultiTaskSGDClassifier(
                coupling=coupling, alpha=1e-3, tol=1e-3, random_state=seed
            )
            began = time.perf_counter()
            model.fit(X_train, y_train, tasks=train)
            seconds = time.perf_counter() - began
            accuracy = model.score(X_test, y_test, tasks=test)
            results.setdefault(name, []).append((accuracy, seconds))
            if name == "shared + specific":
                shared = model
        began, right = time.perf_counter(), 0
        for task in np.unique(tasks):
            peer = LogisticRegression(max_iter=1000)
            peer.fit(X_train[train == task], y_train[train == task])
            right += np.sum(peer.predict(X_test[test == task]) == y_test[test == task])
        seconds = time.perf_counter() - began
        name = "a LogisticRegression for each"
        results.setdefault(name, []).append((right / len(y_test), seconds))
    _table(results)
    coef = np.zeros((shared.n_tasks_, 10, X.shape[1]))
    for t, (own, classes) in enumerate(zip(shared.coef_, shared.task_classes_)):
        coef[t, classes] = own
    _similarities(coef.reshape(len(coef), -1), shared.tasks_)


def _diabetes():
    X, Y = datasets.load_diabetes_tasks(return_X_y=True)
    n_train = 150
    print(f"\nDiabetes, {Y.shape[1]} yes-or-no questions about each patient; {n_train} train.")
    print("Accuracy on the other patients, mean over 5 splits")
    results = {}
    for seed in SEEDS:
        X_train, X_test, Y_train, Y_test = train_test_split(
            X, Y, train_size=n_train, random_state=seed
        )
        couplings = {**COUPLINGS, "shared + specific": fastmtl.TaskCoupling.mean(kappa=0.01)}
        for name, coupling in couplings.items():
            model = fastmtl.MultiTaskSGDClassifier(
                coupling=coupling, alpha=0.03, task_intercept="free", tol=1e-3, random_state=seed
            )
            began = time.perf_counter()
            model.fit(X_train, Y_train)
            seconds = time.perf_counter() - began
            results.setdefault(name, []).append((model.score(X_test, Y_test), seconds))
        peer = MultiOutputClassifier(LogisticRegression())
        began = time.perf_counter()
        peer.fit(X_train, Y_train)
        seconds = time.perf_counter() - began
        name = "MultiOutputClassifier(LogisticRegression())"
        results.setdefault(name, []).append((np.mean(peer.predict(X_test) == Y_test), seconds))
    _table(results)


def _table(results):
    print(f"  {'model':<45}{'quality':>9}{'fit, ms':>10}")
    for name, rows in results.items():
        quality, seconds = np.mean([q for q, _ in rows]), np.median([s for _, s in rows])
        print(f"  {name:<45}{quality:>9.3f}{1e3 * seconds:>10.1f}")


def _similarities(coef, labels):
    unit = coef / np.linalg.norm(coef, axis=1, keepdims=True)
    cosine = unit @ unit.T
    print("  similarity of the cameras' coefficients (cosine)")
    for label, line in zip(labels, cosine):
        print(f"  {label:<14}" + "".join(f"{value:6.2f}" for value in line))


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m fastmtl", description="fastmtl")
    parser.add_argument(
        "command",
        choices=["demo", "info"],
        help="demo: compare models on shipped data; info: version, SIMD path, threads, BLAS",
    )
    command = parser.parse_args(arguments).command
    if command == "info":
        fastmtl.show_config()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        demo()


if __name__ == "__main__":
    main()
