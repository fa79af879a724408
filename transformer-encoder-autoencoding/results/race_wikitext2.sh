#!/usr/bin/env bash
# WikiText-2: ten minutes of our encoder against thirty of Hugging Face's BERT, each on one CPU core. It trains on the
# test split and evaluates on the first 400 lines of the validation split, so do not compare with published losses.
#
#   usage: race_wikitext2.sh CORPUS [OUTPUT [FLAG...]]
#
# CORPUS is a folder with the test and the validation split of WikiText-2 (Merity et al. 2016), word level, with <unk>
# for rare words, as test.txt and valid.txt.
#
# OUTPUT (default: wikitext2/ in the current folder) gets race.png and valid-400.txt; the losses are printed. The
# FLAGs go to `benchmark.py race`, after the ones below and so in place of them, as `--minutes 3`. It needs
# requirements-dev.txt.
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: ${0##*/} CORPUS [OUTPUT [FLAG...]]" >&2; exit 2; }
here="$(cd "$(dirname "$0")/.." && pwd)"
corpus="$1"
output="${2:-wikitext2}"
for file in test.txt valid.txt; do
  [ -f "$corpus/$file" ] || { echo "${0##*/}: $corpus/$file is missing; the head of $0 says what it is" >&2; exit 2; }
done
mkdir -p "$output"
head -n 400 "$corpus/valid.txt" > "$output/valid-400.txt"

OMP_NUM_THREADS=1 python3 "$here/benchmark.py" race --corpus "$corpus/test.txt" --held-out "$output/valid-400.txt" \
  --tokenizer bpe --vocab-size 8000 --n-layers 4 --d-model 256 --d-ff 1024 --learning-rate 1e-3 --warmup-steps 200 \
  --their-learning-rates 3e-4 --minutes 30 --output "$output" "${@:3}"
