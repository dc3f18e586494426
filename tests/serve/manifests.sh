#!/usr/bin/env bash
# The manifests in deploy/kubernetes against schemas and against a real server: tests/serve/manifests.sh [DLXC]
#
# No cluster is needed. Installs pinned validators into target/manifests; manifests.py says what is checked by what.
set -euo pipefail
cd "$(dirname "$0")/../.."
dlxc=${1:-target/release/dlxc}
dir=target/manifests
mkdir -p "$dir"
python=$dir/venv/bin/python

[ -x "$python" ] || python3 -m venv "$dir/venv"
"$python" -m pip install --quiet --disable-pip-version-check kubernetes-validate==1.37.0 kubernetes==37.0.2 six==1.17.0 pyyaml
"$python" -m pip install --quiet --disable-pip-version-check --no-deps kserve==0.21.0
npm install --silent --no-fund --no-audit --prefix "$dir" @kubernetes-models/gateway-api@2.0.0
"$dlxc" compile examples/models/sdar-tiny --quant int4 --max-seq 2048 -o "$dir/sdar.dlxa" >"$dir/compile.log" 2>&1 ||
    { cat "$dir/compile.log"; exit 1; }
exec "$python" tests/serve/manifests.py "$dlxc" "$dir"
