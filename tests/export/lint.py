"""Tries every rule of `dlxc lint` on QNN's emulation: the graph that it finds, and that graph's mended twin.

    lint.py --dlxc target/release/dlxc [RULE…]

A graph of kind `wrong` must be accepted, with fallback to the CPU disabled, and differ from ONNX Runtime on the CPU by more than the
figure beside it; one of kind `refused` or `elsewhere` must not run. The mended twin must run within 5e-3. `dlxc lint` must name the
rule for the first and nothing for the second. Each session is in a process of its own. The rule about a norm times a repeated
input is left out: the library may end the process there.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
from onnx import TensorProto as T, helper as h, numpy_helper as nh

import check

K, N, B, M = 64, 32, 32, 8
rng = np.random.default_rng(0)


class Graph:
    def __init__(self, **inputs):
        self.inputs, self.constants, self.nodes = inputs, [], []

    def constant(self, name, values, kind=None):
        if kind in (T.INT4, T.UINT4):
            flat = np.asarray(values).reshape(-1).astype(np.int8).view(np.uint8) & 15
            packed = (flat[0::2] | flat[1::2] << 4).astype(np.uint8).tobytes()
            self.constants.append(h.make_tensor(name, kind, np.shape(values), packed, raw=True))
        else:
            self.constants.append(nh.from_array(np.asarray(values), name))
        return name

    def node(self, op, inputs, outputs, **attributes):
        self.nodes.append(h.make_node(op, inputs, outputs, name=outputs[0], **attributes))
        return outputs[0]

    def coded(self, x, name, kind=np.uint16, reach=4.0, low=None):
        """`x` through codes of a type."""
        info = np.iinfo(kind)
        low = -reach if low is None else low
        scale = np.float32((reach - low) / (info.max - info.min))
        zero = np.array(round(info.min - low / scale), kind)
        s, z = self.constant(f"{name}.s", scale), self.constant(f"{name}.z", zero)
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [x, s, z], [f"{name}.q"]), s, z], [f"{name}.d"])

    def save(self, path, output, kind=T.FLOAT, rank=None):
        values = [h.make_tensor_value_info(n, h.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in self.inputs.items()]
        out = h.make_tensor_value_info(output, kind, None)
        graph = h.make_graph(self.nodes, "g", values, [out], self.constants)
        opsets = [h.make_opsetid("", 23), h.make_opsetid("com.microsoft", 1)]
        model = h.make_model(graph, opset_imports=opsets, ir_version=11)
        onnx.save(onnx.shape_inference.infer_shapes(model), path)


def normal(*shape):
    return rng.normal(size=shape).clip(-3.9, 3.9).astype(np.float32)


def weight(g, zeros, factors=None, k=K, n=N):
    codes = rng.integers(-7, 8, (k, n))
    g.constant("w", codes, T.INT4)
    scales = g.constant("ws", rng.uniform(0.005, 0.01, n).astype(np.float32))
    axis = dict(axis=1)
    if factors is not None:
        all = rng.integers(1, 8, (k // B, n)).astype(np.uint8)
        all[0, :] = factors
        g.constant("f", all)
        g.constant("fz", np.zeros(n, np.uint8))
        scales = g.node("DequantizeLinear", ["f", "ws", "fz"], ["fs"], axis=1)
        axis = dict(axis=0, block_size=B)
    inputs = ["w", scales]
    if zeros:
        inputs.append(g.constant("wz", np.zeros((k // B, n) if factors is not None else n), T.INT4))
    return g.node("DequantizeLinear", inputs, ["wd"], **axis)


def product(op="MatMul", zeros=True, factors=None):
    g = Graph(x=normal(M, K))
    w = weight(g, zeros, factors)
    y = g.node(op, [g.coded("x", "a"), w], ["m"])
    return g, g.coded(y, "y", reach=8.0)


def best(op, columns, coded):
    x = rng.uniform(0, 1, (1, columns)).astype(np.float32)
    x[0, columns - 7] = 3.5
    g = Graph(x=x)
    source = g.coded("x", "a") if coded else "x"
    if op == "TopK":
        g.constant("k", np.array([1], np.int64))
        g.node("TopK", [source, "k"], ["v", "i"], axis=-1)
        index = "i"
    else:
        index = g.node(op, [source], ["i"], axis=-1, keepdims=1)
    return g, g.node("Cast", [index], ["y"], to=T.FLOAT)


def activations(second, reach=16.0):
    g = Graph(x=normal(2, M, K), z=(4 * rng.normal(size=(2, K, N))).clip(-15, 15).astype(np.float32))
    a, b = g.coded("x", "a"), "z"
    if second is not None:
        b = g.coded("z", "b", second, reach)
        return g, g.coded(g.node("MatMul", [a, b], ["m"]), "y", reach=200.0)
    return g, g.node("MatMul", ["x", "z"], ["y"])


def normed(inside):
    k = 1024
    g = Graph(x=normal(32, k))
    scale = rng.uniform(0.5, 1.5, k).astype(np.float32)
    g.constant("g", scale if inside else np.ones(k, np.float32))
    n = g.node("RMSNormalization", ["x", "g"], ["n"], axis=-1, epsilon=1e-6)
    if not inside:
        n = g.node("Mul", [n, g.constant("gm", scale)], ["nm"])
    w = weight(g, True, 7, k, 3072)
    return g, g.coded(g.node("MatMul", [g.coded(n, "a", reach=6.0), w], ["m"]), "y", reach=20.0)


def scattered(reach):
    g = Graph(x=normal(16, K), u=normal(2, K), at=np.repeat(np.array([[3], [5]], np.int32), K, 1))
    a, b = g.coded("x", "a"), g.coded("u", "b", reach=reach)
    return g, g.coded(g.node("ScatterElements", [a, "at", b], ["c"], axis=0), "y")


def norm(rank, kind=None):
    g = Graph(x=normal(*([2] * (rank - 1)), K))
    ones = rng.uniform(0.5, 1.5, K).astype(np.float32)
    if kind is None:
        return g, g.node("RMSNormalization", ["x", g.constant("g", ones)], ["y"], axis=-1)
    info = np.iinfo(kind)
    g.constant("gq", (ones / 1.6 * info.max).astype(kind))
    s, z = g.constant("gs", np.float32(1.6 / info.max)), g.constant("gz", np.array(0, kind))
    w = g.node("DequantizeLinear", ["gq", s, z], ["gd"])
    return g, g.coded(g.node("RMSNormalization", [g.coded("x", "a"), w], ["n"], axis=-1), "y", reach=6.0)


def nbits(rank, floats=False):
    g = Graph(x=normal(*[1, M, K][3 - rank :]))
    g.constant("b", rng.integers(0, 256, (N, K // B, B // 2)).astype(np.uint8))
    g.constant("s", rng.uniform(0.005, 0.01, N * K // B).astype(np.float32))
    zeros = g.constant("z", np.full(N * K // B, 8, np.float32) if floats else np.full((N, 1), 0x88, np.uint8))
    g.node("MatMulNBits", ["x", "b", "s", zeros], ["y"], domain="com.microsoft", K=K, N=N, bits=4, block_size=B)
    return g, "y"


def alone(coded):
    g = Graph(x=normal(M, K))
    g.constant("w", rng.integers(-127, 128, (K, N)).astype(np.int8))
    g.constant("ws", rng.uniform(0.0005, 0.001, N).astype(np.float32))
    g.constant("wz", np.zeros(N, np.int8))
    w = g.node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1)
    y = g.node("MatMul", [g.coded("x", "a") if coded else "x", w], ["m"])
    return g, g.coded(y, "y", reach=8.0) if coded else y


def softmax(columns, coded):
    g = Graph(x=normal(4, columns))
    p = g.node("Softmax", [g.coded("x", "a") if coded else "x"], ["p"], axis=-1)
    return g, g.coded(p, "y", reach=1.0, low=0.0) if coded else p


def one(op):
    g = Graph(x=normal(M, K))
    return g, g.node(op, ["x"], ["y"])


# Rule, kind, least error where it is wrong, the graph, its twin.
CASES = [
    ("int4-without-zero-point", "wrong", 0.5, lambda: product(zeros=False), lambda: product()),
    ("wide-indices", "wrong", 0.1, lambda: best("TopK", 70000, False), lambda: best("TopK", 65536, False)),
    ("wide-indices", "wrong", 0.1, lambda: best("ArgMax", 70000, True), lambda: best("ArgMax", 70000, False)),
    ("two-16-bit-activations", "wrong", 5e-3, lambda: activations(np.uint16), lambda: activations(None)),
    ("weighted-norm-before-blocks", "refused", 0, lambda: normed(True), lambda: normed(False)),
    ("scatter-of-unequal-scales", "wrong", 0.05, lambda: scattered(8.0), lambda: scattered(4.0)),
    ("block-factor-too-large", "wrong", 0.5, lambda: product(factors=40), lambda: product(factors=15)),
    ("blocks-without-zeros", "refused", 0, lambda: product(zeros=False, factors=7), lambda: product(factors=7)),
    ("blocks-in-gemm", "refused", 0, lambda: product("Gemm", factors=7), lambda: product(factors=7)),
    ("norm-weight-of-signed-codes", "refused", 0, lambda: norm(3, np.int8), lambda: norm(3, np.uint16)),
    ("too-many-dimensions", "refused", 0, lambda: norm(5), lambda: norm(4)),
    ("nbits-form", "refused", 0, lambda: nbits(2), lambda: nbits(3)),
    ("nbits-form", "refused", 0, lambda: nbits(3, True), lambda: nbits(3)),
    ("weights-alone-per-output", "refused", 0, lambda: alone(False), lambda: alone(True)),
    ("long-16-bit-softmax", "wrong", 5e-3, lambda: softmax(32768, True), lambda: softmax(32768, False)),
    ("operator", "elsewhere", 0, lambda: one("Erf"), lambda: one("Tanh")),
]


def tried(made, dir, name, dlxc):
    """What the lint names, and the error on QNN, or None where it does not run."""
    graph, output = made()
    path = str(dir / f"{name}.onnx")
    graph.save(path, output)
    found = subprocess.run([dlxc, "lint", path, "--json"], capture_output=True, text=True).stdout
    rules = sorted({f["rule"] for f in json.loads(found)})
    wanted = check.cpu(path, graph.inputs)
    made, _, why = check.qnn(path, graph.inputs, "57/75")
    return rules, None if made is None else check.error(made, wanted), why


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rules", nargs="*")
    parser.add_argument("--dlxc", required=True)
    args = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as dir:
        for rule, kind, least, wrong, right in CASES:
            if args.rules and rule not in args.rules:
                continue
            rules, bad, why = tried(wrong, pathlib.Path(dir), "wrong", args.dlxc)
            others, mended, still = tried(right, pathlib.Path(dir), "right", args.dlxc)
            as_said = bad is not None and bad > least if kind == "wrong" else bad is None
            fine = rules == [rule] and others == [] and as_said and mended is not None and mended <= 5e-3
            good &= fine
            show = lambda e, why: f"{e:.1e}" if e is not None else "refused: " + why[-70:]
            print(f"{'ok  ' if fine else 'FAIL'} {rule} ({kind}): {show(bad, why)}; mended {show(mended, still)}", flush=True)
            if rules != [rule] or others:
                print(f"     the lint says {rules} and {others}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
