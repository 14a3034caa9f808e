#!/bin/sh
# Compile requirements/ from pyproject.toml: for every platform, with hashes and without addresses. Called by `make requirements`.
set -eu

compile() {
    UV_CUSTOM_COMPILE_COMMAND="make requirements" uv pip compile --quiet --universal --python-version 3.11 \
        --fork-strategy fewest --no-emit-index-url --no-emit-find-links pyproject.toml "$@"
}

cd "$(dirname "$0")/.."
compile "$@" --generate-hashes --extra cpu -o requirements/service-cpu.txt
# What the two service files share has one version, and so has what the trainer shares with them.
compile "$@" --generate-hashes --extra gpu -c requirements/service-cpu.txt -o requirements/service-gpu.txt
compile "$@" --extra cpu --extra train --extra dev --extra adapters -c requirements/service-cpu.txt -o requirements/trainer.txt

if grep -n '://' requirements/*.txt; then
    echo "requirements/ holds an address" >&2
    exit 1
fi
