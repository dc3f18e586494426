#!/usr/bin/env bash
# ONNX Runtime 1.31.1, CPU: MatMulNBits with `g_idx` takes packed `zero_points` and does not use them.
#
# The operator's definition says that a weight is (code - zero_point) * scale, and that `g_idx` says which group each input
# feature belongs to. With both inputs given, and zero points packed two to a byte as the definition wants, the CPU kernel
# computes with the default zero point 8: another matrix, without a warning. Without `g_idx` it uses them; and with zero points
# of the scales' type (floats) it uses them in both cases. Checkpoints that were quantized with activation order (GPTQ
# `desc_act`) and asymmetrically become such files.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.31.1 numpy
"$dir/venv/bin/python" - <<'PY'
import sys
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as T, helper as h, numpy_helper as nh

N, K, B = 4, 64, 16
G = K // B
rng = np.random.default_rng(0)
codes = rng.integers(0, 16, (N, K), dtype=np.uint8)
zeros = rng.integers(0, 16, (N, G), dtype=np.uint8)
scales = rng.uniform(0.5, 1.5, (N, G)).astype(np.float32)
groups = (np.arange(K) // B).astype(np.int32)
x = rng.normal(size=(1, K)).astype(np.float32)
pack = lambda a: (a[..., 0::2] | a[..., 1::2] << 4).astype(np.uint8)


def run(packed, ordered):
    inputs = {"B": pack(codes).reshape(N, G, B // 2), "S": scales.reshape(-1)}
    inputs["Z"] = pack(zeros).reshape(-1) if packed else zeros.astype(np.float32).reshape(-1)
    if ordered:
        inputs["I"] = groups
    node = h.make_node(
        "MatMulNBits", ["x", *inputs], ["y"], domain="com.microsoft", K=K, N=N, bits=4, block_size=B
    )
    graph = h.make_graph(
        [node], "g", [h.make_tensor_value_info("x", T.FLOAT, [1, K])], [h.make_tensor_value_info("y", T.FLOAT, [1, N])],
        [nh.from_array(v, k) for k, v in inputs.items()],
    )
    opsets = [h.make_opsetid("", 21), h.make_opsetid("com.microsoft", 1)]
    model = h.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def product(zero):
    weight = (codes.astype(np.float32) - zero[:, groups]) * scales[:, groups]
    return x @ weight.T


defined, default = product(zeros.astype(np.float32)), product(np.full((N, G), 8, np.float32))
print("onnxruntime", ort.__version__)
expected = {(True, False): "defined", (True, True): "zero point 8", (False, False): "defined", (False, True): "defined"}
same = True
for (packed, ordered), wanted in expected.items():
    try:
        y = run(packed, ordered)
        near = lambda z: np.abs(y - z).max() < 0.05 * np.abs(z).max()
        got = "defined" if near(defined) else "zero point 8" if near(default) else "neither"
    except Exception as error:
        got = type(error).__name__
    print(f"  zero points {'packed' if packed else 'as floats'}, g_idx {'given' if ordered else 'absent'}: {got}")
    same &= got == wanted
sys.exit(0 if same else 1)
PY
