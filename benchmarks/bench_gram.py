"""The sigmoid Gram against the plain product inside it, and against other tools' sigmoid kernels.

Run ``python benchmarks/bench_gram.py`` for the table of ratios to ``np.dot(X, Y.T, out=out)`` and,
with ``--sweep``, for their plot against d in ``benchmarks/results/gram_sweep.png``. Each row's
candidates are timed in a random order, several rounds, each after some calls of its own, and the
medians compared. All write to one `out` except "fresh", scikit-learn and PyTorch, which return a
new matrix.
"""

import argparse
import pathlib
import random
import statistics
import subprocess
import sys
import time

import numpy as np
from sklearn.metrics.pairwise import sigmoid_kernel as sklearn_sigmoid_kernel

import fastmtl

RESULTS = pathlib.Path(__file__).parent / "results"
N_PRODUCT, D_PRODUCT = 20_000, 16
SPAN = 0.1  # seconds for which a candidate is called in its turn, untimed and then timed


def interleaved(candidates, repeats, span=SPAN):
    """Median seconds of a call of each candidate, in an order that changes from round to round.

    In its turn a candidate is called for `span` seconds untimed, then for as long timed, and at
    least once. Threads of BLAS go on spinning for tens of milliseconds after a product, on the
    cores of what is called next, and threads that slept may be woken all on one core: both are over
    by then, for every candidate.
    """
    order, names = random.Random(0), list(candidates)
    seconds = {name: [] for name in candidates}
    for name in candidates:
        candidates[name]()
    for _ in range(repeats):
        order.shuffle(names)
        for name in names:
            settled = time.perf_counter() + span
            while time.perf_counter() < settled:
                candidates[name]()
            began = now = time.perf_counter()
            while now <= began + span:
                candidates[name]()
                last, now = now, time.perf_counter()
                seconds[name].append(now - last)
    return {name: statistics.median(values) for name, values in seconds.items()}


def numpy_expression(X, Y, out):
    np.dot(X, Y.T, out=out)
    np.negative(out, out=out)
    np.exp(out, out=out)
    out += 1
    np.reciprocal(out, out=out)


def optional_peers(X, Y, out):
    """Sigmoid kernels of the libraries that are installed; the others are named on stderr."""
    peers = {}
    try:
        import numexpr
    except ImportError:
        missing("numexpr")
    else:

        def by_numexpr():
            np.dot(X, Y.T, out=out)
            numexpr.evaluate("1 / (1 + exp(-K))", {"K": out}, out=out)

        peers["numexpr"] = by_numexpr
    try:
        import torch
    except ImportError:
        missing("PyTorch")
    else:
        first, second, zero = torch.from_numpy(X), torch.from_numpy(Y), torch.zeros(1)
        zero = zero.to(first.dtype)
        peers["torch"] = lambda: torch.sigmoid(torch.addmm(zero, first, second.T))
    return peers


def missing(name, reason="it is not installed", _said=set()):  # noqa: B006 (said once a run)
    if name not in _said:
        print(f"without {name}: {reason}", file=sys.stderr)
        _said.add(name)


def row(n, d, dtype, repeats, peers=True):
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(n, d)) / np.sqrt(d)).astype(dtype)
    Y = (rng.normal(size=(n, d)) / np.sqrt(d)).astype(dtype)
    out = fastmtl.sigmoid_kernel(X, Y)
    candidates = {
        "gemm": lambda: np.dot(X, Y.T, out=out),
        "fastmtl": lambda: fastmtl.sigmoid_kernel(X, Y, out=out),
        "symmetric": lambda: fastmtl.sigmoid_kernel(X, out=out),
        "fresh": lambda: fastmtl.sigmoid_kernel(X, Y),
    }
    if peers:
        candidates["numpy"] = lambda: numpy_expression(X, Y, out)
        candidates["scikit-learn"] = lambda: sklearn_sigmoid_kernel(X, Y)
        candidates.update(optional_peers(X, Y, out))
    return interleaved(candidates, repeats)


def product_data(dtype):
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(N_PRODUCT, D_PRODUCT)) / np.sqrt(D_PRODUCT)).astype(dtype)
    return X, rng.normal(size=N_PRODUCT).astype(dtype)


def products(dtype, rows=512):
    """Seconds of ``K @ v`` by the operator, by NumPy in chunks of rows, and by KeOps."""
    X, v = product_data(dtype)
    operator = fastmtl.SigmoidOperator(X)

    def chunks():
        out = np.empty(len(X), dtype=dtype)
        for begin in range(0, len(X), rows):
            block = slice(begin, begin + rows)
            out[block] = (1 / (1 + np.exp(-(X[block] @ X.T)))) @ v
        return out

    candidates = {"operator": lambda: operator @ v, "chunks": chunks}
    try:
        from pykeops.numpy import LazyTensor

        column = v[:, None].copy()

        def by_keops():
            inner = LazyTensor(X[:, None, :]) | LazyTensor(X[None, :, :])
            return (1 / (1 + (-inner).exp())) @ column

        np.testing.assert_allclose(by_keops().ravel(), operator @ v, rtol=0.01, atol=0.01)
    except Exception as error:  # no compiler, no headers, no network: KeOps builds at first use
        missing("KeOps", f"{type(error).__name__}: {error}".splitlines()[0])
    else:
        candidates["keops"] = by_keops
    return interleaved(candidates, 3, span=0)


def peak_of_product(dtype):
    """Megabytes by which ``op @ v`` raises the peak memory of a fresh process."""
    if not sys.platform.startswith("linux"):
        return float("nan")
    command = [sys.executable, __file__, "--peak", np.dtype(dtype).name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_megabytes():
    """Of this process's program: getrusage's figure would include that of the parent."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def print_peak(dtype):
    X, v = product_data(dtype)
    warm = fastmtl.SigmoidOperator(X[:64]) @ v[:64]  # starts the threads
    operator = fastmtl.SigmoidOperator(X)
    before = peak_megabytes()
    assert np.isfinite(operator @ v).all() and np.isfinite(warm).all()
    print(peak_megabytes() - before)


def sweep(n, repeats):
    """Plot the ratios against d."""
    features = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    ratios = {}
    for dtype in (np.float64, np.float32):
        rows = [row(n, d, dtype, repeats) for d in features]
        ratios[np.dtype(dtype).name] = {
            name: [seconds[name] / seconds["gemm"] for seconds in rows] for name in rows[0]
        }
    RESULTS.mkdir(exist_ok=True)
    plot(features, ratios, n, RESULTS / "gram_sweep.png")
    print(f"plot in {RESULTS / 'gram_sweep.png'}")


def plot(features, ratios, n, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = {
        "gemm": "plain product, np.dot",
        "fastmtl": "fastmtl",
        "symmetric": "fastmtl, symmetric",
        "fresh": "fastmtl, fresh output",
        "numpy": "NumPy expression",
        "torch": "PyTorch",
    }
    styles = {
        "gemm": {"color": "black", "linestyle": "--"},
        "fastmtl": {"color": "C3", "linewidth": 2.5},
        "symmetric": {"color": "C3", "linestyle": ":", "linewidth": 2.5},
        "fresh": {"color": "C3", "linewidth": 1},
        "torch": {"color": "C4", "marker": "o", "markersize": 3, "linewidth": 1},
    }
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
    for axis, (dtype, lines) in zip(axes, ratios.items()):
        for name, values in lines.items():
            style = styles.get(name, {"marker": "o", "markersize": 3, "linewidth": 1})
            axis.plot(features, values, label=labels.get(name, name), **style)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(features[::2], features[::2])
        axis.set_yticks([0.25, 0.5, 1, 2, 4, 8, 16], ["¼", "½", "1", "2", "4", "8", "16"])
        axis.minorticks_off()
        axis.set(xlabel="features d", title=dtype)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"time / time of the plain product, n = m = {n}")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", fontsize="small", frameon=False)
    figure.savefig(path, dpi=90)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--features", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--sweep", action="store_true", help="plot the ratios against d")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print_peak(options.peak)
        return
    fastmtl.show_config()
    if options.sweep:
        sweep(options.n, options.repeats)
        return
    print(f"\nratio to the plain product, n = m = {options.n}")
    names = None
    for dtype in (np.float64, np.float32):
        for d in options.features:
            seconds = row(options.n, d, dtype, options.repeats)
            if names is None:
                names = [name for name in seconds if name != "gemm"]
                print(f"{'':>10}" + "".join(f"{name:>14}" for name in names) + f"{'gemm, ms':>12}")
            ratios = "".join(f"{seconds[name] / seconds['gemm']:14.2f}" for name in names)
            label = f"{np.dtype(dtype).name[0]}{np.dtype(dtype).itemsize * 8}, {d}"
            print(f"{label:>10}{ratios}{1e3 * seconds['gemm']:12.1f}", flush=True)
    for dtype in (np.float64, np.float32):
        seconds = products(dtype)
        keops = f"{seconds['keops'] / seconds['operator']:.0f} times" if "keops" in seconds else "–"
        print(
            f"\nSigmoidOperator @ v, n = {N_PRODUCT:,}, d = {D_PRODUCT}, {np.dtype(dtype).name}: "
            f"{seconds['chunks'] / seconds['operator']:.1f} times faster than NumPy in chunks, "
            f"{keops} than KeOps ({1e3 * seconds['operator']:.0f} ms, "
            f"{peak_of_product(dtype):.1f} MB of peak memory)"
        )
    small = row(256, 32, np.float64, options.repeats, peers=False)
    print(
        f"\n256 x 256, d = 32: {small['fastmtl'] / small['gemm']:.2f} of the plain product "
        f"({1e6 * small['gemm']:.0f} us)"
    )


if __name__ == "__main__":
    main()
