/* Forgets the short names of vector.h, so that the next (target, dtype) can take them. */
#undef vec
#undef ivec
#undef LANES
#undef load
#undef store
#undef splat
#undef sum_lanes
#undef vsqrt
#undef load_partial
#undef store_partial
#undef dot
#undef transpose_square
