"""Runs mutated models and counts outcomes; started in a process of its own by test_fuzz.py.

usage: python -m tests.faults.fuzz_worker SEED COUNT [FIRST]

Three mutations in four change the structure (fields of the parsed file), so that they reach past the parser; one
in four changes bytes. Each case has its own random generator: ``SEED 1 K`` repeats case K.
"""

from __future__ import annotations

import json
import resource
import signal
import struct
import sys
import traceback
from collections import Counter
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

import mnnpy
from mnnpy.errors import MnnpyError
from tests.faults.fuzz_models import SEEDS

EDGES = (0, 1, -1, 2, 3, -2, 7, 63, 255, 2**31 - 1, -(2**31), 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, float("nan"), float("inf"), float("-inf"), 1e-45, 3.4e38, -1.0, 0.5)
OPS = sorted({s.name for s in onnx.defs.get_all_schemas() if s.domain in ("", "ai.onnx")})
#: Seconds one case may take; loops whose trip count was mutated run into it and are interrupted.
PATIENCE = 3.0


class Impatience(BaseException):
    """Raised out of a case by the alarm."""


def mutate_bytes(rng: np.random.Generator, data: bytes) -> bytes:
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


def mutate_structure(rng: np.random.Generator, data: bytes) -> bytes:
    """Change one to three fields of nodes, attributes, bodies, initialisers, inputs or outputs."""
    proto = onnx.load_from_string(data)
    for _ in range(int(rng.integers(1, 4))):
        graphs = [proto.graph, *_bodies(proto.graph)]
        graph = graphs[int(rng.integers(len(graphs)))]
        pools: list[Any] = [graph.node, graph.node, graph.initializer, graph.input, graph.output]
        pool = pools[int(rng.integers(len(pools)))]
        if pool:
            _MUTATORS[type(pool[0]).__name__](rng, proto.graph, pool, int(rng.integers(len(pool))))
    return proto.SerializeToString()


def _bodies(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    found = [a.g for n in graph.node for a in n.attribute if a.HasField("g")]
    return found + [b for g in found for b in _bodies(g)]


def _pick(rng: np.random.Generator, choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _any_name(rng: np.random.Generator, graph: onnx.GraphProto) -> str:
    names = [o for n in graph.node for o in n.output] + [i.name for i in graph.input]
    names += [w.name for w in graph.initializer] + ["", "nowhere"]
    return str(_pick(rng, names))


def _node(rng: np.random.Generator, graph: onnx.GraphProto, pool: Any, at: int) -> None:
    node = pool[at]
    kind = int(rng.integers(10))
    if kind <= 2 and node.attribute:
        _attribute(rng, _pick(rng, node.attribute))
    elif kind == 3:
        node.op_type = _pick(rng, OPS)
    elif kind == 4:
        node.op_type = _pick(rng, graph.node).op_type
    elif kind == 5 and node.input:
        node.input[int(rng.integers(len(node.input)))] = _any_name(rng, graph)
    elif kind == 6:
        node.input.append(_any_name(rng, graph))
    elif kind == 7 and node.input:
        del node.input[int(rng.integers(len(node.input)))]
    elif kind == 8:
        node.output.append(f"new{int(rng.integers(1000))}")
    elif node.attribute and rng.integers(2):
        del node.attribute[int(rng.integers(len(node.attribute)))]
    else:
        del pool[at]


def _attribute(rng: np.random.Generator, a: onnx.AttributeProto) -> None:
    if len(a.ints):
        at = int(rng.integers(len(a.ints)))
        kind = int(rng.integers(4))
        if kind == 0:
            del a.ints[at]
        elif kind == 1:
            a.ints.append(_pick(rng, EDGES))
        else:
            a.ints[at] = _pick(rng, EDGES)
    elif a.type == onnx.AttributeProto.INT:
        a.i = _pick(rng, EDGES)
    elif a.type == onnx.AttributeProto.FLOAT:
        a.f = _pick(rng, FLOATS)
    elif a.type == onnx.AttributeProto.STRING:
        words = (b"", b"nearest", b"linear", b"SAME_UPPER", b"reflect", b"wrap", b"ij,jk->ik", b"mul", b"\xff")
        a.s = _pick(rng, words)
    elif a.type == onnx.AttributeProto.TENSOR:
        _tensor(rng, a.t)


def _initializer(rng: np.random.Generator, graph: onnx.GraphProto, pool: Any, at: int) -> None:
    if rng.integers(12) == 0:
        del pool[at]
    else:
        _tensor(rng, pool[at])


def _tensor(rng: np.random.Generator, t: TensorProto) -> None:
    kind = int(rng.integers(8))
    wide = t.data_type == TensorProto.INT64
    size = 8 if wide else 4
    numbers = (TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT)
    if kind <= 4 and len(t.raw_data) >= size and t.data_type in numbers:
        at = int(rng.integers(len(t.raw_data) // size)) * size
        if t.data_type == TensorProto.FLOAT:
            word = struct.pack("<f", _pick(rng, FLOATS))
        else:
            word = struct.pack("<q", _pick(rng, EDGES))[:size]
        t.raw_data = t.raw_data[:at] + word + t.raw_data[at + size :]
    elif kind == 5:
        t.data_type = int(rng.integers(0, 24))
    elif kind == 6 and t.dims:
        t.dims[int(rng.integers(len(t.dims)))] = _pick(rng, EDGES)
    elif t.dims:
        order = rng.permutation(len(t.dims))
        t.dims[:] = [t.dims[int(k)] for k in order] if rng.integers(2) else [1, *t.dims]


def _value_info(rng: np.random.Generator, graph: onnx.GraphProto, pool: Any, at: int) -> None:
    kind = int(rng.integers(6))
    tensor = pool[at].type.tensor_type
    if kind <= 2 and tensor.shape.dim:
        dim = _pick(rng, tensor.shape.dim)
        if rng.integers(3):
            dim.dim_value = _pick(rng, EDGES)
        else:
            dim.dim_param = _pick(rng, ("n", "m", ""))
    elif kind == 3:
        tensor.elem_type = int(rng.integers(0, 24))
    elif kind == 4:
        pool[at].name = _any_name(rng, graph)
    elif rng.integers(2):
        tensor.shape.dim.add(dim_value=_pick(rng, EDGES))
    else:
        tensor.ClearField("shape")


_MUTATORS = {"NodeProto": _node, "TensorProto": _initializer, "ValueInfoProto": _value_info}


def mutate_feeds(rng: np.random.Generator, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
    """Now and then: other values, another size, another type, an input more or less."""
    out = dict(feeds)
    kind = int(rng.integers(12))
    if kind > 4:
        return out
    name = _pick(rng, list(out))
    array = out[name]
    if kind == 0:
        out[name] = np.full_like(array, _pick(rng, (0, 1, 2, 100)))
    elif kind == 1 and array.dtype.kind in "if":
        out[name] = np.full_like(array, _pick(rng, FLOATS) if array.dtype.kind == "f" else np.iinfo(array.dtype).min)
    elif kind == 2:
        shape = tuple(int(rng.integers(0, 5)) for _ in array.shape)
        out[name] = np.resize(array, shape)
    elif kind == 3:
        out[name] = array.astype(_pick(rng, ("f2", "f8", "i4", "bool", "O")))
    else:
        del out[name]
    return out


def attempt(data: bytes, feeds: dict[str, Any], *, show: bool = False) -> str:
    """Load and run; what came out, ``BUG …`` where it is not a result or a MnnpyError with a message."""
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        session = mnnpy.Session(data, threads=1, memory_limit=1 << 28)
        session.run(None, feeds)
        return "ran"
    except MnnpyError as error:
        if show:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return "refused" if len(str(error)) > 15 else f"BUG {type(error).__name__} without a message: '{error}'"
    except Impatience:
        if show:
            traceback.print_exc()
        return "ran" if b"Loop" in data else "BUG too slow"
    except BaseException as error:
        if show:
            traceback.print_exc()
        return f"BUG {type(error).__name__}: {error}"[:200]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _alarm(*_: Any) -> None:
    raise Impatience


def main() -> int:
    seed, count = int(sys.argv[1]), int(sys.argv[2])
    first = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, _alarm)
    seeds = [(m.SerializeToString(), f) for m, f in (build() for build in SEEDS.values())]
    outcomes: Counter[str] = Counter()
    examples: dict[str, int] = {}
    for k in range(first, first + count):
        rng = np.random.default_rng([seed, k])
        data, feeds = seeds[k % len(seeds)]
        mutated = mutate_bytes(rng, data) if rng.integers(4) == 0 else mutate_structure(rng, data)
        print(f"seed {seed} case {k}", file=sys.stderr)
        outcome = attempt(mutated, mutate_feeds(rng, feeds), show=count == 1)
        outcomes[outcome] += 1
        examples.setdefault(outcome, k)
    print(json.dumps({f"{o} (case {examples[o]})" if o.startswith("BUG") else o: n for o, n in outcomes.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
