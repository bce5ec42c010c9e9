"""The seeded shuffle and the task-first draw, in Python integers."""

import itertools

__all__ = ["draw_balanced", "draw_by_task", "shuffle", "shuffle_pools"]

MASK = (1 << 64) - 1


def _rotate(x, k):
    return ((x << k) | (x >> (64 - k))) & MASK


def _generator(seed):
    state, s = int(seed), []
    for _ in range(4):  # splitmix64
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        s.append(z ^ (z >> 31))
    while True:  # xoshiro256++
        yield (_rotate((s[0] + s[3]) & MASK, 23) + s[0]) & MASK
        t = (s[1] << 17) & MASK
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = _rotate(s[3], 45)


def _below(bits, bound):
    if bound < 0x80000000:
        return ((next(bits) >> 32) * bound) >> 32
    return next(bits) % bound


def shuffle(order, seed):
    """Shuffle `order` in place (Fisher and Yates); the same seed gives the same order."""
    _swap(order, _generator(seed))


def _swap(order, bits):
    for i in range(len(order) - 1, 0, -1):
        j = _below(bits, i + 1)
        order[i], order[j] = order[j], order[i]


def shuffle_pools(order, bounds, blocks, block, pool, seed):
    """Fill each part of `order` with a permutation of its places, draws near one another."""
    for k, (begin, end) in enumerate(itertools.pairwise(bounds)):
        bits = _generator(seed + k)
        turn = blocks[begin // block + k :][: -(-(end - begin) // block)]
        turn[:] = range(len(turn))
        _swap(turn, bits)
        firsts = (begin + b * block for b in turn)
        order[begin:end] = [i for a in firsts for i in range(a, min(end, a + block))]
        for at in range(begin, end, pool):
            _swap(order[at : min(end, at + pool)], bits)


def draw_by_task(order, task_start, tasks, seed):
    """Fill `order`: each entry draws one of `tasks` evenly, then one of its samples evenly."""
    bits = _generator(seed)
    for i in range(len(order)):
        t = int(tasks[_below(bits, len(tasks))])
        start, end = int(task_start[t]), int(task_start[t + 1])
        order[i] = start + _below(bits, end - start)


def draw_balanced(order, group_start, member, task_start, tasks, seed):
    """Fill `order`: each entry draws one of `tasks`, one of its groups, and one of its members."""
    bits = _generator(seed)
    for i in range(len(order)):
        t = int(tasks[_below(bits, len(tasks))])
        g = int(task_start[t]) + _below(bits, int(task_start[t + 1] - task_start[t]))
        size = int(group_start[g + 1] - group_start[g])
        order[i] = member[group_start[g] + _below(bits, size)]
