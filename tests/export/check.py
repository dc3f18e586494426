"""Checks an export with other people's software: onnx's checker, ONNX Runtime on the CPU, and QNN where it is installed.

    check.py EXPORT [--qnn 57/75,60/73,87/81] [--dlxc target/release/dlxc] [--seed 0] [--json]

Every entry is executed at its exported shapes on random tokens, with caches and hidden states that other random tokens left. ONNX Runtime runs it as it is (optimizations off: else it computes
quantized products its own way), `dlxc run-graph` runs our own import of it, and QNN compiles and executes it for each SoC with
fallback to the CPU disabled, in a process of its own: a failure inside the library must not end the run. Errors are relative L2.
Exit code 1 if something is refused or an error exceeds its bound.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort

CPU_BOUND, QNN_BOUND, FLOAT_BOUND = 1e-2, 5e-3, 1e-3


def arguments(entry, manifest, ids, at, caches):
    """What an entry is given for these tokens at cache row `at`, which see all rows before them and each other."""
    model, rows = manifest["model"], entry["rows"]
    table = np.memmap(manifest["dir"] / manifest["embeddings"]["file"], np.float16, "r")
    table = table.reshape(-1, manifest["embeddings"]["cols"])
    half = model["head_dim"] // 2
    angles = (at + np.arange(rows))[:, None] * model["rope_theta"] ** (-np.arange(half) / half)
    made = {}
    for port in entry["inputs"]:
        role = port["role"]
        if role == "rope_cos":
            value = np.concatenate([np.cos(angles)] * 2, axis=1)
        elif role == "rope_sin":
            value = np.concatenate([-np.sin(angles), np.sin(angles)], axis=1)
        elif role == "mask":
            value = np.full(port["shape"], port["masked_value"])
            value[:, :at] = 0
            value[:, model["max_seq"] :] = 0
        elif role == "embeddings":
            value = table[ids]
        else:
            value = caches[port["name"]]
        made[port["name"]] = value.astype({"f16": np.float16, "f32": np.float32}[port["dtype"]])
    return made


def inputs(entry, manifest, rng):
    """Random valid input of an entry: hidden states and caches are those that random tokens have."""
    largest = max((e for e in manifest["entries"] if e["kind"] == "step"), key=lambda e: e["rows"])
    caches = {p["name"]: np.zeros(p["shape"], np.float16) for p in largest["inputs"] if p["role"] in ("k_cache", "v_cache")}
    draw = lambda rows: rng.integers(0, manifest["model"]["vocab"], rows)
    rows, at, hidden = largest["rows"], 0, None
    room = manifest["model"]["max_seq"] - entry["rows"]
    while hidden is None or at + rows <= room // 2:
        out = cpu(str(manifest["dir"] / largest["file"]), arguments(largest, manifest, draw(rows), at, caches))
        hidden = out[0]
        if at + rows > room:
            break
        for port, value in zip(largest["outputs"], out):
            if "into" in port:
                where = [slice(None)] * value.ndim
                where[port["axis"]] = slice(at, at + rows)
                caches[port["into"]][tuple(where)] = value
        at += rows
    if entry["kind"] == "head":
        return {entry["inputs"][0]["name"]: np.resize(hidden, entry["inputs"][0]["shape"])}
    return arguments(entry, manifest, draw(entry["rows"]), at, caches)


def error(found, wanted):
    found, wanted = (np.concatenate([v.astype(np.float64).ravel() for v in side]) for side in (found, wanted))
    return float(np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-30))


def cpu(path, feed):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feed)


def ours(dlxc, path, feed, names):
    with tempfile.TemporaryDirectory() as dir:
        artifact, given, made = (f"{dir}/{n}" for n in ("a.dlxa", "in.npz", "out.npz"))
        np.savez(given, **feed)
        subprocess.run([dlxc, "compile", path, "--graph", "-o", artifact], check=True, capture_output=True)
        subprocess.run([dlxc, "run-graph", artifact, "--inputs", given, "-o", made], check=True, capture_output=True)
        with np.load(made) as out:
            return [out[name] for name in names]


def qnn_child(path, feed_file, soc, arch, out_file):
    """Runs one entry on the emulator: compile, execute, write the context, load it again, execute."""
    import onnxruntime_qnn

    ort.register_execution_provider_library("QNNExecutionProvider", onnxruntime_qnn.get_library_path())
    devices = [d for d in ort.get_ep_devices() if d.ep_name == "QNNExecutionProvider"]
    settings = {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), "soc_model": soc, "htp_arch": arch}
    with np.load(feed_file) as given:
        feed = {name: given[name] for name in given.files}
    results = []
    with tempfile.TemporaryDirectory() as dir:
        context = os.path.join(dir, "context.onnx")
        for source, extra in ((path, {"ep.context_enable": "1", "ep.context_file_path": context, "ep.context_embed_mode": "0"}), (context, {})):
            options = ort.SessionOptions()
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            for key, value in extra.items():
                options.add_session_config_entry(key, value)
            options.add_provider_for_devices(devices[:1], settings)
            results.append(ort.InferenceSession(source, options).run(None, feed))
    same = all(np.array_equal(a, b) for a, b in zip(*results))
    np.savez(out_file, *results[0], same=np.array(same))


def qnn(path, feed, target):
    soc, arch = target.split("/")
    with tempfile.TemporaryDirectory() as dir:
        given, made = f"{dir}/in.npz", f"{dir}/out.npz"
        np.savez(given, **feed)
        child = [sys.executable, __file__, "--child", path, given, soc, arch, made]
        ran = subprocess.run(child, capture_output=True, text=True)
        if ran.returncode != 0:
            # The library talks on both streams; what Python raised is what counts.
            lines = [l for l in ran.stderr.splitlines() if l.strip() and not l.startswith((" ", "\x1b"))]
            return None, False, lines[-1] if lines else f"ended with {ran.returncode}"
        with np.load(made) as out:
            return [out[f"arr_{i}"] for i in range(len(out.files) - 1)], bool(out["same"]), ""


def check(dir, args):
    manifest = json.loads((dir / "manifest.json").read_text())
    manifest["dir"] = dir
    rng = np.random.default_rng(args.seed)
    report, good = [], True
    exact = manifest["profile"] in ("f16", "f32")
    for entry in manifest["entries"]:
        path = str(dir / entry["file"])
        onnx.checker.check_model(path, full_check=True)
        graph = onnx.load(path, load_external_data=False).graph
        static = all(d.HasField("dim_value") for v in [*graph.input, *graph.output] for d in v.type.tensor_type.shape.dim)
        feed = inputs(entry, manifest, rng)
        wanted = cpu(path, feed)
        row = {"entry": entry["name"], "static": static, "finite": all(np.isfinite(v).all() for v in wanted)}
        good &= row["static"] and row["finite"]
        if args.dlxc:
            row["ours"] = error(ours(args.dlxc, path, feed, [o["name"] for o in entry["outputs"]]), wanted)
            good &= row["ours"] <= (FLOAT_BOUND if exact else CPU_BOUND)
        for target in args.qnn.split(",") if args.qnn else []:
            found, same, why = qnn(path, feed, target)
            row[target] = why if found is None else error(found, wanted)
            row[f"{target} reloaded"] = same
            good &= found is not None and row[target] <= QNN_BOUND and same
        report.append(row)
        print(json.dumps(row) if args.json else "  ".join(f"{k} {v:.1e}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
    return good


def main():
    if sys.argv[1:2] == ["--child"]:
        return qnn_child(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=pathlib.Path)
    parser.add_argument("--qnn", default="", help="SOC/ARCH,… to compile and execute for")
    parser.add_argument("--dlxc", help="the program, to compare its own run of the files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    sys.exit(0 if check(args.export, args) else 1)


if __name__ == "__main__":
    main()
