#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in one command and with no network:
#
#   benchmarks/gpu.sh                 results go to $OUT, or to runs/gpu/
#   PYTHON=.venv/bin/python benchmarks/gpu.sh
#
# It runs the tests marked gpu, training steps on CUDA (search_step.py), a short whole run of sbs-train there, ONNX
# Runtime's CUDA provider and TensorRT-RTX engines (gpu_engines.py), and writes one JSON file with the device named. A
# part that cannot run leaves its reason in that file instead of a number; the exit code is 1 when there is no GPU, a
# test or a part fails.
#
# A machine that lacks a package can bring it in .gpu-site/, which is put in front of the path:
#   pip install --target .gpu-site --only-binary :all: --python-version 3.12 pydantic tyro rich onnx_ir tensorrt-rtx \
#       torch-pruning lightning-fabric safetensors tensorboard scikit-learn
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root" || exit 2
python=${PYTHON:-$(command -v python3)}
out=${OUT:-$root/runs/gpu}
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
mkdir -p "$out" || exit 2
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
[ -d .gpu-site ] && export PYTHONPATH="$root/.gpu-site:$PYTHONPATH"

part() { # NAME COMMAND…: run one part, keep its log and its exit code
    local name=$1
    shift
    echo "== $name" >&2
    "$@" >"$parts/$name.log" 2>&1
    echo $? >"$parts/$name.rc"
    tail -n 15 "$parts/$name.log" >&2
}

part device "$python" benchmarks/gpu_collect.py device --out "$parts/device.json"
if [ "$(cat "$parts/device.rc")" = 0 ]; then
    part tests "$python" -m pytest -q -m gpu -p no:cacheprovider
    part train "$python" benchmarks/search_step.py --device cuda --compile --out "$parts/train.json"
    part run "$python" -m sbs_train.cli --device cuda --out "$parts/run" --json --pretrain.epochs 5 --search.epochs 5 \
        --finetune.epochs 5
    for backend in onnxruntime tensorrt_rtx; do
        part $backend "$python" benchmarks/gpu_engines.py $backend --out "$parts/$backend.json"
    done
fi
"$python" benchmarks/gpu_collect.py join --parts "$parts" --out "$out"
