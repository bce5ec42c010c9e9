/* Forgets the short names of vector_math.h. */
#undef select_lanes
#undef if_negative
#undef at_least
#undef minus_size
#undef power_table
#undef at_most
#undef logistic_of_rest
#undef POWER_MAGIC
#undef vexp_negative
#undef vlogistic
#undef vlogistic_2
#undef vlogistic_slope
#undef vtanh
