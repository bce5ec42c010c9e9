import ctypes
import itertools
import math

import numpy as np
import scipy.sparse as sp

from fastmtl.reference.linear_sgd import COUPLED, FREE, SAMPLE, find_columns

# Hundreds of steps, each feeding the next, multiply a rounding error of the scores.
TOLERANCE = dict.fromkeys(
    [
        f"{name}_{form}"
        for name in ("sgd", "saga", "sgd_general", "saga_general")
        for form in ("dense", "csr")
    ],
    20,
)
TOLERANCE |= dict.fromkeys(
    ("dual_dense", "dual_csr", "dual_joint_csr"), 500
)  # and the trials that find a slope
SOFTMAX = -1


@ctypes.CFUNCTYPE(
    ctypes.c_double, ctypes.c_double, ctypes.c_double, ctypes.POINTER(ctypes.c_double)
)
def log_cosh(y, p, gradient):
    gradient[0] = math.tanh(p - y)
    return math.log(math.cosh(p - y))


USER = ctypes.cast(log_cosh, ctypes.c_void_p).value


def problem(rng, dtype, *, d, n_shared, kind, code, sparse):
    n_tasks, n, n_rows = 4, 60, 37
    X = rng.normal(size=(n_rows, d))
    if sparse:
        X *= rng.random(X.shape) < 0.4
    softmax = code == SOFTMAX
    n_classes = 3 if softmax else 1
    head_class = [[0, 1, 2], [0, 2], [1, 2], [0, 1, 2]] if softmax else [[0]] * n_tasks
    head_start = np.cumsum([0] + [len(own) for own in head_class])
    samples = np.zeros(n, dtype=SAMPLE)
    samples["row"] = rng.integers(n_rows, size=n)
    samples["task"] = np.sort(rng.integers(n_tasks, size=n))
    if softmax:
        most = np.diff(head_start)[samples["task"]]
        samples["target"] = (rng.random(n) * most).astype(int)
    elif code >= 6:
        samples["target"] = rng.choice([-1.0, 1.0], size=n)
    else:
        samples["target"] = rng.normal(size=n) if code != 5 else rng.poisson(2, size=n)
    samples["weight"] = rng.uniform(0.2, 2, size=n)
    samples["curvature"] = 2 * (X**2).sum(axis=1)[samples["row"]] + 1
    kappa = rng.uniform(0.1, 1, size=n_tasks)
    kappa[1] = 0.0
    arguments = {
        "samples": samples,
        "order": rng.integers(n, size=150),
        "shared": padded(rng, d, dtype, n_shared, n_classes),
        "specific": padded(rng, d, dtype, head_start[-1]),
        "intercept": rng.normal(size=n_classes),
        "coupling": (rng.normal(size=(n_tasks, n_shared)), kappa),
        "heads": (head_start, np.concatenate(head_class).astype(np.int32)),
        "loss": (code, 0.3, 1.0, 0),
        "penalty": (
            0.05,
            rng.uniform(1, 9, size=n_tasks),
            rng.uniform(1, 2, n_classes),
            kind,
            rng.uniform(0.05, 0.5, size=n_tasks),
        ),
    }
    # Parameters that a model does not have are zero, and stay so.
    if kind != COUPLED:
        arguments["shared"][:, :, -1] = 0
    if kind not in (COUPLED, FREE):
        arguments["specific"][:, -1] = 0
    without = slice(head_start[1], head_start[2])
    arguments["specific"][without, :d] = 0
    if kind != FREE:
        arguments["specific"][without, -1] = 0
    X = X.astype(dtype)
    if sparse:
        X = sp.csr_matrix(X[samples["row"]])
        samples["row"] = np.arange(n)
        indices, indptr = X.indices.astype(np.int32), X.indptr.astype(np.int64)
        case = {"data": X.data, "indices": indices, "indptr": indptr, "position": indices}
        vector_start = np.arange(head_start[-1] + 1) * arguments["specific"].shape[1]
        if n_shared != 2:
            case["position"] = np.zeros_like(indices)
            task_start = np.searchsorted(samples["task"], np.arange(n_tasks + 1))
            none = np.zeros(0, dtype=np.int32), np.zeros(n_tasks + 1, dtype=np.int64)
            columns, start = find_columns(
                indices, indptr, samples["row"], task_start, *none, d, case["position"], True
            )
            head_task = np.repeat(np.arange(n_tasks), np.diff(head_start))
            own = [np.append(columns[start[t] : start[t + 1]], -1) for t in head_task]
            vectors = [v[at] for v, at in zip(arguments["specific"], own)]
            arguments["specific"] = np.concatenate(vectors)
            vector_start = np.cumsum([0] + [len(v) for v in vectors])
        arguments["heads"] += (vector_start,)
        return {**case, **arguments}
    return {"X": X, **arguments}


def padded(rng, d, dtype, *shape):
    lanes = 64 // dtype.itemsize
    vectors = np.zeros((*shape, (d + lanes) // lanes * lanes), dtype=dtype)
    vectors[..., :d] = rng.normal(size=(*shape, d)) / 4
    vectors[..., -1] = rng.normal(size=shape) / 4
    return vectors


def sgd_cases(sparse):
    def cases(rng, dtype):
        # Every loss, every kind of intercept, every number of shared vectors, every tail length.
        for code in range(SOFTMAX, 10):
            case = problem(
                rng, dtype, d=3 + code, n_shared=code % 3, kind=code % 4, code=code, sparse=sparse
            )
            yield {**case, **schedule(code % 2)}
        case = problem(rng, dtype, d=5, n_shared=1, kind=COUPLED, code=0, sparse=sparse)
        yield {**case, **schedule(0), "loss": (0, 0.0, 1.0, USER)}
        for d, n_shared, kind in itertools.product((1, 8, 28, 33), (0, 1, 2), range(4)):
            case = problem(rng, dtype, d=d, n_shared=n_shared, kind=kind, code=0, sparse=sparse)
            yield {**case, **schedule(d % 2)}

    return cases


def schedule(power):
    return {
        "schedule": (0.05 * 20**power, 20.0, float(power), 3, 40),
    }


def by_threads(cases):
    """The cases on one to three threads; tasks 0 and 3 stand for one that two threads draw."""

    def threaded(rng, dtype):
        for case in cases(rng, dtype):
            head_start = case["heads"][0]
            n_heads = head_start[1]
            if len(case["heads"]) > 2 and len(set(np.diff(case["heads"][2])[[0, -1]])) > 1:
                n_heads = 0  # the two have other columns: no copies of each other
            twins = np.stack([np.arange(n_heads), head_start[3] + np.arange(n_heads)], axis=1)
            split = 2 * np.arange(n_heads + 1), twins.ravel(), np.tile([0.25, 0.75], n_heads)
            for owner in ([0, 0, 0, 0], [0, 1, 1, 1], [0, 2, 1, 2]):
                thread = np.array(owner)[case["samples"]["task"][case["order"]]]
                ends = np.cumsum(np.bincount(thread))
                order = case["order"][np.argsort(thread, kind="stable")]
                bounds = np.stack([np.append(0, ends[:-1]), ends], axis=1)
                yield {**case, "order": order, "parts": (bounds, 3, split)}

    return threaded


def saga_cases(sparse):
    def cases(rng, dtype):
        for code, kind, n_shared in itertools.product((SOFTMAX, 0, 9), range(4), (0, 1, 2)):
            d = 2 + 5 * n_shared + kind
            case = problem(rng, dtype, d=d, n_shared=n_shared, kind=kind, code=code, sparse=sparse)
            n_heads = int(np.diff(case["heads"][0]).max())
            case["memory"] = rng.normal(size=(len(case["samples"]), n_heads)) / 9
            case["averages"] = (
                np.zeros_like(case["shared"]),
                np.zeros_like(case["specific"]),
                np.zeros_like(case["intercept"]),
            )
            case["schedule"] = (0.004, 0.0, 0.0, 0)
            if sparse:
                case["spreads"] = spreads(rng, dtype, case)
            yield case

    return cases


def dual_cases(sparse):
    def cases(rng, dtype):
        for code, kind in itertools.product(range(10), range(4)):
            n_shared = (code + kind) % 3
            d = 2 + 5 * n_shared + kind
            case = problem(rng, dtype, d=d, n_shared=n_shared, kind=kind, code=code, sparse=sparse)
            case["memory"] = np.zeros((len(case["samples"]), 3))
            case["memory"][:, 2] = np.nan
            case["penalty"] = (1.0, *case["penalty"][1:])  # scores whose exponential is finite
            if code == 1:
                case["loss"] = 0, 0.0, 1.0, USER
            yield case

    return cases


def dual_joint_cases(rng, dtype):
    for code, kind in itertools.product(range(10), (0, 1, COUPLED)):
        n_tasks, d = (4, 1, 2, 8)[(code + kind) % 4], 3 + code
        case = problem(rng, dtype, d=d, n_shared=1, kind=kind, code=code, sparse=True)
        case["samples"]["task"] %= n_tasks
        memory = np.zeros((len(case["samples"]), 3))
        memory[:, 2] = np.nan
        B = rng.normal(size=(n_tasks, 2))
        weights = rng.normal(size=(d + 1, n_tasks)) / 4
        weights[-1] *= kind == COUPLED
        kept = ("data", "indices", "indptr", "samples", "order", "intercept")
        yield {
            **{name: case[name] for name in kept},
            "weights": weights,
            "covariance": B @ B.T + np.diag(case["coupling"][1][:1].repeat(n_tasks)),
            "loss": (0, 0.0, 1.0, USER) if code == 1 else case["loss"],
            "alpha": 1.0,
            "intercept_kind": kind,
            "memory": memory,
        }


def spreads(rng, dtype, case):
    return (
        rng.uniform(1, 3, size=case["shared"].shape[1:]).astype(dtype),
        rng.uniform(1, 9, size=case["specific"].shape).astype(dtype),
    )


SHARES = [(1.0, 0.0, 0.0, 1.0), (0.0, 1.0, 0.7, 0.3), (0.2, 0.0, 0.0, 0.0)]


def sgd_general_cases(sparse):
    def cases(rng, dtype):
        for i, (code, kind, n_shared) in enumerate(
            itertools.product((SOFTMAX, 0, 5, 9), range(4), (0, 1, 2))
        ):
            case = problem(
                rng, dtype, d=2 + i % 17, n_shared=n_shared, kind=kind, code=code, sparse=sparse
            )
            shapes = [case[name].shape for name in ("shared", "specific", "intercept")]
            squares, drift = ([np.abs(rng.normal(size=s)) for s in shapes] for _ in range(2))
            yield {
                **case,
                **schedule(i % 2),
                "shares": SHARES[i % 3],
                "extras": (
                    (0.0, 0.8)[i // 2 % 2],
                    10,
                    tuple(squares) if i % 3 else None,
                    tuple(drift) if i % 5 < 3 else None,
                ),
                **({"spreads": spreads(rng, dtype, case)} if sparse else {}),
            }

    return cases


def saga_general_cases(sparse):
    def cases(rng, dtype):
        for i, case in enumerate(saga_cases(sparse)(rng, dtype)):
            yield {**case, "shares": SHARES[i % 3]}

    return cases


def losses_cases(sparse):
    def cases(rng, dtype):
        for case in sgd_cases(sparse)(rng, dtype):
            for name in ("order", "schedule"):
                del case[name]
            yield {**case, "task_loss": np.zeros(4), "n_threads": 1}
        for size in (1e-9, 30, 300):  # margins in all ranges of the exponential
            case = problem(rng, dtype, d=9, n_shared=1, kind=COUPLED, code=9, sparse=sparse)
            for name in ("shared", "specific", "intercept"):
                case[name] *= size
            del case["order"]
            yield {**case, "task_loss": np.zeros(4), "n_threads": 1}

    return cases


def point_losses(rng, dtype):
    for code in range(10):
        target = rng.choice([-1.0, 1.0], size=200) if code >= 6 else rng.normal(size=200)
        score = rng.normal(size=200) * 3
        score[:3] = target[:3]  # the kinks
        parameter = 0.3
        yield {
            "code": code,
            "parameter": parameter,
            "target": target,
            "score": score,
            "value": np.zeros(200),
            "gradient": np.zeros(200),
            "user": USER if code == 3 else 0,
        }


def find_columns_cases(rng, dtype):
    for grow in (True, False):
        X = sp.csr_matrix(rng.random((30, 17)) < 0.3)
        known = [rng.permutation(17)[:size] for size in (0, 5, 17, 3)]
        yield {
            "indices": X.indices.astype(np.int32),
            "indptr": X.indptr.astype(np.int64),
            "row": rng.permutation(30)[:25],
            "task_start": np.array([0, 10, 10, 19, 25]),
            "known": np.concatenate(known).astype(np.int32),
            "known_start": np.cumsum([0] + [len(own) for own in known]),
            "d": 17,
            "position": np.zeros(X.nnz, dtype=np.int32),
            "grow": grow,
        }


def squared_lengths_cases(rng, dtype):
    X = rng.normal(size=(30, 40)) * (rng.random((30, 40)) < 0.3)
    X[3] = 0.0
    X = sp.csr_matrix(X, dtype=dtype)
    yield {"data": X.data, "indptr": X.indptr.astype(np.int64), "lengths": np.zeros(30)}


CASES = {
    "find_columns": find_columns_cases,
    "sgd_dense": by_threads(sgd_cases(sparse=False)),
    "sgd_csr": by_threads(sgd_cases(sparse=True)),
    "saga_dense": saga_cases(sparse=False),
    "saga_csr": saga_cases(sparse=True),
    "sgd_general_dense": by_threads(sgd_general_cases(sparse=False)),
    "sgd_general_csr": by_threads(sgd_general_cases(sparse=True)),
    "saga_general_dense": saga_general_cases(sparse=False),
    "saga_general_csr": saga_general_cases(sparse=True),
    "dual_dense": dual_cases(sparse=False),
    "dual_csr": dual_cases(sparse=True),
    "dual_joint_csr": dual_joint_cases,
    "losses_dense": losses_cases(sparse=False),
    "losses_csr": losses_cases(sparse=True),
    "point_losses": point_losses,
    "squared_lengths": squared_lengths_cases,
}
