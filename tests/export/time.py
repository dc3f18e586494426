"""Times the steps of an export in ONNX Runtime on the CPU beside those of an artifact of the same model, alternately.

    time.py EXPORT ARTIFACT --dlxc target/release/dlxc [--rounds 3] [--seconds 2] [--threads 2]

ONNX Runtime has all its optimizations on and attends all cache rows of the export (the mask hides those that are not there);
the artifact's caches are filled to half of that. Medians in ms, and the ratio of ONNX Runtime to the artifact in each round.
"""

import argparse
import json
import pathlib
import subprocess
import time

import numpy as np
import onnxruntime as ort


def run(session, seconds):
    feed = {}
    for port in session.get_inputs():
        kind = np.float16 if port.type == "tensor(float16)" else np.float32
        feed[port.name] = np.zeros(port.shape, kind) + np.asarray(0.01, kind)
    session.run(None, feed)
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        session.run(None, feed)
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=pathlib.Path)
    parser.add_argument("artifact")
    parser.add_argument("--dlxc", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    manifest = json.loads((args.export / "manifest.json").read_text())
    depth = manifest["model"]["max_seq"] // 2
    for entry in [e for e in manifest["entries"] if e["kind"] == "step"]:
        options = ort.SessionOptions()
        options.intra_op_num_threads = args.threads
        session = ort.InferenceSession(str(args.export / entry["file"]), options, providers=["CPUExecutionProvider"])
        for _ in range(args.rounds):
            theirs = run(session, args.seconds)
            command = [args.dlxc, "bench", args.artifact, "--rows", str(entry["rows"]), "--depth", str(depth)]
            command += ["--threads", str(args.threads), "--seconds", str(args.seconds), "--json"]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            ours = json.loads(out)["lines"][0]["step_ms"]["median"]
            print(f"{entry['name']}: ONNX Runtime {theirs:.2f}  artifact {ours:.2f}  ratio {theirs / ours:.2f}", flush=True)


if __name__ == "__main__":
    main()
