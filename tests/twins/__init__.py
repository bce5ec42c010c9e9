"""Inputs for the walk over (compiled function, NumPy twin) pairs, one module per core module.

A module ``twins/NAME.py`` serves ``fastmtl._core.NAME`` and ``fastmtl.reference.NAME``. Its
``CASES`` maps each public function's name to a function ``(rng, dtype) -> iterable of dict``, the
keyword arguments of one call each. Arrays that the call writes to are compared afterwards like
the returned values, so a case must initialise its output arrays.

An argument named ``n_threads`` is walked over 1, 2 and 3 by the test itself. A module may set
``TOLERANCE = {function name: factor}`` where rounding is amplified, and must say why.
"""
