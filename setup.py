"""Build the compiled core.

Every ``_core/NAME.pyx`` becomes the extension ``fastmtl._core.NAME``; a ``_core/NAME_kernels.c``
beside it holds that module's leaf kernels, compiled once per instruction set (see
``_core/simd/each_target.h``).

Environment variables
---------------------
FASTMTL_OPENMP=0   build without OpenMP (single-threaded, otherwise identical)
FASTMTL_DEBUG=1    turn Cython's bounds and initialisation checks on, and optimisation down
FASTMTL_ABI3=0     build for the running Python only, instead of one wheel for 3.11 and later
"""

import os
import sys
import sysconfig
import tempfile
from pathlib import Path

import Cython
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools._distutils.ccompiler import new_compiler
from setuptools._distutils.sysconfig import customize_compiler
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

CORE = Path("src/fastmtl/_core")
MSVC = sys.platform == "win32" and "mingw" not in sysconfig.get_platform()
DEBUG = os.environ.get("FASTMTL_DEBUG", "0") == "1"
ABI3 = (
    os.environ.get("FASTMTL_ABI3", "1") == "1"
    and not sysconfig.get_config_var("Py_GIL_DISABLED")
    and tuple(map(int, Cython.__version__.split(".")[:2])) >= (3, 3)
)

OPENMP_PROBE = """
#include <omp.h>
int main(void) {
    int n = 0;
    #pragma omp parallel reduction(+:n)
    n += 1;
    return n > 0 && omp_get_max_threads() > 0 ? 0 : 1;
}
"""


def openmp_flags():
    """Compile and link flags for OpenMP, or two empty lists where it is missing or opted out."""
    if os.environ.get("FASTMTL_OPENMP", "1") == "0":
        return [], []
    if sys.platform == "darwin":
        # A second libomp in one process crashes; source builds opt in through CFLAGS/LDFLAGS.
        candidates = [(["-Xpreprocessor", "-fopenmp"], ["-lomp"])]
        if "omp" not in os.environ.get("LDFLAGS", ""):
            return [], []
    elif MSVC:
        candidates = [(["/openmp"], [])]
    else:
        candidates = [(["-fopenmp"], ["-fopenmp"])]
    compiler = new_compiler()
    customize_compiler(compiler)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(OPENMP_PROBE)
        for compile_args, link_args in candidates:
            try:
                objects = compiler.compile(
                    [str(source)], output_dir=folder, extra_postargs=compile_args
                )
                compiler.link_executable(
                    objects, str(Path(folder, "probe")), extra_postargs=link_args
                )
                return compile_args, link_args
            except (CompileError, LinkError):
                continue
    print(
        "fastmtl: this compiler cannot build an OpenMP program, so fastmtl will use one thread.\n"
        "         Install OpenMP (libgomp or libomp) and rebuild for threads, or set\n"
        "         FASTMTL_OPENMP=0 to build without it and without this message.",
        file=sys.stderr,
    )
    return [], []


def optimisation_flags():
    if MSVC:
        return ["/Od", "/Zi"] if DEBUG else ["/O2"]
    if DEBUG:
        return ["-O1", "-g"]
    # Neither flag changes a result: they let sqrt and compares vectorise.
    return ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math"]


def extensions():
    openmp_compile, openmp_link = openmp_flags()
    headers = [str(path) for path in sorted(CORE.rglob("*.h"))]
    macros = [("FASTMTL_DEBUG", "1")] if DEBUG else []
    if ABI3:
        macros += [("Py_LIMITED_API", "0x030B0000"), ("CYTHON_LIMITED_API", "1")]
    built = []
    for source in sorted(CORE.glob("*.pyx")):
        kernels = source.with_name(f"{source.stem}_kernels.c")
        built.append(
            Extension(
                f"fastmtl._core.{source.stem}",
                [str(source)] + ([str(kernels)] if kernels.exists() else []),
                include_dirs=[str(CORE)],
                define_macros=macros,
                depends=headers,
                extra_compile_args=optimisation_flags() + openmp_compile,
                extra_link_args=openmp_link,
                py_limited_api=ABI3,
            )
        )
    return cythonize(
        built,
        include_path=["src"],
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": False,
            "initializedcheck": DEBUG,
            "nonecheck": DEBUG,
            "cdivision": True,
            "freethreading_compatible": True,
            "embedsignature": True,
        },
        build_dir="build/cython",
    )


# Help and metadata queries must not need a compiler.
building = not {"egg_info", "sdist", "--version", "--name"} & set(sys.argv[1:])
setup(
    ext_modules=extensions() if building else [],
    cmdclass={"build_ext": build_ext},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
)
