"""Runs mutated model files and counts outcomes; started in a process of its own by test_fuzz.py.

usage: python -m tests.faults.fuzz_worker SEED COUNT
"""

from __future__ import annotations

import json
import resource
import sys
from collections import Counter

import numpy as np
from tests.models import MODELS

import mnnpy
from mnnpy.errors import MnnpyError


def mutate(rng: np.random.Generator, data: bytes) -> bytes:
    """Bit flips, byte writes, truncation, cut-outs, swaps and duplications."""
    raw = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        kind = rng.integers(6)
        at = int(rng.integers(len(raw))) if raw else 0
        length = int(rng.integers(1, 20))
        if not raw:
            break
        if kind == 0:
            raw[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            raw[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))]))
        elif kind == 2:
            del raw[at:]
        elif kind == 3:
            del raw[at : at + length]
        elif kind == 4:
            raw[at:at] = raw[at : at + length]
        else:
            other = int(rng.integers(len(raw)))
            raw[at : at + length], raw[other : other + length] = raw[other : other + length], raw[at : at + length]
    return bytes(raw)


def attempt(data: bytes, feeds: dict[str, np.ndarray]) -> str:
    try:
        session = mnnpy.Session(data, threads=1, memory_limit=1 << 28)
        session.run(None, feeds)
    except MnnpyError:
        return "refused"
    except Exception as error:
        return f"BUG {type(error).__name__}: {error}"
    return "ran"


def main() -> int:
    seed, count = int(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
    rng = np.random.default_rng(seed)
    seeds = [(m.SerializeToString(), f) for m, f in (build() for build in MODELS.values())]
    # Weights are most of the bytes and the least interesting: mutate the structure more often.
    outcomes: Counter[str] = Counter()
    for k in range(count):
        data, feeds = seeds[k % len(seeds)]
        mutated = mutate(rng, data)
        print(f"{k}", file=sys.stderr)
        outcomes[attempt(mutated, feeds)] += 1
    print(json.dumps(outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
