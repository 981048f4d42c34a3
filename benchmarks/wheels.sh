#!/usr/bin/env bash
# Wheels that a GPU machine without a network lacks, in one folder to carry there:
#
#     benchmarks/wheels.sh [FOLDER]          (default: .whl, which git ignores)
#
# The machine (METHOD.md) has Python 3.12 on x86-64 with torch, torchvision, transformers, accelerate, triton, typer,
# regex, tensorboard, pytest and what these need. NEEDED is what clipx, its GPU tests and the comparison with open_clip
# import beyond that, in the versions of constraints.txt; timm is there, but its version is not known. wandb is not
# needed: the plan's runs do not track. At most LIMIT MiB may travel with the working tree.
set -eu
cd "$(dirname "$0")/.."
folder=${1:-.whl}
LIMIT=64
NEEDED="annotated-types braceexpand ftfy open-clip-torch pydantic pydantic-core simplejpeg timm typing-inspection wcwidth
    webdataset"
PYTHON=${PYTHON:-python3}

rm -rf "$folder"
mkdir -p "$folder"
platforms=
for platform in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux_2_5 manylinux1; do
    platforms="$platforms --platform ${platform}_x86_64"
done
# --no-deps: pip would fetch torch and its gigabytes too
# shellcheck disable=SC2086
"$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
    --python-version 3.12 $platforms --dest "$folder" --constraint constraints.txt $NEEDED
ls -l "$folder" | awk 'NR > 1 { printf "%9d  %s\n", $5, $9 }'
size=$(du -sk "$folder" | cut -f1)
printf '%d wheels, %d.%d MiB in %s\n' "$(ls "$folder" | wc -l)" $((size / 1024)) $((size % 1024 * 10 / 1024)) "$folder"
if [ "$size" -gt $((LIMIT * 1024)) ]; then
    echo "$folder has more than $LIMIT MiB: that does not travel" >&2
    exit 1
fi
