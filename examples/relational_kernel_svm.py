"""A support vector machine whose tasks are related by a graph, with the sigmoid kernel.

Sixteen stations on a ring measure the same thing, a little turned from one to the next: neighbours
are alike, opposite ones are not. The kernel matrix is computed once for all tasks.
"""

import warnings

import numpy as np

from fastmtl import MultiTaskSVC, TaskCoupling

# The kernel has negative eigenvalues here; indefinite="clip" sets them to zero, and says so.
warnings.filterwarnings("ignore", "the kernel is not positive semi-definite")

rng = np.random.default_rng(0)
n_stations, n_rows = 16, 120
angle = 2 * np.pi * np.arange(n_stations) / n_stations
station = np.repeat(np.arange(n_stations), n_rows)
X = rng.normal(size=(len(station), 2))
turned = X[:, 0] * np.cos(angle[station]) + X[:, 1] * np.sin(angle[station])
y = np.sign(turned + 0.3 * turned**3 + 0.5 * rng.normal(size=len(station)))

train = np.arange(len(station)) % n_rows < 10  # ten rows each
ring = np.zeros((n_stations, n_stations))
for k in range(n_stations):
    ring[k, (k + 1) % n_stations] = ring[(k + 1) % n_stations, k] = 1.0

scores = {}
for name, coupling in {
    "one model": "pooled",
    "one per station": "independent",
    "neighbours on a ring": TaskCoupling.from_graph(ring, ridge=0.05),
}.items():
    model = MultiTaskSVC(
        kernel="sigmoid",
        sigma=0.5,
        c=-1.0,
        coupling=coupling,
        C=10.0,
        task_intercept="shared",
        indefinite="clip",
    )
    model.fit(X[train], y[train], tasks=station[train])
    scores[name] = model.score(X[~train], y[~train], tasks=station[~train])
    print(f"{name:<21} {scores[name]:.3f} right, {len(model.support_)} support vectors")
