"""Draw what the words of a sentence attend to.

    python3 visualize_attention.py
    python3 visualize_attention.py --layer 2 --head 1 "The capital of [MASK] is Paris"

Writes to --output (default: results/ beside this file): attention_heatmap.png, one map, of the layer and
head asked for or of the mean of all; attention_heads.png, every head of every layer with its entropy.
"""

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

import pretrained
from cli import InputError, Parser, pick_device, run, whole
from corpus import MASK, SpecialIds
from encoder import MaskedLanguageModel
from fill_mask import encode, to_word

HERE = Path(__file__).parent
SENTENCE = f"Transformers use {MASK} attention"
