#!/usr/bin/env bash
# dlxc on two Ray nodes of this machine, while processes, replicas and a node are killed: tests/serve/ray.sh [DLXC]
#
# Installs the package in python/ with its pinned Ray into target/ray and runs ray_cluster.py, which prints what it counted and
# fails if requests are lost, if processes are left behind, or if answers are not those of `dlxc eval`.
set -euo pipefail
cd "$(dirname "$0")/../.."
dlxc=$(realpath "${1:-target/release/dlxc}")
dir=target/ray
mkdir -p "$dir"
python=$dir/venv/bin/python

[ -x "$python" ] || python3 -m venv "$dir/venv"
"$python" -m pip install --quiet --disable-pip-version-check ./python openai==3.57.0
"$dlxc" compile examples/models/sdar-tiny --quant int4 --max-seq 2048 -o "$dir/tiny.dlxa" >"$dir/compile.log" 2>&1 ||
    { cat "$dir/compile.log"; exit 1; }
"$dlxc" eval "$dir/tiny.dlxa" examples/data/questions.jsonl --json >"$dir/eval.json"
export RAY_USAGE_STATS_ENABLED=0 RAY_DEDUP_LOGS=0
exec "$python" tests/serve/ray_cluster.py "$dlxc" "$(realpath "$dir/tiny.dlxa")" "$dir/eval.json"
