#!/usr/bin/env bash
# The captions of Multi30k: ten minutes of our encoder against thirty of Hugging Face's BERT, each on one CPU core.
#
#   usage: race_captions.sh CORPUS [OUTPUT [FLAG...]]
#
# CORPUS is the folder data/task1/raw of the repository https://github.com/multi30k/dataset, prepared once like this:
#
#   git clone https://github.com/multi30k/dataset && cd dataset/data/task1/raw && gunzip -k train.en.gz val.en.gz
#
# OUTPUT (default: captions/ in the current folder) gets race.png; the losses are printed. The FLAGs go to
# `benchmark.py race`, after the ones below and so in place of them, as `--minutes 3`. It needs requirements-dev.txt.
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: ${0##*/} CORPUS [OUTPUT [FLAG...]]" >&2; exit 2; }
here="$(cd "$(dirname "$0")/.." && pwd)"
corpus="$1"
output="${2:-captions}"
for file in train.en val.en; do
  [ -f "$corpus/$file" ] || { echo "${0##*/}: $corpus/$file is missing; the head of $0 says how to make it" >&2; exit 2; }
done

OMP_NUM_THREADS=1 python3 "$here/benchmark.py" race --corpus "$corpus/train.en" --held-out "$corpus/val.en" \
  --tokenizer bpe --vocab-size 8000 --n-layers 4 --d-model 256 --d-ff 1024 --batch-tokens 4096 --learning-rate 1e-3 --warmup-steps 200 \
  --their-learning-rates 1e-3 --minutes 30 --output "$output" "${@:3}"
