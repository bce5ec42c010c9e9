"""Every public function of the compiled core does what its NumPy twin does."""

import copy
import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
import zlib

import numpy as np
import pytest

import fastmtl._core
import fastmtl.reference
from fastmtl._core import cpu

# Relative to the largest magnitude in the expected array: rounding of sums is relative to that.
TOLERANCE = {np.dtype(np.float32): 2e-5, np.dtype(np.float64): 1e-12}
WITHOUT_TWIN = {"cpu", "memory"}  # ask the machine, compute nothing


def modules(package):
    return {module.name for module in pkgutil.iter_modules(package.__path__)}


def public_functions(module):
    if hasattr(module, "__all__"):
        return set(module.__all__)
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and not inspect.isclass(value)
        and getattr(value, "__module__", module.__name__) == module.__name__
    }


def pairs():
    for module_name in sorted(modules(fastmtl._core) - WITHOUT_TWIN):
        compiled = importlib.import_module(f"fastmtl._core.{module_name}")
        for name in sorted(public_functions(compiled)):
            yield module_name, name


def test_every_core_module_has_a_reference_module():
    assert modules(fastmtl._core) - WITHOUT_TWIN == modules(fastmtl.reference)


@pytest.mark.parametrize("module_name", sorted(modules(fastmtl._core) - WITHOUT_TWIN))
def test_names_and_signatures_agree(module_name):
    compiled = importlib.import_module(f"fastmtl._core.{module_name}")
    reference = importlib.import_module(f"fastmtl.reference.{module_name}")
    cases = importlib.import_module(f"twins.{module_name}").CASES
    names = public_functions(compiled)
    assert names, f"fastmtl._core.{module_name} has no public function"
    assert names == public_functions(reference)
    assert names == set(cases)
    for name in names:
        assert parameters(compiled, name) == parameters(reference, name), f"{module_name}.{name}"


def parameters(module, name):
    return [
        (p.name, p.default) for p in inspect.signature(getattr(module, name)).parameters.values()
    ]


def flatten(value):
    if isinstance(value, tuple | list):
        for item in value:
            yield from flatten(item)
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from flatten(value[key])
    elif value is not None and not isinstance(value, str):
        yield np.asarray(value)


def assert_same(got, want, dtype, factor, label):
    got, want = list(flatten(got)), list(flatten(want))
    assert len(got) == len(want), label
    for g, w in zip(got, want):
        assert g.shape == w.shape, label
        if (
            g.tobytes() == w.tobytes()
        ):  # most inputs stay as they were, and NumPy's asserts are slow
            continue
        if w.dtype.kind in "iubV":
            np.testing.assert_array_equal(g, w, err_msg=label)
        elif w.size:
            finite = np.abs(w[np.isfinite(w)])
            scale = max(1e-300, float(finite.max())) if finite.size else 1.0
            np.testing.assert_allclose(
                g.astype(np.float64),
                w.astype(np.float64),
                rtol=0,
                atol=factor * max(TOLERANCE[dtype], TOLERANCE.get(w.dtype, 0)) * scale,
                err_msg=label,
            )


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
@pytest.mark.parametrize(("module_name", "name"), list(pairs()))
def test_compiled_equals_reference(module_name, name, dtype):
    compiled = getattr(importlib.import_module(f"fastmtl._core.{module_name}"), name)
    reference = getattr(importlib.import_module(f"fastmtl.reference.{module_name}"), name)
    cases = importlib.import_module(f"twins.{module_name}")
    factor = getattr(cases, "TOLERANCE", {}).get(name, 1)
    serial = name in getattr(cases, "SERIAL", ())
    rng = np.random.default_rng(zlib.crc32(f"{module_name}.{name}".encode()))
    count = 0
    for arguments in cases.CASES[name](rng, np.dtype(dtype)):
        count += 1
        threads = [1, 2, 3] if "n_threads" in arguments else [None]
        for n_threads in threads:
            if n_threads is not None:
                arguments["n_threads"] = n_threads
            label = f"{module_name}.{name} case {count}, n_threads={n_threads}, {cpu.simd_path}"
            mine = copy.deepcopy(arguments)
            got = compiled(**mine)
            if n_threads == threads[0] or not serial:
                theirs = copy.deepcopy(arguments)
                want = reference(**theirs)
            else:
                theirs["n_threads"] = n_threads
            assert_same(got, want, np.dtype(dtype), factor, label)
            assert_same(mine, theirs, np.dtype(dtype), factor, label)
    assert count, f"no case for {module_name}.{name}"


@pytest.mark.skipif(bool(os.environ.get("FASTMTL_SIMD")), reason="a path is already forced")
@pytest.mark.parametrize("path", cpu.simd_available[:-1])
def test_every_lower_simd_path_passes_the_same_walk_and_the_kernels_tests(path):
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"]
        + ["-k", "test_compiled_equals_reference or test_kernels"]
        + [__file__, os.path.join(os.path.dirname(__file__), "test_kernels.py")],
        env={**os.environ, "FASTMTL_SIMD": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-2000:]
