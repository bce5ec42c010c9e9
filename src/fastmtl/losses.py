"""A user's own loss: a compiled function of one point, called by the solvers at full speed."""

from __future__ import annotations

import ctypes
import numbers

import numpy as np
from scipy import LowLevelCallable

__all__ = ["PointLoss", "as_point_loss"]

SIGNATURE = "double (double, double, double *)"
TAKES = (
    "a compiled function double(double y, double p, double *gradient): a numba cfunc, a "
    "scipy.LowLevelCallable, a ctypes function, or a PyCapsule of a Cython function"
)

_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_capsule_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(
    ("PyCapsule_GetName", ctypes.pythonapi)
)


class PointLoss:
    """A loss of one's own for the linear models.

    Parameters
    ----------
    function : compiled function
        ``double function(double y, double p, double *gradient)`` returns the loss of the score p
        for the target y and writes its derivative in p, or a subgradient where there is none. It
        is one of

        * a ``numba.cfunc`` of ``"float64(float64, float64, CPointer(float64))"``,
        * a ``scipy.LowLevelCallable``,
        * a ctypes function with `argtypes` and `restype`,
        * a PyCapsule of a Cython function, as in a module's ``__pyx_capi__``.

        It is called from several threads without Python's lock (a ctypes callback to Python takes
        the lock itself, and is slow), and y is +1 or -1 for a classifier. It should be convex in p
        and must not raise.
    smoothness : float or None, default=None
        A bound on the second derivative in p. With it ``solver="saga"`` can be used, and is what
        ``"auto"`` takes. None says that there is none, as for the absolute value; long rows are
        then damped as if it were 1.

    Raises
    ------
    TypeError
        If `function` is not compiled, or carries another signature.
    ValueError
        If `smoothness` is not positive, or `function` has data bound to it.

    Examples
    --------
    The logarithm of the hyperbolic cosine, which grows like the absolute value. A ctypes callback
    keeps this example free of a compiler; in earnest it would be a ``numba.cfunc``.

    >>> import ctypes, math
    >>> import numpy as np
    >>> from fastmtl import MultiTaskSGDRegressor, PointLoss
    >>> double = ctypes.c_double
    >>> @ctypes.CFUNCTYPE(double, double, double, ctypes.POINTER(double))
    ... def log_cosh(y, p, gradient):
    ...     gradient[0] = math.tanh(p - y)
    ...     return math.log(math.cosh(p - y))
    >>> rng = np.random.default_rng(0)
    >>> X, task = rng.normal(size=(100, 2)), np.arange(100) % 2
    >>> model = MultiTaskSGDRegressor(loss=PointLoss(log_cosh, smoothness=1.0), random_state=0)
    >>> model.fit(X, X @ [1.0, -2.0], tasks=task).coef_.round(1)
    array([[ 1., -2.],
           [ 1., -2.]])
    """

    def __init__(self, function, *, smoothness=None):
        if smoothness is not None and not (
            isinstance(smoothness, numbers.Real) and np.isfinite(smoothness) and smoothness > 0
        ):
            raise ValueError(
                f"smoothness is {smoothness!r}; pass a bound > 0 on the second derivative, or None"
            )
        self.function = function
        self.smoothness = smoothness
        self.address = _address(function)

    def __repr__(self):
        return f"PointLoss({self.function!r}, smoothness={self.smoothness!r})"

    def __deepcopy__(self, memo):
        return self  # immutable, and a function pointer has no copy

    def __reduce__(self):
        return _rebuild, (self.function, self.smoothness)


def _rebuild(function, smoothness):
    return PointLoss(function, smoothness=smoothness)


def as_point_loss(loss):
    """`loss` as a PointLoss, or None where it is a word."""
    if isinstance(loss, str):
        return None
    return loss if isinstance(loss, PointLoss) else PointLoss(loss)


def _address(function):
    if hasattr(function, "address") and hasattr(function, "_sig"):  # numba
        _check_signature(str(function._sig), "(float64, float64, float64*) -> float64")
        return int(function.address)
    try:
        callable_ = (
            function if isinstance(function, LowLevelCallable) else LowLevelCallable(function)
        )
    except (TypeError, ValueError) as error:
        raise TypeError(f"loss is {function!r}; pass {TAKES} ({error})") from None
    if callable_.user_data is not None:
        raise ValueError("loss has user_data bound to it; pass a function of (y, p, gradient) only")
    capsule = tuple.__getitem__(callable_, 0)
    name = _capsule_name(capsule)
    _check_signature(name.decode() if name else "none", SIGNATURE)
    return int(_capsule_pointer(capsule, name))


def _check_signature(came, wanted):
    def plain(text):
        for word in ("noexcept", "nogil", "const"):
            text = text.replace(word, "")
        return text.replace(" ", "")

    if plain(came) != plain(wanted):
        raise TypeError(f"loss has the signature {came!r}; pass {TAKES}")
