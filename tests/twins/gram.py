import numpy as np

# Powers multiply the rounding of the inner product; sums of products cancel.
TOLERANCE = {"gram": 10, "gram_product": 100, "gram_gradient": 100}


def gram(rng, dtype):
    sizes = [(1, 1, 1), (3, 5, 2), (8, 24, 16), (9, 25, 7), (100, 251, 33), (97, 300, 300)]
    for n, m, d in [*sizes, (5, 700, 600), (4, 0, 3)]:
        for function in range(7):
            for symmetric in (False, True):
                X = rng.normal(size=(n, d)).astype(dtype) / np.sqrt(d)
                Y = X if symmetric else rng.normal(size=(m, d)).astype(dtype) / np.sqrt(d)
                terms = function in (0, 3)
                row, column = -(X**2).sum(axis=1), -(Y**2).sum(axis=1)
                case = {
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
                yield case
                if dtype == np.float64 and function in (1, 3):
                    yield {**case, "out": np.zeros((len(X), len(Y)), dtype=np.float32)}


def gram_product(rng, dtype):
    for case in gram(rng, dtype):
        if case["Y"] is None or case["out"].dtype != dtype:
            continue
        for n_vectors in (1, 3):
            vectors = rng.normal(size=(n_vectors, len(case["Y"]))).astype(dtype)
            out = np.zeros((len(case["X"]), n_vectors), dtype=dtype)
            yield {**case, "vectors": vectors, "out": out}


def gram_gradient(rng, dtype):
    for case in gram(rng, dtype):
        if case["Y"] is None or case["function"] < 5 or case["out"].dtype != dtype:
            continue
        shape = case["out"].shape
        yield {
            "X": case["X"],
            "Y": case["Y"],
            "weights": rng.normal(size=(shape[0], shape[1] + 3)).astype(dtype)[:, : shape[1]],
            "out": np.ones((shape[0], 2)),
            "function": case["function"],
            "scale": 2.0,
            "shift": 0.25,
            "n_threads": 1,
        }


CASES = {"gram": gram, "gram_gradient": gram_gradient, "gram_product": gram_product}
