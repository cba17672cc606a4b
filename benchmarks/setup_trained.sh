#!/usr/bin/env bash
# Make a virtual environment that can run the trained networks and benchmarks/results.py:
#
#     benchmarks/setup_trained.sh [FOLDER]        (default: .venv-trained)
#
# Debian packages (as root): espeak-ng speaks for silero_vad, fonts-dejavu draws the text of
# ppocr and svhn, tuxpaint-stamps-default (160 MB) gives efficientnet_lite0 its calibration images.
# On a machine where pip would fetch torch for CUDA, name the CPU build's index in
# PIP_EXTRA_INDEX_URL first.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
venv=${1:-.venv-trained}
packages=(espeak-ng fonts-dejavu tuxpaint-stamps-default)

if ! dpkg -s "${packages[@]}" >/dev/null 2>&1; then
    apt-get update
    apt-get install -y --no-install-recommends "${packages[@]}"
fi

python3 -m venv "$venv"
"$venv/bin/pip" install torch==2.13.0
"$venv/bin/pip" install --no-deps -r "$here/requirements-trained.txt"
"$venv/bin/pip" install --no-deps -e "$here/.."

echo "next: $venv/bin/python -m spa_graph.models_zoo.trained models --evaluate"
