"""The model directory: Hugging Face's layout for a BERT with the masked-language-modelling head. What `save`
writes opens with transformers.AutoModelForMaskedLM; `load` reads any BERT that has a fast tokenizer."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from encoder import EncoderConfig, MaskedLanguageModel

from .common import tokenizer_json
from .common.command_line import Range, float_in, int_in
from .common.errors import InputError, naming
from .common.files import check_name
from .common.model_directory import (
    Names,
    build,
    check_supported,
    fuse,
    read_json,
    read_tensors,
    split,
    summarize,
    write_directory,
)
from .tokenizer import CLS, MASK, PAD, PATTERNS, SEP, UNK, SpecialIds

# Our module -> BERT's, or those which, stacked, make our fused one.
MODULES = {
    "encoder.embeddings.norm": ["bert.embeddings.LayerNorm"],
    "head.transform": ["cls.predictions.transform.dense"],
    "head.norm": ["cls.predictions.transform.LayerNorm"],
}
LAYER = {  # within encoder.layers.i and bert.encoder.layer.i
    "attention.qkv": ["attention.self.query", "attention.self.key", "attention.self.value"],
    "attention.output": ["attention.output.dense"],
    "attention_norm": ["attention.output.LayerNorm"],
    "feed_forward.inner": ["intermediate.dense"],
    "feed_forward.outer": ["output.dense"],
    "feed_forward_norm": ["output.LayerNorm"],
}
TOKENS, POSITIONS, SEGMENTS = (f"bert.embeddings.{of}_embeddings.weight" for of in ("word", "position", "token_type"))
DECODER, BIAS, SECOND_BIAS = (f"cls.predictions.{of}" for of in ("decoder.weight", "bias", "decoder.bias"))
TENSORS = {
    "encoder.embeddings.token.weight": [TOKENS],
    "encoder.embeddings.position.weight": [POSITIONS],
    "head.decoder.weight": [DECODER],
    "head.decoder.bias": [BIAS],
}
# what a checkpoint may contain besides the masked language model: other heads, and copies
UNUSED = ("bert.pooler.", "cls.seq_relationship.", "bert.embeddings.position_ids", "cls.predictions.decoder.")
OLD_NORMS = {".gamma": ".weight", ".beta": ".bias"}  # in the first checkpoints


class Field(NamedTuple):
    """A field of config.json: its name, the values that are supported, and the one that a missing field has."""

    name: str
    values: Range | None = None  # None: true or false
    default: Any = None

    def read(self, content: dict[str, Any]) -> Any:
        """Return the field's value."""
        value = content.get(self.name, self.default)
        if not (self.values.contains(value) if self.values else isinstance(value, bool)):
            raise InputError(f"{self.name} {self.values or 'needs true or false'}, not {value!r}")
        return value


SIZE, SHARE = int_in(1, 1_000_000), float_in(0, 0.99)
FIELDS = {  # of our configuration -> of BERT's
    "vocab_size": Field("vocab_size", int_in(1, 10_000_000)),
    "d_model": Field("hidden_size", SIZE),
    "n_layers": Field("num_hidden_layers", int_in(1, 1_000)),
    "n_heads": Field("num_attention_heads", SIZE),
    "d_ff": Field("intermediate_size", SIZE),
    "dropout": Field("hidden_dropout_prob", SHARE, 0.1),
    "max_length": Field("max_position_embeddings", SIZE),
    "pad_id": Field("pad_token_id", int_in(0, 10_000_000), 0),
    "layer_norm_eps": Field("layer_norm_eps", SHARE, 1e-12),
    "tied_embeddings": Field("tie_word_embeddings", None, True),
}
REQUIRED = {  # what config.json must say, if it says anything, for the model to be ours
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


def names(config: EncoderConfig) -> Names:
    """Return our name of every tensor -> BERT's, or those of the tensors which, stacked, make it."""
    modules = dict(MODULES)
    for i in range(config.n_layers):
        for ours, theirs in LAYER.items():
            modules[f"encoder.layers.{i}.{ours}"] = [f"bert.encoder.layer.{i}.{part}" for part in theirs]
    return TENSORS | {
        f"{ours}.{kind}": [f"{part}.{kind}" for part in theirs]
        for ours, theirs in modules.items()
        for kind in ("weight", "bias")
    }


def to_bert(model: MaskedLanguageModel) -> dict[str, Tensor]:
    """Return the weights under BERT's names: fused projections split, and a segment embedding of zeros."""
    tensors = split(model.state_dict(), names(model.config)) | {SEGMENTS: torch.zeros(1, model.config.d_model)}
    if model.config.tied_embeddings:
        del tensors[DECODER]
    else:  # if nothing is tied, Hugging Face reads the bias under its second name
        tensors[SECOND_BIAS] = tensors[BIAS].clone()
    return tensors


def from_bert(tensors: dict[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    """Return BERT's weights under our names: query, key and value fused, and the first segment's embedding, which
    every token of a single sentence gets, added to the positions. What is missing is left out."""
    tensors = {renamed(name): tensor for name, tensor in tensors.items()}
    if config.tied_embeddings and TOKENS in tensors:
        tensors[DECODER] = tensors[TOKENS]
    if not config.tied_embeddings and SECOND_BIAS in tensors:  # the one that is used then
        tensors[BIAS] = tensors[SECOND_BIAS]
    table = names(config)
    known = {SEGMENTS, *(name for theirs in table.values() for name in theirs)}
    unknown = sorted(name for name in tensors if name not in known and not name.startswith(UNUSED))
    if unknown:
        raise InputError(f"weights that BERT's masked language model has no place for: {summarize(unknown)}")
    if POSITIONS in tensors and SEGMENTS in tensors:
        positions, segments = tensors[POSITIONS], tensors[SEGMENTS]
        if segments.shape[1:] != positions.shape[1:] or not len(segments):
            raise InputError(f"{SEGMENTS} is {list(segments.shape)}, which does not fit config.json")
        tensors[POSITIONS] = positions + segments[0]
    return fuse(tensors, table)


def renamed(name: str) -> str:
    """Return the name that a tensor of BERT's has today."""
    stem, dot, suffix = name.rpartition(".")
    return stem + OLD_NORMS.get(dot + suffix, dot + suffix)


def save(directory: Path, model: MaskedLanguageModel, tokenizer: Tokenizer) -> None:
    """Write the model directory, whole or not at all."""
    config = {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        **{field.name: getattr(model.config, ours) for ours, field in FIELDS.items()},
        **REQUIRED,
        "attention_probs_dropout_prob": 0.0,
        "type_vocab_size": 1,
        "dtype": "float32",
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.config.max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "pad_token": PAD,
        "unk_token": UNK,
        "cls_token": CLS,
        "sep_token": SEP,
        "mask_token": MASK,
    }
    write_directory(
        directory,
        {"config.json": config, "tokenizer_config.json": tokenizer_config},
        to_bert(model),
        lambda folder: tokenizer.save(str(folder / "tokenizer.json")),
        stale=(),
    )


def load(directory: Path, device: torch.device, setting: str = "model") -> tuple[MaskedLanguageModel, Tokenizer]:
    """Read a model directory, one of ours or any BERT with its fast tokenizer -> the model, in evaluation mode, and
    its tokenizer. setting: the configuration field that names the directory."""
    check_name(directory)
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory}: no model here; run train_mlm.py first, or name another directory", setting)
    config = read_config(directory / "config.json")
    tokenizer = read_tokenizer(directory / "tokenizer.json", config)
    tensors = read_tensors(directory, lambda name: name.startswith(UNUSED))
    with naming(directory):
        model = build(lambda: MaskedLanguageModel(config), from_bert(tensors, config), names(config))
    if config.tied_embeddings:
        model.head.decoder.weight = model.encoder.embeddings.token.weight
    return model.eval().to(device), tokenizer


def read_config(path: Path) -> EncoderConfig:
    """Read the sizes of a model from a BERT's config.json."""
    content = read_json(path)
    with naming(path):
        check_supported(content, "bert", REQUIRED)
        values = {ours: field.read(content) for ours, field in FIELDS.items()}
        if values["d_model"] % values["n_heads"]:
            raise InputError("hidden_size is not a multiple of num_attention_heads")
    return EncoderConfig(**values)


def read_tokenizer(path: Path, config: EncoderConfig) -> Tokenizer:
    """Read a tokenizer that has the ids of the model."""
    tokenizer = tokenizer_json.read(path, config.vocab_size, PATTERNS)
    with naming(path):
        if SpecialIds.of(tokenizer).pad != config.pad_id:
            raise InputError("belongs to another model: its ids do not fit config.json")
    return tokenizer
