"""Task labels as numbers, and samples in the order of their tasks: counted, never compared."""

from libc.stdint cimport int32_t, int64_t


def encode(const int64_t[::1] values, int64_t least, int32_t[::1] place, int32_t[::1] code):
    """Write into `code` the rank of each value among those that occur; returns how many do.

    `place` has a zero for each integer from `least` to the greatest value; left in it are the rank
    of each that occurs and -1 for the others.
    """
    cdef int64_t i, n = values.shape[0], span = place.shape[0]
    cdef int32_t found = 0
    cdef bint outside = False
    if code.shape[0] != n:
        raise ValueError("values and code must be of one length")
    with nogil:
        for i in range(n):
            if not 0 <= values[i] - least < span:
                outside = True
                break
            place[values[i] - least] = 1
        if not outside:
            for i in range(span):
                if place[i]:
                    place[i] = found
                    found += 1
                else:
                    place[i] = -1
            for i in range(n):
                code[i] = place[values[i] - least]
    if outside:
        raise ValueError("values must be between least and least + len(place) - 1")
    return found


def by_code(const int32_t[::1] code, int64_t[::1] start, int64_t[::1] order):
    """Write where each code's samples begin, once in order, and the stable order that puts them so.

    `start` has an entry for each code from 0, and one more. Returns whether they are in order.
    """
    cdef int64_t i, n = code.shape[0], n_codes = start.shape[0] - 1, begin, total
    cdef bint sorted_already = True, outside = False
    if n_codes < 0 or order.shape[0] != n:
        raise ValueError("start must not be empty, and order must be as long as code")
    with nogil:
        start[:] = 0
        for i in range(n):
            if not 0 <= code[i] < n_codes:
                outside = True
                break
            start[code[i] + 1] += 1
            if i and code[i] < code[i - 1]:
                sorted_already = False
        if not outside:
            total = 0
            for i in range(1, n_codes + 1):  # start[c + 1] is where c begins, and grows to its end
                begin = total
                total += start[i]
                start[i] = begin
            if sorted_already:
                for i in range(n):
                    start[code[i] + 1] += 1
                    order[i] = i
            else:
                for i in range(n):
                    begin = start[code[i] + 1]
                    order[begin] = i
                    start[code[i] + 1] = begin + 1
    if outside:
        raise ValueError("code must be at least 0 and less than len(start) - 1")
    return bool(sorted_already)
