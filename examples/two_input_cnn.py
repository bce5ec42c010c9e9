"""A convolutional network with two inputs and two tasks: read both of a pair of digits.

Each row is a pair of 8 x 8 images. Each image passes convolutions of its own, the results are
concatenated, and a softmax for each of the two digits stands on layers that both share.
"""

import numpy as np
from sklearn.datasets import load_digits

from fastmtl import MultiTaskNetworkClassifier
from fastmtl.layers import Concat, Conv2D, Dense, Flatten, MaxPool2D

rng = np.random.default_rng(0)
digits = load_digits()
images = (digits.images / 16.0).astype(np.float32)[..., None]
first_test = 1400  # images from here on are for the test


def pairs(low, high, n_pairs):
    left, right = rng.integers(low, high, size=(2, n_pairs))
    labels = np.column_stack([digits.target[left], digits.target[right]])
    return (images[left], images[right]), labels


X, Y = pairs(0, first_test, 3000)
X_test, Y_test = pairs(first_test, len(images), 500)

branch = [Conv2D(16, 3), MaxPool2D(2), Flatten()]
model = MultiTaskNetworkClassifier(
    trunk=[Concat(branch, branch), Dense(64)], max_iter=8, random_state=0
)
model.fit(X, Y)
for entry in model.history_[::2]:
    print(f"loss {entry['loss']:.3f} after {entry['seconds']:.2f} s")
right = np.mean(model.predict(X_test) == Y_test, axis=0)
print(f"left digit right: {right[0]:.3f}, right digit right: {right[1]:.3f}")
