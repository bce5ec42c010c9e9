"""The one choice of instruction set, made at import and used by every kernel table."""

import os

cdef extern from "simd/levels.h" nogil:
    int simd_detect()
    const char *simd_base_name()

cdef extern from *:
    """
    #ifdef _OPENMP
    #define FASTMTL_HAS_OPENMP 1
    #else
    #define FASTMTL_HAS_OPENMP 0
    #endif
    """
    int FASTMTL_HAS_OPENMP


def _choose():
    names = [simd_base_name().decode(), "avx2", "avx512"]
    available = names[: simd_detect() + 1]
    wanted = os.environ.get("FASTMTL_SIMD", "").strip().lower()
    if not wanted:
        return len(available) - 1, available
    if wanted == "base":
        return 0, available
    if wanted not in available:
        raise ImportError(
            f"FASTMTL_SIMD is {wanted!r}; this machine and build offer {', '.join(available)}"
        )
    return available.index(wanted), available


_level, _available = _choose()
simd_level = _level
simd_path = _available[_level]
simd_available = tuple(_available)
has_openmp = bool(FASTMTL_HAS_OPENMP)
