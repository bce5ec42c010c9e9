import numpy as np


def shuffle(rng, dtype):
    for n in (0, 1, 2, 3, 100, 1001):
        yield {"order": np.arange(n), "seed": int(rng.integers(2**63))}


def shuffle_pools(rng, dtype):
    for n, block, pool in ((0, 4, 8), (1, 4, 8), (7, 8, 3), (100, 8, 32), (1001, 1, 512)):
        for bounds in ([0, n], [0, n // 3, n], [0, n // 2, n // 2, n]):
            yield {
                "order": np.zeros(n, dtype=np.int64),
                "bounds": np.array(bounds),
                "blocks": np.zeros(n // block + len(bounds), dtype=np.int64),
                "block": block,
                "pool": pool,
                "seed": int(rng.integers(2**63)),
            }


def draw_by_task(rng, dtype):
    start = np.array([0, 1, 40, 40, 45])
    for n in (0, 1, 300):
        yield {
            "order": np.zeros(n, dtype=np.int64),
            "task_start": start,
            "tasks": np.array([0, 1, 3]),
            "seed": int(rng.integers(2**63)),
        }


def draw_balanced(rng, dtype):
    for n in (0, 1, 300):
        yield {
            "order": np.zeros(n, dtype=np.int64),
            "group_start": np.array([0, 1, 40, 45, 46]),
            "member": rng.permutation(46),
            "task_start": np.array([0, 2, 2, 4]),
            "tasks": np.array([0, 2]),
            "seed": int(rng.integers(2**63)),
        }


CASES = {
    "shuffle": shuffle,
    "shuffle_pools": shuffle_pools,
    "draw_by_task": draw_by_task,
    "draw_balanced": draw_balanced,
}
