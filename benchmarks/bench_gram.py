"""The sigmoid Gram against the plain product inside it, and against other tools' sigmoid kernels.

Run ``python benchmarks/bench_gram.py`` for the table of ratios to ``np.dot(X, Y.T, out=out)``.
Each row's candidates are timed in turn, several rounds, and the medians compared.
"""

import argparse
import statistics
import time

import numpy as np
from sklearn.metrics.pairwise import sigmoid_kernel as sklearn_sigmoid_kernel

import fastmtl


def interleaved(candidates, repeats):
    """Median seconds of each candidate, called in turn."""
    seconds = {name: [] for name in candidates}
    for name in candidates:
        candidates[name]()
    for _ in range(repeats):
        for name, function in candidates.items():
            began = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def numpy_expression(X, Y, out):
    np.dot(X, Y.T, out=out)
    np.negative(out, out=out)
    np.exp(out, out=out)
    out += 1
    np.reciprocal(out, out=out)


def row(n, d, dtype, repeats):
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(n, d)) / np.sqrt(d)).astype(dtype)
    Y = (rng.normal(size=(n, d)) / np.sqrt(d)).astype(dtype)
    out = fastmtl.sigmoid_kernel(X, Y)
    candidates = {
        "gemm": lambda: np.dot(X, Y.T, out=out),
        "fastmtl": lambda: fastmtl.sigmoid_kernel(X, Y, out=out),
        "symmetric": lambda: fastmtl.sigmoid_kernel(X, out=out),
        "fresh out": lambda: fastmtl.sigmoid_kernel(X, Y),
        "numpy": lambda: numpy_expression(X, Y, out),
        "scikit-learn": lambda: sklearn_sigmoid_kernel(X, Y),
    }
    return interleaved(candidates, repeats)


def products(dtype, n=20_000, d=16, rows=512):
    """Seconds of ``K @ v`` by the operator and by NumPy in chunks of rows."""
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(n, d)) / np.sqrt(d)).astype(dtype)
    v = rng.normal(size=n).astype(dtype)
    operator = fastmtl.SigmoidOperator(X)

    def chunks():
        out = np.empty(n, dtype=dtype)
        for begin in range(0, n, rows):
            block = slice(begin, begin + rows)
            out[block] = (1 / (1 + np.exp(-(X[block] @ X.T)))) @ v
        return out

    return interleaved({"operator": lambda: operator @ v, "chunks": chunks}, 3)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--features", type=int, nargs="+", default=[16, 64, 256, 1024])
    options = parser.parse_args()
    fastmtl.show_config()
    names = ["fastmtl", "symmetric", "fresh out", "numpy", "scikit-learn"]
    print(f"\nratio to the plain product, n = m = {options.n}")
    print(f"{'':>10}" + "".join(f"{name:>14}" for name in names) + f"{'gemm, ms':>12}")
    for dtype in (np.float64, np.float32):
        for d in options.features:
            seconds = row(options.n, d, dtype, options.repeats)
            ratios = "".join(f"{seconds[name] / seconds['gemm']:14.2f}" for name in names)
            label = f"{np.dtype(dtype).name[0]}{np.dtype(dtype).itemsize * 8}, {d}"
            print(f"{label:>10}{ratios}{1e3 * seconds['gemm']:12.1f}")
    for dtype in (np.float64, np.float32):
        seconds = products(dtype)
        print(
            f"\nSigmoidOperator @ v, n = 20,000, d = 16, {np.dtype(dtype).name}: "
            f"{seconds['chunks'] / seconds['operator']:.1f} times faster than NumPy in chunks "
            f"({1e3 * seconds['operator']:.0f} ms)"
        )
    small = row(256, 32, np.float64, 200)
    print(
        f"\n256 x 256, d = 32: {small['fastmtl'] / small['gemm']:.2f} of the plain product "
        f"({1e6 * small['gemm']:.0f} us)"
    )


if __name__ == "__main__":
    main()
