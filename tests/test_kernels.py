"""Kernel matrices against scikit-learn, higher precision, and each other."""

import mpmath
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator, cg, eigsh, svds
from sklearn.metrics import pairwise

import fastmtl

TOLERANCE = {np.float32: 3e-6, np.float64: 1e-14}
KERNELS = {
    "sigmoid_kernel": lambda X, Y: (
        0.5 + 0.5 * pairwise.sigmoid_kernel(X, Y, gamma=0.35, coef0=0.14)
    ),
    "tanh_kernel": lambda X, Y: pairwise.sigmoid_kernel(X, Y, gamma=0.3, coef0=0.5),
    "rbf_kernel": lambda X, Y: pairwise.rbf_kernel(X, Y, gamma=0.3),
    "polynomial_kernel": lambda X, Y: pairwise.polynomial_kernel(
        X, Y, degree=3, gamma=0.3, coef0=0.5
    ),
    "linear_kernel": pairwise.linear_kernel,
}
SETTINGS = {
    "sigmoid_kernel": {"sigma": 0.7, "c": 0.4},
    "tanh_kernel": {"gamma": 0.3, "coef0": 0.5},
    "rbf_kernel": {"gamma": 0.3},
    "polynomial_kernel": {"gamma": 0.3, "coef0": 0.5, "degree": 3},
    "linear_kernel": {},
}


def data(n, m, d, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)).astype(dtype), rng.normal(size=(m, d)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_equal_scikit_learn(name, dtype):
    X, Y = data(70, 300, 13, dtype)
    wide = X.astype(np.float64), Y.astype(np.float64)
    for first, second in [(X, Y), (X, None), (X[:1], Y[:1])]:
        got = getattr(fastmtl, name)(first, second, **SETTINGS[name])
        want = KERNELS[name](
            wide[0][: len(first)], None if second is None else wide[1][: len(second)]
        )
        assert got.dtype == dtype
        scale = max(1.0, np.abs(want).max())
        np.testing.assert_allclose(got, want, rtol=0, atol=30 * TOLERANCE[dtype] * scale)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 120),
    m=st.integers(1, 120),
    d=st.integers(1, 300),
    seed=st.integers(0, 1000),
    n_threads=st.integers(1, 4),
)
def test_every_shape_is_right(n, m, d, seed, n_threads):
    X, Y = data(n, m, d, seed=seed)
    got = fastmtl.sigmoid_kernel(X, Y, sigma=0.3, c=0.1, n_threads=n_threads)
    want = 1 / (1 + np.exp(-0.3 * (X @ Y.T + 0.1)))
    np.testing.assert_allclose(got, want, rtol=1e-11)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_error_is_at_most_four_ulp(dtype):
    limit = 100.0 if dtype == np.float32 else 740.0
    rng = np.random.default_rng(0)
    z = np.concatenate([np.linspace(-limit, limit, 4001), rng.normal(size=2000), [0.0, -0.0]])
    z = z.astype(dtype)
    got = fastmtl.sigmoid_kernel(z[:, None], np.ones((1, 1), dtype=dtype)).ravel()
    with mpmath.workdps(60):
        exact = [1 / (1 + mpmath.exp(-mpmath.mpf(value))) for value in z.tolist()]
        assert_within_four_ulp(got, exact, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_error_is_at_most_four_ulp_where_the_argument_is_scaled_first(dtype):
    # σ = ln 2, and one feature of eight: the inner product is the argument in base 2.
    limit = 149 if dtype == np.float32 else 1074
    rng = np.random.default_rng(0)
    z = np.concatenate([np.linspace(-limit, limit, 2001), rng.normal(size=2000)]).astype(dtype)
    X, Y = np.zeros((len(z), 8), dtype=dtype), np.zeros((30, 8), dtype=dtype)
    X[:, 3], Y[:, 3] = z, 1
    got = fastmtl.sigmoid_kernel(X, Y, sigma=np.log(2))
    assert np.array_equal(got, np.repeat(got[:, :1], 30, axis=1))
    scaled_first = fastmtl.get_config()["simd"] == "avx512"
    rounding = 0.0 if scaled_first else 2 * np.finfo(dtype).eps
    with mpmath.workdps(60):
        exact = [1 / (1 + mpmath.mpf(2) ** -mpmath.mpf(value)) for value in z.tolist()]
        more = [rounding * abs(v) * e * (1 - e) for v, e in zip(z.tolist(), exact)]
        assert_within_four_ulp(got[:, 0], exact, dtype, more)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [3, 8, 33, 128])
def test_error_of_many_features_is_that_of_two_features_more(d, dtype):
    X, Y = data(6, 30, d, dtype)
    sigma, c = 0.7, -0.4
    got = fastmtl.sigmoid_kernel(X, Y, sigma=sigma, c=c)
    exact, more = [], []
    with mpmath.workdps(40):
        shift = mpmath.mpf(sigma) * mpmath.mpf(c)
        for x in X.tolist():
            for y in Y.tolist():
                K = 1 / (1 + mpmath.exp(-(sigma * mpmath.fdot(x, y) + shift)))
                size = sigma * mpmath.fdot(map(abs, x), map(abs, y)) + abs(shift)
                exact.append(K)
                more.append((d + 2) * float(np.finfo(dtype).eps) / 2 * size * K * (1 - K))
        assert_within_four_ulp(got.ravel(), exact, dtype, more)


def assert_within_four_ulp(got, exact, dtype, more=None):
    """Plus `more`, the error of the argument times the slope."""
    for place, (result, truth) in enumerate(zip(got.tolist(), exact)):
        unit = np.spacing(max(dtype(float(truth)), np.finfo(dtype).smallest_subnormal))
        limit = 4 * mpmath.mpf(float(unit)) + (more[place] if more else 0)
        assert abs(mpmath.mpf(result) - truth) <= limit, place


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [5, 16, 40])
def test_a_row_does_not_depend_on_its_neighbours(d, dtype):
    X, Y = data(11, 53, d, dtype)
    K = fastmtl.sigmoid_kernel(X, Y, sigma=0.5)
    for i in range(11):
        assert np.array_equal(fastmtl.sigmoid_kernel(X[i : i + 1], Y, sigma=0.5), K[i : i + 1])
        assert np.array_equal(fastmtl.sigmoid_kernel(X[i:], Y[i:], sigma=0.5), K[i:, i:])


@pytest.mark.parametrize(
    ("x", "y", "sigma", "value"),
    [
        (1e300, 1e-300, 2.0, 1 / (1 + np.exp(-2))),
        (1e-300, 1e-8, 1e308, 1 / (1 + np.exp(-1))),
        (-1e200, 1e-200, 0.5, 1 / (1 + np.exp(0.5))),
        (1e200, 1e200, 1.0, 1.0),
        (-1e200, 1e200, 1.0, 0.0),
        (1.0, 0.0, 1e308, 0.5),
    ],
)
def test_sizes_that_nearly_overflow_do_no_harm(x, y, sigma, value):
    X, Y = np.zeros((5, 9)), np.zeros((25, 9))
    X[:, 4], Y[:, 4] = x, y
    np.testing.assert_allclose(fastmtl.sigmoid_kernel(X, Y, sigma=sigma), value, rtol=1e-14)


def test_extreme_arguments_are_exactly_zero_and_one():
    huge = np.array([[1e200], [-1e200], [1e308], [-1e308], [800.0], [-800.0]])
    with np.errstate(all="raise"):
        K = fastmtl.sigmoid_kernel(huge, [[1e200], [1.0]])
    assert np.array_equal(K[:4, 0], [1, 0, 1, 0])
    assert np.array_equal(K[4:, 1], [1, 0])
    assert np.array_equal(
        fastmtl.tanh_kernel(huge, [[1e200]], gamma=1.0)[:4].ravel(), [1, -1, 1, -1]
    )


@pytest.mark.parametrize("n", [1, 7, 95, 96, 97, 500])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_symmetric_case_is_exactly_symmetric(n, dtype):
    X, _ = data(n, 1, 20, dtype)
    K = fastmtl.sigmoid_kernel(X, sigma=0.1)
    assert np.array_equal(K, K.T)
    narrow = fastmtl.sigmoid_kernel(X, sigma=0.1, out=np.empty((n, n), dtype=np.float32))
    assert np.array_equal(narrow, K.astype(np.float32))
    np.testing.assert_allclose(
        K, fastmtl.sigmoid_kernel(X, X.copy(), sigma=0.1), rtol=20 * TOLERANCE[dtype]
    )


def test_large_outputs_are_streamed_and_right():
    X, Y = data(1200, 1024, 9)
    want = 1 / (1 + np.exp(-(X @ Y.T)))
    np.testing.assert_allclose(fastmtl.sigmoid_kernel(X, Y), want, rtol=1e-12)
    np.testing.assert_allclose(fastmtl.sigmoid_kernel(X), 1 / (1 + np.exp(-(X @ X.T))), rtol=1e-11)


@pytest.mark.parametrize("dtypes", ["dd", "df", "ff"])
@pytest.mark.parametrize("offset", [4, 16, 40])
def test_large_outputs_start_anywhere(offset, dtypes):
    """At every distance from a cache line, with rows that keep it and rows that do not."""
    wide, dtype = dtypes
    for n, m in [(1100, 2048), (1101, 2045), (1504, None), (1499, None)]:
        X, Y = data(n, m or 1, 9, wide)
        second, shape = (Y, (n, m)) if m else (None, (n, n))
        size = np.prod(shape) * np.dtype(dtype).itemsize
        raw = np.full(size + 256, 0xA5, dtype=np.uint8)
        begin = -raw.ctypes.data % 64 + 64 + offset
        out = np.ndarray(shape, dtype, raw.data, begin)
        for name in ("sigmoid_kernel", "rbf_kernel"):
            kernel = getattr(fastmtl, name)
            kernel(X, second, out=out, **SETTINGS[name])
            want = kernel(X[::7], X if second is None else second, **SETTINGS[name])
            np.testing.assert_allclose(out[::7], want, rtol=100 * TOLERANCE[np.dtype(dtype).type])
            assert second is not None or np.array_equal(out, out.T)
        assert (raw[:begin] == 0xA5).all() and (raw[begin + size :] == 0xA5).all()


def test_awkward_but_good_input_is_accepted(tmp_path):
    X, Y = data(40, 50, 6)
    want = fastmtl.sigmoid_kernel(X, Y)
    mapped = np.memmap(tmp_path / "x", dtype=np.float64, mode="w+", shape=X.shape)
    mapped[:] = X
    read_only = X.copy()
    read_only.flags.writeable = False
    unaligned = np.ndarray(X.shape, X.dtype, bytearray(4 + X.nbytes), 4)
    unaligned[:] = X
    padded = np.zeros((40, 9))
    padded[:, :6] = X
    for awkward in [
        np.asfortranarray(X),
        np.repeat(X, 2, axis=1)[:, ::2],
        np.repeat(X, 2, axis=0)[::2],
        X[::-1].copy()[::-1],
        padded[:, :6],
        X.astype(">f8"),
        X.tolist(),
        mapped,
        read_only,
        unaligned,
    ]:
        np.testing.assert_allclose(fastmtl.sigmoid_kernel(awkward, Y), want, rtol=1e-13)
    integers = np.arange(12).reshape(4, 3)
    np.testing.assert_allclose(
        fastmtl.tanh_kernel(integers), pairwise.sigmoid_kernel(integers), rtol=1e-13
    )


def test_sparse_equals_dense():
    X, Y = data(60, 33, 40)
    X[np.abs(X) < 1] = 0
    Y[np.abs(Y) < 1] = 0
    for name in KERNELS:
        function, options = getattr(fastmtl, name), SETTINGS[name]
        want = function(X, Y, **options)
        for first, second in [
            (sp.csr_matrix(X), sp.csr_matrix(Y)),
            (sp.csr_array(X), Y),
            (X, sp.csc_matrix(Y)),
        ]:
            got = function(first, second, **options)
            np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)
        symmetric = function(sp.csr_matrix(X), **options)
        assert np.array_equal(symmetric, symmetric.T)
        np.testing.assert_allclose(symmetric, function(X, **options), rtol=1e-11, atol=1e-12)


def test_out_of_any_layout_is_filled(tmp_path):
    X, Y = data(31, 45, 5)
    want = fastmtl.sigmoid_kernel(X, Y)
    mapped = np.memmap(tmp_path / "out", dtype=np.float64, mode="w+", shape=want.shape)
    for out in [
        np.empty_like(want),
        np.empty_like(want, order="F"),
        np.zeros((31, 90))[:, ::2],
        np.zeros((31, 60))[:, 3:48],
        mapped,
    ]:
        assert fastmtl.sigmoid_kernel(X, Y, out=out) is out
        np.testing.assert_array_equal(out, want)
    square = np.empty((31, 31), order="F")
    fastmtl.sigmoid_kernel(X, out=square)
    np.testing.assert_array_equal(square, fastmtl.sigmoid_kernel(X))


@pytest.mark.parametrize("sparse", [False, True])
def test_float32_out_of_float64_rows_rounds_what_float64_gives(sparse):
    rng = np.random.default_rng(0)
    # Far from the origin, where float32 arithmetic would lose the distances.
    X, Y = 1e4 + rng.normal(size=(1500, 3)), 1e4 + rng.normal(size=(203, 3))
    as_given = sp.csr_matrix if sparse else np.asarray
    for other in (None, as_given(Y)):
        want = fastmtl.rbf_kernel(as_given(X), other, gamma=0.1)
        out = np.empty(want.shape, dtype=np.float32)
        fastmtl.rbf_kernel(as_given(X), other, gamma=0.1, out=out)
        np.testing.assert_array_equal(out, want.astype(np.float32))
        buffer = fastmtl.kernels.empty_matrix(*want.shape, np.float32)
        fastmtl.rbf_kernel(as_given(X), other, gamma=0.1, out=buffer)
        np.testing.assert_array_equal(buffer, out)


def test_the_number_of_threads_does_not_change_a_bit():
    X, Y = data(300, 500, 17)
    one = fastmtl.sigmoid_kernel(X, Y, n_threads=1)
    assert np.array_equal(one, fastmtl.sigmoid_kernel(X, Y, n_threads=2))
    assert np.array_equal(one, fastmtl.sigmoid_kernel(X, Y, n_threads=5))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"X": [[np.nan]]}, "X contains NaN"),
        ({"Y": [[np.inf]]}, "Y contains infinity"),
        ({"X": [1.0, 2.0]}, "Expected 2D array"),
        ({"X": np.empty((0, 1))}, "0 sample"),
        ({"Y": [[1.0, 2.0]]}, "Y has 2 features, X has 1"),
        ({"X": [[1j]]}, "Complex data not supported"),
        ({"X": [["a"]]}, "could not convert"),
        ({"sigma": "large"}, "sigma is 'large'; pass a finite number, 'scale' or 'auto'"),
        ({"sigma": np.nan}, "sigma is nan"),
        ({"c": None}, "c is None"),
        ({"n_threads": 0}, "n_threads is 0"),
        ({"out": np.empty((2, 2))}, r"out has shape \(2, 2\)"),
        ({"out": np.empty((1, 1), dtype=np.float16)}, "dtype float16"),
        ({"out": [[0.0]]}, "out is a list"),
    ],
)
def test_bad_input_is_named(change, words):
    arguments = {"X": [[1.0]], "Y": [[1.0]], **change}
    with pytest.raises(ValueError, match=words):
        fastmtl.sigmoid_kernel(**arguments)


def test_read_only_out_is_refused():
    out = np.zeros((1, 1))
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        fastmtl.sigmoid_kernel([[1.0]], out=out)


def test_scale_is_one_over_the_spread_of_the_features():
    X, Y = data(50, 20, 4)
    X = 3 * X + 1
    want = fastmtl.sigmoid_kernel(X, Y, sigma=1 / (4 * X.var()))
    np.testing.assert_allclose(fastmtl.sigmoid_kernel(X, Y, sigma="scale"), want, rtol=1e-12)
    np.testing.assert_allclose(
        fastmtl.sigmoid_kernel(sp.csr_matrix(X), Y, sigma="scale"), want, rtol=1e-11
    )


@pytest.mark.parametrize("kernel", ["sigmoid", "tanh", "linear", "poly", "rbf"])
def test_blocks_make_up_the_matrix(kernel):
    X, Y = data(53, 31, 6)
    names = {"poly": "polynomial"}
    whole = getattr(fastmtl, f"{names.get(kernel, kernel)}_kernel")(X, Y)
    seen = 0
    for rows, block in fastmtl.iter_gram(X, Y, kernel=kernel, block_rows=20):
        np.testing.assert_allclose(block, whole[rows], rtol=1e-12)
        seen += len(block)
    assert seen == 53
    for rows, block in fastmtl.iter_gram(sp.csr_matrix(X), kernel=kernel, block_rows=7):
        assert block.shape == (rows.stop - rows.start, 53)


def test_iter_gram_names_what_is_wrong():
    with pytest.raises(ValueError, match="kernel is 'cosine'"):
        fastmtl.iter_gram(np.eye(2), kernel="cosine")
    with pytest.raises(ValueError, match="block_rows is 0"):
        fastmtl.iter_gram(np.eye(2), block_rows=0)


@pytest.mark.parametrize("form", ["logistic", "tanh"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_operator_is_the_matrix(form, dtype, n_threads):
    X, Y = data(301, 530, 9, dtype)
    settings = {"sigma": 0.4, "c": 0.2}
    operator = fastmtl.SigmoidOperator(X, Y, form=form, n_threads=n_threads, **settings)
    if form == "logistic":
        K = fastmtl.sigmoid_kernel(X, Y, **settings)
    else:
        K = fastmtl.tanh_kernel(X, Y, gamma=0.4, coef0=0.2)
    rng = np.random.default_rng(0)
    v, V, u = rng.normal(size=530), rng.normal(size=(530, 4)), rng.normal(size=301)
    for got, want in [
        (operator @ v, K @ v),
        (operator @ V, K @ V),
        (operator.T @ u, K.T @ u),
        (operator.H @ u, K.T @ u),
        (operator.diagonal(), np.diagonal(K)),
    ]:
        assert got.dtype == dtype
        np.testing.assert_allclose(got, want, atol=300 * TOLERANCE[dtype])
    assert operator.shape == (301, 530)


def test_operator_serves_scipy_s_solvers():
    X, Y = data(200, 80, 5)
    operator, K = fastmtl.SigmoidOperator(X, sigma=0.3), fastmtl.sigmoid_kernel(X, sigma=0.3)
    found = eigsh(operator, k=4, return_eigenvectors=False, v0=np.ones(200))
    want = np.linalg.eigvalsh(K)
    np.testing.assert_allclose(np.sort(np.abs(found)), np.sort(np.abs(want))[-4:], rtol=1e-8)
    wide = fastmtl.SigmoidOperator(X, Y, sigma=0.3)
    singular = svds(wide, k=3, return_singular_vectors=False, v0=np.ones(80))
    want = np.linalg.svd(fastmtl.sigmoid_kernel(X, Y, sigma=0.3), compute_uv=False)[:3]
    np.testing.assert_allclose(np.sort(singular)[::-1], want, rtol=1e-8)
    shifted = operator @ operator + aslinearoperator(np.eye(200))
    solution, failed = cg(shifted, np.ones(200), rtol=1e-10)
    assert failed == 0
    np.testing.assert_allclose(K @ (K @ solution) + solution, np.ones(200), atol=1e-7)


def test_operator_refuses_what_it_cannot_multiply():
    with pytest.raises(ValueError, match="form is 'rbf'"):
        fastmtl.SigmoidOperator(np.eye(2), form="rbf")
    with pytest.raises(ValueError, match="must be dense"):
        fastmtl.SigmoidOperator(sp.csr_matrix(np.eye(2)))
    with pytest.raises(ValueError, match="Y has 3 features, X has 2"):
        fastmtl.SigmoidOperator(np.eye(2), np.eye(3))


def test_gradient_is_that_of_finite_differences():
    X, Y = data(30, 40, 5)
    W = np.random.default_rng(1).normal(size=(30, 40))
    kernels = {
        "logistic": lambda s, c: fastmtl.sigmoid_kernel(X, Y, sigma=s, c=c),
        "tanh": lambda s, c: fastmtl.tanh_kernel(X, Y, gamma=s, coef0=c),
    }

    h = 1e-6
    for form, kernel in kernels.items():
        want = [
            np.sum(W * (kernel(0.4 + h, 0.3) - kernel(0.4 - h, 0.3))) / (2 * h),
            np.sum(W * (kernel(0.4, 0.3 + h) - kernel(0.4, 0.3 - h))) / (2 * h),
        ]
        setting = {"sigma": 0.4, "c": 0.3, "form": form}
        got = fastmtl.kernel_gradient(X, Y, W, **setting)
        np.testing.assert_allclose(got, want, rtol=1e-6)
        sparse = fastmtl.kernel_gradient(sp.csr_matrix(X), Y, W, **setting)
        np.testing.assert_allclose(sparse, got, rtol=1e-11)
        narrow = fastmtl.kernel_gradient(X.astype("f4"), Y.astype("f4"), W, **setting)
        np.testing.assert_allclose(narrow, got, rtol=1e-4)
    many = np.vstack([X] * 50)
    np.testing.assert_allclose(
        fastmtl.kernel_gradient(many, Y), 50 * fastmtl.kernel_gradient(X, Y), rtol=1e-11
    )
    with pytest.raises(ValueError, match=r"W has shape \(2, 2\)"):
        fastmtl.kernel_gradient(X, Y, np.eye(2))
    with pytest.raises(ValueError, match="Y has 2 features"):
        fastmtl.kernel_gradient(X, Y[:, :2])
    with pytest.raises(ValueError, match="form is 'rbf'"):
        fastmtl.kernel_gradient(X, Y, form="rbf")


def test_results_that_are_alive_never_share_memory():
    X, Y = data(1200, 1024, 3)
    first = fastmtl.sigmoid_kernel(X, Y)
    view, want = first[5:7], first[5:7].copy()
    second = fastmtl.sigmoid_kernel(X, Y, sigma=2.0)
    assert not np.shares_memory(first, second)
    assert first.ctypes.data % 64 == second.ctypes.data % 64 == 0
    del first
    for _ in range(3):
        third = fastmtl.sigmoid_kernel(X, Y, sigma=3.0)
        assert not np.shares_memory(view, third)
        assert not np.shares_memory(second, third)
    np.testing.assert_array_equal(view, want)
    assert second.flags.writeable


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1, 4096), (2, 49, 2500), (101, 1, 1), (49, 193, 257)])
def test_deep_and_narrow_shapes_and_wide_strides(shape, dtype):
    n, m, d = shape
    X, Y = data(n, m, d, dtype)
    wide_X, wide_Y = np.full((n, d + 3), np.nan, dtype), np.full((m, d + 5), np.nan, dtype)
    wide_X[:, :d], wide_Y[:, :d] = X, Y
    z = X.astype(np.float64) @ Y.astype(np.float64).T / d
    got = fastmtl.sigmoid_kernel(wide_X[:, :d], wide_Y[:, :d], sigma=1 / d)
    np.testing.assert_allclose(got, 1 / (1 + np.exp(-z)), rtol=10 * TOLERANCE[dtype])
