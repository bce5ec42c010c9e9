"""Several classes per task: digits seen by nine cameras, each blurred its own way.

Some cameras never saw some digits; what the others know of them is shared.
"""

import numpy as np
from sklearn.model_selection import train_test_split

from fastmtl import MultiTaskSGDClassifier, TaskCoupling
from fastmtl.datasets import load_digits_tasks

X, digit, camera = load_digits_tasks(return_X_y=True)
X_train, X_test, y_train, y_test, train, test = train_test_split(
    X, digit, camera, train_size=360, stratify=camera, random_state=0
)
scores = {}
for name, coupling in {
    "one model": "pooled",
    "one per camera": "independent",
    "shared + specific": TaskCoupling.mean(kappa=1.0),
}.items():
    model = MultiTaskSGDClassifier(alpha=1e-3, coupling=coupling, tol=1e-3, random_state=0)
    model.fit(X_train, y_train, tasks=train)
    scores[name] = model.score(X_test, y_test, tasks=test)
    print(f"{name:<18} {scores[name]:.3f} of the digits right")

for name, own in zip(model.tasks_[:3], model.task_classes_):
    print(name, "saw", own)
probabilities = model.predict_proba(X_test[:3], tasks=test[:3])
print("most probable:", probabilities.argmax(axis=1), "true:", y_test[:3])
print("a camera never seen:", model.predict(X_test[:3], tasks=np.repeat("a new camera", 3)))
