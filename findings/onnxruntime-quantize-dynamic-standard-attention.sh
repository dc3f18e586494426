#!/usr/bin/env bash
# ONNX Runtime 1.31.1: `quantize_dynamic` takes the standard operator `Attention` for its own of that name.
#
# Opset 23 has an `Attention` of queries, keys and values; `com.microsoft` had one before, of a hidden state and packed weights,
# whose quantized form is `QAttention`. The quantizer looks at the operator's name and not at its domain: it writes a
# `QAttention` in place of the standard operator, and the runtime refuses the file that its own tool made. The model before is
# valid and runs. Models exported at opset 23 or 24 have this operator in each layer.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.31.1 numpy
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PY'
import sys
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as T, helper as h
from onnxruntime.quantization import quantize_dynamic

value = lambda name: h.make_tensor_value_info(name, T.FLOAT, [1, 2, 5, 8])
graph = h.make_graph([h.make_node("Attention", ["q", "k", "v"], ["y"])], "g", [value(n) for n in "qkv"], [value("y")])
model = h.make_model(graph, opset_imports=[h.make_opsetid("", 23)], ir_version=11)
onnx.checker.check_model(model, full_check=True)
onnx.save(model, "plain.onnx")


def run(file):
    feed = {n: np.ones((1, 2, 5, 8), np.float32) for n in "qkv"}
    try:
        session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
        return str(session.run(None, feed)[0].shape)
    except Exception as error:
        return type(error).__name__


quantize_dynamic("plain.onnx", "coded.onnx")
ops = [(n.domain, n.op_type) for n in onnx.load("coded.onnx").graph.node]
before, after = run("plain.onnx"), run("coded.onnx")
print("onnxruntime", ort.__version__)
print("  before:", before)
print("  ops after quantize_dynamic:", ops)
print("  after:", after)
sys.exit(0 if before == "(1, 2, 5, 8)" and ("com.microsoft", "QAttention") in ops and after == "InvalidGraph" else 1)
PY
