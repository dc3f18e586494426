#!/usr/bin/env bash
# Exports the tiny models and checks every file with onnx, ONNX Runtime and, where it can be installed, QNN's emulation.
#
#   tests/export/run.sh           two models, two profiles each, one SoC: what .ci/run calls
#   tests/export/run.sh --all     every family, every profile, three SoCs, and the plain ONNX target
#
# Needs python3 with venv and the package registry. QNN's package exists for some versions of Python alone; without it the
# rest is checked, and that is said.
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo build --quiet -p dlxc
dlxc=${CARGO_TARGET_DIR:-target}/debug/dlxc
venv=target/export-venv
[ -x $venv/bin/python ] || python3 -m venv $venv
python=$venv/bin/python
$python -m pip install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.31.1 numpy
qnn=(--qnn 57/75)
[ "${1:-}" = --all ] && qnn=(--qnn 57/75,60/73,87/81)
if ! $python -m pip install --quiet --disable-pip-version-check onnxruntime-qnn==2.7.0 2>/dev/null; then
    echo "not checked: onnxruntime-qnn cannot be installed here"
    qnn=()
fi
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
exported() { # NAME MODEL ARGUMENTS… – exports a model and checks it
    local name=$1 model=$2 against=("${qnn[@]}")
    shift 2
    $dlxc compile "examples/models/$model" --max-seq 96 -o "$dir/out" --force "$@" >/dev/null
    [ "$name" = "${name#onnx}" ] || against=()
    echo "-- $model $name"
    $python tests/export/check.py "$dir/out" --dlxc "$dlxc" "${against[@]}"
}
models=(sdar-tiny qwen2-tiny)
profiles=(w8a16 mnb4)
if [ "${1:-}" = --all ]; then
    models=(sdar-tiny fast-dllm-v2-tiny qwen2-tiny dream-tiny llada-tiny)
    profiles=(w8a16 w4a16 mnb4 mnb8 f16)
fi
if [ "${1:-}" = --all ] && [ ${#qnn[@]} -gt 0 ]; then
    $python tests/export/lint.py --dlxc "$dlxc"
fi
for model in "${models[@]}"; do
    for profile in "${profiles[@]}"; do
        codes=()
        [ "$profile" = "${profile%a16}" ] || codes=(--calibrate examples/data/questions.jsonl)
        exported "$profile" "$model" --target qnn --profile "$profile" "${codes[@]}"
    done
    for quant in none int4; do
        exported "onnx $quant" "$model" --target onnx --quant "$quant"
    done
done
