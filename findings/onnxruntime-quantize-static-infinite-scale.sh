#!/usr/bin/env bash
# ONNX Runtime 1.31.1: `quantize_static` of a masked attention writes a scale of infinity.
#
# Exporters write causal masks as `Where(keep, 0, -inf)`, added to the scores. The calibrator takes the -inf for the lowest value
# of the range, so the scale of mask and masked scores is infinite: every score becomes NaN behind its codes, and all
# probabilities 0. There is no error and no warning of the quantizer itself (NumPy says that it divides). Masks of a large finite
# number stretch the range instead, which costs precision and is easier to see.
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
from onnx import TensorProto as T, helper as h, numpy_helper as nh
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static


class Once(CalibrationDataReader):
    def __init__(self, feed):
        self.left = [feed]

    def get_next(self):
        return self.left.pop() if self.left else None


def probabilities(masked):
    nodes = [
        h.make_node("Where", ["keep", "zero", "masked"], ["mask"]),
        h.make_node("Add", ["scores", "mask"], ["sum"]),
        h.make_node("Softmax", ["sum"], ["p"], axis=-1),
    ]
    inputs = [h.make_tensor_value_info("scores", T.FLOAT, [4, 4]), h.make_tensor_value_info("keep", T.BOOL, [4, 4])]
    constants = [nh.from_array(np.float32(0), "zero"), nh.from_array(np.float32(masked), "masked")]
    graph = h.make_graph(nodes, "g", inputs, [h.make_tensor_value_info("p", T.FLOAT, [4, 4])], constants)
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=10), "plain.onnx")
    feed = {"scores": np.random.RandomState(0).randn(4, 4).astype("f4"), "keep": np.tri(4, dtype=bool)}
    quantize_static("plain.onnx", "coded.onnx", Once(feed), quant_format=QuantFormat.QDQ)
    scales = [float(nh.to_array(i)) for i in onnx.load("coded.onnx").graph.initializer if i.name.endswith("_scale")]
    run = lambda file: ort.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, feed)[0]
    return scales, run("plain.onnx").sum(axis=1), run("coded.onnx").sum(axis=1)


print("onnxruntime", ort.__version__)
scales, plain, coded = probabilities(-np.inf)
print("  masked by -inf: largest scale", max(scales), "row sums before", plain, "after", coded)
same = max(scales) == np.inf and np.allclose(plain, 1) and not np.nan_to_num(coded).any()
scales, plain, coded = probabilities(-10.0)
print("  masked by -10: largest scale", round(max(scales), 4), "row sums after", coded)
same &= max(scales) < 1 and np.allclose(coded, 1, atol=0.05)
sys.exit(0 if same else 1)
PY
