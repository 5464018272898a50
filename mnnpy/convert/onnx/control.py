"""Control flow of old opsets."""

from __future__ import annotations

from typing import Any

from mnnpy.convert.onnx.conversions import conversion
from mnnpy.convert.onnx.emitter import Emitter, GraphArgument
from mnnpy.errors import ModelError


@conversion("Scan", since=8, until=8)
def scan_8(
    g: Emitter,
    sequence_lens: str | None,
    *operands: str,
    body: GraphArgument,
    num_scan_inputs: int,
    directions: tuple[int, ...] | None = None,
) -> Any:
    """Opset 8 scans axis 1 for every sample of a batch: a Scan over axis 0 of the batch whose body scans one sample.

    With *sequence_lens* a sample's inputs are cut to its length, and its outputs filled up with zeros.
    """
    n_states = len(operands) - num_scan_inputs
    n_outputs = len(body.proto.output)
    if n_states < 0 or n_outputs < n_states:
        raise ModelError(
            f"{num_scan_inputs} scan inputs do not fit {len(operands)} operands and {n_outputs} body outputs"
        )
    inner = g.body()
    inputs = [inner.body_input("sample") for _ in operands]
    names = [v.name for v in inputs]
    if sequence_lens is not None:
        length = inner.body_input("length")
        inputs.append(length)
        count = inner.op("Reshape", length.name, inner.ints(1))
        whole = inner.op("Shape", names[-1], start=0, end=1)
        names[n_states:] = [inner.op("Slice", n, inner.ints(0), count, inner.ints(0)) for n in names[n_states:]]
    results = inner.op(
        "Scan", *names, outputs=n_outputs, body=body, num_scan_inputs=num_scan_inputs, scan_input_directions=directions
    )
    results = list(results if isinstance(results, tuple) else (results,))
    if sequence_lens is not None:
        pads = inner.op("Concat", inner.ints(0), inner.op("Sub", whole, count), axis=0)
        results[n_states:] = [inner.op("Pad", r, pads, None, inner.ints(0)) for r in results[n_states:]]
    per_sample = (*operands, sequence_lens) if sequence_lens is not None else operands
    outer = inner.end_body(inputs, results)
    return g.op("Scan", *per_sample, outputs=n_outputs, body=outer, num_scan_inputs=len(per_sample))
