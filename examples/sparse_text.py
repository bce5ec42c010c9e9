"""Sparse text: is a review good, in ten kinds of shop, where words mean different things?

Made-up reviews: most words of praise are shared by all shops, some belong to one ("hot" is good of
soup and bad of a laptop). Rows are CSR with a column per word; a shop's own parameters matter only
where it differs.
"""

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import train_test_split

from fastmtl import MultiTaskSGDClassifier, TaskCoupling

rng = np.random.default_rng(0)
n_shops, n_reviews, vocabulary = 10, 150, np.array([f"word{k}" for k in range(4000)])
shared_praise = rng.normal(size=4000) * (rng.random(4000) < 0.1)
own_praise = 1.5 * rng.normal(size=(n_shops, 4000)) * (rng.random((n_shops, 4000)) < 0.02)

often = 1 / np.arange(1, 4001)  # words follow Zipf's law
reviews, good, shop = [], [], []
for own in range(n_shops):
    for _ in range(n_reviews):
        words = rng.choice(4000, size=60, p=often / often.sum())
        liking = (shared_praise + own_praise[own])[words].sum()
        reviews.append(" ".join(vocabulary[words]))
        good.append(liking + rng.logistic() > 0)
        shop.append(f"shop {own}")

texts, texts_test, y, y_test, tasks, tasks_test = train_test_split(
    reviews, np.array(good), np.array(shop), test_size=0.5, stratify=shop, random_state=0
)
vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float32)
X, X_test = vectorizer.fit_transform(texts), vectorizer.transform(texts_test)
print(f"{X.shape[0]} reviews, {X.shape[1]} words, {X.nnz / X.shape[0]:.0f} a review")

scores = {}
for name, coupling in {
    "one model": "pooled",
    "one per shop": "independent",
    "shared + specific": TaskCoupling.mean(kappa=0.5),
}.items():
    model = MultiTaskSGDClassifier(coupling=coupling, alpha=1e-3, random_state=0)
    model.fit(X, y, tasks=tasks)
    scores[name] = model.score(X_test, y_test, tasks=tasks_test)
    print(f"{name:<18} {scores[name]:.3f} of the reviews right")

words = vectorizer.get_feature_names_out()
weight = model.shared_coef_[0]
print("good everywhere:", *words[np.argsort(-weight)[:5]])
