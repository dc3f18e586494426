"""ONNX Runtime on the linear layers and the head: 4-bit blocks of 32, and 8-bit dynamic quantization.

The graphs are what ONNX Runtime's own quantizers leave of such a model: `MatMulNBits` with `accuracy_level` 4
(activations to int8), or one `DynamicQuantizeLinear` shared by the matrices that read the same rows, each a
`MatMulIntegerToFloat`.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from shape import SHAPE, Shape

BLOCK = 32
# The standard deviation of the random integers of 4 and 8 bits; scaled by it, activations stay in range.
SPREAD = {4: 4.32, 8: 73.6}


class Weights:
    """Tensors of a model, written one after the other to the file beside it."""

    def __init__(self, path: Path):
        self.place = path.name
        self.file = path.open("wb")
        self.tensors: list[TensorProto] = []

    def add(self, name: str, array: np.ndarray) -> str:
        at = -(-self.file.tell() // 4096) * 4096
        self.file.seek(at)
        self.file.write(array.tobytes())
        dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = TensorProto(name=name, data_type=dtype, dims=array.shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self.place), ("offset", at), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self.tensors.append(tensor)
        return name


def int4_linear(weights: Weights, rng: np.random.Generator, name: str, x: str, k: int, n: int) -> list:
    # Nibbles stand for -8 to 7. Without the lowest they are zero on average, which keeps activations in range.
    low, high = rng.integers(1, 16, (2, n, k // BLOCK, BLOCK // 2), np.uint8)
    packed = low | high << 4
    scales = np.full((n, k // BLOCK), 1 / (SPREAD[4] * k**0.5), np.float32)
    inputs = [x, weights.add(f"{name}.w", packed), weights.add(f"{name}.s", scales)]
    attributes = {"K": k, "N": n, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
    return [helper.make_node("MatMulNBits", inputs, [name], name, domain="com.microsoft", **attributes)]


def int8_linear(weights: Weights, rng: np.random.Generator, name: str, x: str, k: int, n: int) -> list:
    matrix = rng.integers(-127, 128, (k, n), np.int8)
    scale = np.full(n, 1 / (SPREAD[8] * k**0.5), np.float32)
    inputs = [f"{x}.u8", weights.add(f"{name}.w", matrix), f"{x}.scale"]
    inputs += [weights.add(f"{name}.s", scale), f"{x}.zero", weights.add(f"{name}.z", np.zeros(n, np.int8))]
    return [helper.make_node("MatMulIntegerToFloat", inputs, [name], name, domain="com.microsoft")]


def build(bits: int, shape: Shape, path: Path) -> None:
    """Writes the model and its weights."""
    rng = np.random.default_rng(0)
    weights = Weights(path.with_suffix(".weights"))
    linear = {4: int4_linear, 8: int8_linear}[bits]
    nodes = []

    def quantize(x: str) -> None:
        if bits == 8:
            nodes.append(helper.make_node("DynamicQuantizeLinear", [x], [f"{x}.u8", f"{x}.scale", f"{x}.zero"]))

    x = "x"
    for layer in range(shape.layers):
        of = {name: f"{layer}.{name}" for name, _, _ in shape.layer_linears()}
        reads = dict.fromkeys(of, x) | {"o": f"{layer}.attn", "down": f"{layer}.act"}
        reads |= {"gate": of["o"], "up": of["o"]}
        for name, k, n in shape.layer_linears():
            if name == "o":
                nodes.append(helper.make_node("Concat", [of["k"], of["v"]], [f"{layer}.kv"], axis=1))
                nodes.append(helper.make_node("Add", [of["q"], f"{layer}.kv"], [reads["o"]]))
            if name == "down":
                nodes.append(helper.make_node("Add", [of["gate"], of["up"]], [reads["down"]]))
            if name in ("q", "o", "gate", "down"):
                quantize(reads[name])
            nodes += linear(weights, rng, of[name], reads[name], k, n)
        x = of["down"]
    quantize(x)
    nodes += linear(weights, rng, "logits", x, shape.hidden, shape.vocab)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "linears",
        [value("x", TensorProto.FLOAT, ["rows", shape.hidden])],
        [value("logits", TensorProto.FLOAT, ["rows", shape.vocab])],
        weights.tensors,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    weights.file.close()
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def load(bits: int, models: Path, threads: int) -> Callable[[int, int], Callable[[], np.ndarray]]:
    path = models / f"linears-int{bits}.onnx"
    if not path.exists():
        part = models / f"linears-int{bits}-part.onnx"
        build(bits, SHAPE, part)
        # The model names the file of its weights, so only the model itself is renamed: it is what says "complete".
        part.rename(path)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads spin within a run, which is fastest, but not between runs, when the other side is measured.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def prepare(rows: int, _depth: int) -> Callable[[], np.ndarray]:
        x = np.random.default_rng(1).standard_normal((rows, SHAPE.hidden)).astype(np.float32)
        logits = np.zeros((rows, SHAPE.vocab), np.float32)
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)

        def run() -> np.ndarray:
            session.run_with_iobinding(binding)
            return logits

        return run

    return prepare
