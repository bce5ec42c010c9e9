"""The one source of random order: a seeded shuffle (xoshiro256++ seeded by splitmix64)."""

from cython.parallel cimport prange
from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef inline uint64_t _splitmix(uint64_t *state) noexcept nogil:
    state[0] += 0x9E3779B97F4A7C15ULL
    cdef uint64_t z = state[0]
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL
    return z ^ (z >> 31)


cdef inline uint64_t _rotate(uint64_t x, int k) noexcept nogil:
    return (x << k) | (x >> (64 - k))


cdef inline uint64_t _next(uint64_t *s) noexcept nogil:
    cdef uint64_t result = _rotate(s[0] + s[3], 23) + s[0]
    cdef uint64_t t = s[1] << 17
    s[2] ^= s[0]
    s[3] ^= s[1]
    s[1] ^= s[2]
    s[0] ^= s[3]
    s[2] ^= t
    s[3] = _rotate(s[3], 45)
    return result


cdef inline void _seed(uint64_t *s, uint64_t seed) noexcept nogil:
    cdef int i
    for i in range(4):
        s[i] = _splitmix(&seed)


cdef inline uint64_t _below(uint64_t *s, uint64_t bound) noexcept nogil:
    # Lemire's multiplication of the upper 32 bits; the bias is below bound / 2**32. Beyond 2**31
    # a plain remainder of 64 bits is as even.
    if bound < 0x80000000ULL:
        return ((_next(s) >> 32) * bound) >> 32
    return _next(s) % bound


def shuffle(int64_t[::1] order, uint64_t seed):
    """Shuffle `order` in place (Fisher and Yates); the same seed gives the same order."""
    cdef uint64_t s[4]
    cdef int64_t i, j, n = order.shape[0]
    if n < 2:
        return
    cdef int64_t *item = &order[0]
    with nogil:
        _seed(s, seed)
        for i in range(n - 1, 0, -1):
            j = <int64_t>_below(s, <uint64_t>i + 1)
            item[i], item[j] = item[j], item[i]


cdef void _shuffle_pools(int64_t *item, int64_t first, int64_t n, int64_t *blocks, int64_t block,
                         int64_t pool, uint64_t seed) noexcept nogil:
    cdef uint64_t s[4]
    cdef int64_t b, i, j, end, at = 0, n_blocks = (n + block - 1) // block
    _seed(s, seed)
    for b in range(n_blocks):
        blocks[b] = b
    for b in range(n_blocks - 1, 0, -1):
        j = <int64_t>_below(s, <uint64_t>b + 1)
        blocks[b], blocks[j] = blocks[j], blocks[b]
    for b in range(n_blocks):
        end = min(n, (blocks[b] + 1) * block)
        for i in range(blocks[b] * block, end):
            item[at] = first + i
            at += 1
    at = 0
    while at < n:
        end = min(pool, n - at)
        for i in range(end - 1, 0, -1):
            j = <int64_t>_below(s, <uint64_t>i + 1)
            item[at + i], item[at + j] = item[at + j], item[at + i]
        at += pool


def shuffle_pools(int64_t[::1] order, const int64_t[::1] bounds, int64_t[::1] blocks,
                  int64_t block, int64_t pool, uint64_t seed):
    """Fill each part ``bounds[k]:bounds[k + 1]`` of `order` with a permutation of its places,
    whose draws are near one another in memory.

    Blocks of `block` successive numbers come in random order (left in `blocks`, which has an entry
    for each and one more a part), and each `pool` of draws is shuffled. Steps are as mixed as
    `pool` draws are. A thread does a part, with a seed of its own.
    """
    cdef int64_t n = order.shape[0], room = blocks.shape[0], k, n_parts = bounds.shape[0] - 1
    if block < 1 or pool < 1 or n_parts < 1 or room < n // block + n_parts:
        raise ValueError("blocks must have an entry for each block and one more a part of order")
    if n == 0:
        return
    if bounds[0] < 0 or bounds[n_parts] > n:
        raise ValueError("bounds must lie within order")
    cdef int64_t *item = &order[0]
    cdef int64_t *scratch = &blocks[0]
    for k in prange(n_parts, nogil=True, num_threads=<int>n_parts, schedule="static"):
        _shuffle_pools(item + bounds[k], bounds[k], bounds[k + 1] - bounds[k],
                       scratch + bounds[k] // block + k, block, pool, seed + <uint64_t>k)


def draw_by_task(int64_t[::1] order, const int64_t[::1] task_start, const int64_t[::1] tasks,
                 uint64_t seed):
    """Fill `order`: each entry draws one of `tasks` evenly, then one of its samples evenly."""
    cdef uint64_t s[4]
    cdef int64_t i, t, n = order.shape[0]
    cdef uint64_t n_tasks = <uint64_t>tasks.shape[0]
    with nogil:
        _seed(s, seed)
        for i in range(n):
            t = tasks[<int64_t>_below(s, n_tasks)]
            order[i] = task_start[t] + <int64_t>_below(
                s, <uint64_t>(task_start[t + 1] - task_start[t])
            )


def draw_balanced(int64_t[::1] order, const int64_t[::1] group_start, const int64_t[::1] member,
                  const int64_t[::1] task_start, const int64_t[::1] tasks, uint64_t seed):
    """Fill `order`: each entry draws one of `tasks`, one of its groups, and one of its members.

    The groups of task t are ``task_start[t]:task_start[t + 1]``; those of group g are the entries
    ``group_start[g]:group_start[g + 1]`` of `member`. Every draw is even.
    """
    cdef uint64_t s[4]
    cdef int64_t i, t, g, n = order.shape[0]
    cdef uint64_t n_tasks = <uint64_t>tasks.shape[0]
    with nogil:
        _seed(s, seed)
        for i in range(n):
            t = tasks[<int64_t>_below(s, n_tasks)]
            g = task_start[t] + <int64_t>_below(s, <uint64_t>(task_start[t + 1] - task_start[t]))
            order[i] = member[group_start[g] + <int64_t>_below(
                s, <uint64_t>(group_start[g + 1] - group_start[g])
            )]
