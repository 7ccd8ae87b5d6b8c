#!/bin/sh
# Builds the wheel, installs it in an empty venv, and runs it in an empty folder: sh tests/try_wheel.sh PYTHON
set -eu
python=$1
root=$(pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PIP_CONSTRAINT="$root/constraints.txt" PIP_DISABLE_PIP_VERSION_CHECK=1
"$python" -m build --wheel --outdir "$scratch/dist" . >"$scratch/build.log" 2>&1 || { cat "$scratch/build.log"; exit 1; }
for file in lorabench/py.typed lorabench/conf/config.yaml 'lorabench-[^/]*/licenses/LICENSE'; do
    "$python" -m zipfile --list "$scratch"/dist/*.whl | grep -q "^$file " || { echo "the wheel lacks $file"; exit 1; }
done
"$python" -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet torch
"$scratch/venv/bin/pip" install --quiet "$scratch"/dist/*.whl
mkdir "$scratch/empty"
cd "$scratch/empty"
"$scratch/venv/bin/lorabench" dataset.per_category=12 dataset.pretrain_steps=40 dataset.steps=10 \
    representation=stats num_runs=2 cache_dir="$scratch/cache"
test -s outputs/*/*/results.json
"$scratch/venv/bin/lorabench" web 2>&1 | grep -q "pip install 'lorabench\[web\]'" || { echo "web does not say its extra"; exit 1; }
echo "The wheel works: built, installed in an empty venv, run in an empty folder."
