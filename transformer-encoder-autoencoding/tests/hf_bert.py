"""Random BERTs, made and saved by Hugging Face's transformers, as others would give us."""

from pathlib import Path

import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORD_PIECES = "the cat dog chase ##s sees a small Paris paris caf cafe ##é , . ! ' P p # ##a ##b"


def save_bert(
    directory: Path,
    pieces: str = WORD_PIECES,
    lowercase: bool = True,
    kind: type[PreTrainedModel] = BertForMaskedLM,
    shards: bool = False,
    **config,
) -> PreTrainedModel:
    """Save a random BERT with a WordPiece tokenizer, and return it."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *pieces.split()])}
    sizes = {
        "vocab_size": len(vocabulary),
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "max_position_embeddings": 32,
        "initializer_range": 0.3,
    }
    torch.manual_seed(11)
    model = kind(BertConfig(**(sizes | config))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(directory, **({"max_shard_size": "4KB"} if shards else {}))
    word_piece = BertWordPieceTokenizer(vocabulary, lowercase=lowercase)
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=word_piece._tokenizer, **named).save_pretrained(directory)
    return model
