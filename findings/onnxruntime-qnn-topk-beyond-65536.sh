#!/usr/bin/env bash
# onnxruntime-qnn 2.7.0 (HTP, x86-64 emulation): TopK over more than 65,536 columns gives indices modulo 65,536, ArgMax of 16-bit
# codes the wrong one altogether.
#
# Both graphs are accepted with fallback to the CPU disabled, and run without a word. ArgMax of floats is right at any width, which
# makes the other two look right in a small test. The vocabulary of every current language model is wider than 65,536, so
# "the best tokens" of such a head are other tokens.
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


def best(form, columns, at):
    """What QNN says is the largest of some columns."""
    constants, nodes, source = [], [], "x"
    outputs = [h.make_tensor_value_info("y", T.INT64, [1, 1])]
    if form == "ArgMax of 16-bit codes":
        constants = [nh.from_array(np.float32(10 / 65535), "scale"), nh.from_array(np.uint16(0), "zero")]
        nodes = [
            h.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            h.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        ]
        source = "d"
    if form == "TopK of floats":
        constants.append(nh.from_array(np.array([1], np.int64), "k"))
        nodes.append(h.make_node("TopK", [source, "k"], ["v", "y"], axis=-1))
        outputs.append(h.make_tensor_value_info("v", T.FLOAT, [1, 1]))
    else:
        nodes.append(h.make_node("ArgMax", [source], ["y"], axis=-1, keepdims=1))
    graph = h.make_graph(nodes, "g", [h.make_tensor_value_info("x", T.FLOAT, [1, columns])], outputs, constants)
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10), "best.onnx")
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    settings = {"backend_path": qnn.get_qnn_htp_path(), "soc_model": "57", "htp_arch": "75"}
    options.add_provider_for_devices(device, settings)
    x = np.random.default_rng(0).uniform(0, 1, (1, columns)).astype(np.float32)
    x[0, at] = 5
    return int(ort.InferenceSession("best.onnx", options).run(["y"], {"x": x})[0][0, 0])


print("onnxruntime", ort.__version__, "onnxruntime-qnn", qnn.__version__)
same = True
for form in ("ArgMax of floats", "TopK of floats", "ArgMax of 16-bit codes"):
    for columns, at in ((65536, 65000), (70000, 69000)):
        found = best(form, columns, at)
        print(f"  {form}, {columns} columns, the largest at {at}: {found}")
        if columns == 65536 or form == "ArgMax of floats":
            same &= found == at
        elif form == "TopK of floats":
            same &= found == at - 65536
        else:
            same &= found != at
sys.exit(0 if same else 1)
PY
