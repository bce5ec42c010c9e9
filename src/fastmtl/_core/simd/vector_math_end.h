/* Forgets the short names of vector_math.h. */
#undef select_lanes
#undef vexp_negative
#undef vlogistic
#undef vtanh
