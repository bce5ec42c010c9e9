"""Quick start: fifty shops with few rows each, and three ways to model them.

Draws the error of one model for all, one model per shop, and shared + specific parameters against
the number of rows per shop; saved as quick_start.png (needs matplotlib).
"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from fastmtl import MultiTaskSGDRegressor
from fastmtl.datasets import make_multitask_regression

rows_per_shop = [3, 6, 12, 25, 50, 100]
errors = {"pooled": [], "independent": [], "mean": []}

X, y, shop = make_multitask_regression(n_samples=400, n_tasks=50, kappa=0.3, random_state=0)
place = np.arange(len(y)) % 400  # of a row within its shop
test = place >= 200

for n_rows in rows_per_shop:
    train = place < n_rows
    for coupling, found in errors.items():
        model = MultiTaskSGDRegressor(
            coupling=coupling, alpha=1 / train.sum(), max_iter=5000, random_state=0
        )
        model.fit(X[train], y[train], tasks=shop[train])
        error = model.predict(X[test], tasks=shop[test]) - y[test]
        found.append(np.sqrt(np.mean(error**2)))
    print(f"{n_rows} rows:", *(f"{name} {found[-1]:.2f}" for name, found in errors.items()))

labels = {"pooled": "one model", "independent": "one per shop", "mean": "shared + specific"}
for name, found in errors.items():
    plt.plot(rows_per_shop, found, marker="o", label=labels[name])
plt.axhline(1.0, color="gray", linestyle=":", label="noise")
plt.xscale("log")
plt.xlabel("rows per shop")
plt.ylabel("error on new rows (root mean square)")
plt.legend()
plt.savefig("quick_start.png", dpi=120)
