#!/usr/bin/env bash
# Multi30k, English to German: train for about an hour on two CPU cores, then score the test set of 2016.
#
#   usage: multi30k.sh CORPUS [OUTPUT [FLAG...]]
#
# CORPUS is the folder data/task1/raw of the repository https://github.com/multi30k/dataset, prepared once like this:
#
#   git clone https://github.com/multi30k/dataset && cd dataset/data/task1/raw
#   gunzip -k *.gz && for part in train val; do paste $part.en $part.de > $part.en-de.tsv; done
#
# OUTPUT (default: multi30k/ in the current folder) gets what train.py writes, and test_2016.out. The FLAGs go to
# train.py, after the ones below and so in place of them, as `--seed 2`. BLEU and chrF are printed at the end.
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: ${0##*/} CORPUS [OUTPUT [FLAG...]]" >&2; exit 2; }
here="$(cd "$(dirname "$0")/.." && pwd)"
corpus="$1"
output="${2:-multi30k}"
for file in train.en-de.tsv val.en-de.tsv test_2016_flickr.en test_2016_flickr.de; do
  [ -f "$corpus/$file" ] || { echo "${0##*/}: $corpus/$file is missing; the head of $0 says how to make it" >&2; exit 2; }
done

torchrun --standalone --nproc-per-node 2 "$here/train.py" \
  --pairs "$corpus/train.en-de.tsv" --held-out "$corpus/val.en-de.tsv" --tokenizer bpe --vocab-size 8000 --n-layers 4 \
  --batch-tokens 4096 --dropout 0.25 --learning-rate 4e-3 --warmup-steps 800 --epochs 90 --output "$output" "${@:3}"

python3 "$here/inference.py" --model "$output/model" --beam 5 \
  --input "$corpus/test_2016_flickr.en" --references "$corpus/test_2016_flickr.de" --output "$output/test_2016.out"
