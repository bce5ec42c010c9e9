import numpy as np


def encode(rng, dtype):
    for n, least, span in ((0, 0, 0), (1, -3, 1), (50, 5, 9), (200, -1000, 2001)):
        values = least + rng.integers(max(span, 1), size=n)
        values[: min(n, 1)] = least + span - 1
        yield {
            "values": values,
            "least": least,
            "place": np.zeros(span, dtype=np.int32),
            "code": np.zeros(n, dtype=np.int32),
        }


def by_code(rng, dtype):
    for n, n_codes in ((0, 0), (0, 3), (1, 1), (40, 5), (300, 100), (300, 1000)):
        code = rng.integers(max(n_codes, 1), size=n).astype(np.int32)
        for part in (code, np.sort(code)):
            yield {
                "code": part,
                "start": np.ones(n_codes + 1, dtype=np.int64),
                "order": np.zeros(n, dtype=np.int64),
            }


CASES = {"encode": encode, "by_code": by_code}
