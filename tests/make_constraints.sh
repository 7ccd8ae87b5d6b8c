#!/bin/sh
# Makes constraints.txt: what pip installs in an empty venv, with what builds the wheel.
# Today's versions stay unless --upgrade is said: sh tests/make_constraints.sh PYTHON [--upgrade]
set -eu
python=$1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT="$(pwd)/constraints.txt"
if [ "${2:-}" = --upgrade ]; then
    grep '^torch==' constraints.txt >"$scratch/torch.txt"  # a looser wish brings several GB of CUDA packages
    PIP_CONSTRAINT="$scratch/torch.txt"
fi
"$python" -m venv "$scratch/venv"
pip="$scratch/venv/bin/python -m pip"
$pip install --quiet torch
$pip install --quiet --editable '.[dev,docs,studies]' hatchling
# Without the build of torch ("+cpu"), as which it is asked for; in the order of names, "_" as "-".
$pip freeze --exclude-editable >"$scratch/freeze.txt"
"$python" - "$scratch/freeze.txt" <<'CODE' >"$scratch/constraints.txt"
import pathlib, sys
print("# Exact versions that were tested together (CPython 3.11, Linux). torch is installed first: see the Makefile.")
lines = (line.partition("+")[0] for line in pathlib.Path(sys.argv[1]).read_text().splitlines())
print(*sorted(lines, key=lambda line: line.lower().replace("_", "-")), sep="\n")
CODE
cp "$scratch/constraints.txt" constraints.txt
