"""``.mnnpy`` files: exact round trips, and files that are damaged, foreign or newer."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from mnnpy.decompose.raster import Region
from mnnpy.errors import ModelError
from mnnpy.graph.dims import SymDim, sym
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Graph, MapType, Node, OptionalType, SequenceType, TensorType, Value
from mnnpy.graph.serialize import load, save


def same(a: Any, b: Any) -> bool:
    """Equality that tells apart types, NaN from anything else, and 0.0 from −0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return a.tolist() == b.tolist() if a.dtype == object else a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, np.generic):
        return a.tobytes() == b.tobytes()
    if isinstance(a, Graph):
        return all(
            same(getattr(a, f), getattr(b, f))
            for f in ("name", "inputs", "outputs", "nodes", "constants", "types", "metadata")
        )
    if isinstance(a, Node):
        return all(same(getattr(a, f), getattr(b, f)) for f in ("op", "inputs", "outputs", "attrs", "name"))
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return bool(a == b)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
dims = st.one_of(
    st.integers(0, 9),
    st.builds(
        SymDim, st.dictionaries(texts.filter(bool), st.integers(1, 5), min_size=1, max_size=2), st.integers(-3, 3)
    ),
)
dtypes = st.sampled_from(list(DType))
tensor_types = st.builds(TensorType, dtypes, st.none() | st.lists(dims, max_size=3).map(tuple))
types = st.recursive(
    tensor_types,
    lambda t: st.builds(SequenceType, t) | st.builds(OptionalType, t) | st.builds(MapType, dtypes, t),
    max_leaves=3,
)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    dtype, shape = draw(dtypes), tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    count = int(np.prod(shape, dtype=int))
    if dtype is DType.STRING:
        out = np.empty(count, object)
        out[:] = draw(st.lists(texts, min_size=count, max_size=count))
        return out.reshape(shape)
    if dtype is DType.BOOL:
        return np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool).reshape(shape)
    raw = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    array = np.frombuffer(raw, dtype.numpy).reshape(shape)
    return array.T if draw(st.booleans()) else array


ints = st.lists(st.integers(-9, 9), max_size=3).map(tuple)
regions = st.builds(Region, st.integers(0, 3), ints, st.integers(), ints, st.integers(), ints)
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), texts, dtypes, arrays(), types, dims, regions,
    st.binary(max_size=5),
    st.complex_numbers(allow_nan=False), st.floats(width=32).map(np.float32), st.integers(0, 255).map(np.uint8),
)  # fmt: skip
attrs = st.recursive(
    leaves,
    lambda a: st.lists(a, max_size=3).map(tuple) | st.lists(a, max_size=3) | st.dictionaries(texts, a, max_size=2),
    max_leaves=6,
)


@st.composite
def graphs(draw: st.DrawFn, depth: int = 0) -> Graph:
    inputs = [Value(f"i{k}", draw(st.none() | types)) for k in range(draw(st.integers(0, 2)))]
    constants = {f"c{k}": draw(arrays()) for k in range(draw(st.integers(0, 3)))}
    known = [v.name for v in inputs] + list(constants)
    nodes = []
    for k in range(draw(st.integers(0, 2))):
        operands = tuple(draw(st.lists(st.sampled_from(["", *known]), max_size=3)))
        given_attrs = draw(st.dictionaries(texts, attrs, max_size=3))
        if depth < 2 and draw(st.booleans()):
            given_attrs["body"] = draw(graphs(depth + 1))
        nodes.append(Node(draw(texts), operands, (f"n{k}", ""), given_attrs, draw(texts)))
        known.append(f"n{k}")
    outputs = tuple(Value(n) for n in draw(st.lists(st.sampled_from(known), max_size=2))) if known else ()
    return Graph(
        draw(texts), tuple(inputs), outputs, tuple(nodes), constants,
        draw(st.dictionaries(texts, types, max_size=2)), draw(st.dictionaries(texts, texts, max_size=2)),
    )  # fmt: skip


@given(graph=graphs())
@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_round_trip_is_exact(tmp_path: Path, graph: Graph) -> None:
    path = tmp_path / "g.mnnpy"
    save(graph, path)
    assert same(load(path), graph)


@pytest.fixture
def example() -> Graph:
    weights = np.arange(1000, dtype=np.float32)
    body = Graph("b", (Value("p"),), (Value("q"),), (Node("Add", ("p", "k"), ("q",)),), {"k": weights})
    return Graph(
        "g",
        (Value("x", TensorType(DType.F32, (sym("n"), 3))),),
        (Value("y"),),
        (Node("Loop", ("w",), ("y",), {"body": body, "limit": float("inf"), "captures": 0}, "loop"),),
        {
            "w": weights,
            "small": np.array([1, 2], np.int8),
            "odd": np.ones(77, np.uint8),
            "v": np.ones((8, 8), np.float16),
        },
        {},
        {"maker": "a test"},
    )


def test_weights_are_mapped_aligned_shared_and_read_only(tmp_path: Path, example: Graph) -> None:
    path = tmp_path / "g.mnnpy"
    save(example, path)
    assert path.stat().st_size < 4000 * 2, "an array that appears twice is stored once"
    graph = load(path)
    inner = graph.nodes[0].attrs["body"].constants["k"]
    assert inner is graph.constants["w"]
    for array in graph.constants.values():
        assert not array.flags.owndata
        assert not array.flags.writeable
        if array.nbytes >= 64:
            assert array.__array_interface__["data"][0] % 64 == 0
    save(graph, path)  # over the file that is mapped
    assert same(load(path), graph)
    assert inner[999] == 999


def test_file_is_plain_safetensors(tmp_path: Path, example: Graph) -> None:
    numpy_reader = pytest.importorskip("safetensors.numpy")
    save(example, tmp_path / "g.mnnpy")
    tensors = [t for name, t in numpy_reader.load_file(tmp_path / "g.mnnpy").items() if not name.startswith("pad")]
    assert sorted(t.nbytes for t in tensors) == [2, 77, 128, 4000]


def test_what_has_no_stored_form_is_named(tmp_path: Path) -> None:
    graph = Graph("g", (), (), (Node("Op", (), ("y",), {"bad": object()}, "n"),))
    with pytest.raises(ModelError, match=r"node 'n' .*attribute 'bad'.*object has no stored form"):
        save(graph, tmp_path / "g.mnnpy")
    with pytest.raises(ModelError, match="constant 'c'"):
        save(Graph("g", (), (), (), {"c": np.array([None])}), tmp_path / "g.mnnpy")
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_target_that_cannot_be_written(tmp_path: Path, example: Graph) -> None:
    with pytest.raises(ModelError, match="cannot write"):
        save(example, tmp_path / "missing" / "g.mnnpy")


def rewritten(path: Path, change: Any) -> None:
    """Apply *change* to the header of a file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def test_truncated_anywhere(tmp_path: Path, example: Graph) -> None:
    path = tmp_path / "g.mnnpy"
    save(example, path)
    data = path.read_bytes()
    for size in (0, 1, 7, 8, 100, 1000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(ModelError):
            load(path)
    path.write_bytes(data + b"x")
    with pytest.raises(ModelError, match="damaged"):
        load(path)


def _set(key: str, value: Any) -> Any:
    return lambda h: h["__metadata__"].__setitem__(key, value)


def _graph(change: Any) -> Any:
    def apply(header: dict[str, Any]) -> None:
        graph = json.loads(header["__metadata__"]["mnnpy.graph"])
        change(graph)
        header["__metadata__"]["mnnpy.graph"] = json.dumps(graph)

    return apply


@pytest.mark.parametrize(
    "change,message",
    [
        (_set("mnnpy.version", "2"), "format version 2.*update mnnpy"),
        (_set("mnnpy.version", "new"), "not a .mnnpy file"),
        (_set("format", "pt"), "format 'pt'"),
        (lambda h: h.pop("__metadata__"), "not a .mnnpy file"),
        (_set("mnnpy.graph", "{"), "damaged"),
        (_set("mnnpy.graph", "[" * 100_000), "damaged"),
        (lambda h: h["t0"].__setitem__("data_offsets", [0, 1 << 60]), "truncated"),
        (lambda h: h["t0"].__setitem__("data_offsets", [-8, h["t0"]["data_offsets"][1] - 8]), "damaged"),
        (lambda h: h["t0"].__setitem__("shape", [1 << 40]), "damaged"),
        (lambda h: h["t0"].__setitem__("dtype", "I64"), "damaged"),
        (lambda h: h.pop("t0"), "damaged"),
        (_graph(lambda g: g.pop("nodes")), "damaged"),
        (_graph(lambda g: g.__setitem__("nodes", [["Op", ["nowhere"], ["y"], {}, ""]])), "nowhere"),
        (_graph(lambda g: g.__setitem__("name", 3)), "damaged"),
        (_graph(lambda g: g["nodes"][0][3].__setitem__("x", {"call": "os.system"})), "unknown kind 'call'"),
        (_graph(lambda g: g["constants"]["w"].__setitem__("dtype", "f99")), "damaged"),
    ],
)
def test_damaged_or_foreign_header(tmp_path: Path, example: Graph, change: Any, message: str) -> None:
    path = tmp_path / "g.mnnpy"
    save(example, path)
    rewritten(path, change)
    with pytest.raises(ModelError, match=message):
        load(path)


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "g.mnnpy"
    with pytest.raises(ModelError, match="cannot read"):
        load(path)
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ModelError, match=r"not a \.mnnpy file"):
        load(path)
    with pytest.raises(ModelError, match="cannot read"):
        load(tmp_path)


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_bytes_never_escape(tmp_path: Path, example: Graph, data: st.DataObject) -> None:
    path = tmp_path / "g.mnnpy"
    save(example, path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, 1800))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        load(path)
    except ModelError:
        pass
