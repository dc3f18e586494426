#!/usr/bin/env bash
# onnxruntime-qnn 2.7.0 (HTP, x86-64 emulation): int4 weights without a zero point are read as unsigned.
#
# ONNX says that a DequantizeLinear without a zero point has one of 0, and that INT4 is signed. The execution provider accepts
# such a weight (a scale per output) in front of a MatMul, with fallback to the CPU disabled, and computes another matrix: codes
# from -8 to -1 count as 8 to 15. With zeros written out as INT4 the same graph is right. int8 is right either way.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.31.1 onnxruntime-qnn==2.7.0 numpy
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import sys
import numpy as np
import onnx
import onnxruntime as ort
import onnxruntime_qnn as qnn
from onnx import TensorProto as T, helper as h, numpy_helper as nh

ort.set_default_logger_severity(3)
ort.register_execution_provider_library("QNNExecutionProvider", qnn.get_library_path())
device = [d for d in ort.get_ep_devices() if d.ep_name == "QNNExecutionProvider"][:1]
rng = np.random.default_rng(0)
K, N = 64, 32
codes = rng.integers(-8, 8, (K, N)).astype(np.int8)
scales = rng.uniform(0.01, 0.02, N).astype(np.float32)
x = rng.normal(size=(8, K)).astype(np.float32)
wanted = x @ (codes * scales)


def packed(name, values, kind):
    if kind == T.INT8:
        return h.make_tensor(name, kind, values.shape, values.astype(np.int8).tobytes(), raw=True)
    flat = values.reshape(-1).astype(np.uint8) & 15
    return h.make_tensor(name, kind, values.shape, (flat[0::2] | flat[1::2] << 4).astype(np.uint8).tobytes(), raw=True)


def error(kind, zeros):
    """Relative L2 of y = Q/DQ(x) · DQ(w), Q/DQ(y) on QNN."""
    constants = [packed("w", codes, kind), nh.from_array(scales, "ws"), nh.from_array(np.float32(8 / 65535), "xs")]
    constants += [nh.from_array(np.uint16(32768), "z"), nh.from_array(np.float32(16 / 65535), "ys")]
    if zeros:
        constants.append(packed("wz", np.zeros(N), kind))
    nodes = [
        h.make_node("QuantizeLinear", ["x", "xs", "z"], ["xq"]),
        h.make_node("DequantizeLinear", ["xq", "xs", "z"], ["xd"]),
        h.make_node("DequantizeLinear", ["w", "ws", "wz"] if zeros else ["w", "ws"], ["wd"], axis=1),
        h.make_node("MatMul", ["xd", "wd"], ["m"]),
        h.make_node("QuantizeLinear", ["m", "ys", "z"], ["yq"]),
        h.make_node("DequantizeLinear", ["yq", "ys", "z"], ["y"]),
    ]
    graph = h.make_graph(
        nodes, "g", [h.make_tensor_value_info("x", T.FLOAT, [8, K])], [h.make_tensor_value_info("y", T.FLOAT, [8, N])], constants
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, "product.onnx")
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    settings = {"backend_path": qnn.get_qnn_htp_path(), "soc_model": "57", "htp_arch": "75"}
    options.add_provider_for_devices(device, settings)
    y = ort.InferenceSession("product.onnx", options).run(None, {"x": x})[0]
    return float(np.linalg.norm(y - wanted) / np.linalg.norm(wanted))


print("onnxruntime", ort.__version__, "onnxruntime-qnn", qnn.__version__)
same = True
for kind, name in ((T.INT8, "int8"), (T.INT4, "int4")):
    for zeros in (True, False):
        found = error(kind, zeros)
        wrong = kind == T.INT4 and not zeros
        print(f"  {name} {'with' if zeros else 'without'} zero point: relative error {found:.1e}")
        same &= found > 0.5 if wrong else found < 0.01
sys.exit(0 if same else 1)
PY
