import numpy as np

TOLERANCE = {"gram": 10}  # powers multiply the rounding of the inner product


def gram(rng, dtype):
    sizes = [(1, 1, 1), (3, 5, 2), (8, 24, 16), (9, 25, 7), (100, 251, 33), (97, 300, 300)]
    for n, m, d in [*sizes, (5, 700, 600), (4, 0, 3)]:
        for function in range(5):
            for symmetric in (False, True):
                X = rng.normal(size=(n, d)).astype(dtype) / np.sqrt(d)
                Y = X if symmetric else rng.normal(size=(m, d)).astype(dtype) / np.sqrt(d)
                terms = function in (0, 3)
                row, column = -(X**2).sum(axis=1), -(Y**2).sum(axis=1)
                yield {
                    "X": X.astype(dtype),
                    "Y": None if symmetric else Y.astype(dtype),
                    "out": np.zeros((len(X), len(Y)), dtype=dtype),
                    "function": function,
                    "scale": 2.0,
                    "shift": 0.0 if function == 3 else 0.25,
                    "degree": 3,
                    "row_term": row.astype(dtype) if terms else None,
                    "column_term": column.astype(dtype) if terms else None,
                    "n_threads": 1,
                }


CASES = {"gram": gram}
