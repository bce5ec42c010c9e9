# The instruction-set level that every kernel table is asked for; fixed at import.
cdef int simd_level
