#!/usr/bin/env python3
"""Writes the node cases of the `onnx` package where `cargo test -p dlx-tests --test onnx_nodes` reads them.

    python3 tests/onnx/cases.py [DIRECTORY]

Each case becomes NAME/model.onnx and NAME/data.onnx, whose initializers are the values: `in.0` is the first input, `out.1`
the second output, `in.0.2` the third element of a sequence. `index.json` says of each case what it is and how its values are
put together: null (an optional without a value), a name, or a list. The directory appears whole or not at all.
"""

import json
import os
import shutil
import sys
import tempfile
import warnings

VERSION = "1.23.2"
try:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from onnx.backend.test.case.node import collect_testcases
except ImportError as error:
    sys.exit(f"{error}\nneeded: python3 -m pip install onnx=={VERSION} numpy")
if onnx.__version__ != VERSION:
    sys.exit(f"onnx is {onnx.__version__}; needed: python3 -m pip install onnx=={VERSION}")

PLAIN = {
    getattr(TensorProto, name)
    for name in "FLOAT16 FLOAT DOUBLE INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64 BOOL".split()
}


def graphs(graph):
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] * attribute.HasField("g") + list(attribute.graphs):
                yield from graphs(inner)


def operators(model):
    nodes = [node for graph in graphs(model.graph) for node in graph.node]
    nodes += [node for function in model.functions for node in function.node]
    return sorted({f"{node.domain}.{node.op_type}".removeprefix("ai.onnx.").lstrip(".") for node in nodes})


def numeric(model):
    values = list(model.graph.input) + list(model.graph.output)
    return all(v.type.HasField("tensor_type") and v.type.tensor_type.elem_type in PLAIN for v in values)


def put(value, kind, name, into):
    """Adds what a value is made of to `into`, under names that start with `name`; how it is put together."""
    if value is None:
        return None
    if kind.HasField("optional_type"):
        return put(value, kind.optional_type.elem_type, name, into)
    if kind.HasField("sequence_type"):
        return [put(v, kind.sequence_type.elem_type, f"{name}.{n}", into) for n, v in enumerate(value)]
    if isinstance(value, TensorProto):
        tensor = TensorProto()
        tensor.CopyFrom(value)
        tensor.name = name
    else:
        tensor = numpy_helper.from_array(np.asarray(value), name)
    into.append(tensor)
    return name


def write(directory):
    index = []
    for case in collect_testcases(None):
        model = case.model
        ((inputs, outputs),) = case.data_sets
        tensors = []
        shape = {}
        for side, ports, values in [("in", model.graph.input, inputs), ("out", model.graph.output, outputs)]:
            shape[side] = [[p.name, put(v, p.type, f"{side}.{n}", tensors)] for n, (p, v) in enumerate(zip(ports, values))]
        name = case.name.removeprefix("test_")
        os.mkdir(os.path.join(directory, name))
        onnx.save(model, os.path.join(directory, name, "model.onnx"))
        data = helper.make_model(helper.make_graph([], name, [], [], tensors))
        onnx.save(data, os.path.join(directory, name, "data.onnx"))
        index.append({
            "name": name,
            "rtol": case.rtol,
            "atol": case.atol,
            "expanded": name.endswith("_expanded") or "_expanded_" in name,
            "numeric": numeric(model),
            "ops": operators(model),
            "inputs": shape["in"],
            "outputs": shape["out"],
        })
    with open(os.path.join(directory, "index.json"), "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(case) for case in index) + "\n]\n")
    return len(index)


def main():
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    default = os.environ.get("DLX_ONNX_CASES") or os.path.join(root, "target", "onnx-node-cases")
    target = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else default)
    if os.path.exists(os.path.join(target, "index.json")):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    made = tempfile.mkdtemp(dir=os.path.dirname(target))
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            count = write(made)
        os.chmod(made, 0o755)
        os.rename(made, target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    print(f"{target}: {count} cases")


if __name__ == "__main__":
    main()
