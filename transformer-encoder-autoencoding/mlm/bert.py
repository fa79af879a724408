"""The model directory: Hugging Face's layout for a BERT with the masked-language-modelling head. What `save`
writes opens with transformers.AutoModelForMaskedLM; `load` reads any BERT with a tokenizer.json or a vocab.txt."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from encoder import EncoderConfig, MaskedLanguageModel, MaskedLMHead, initialise

from . import bert_tokenizer
from .common import tokenizer_json
from .common.command_line import Range, float_in, int_in
from .common.errors import InputError, naming
from .common.model_directory import (
    Names,
    build,
    check_is_model,
    check_supported,
    fuse,
    read_json,
    split,
    summarize,
    unite,
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
# what a checkpoint may contain besides the masked language model: other heads, and numbers from 0 up
UNUSED = ("bert.pooler.", "cls.seq_relationship.", "classifier.", "qa_outputs.", "bert.embeddings.position_ids")
HEAD = "cls.predictions."
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
DROPOUTS = "attention_probs_dropout_prob", "classifier_dropout"  # which we do not have
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


@dataclass(frozen=True)
class Spare:
    """What a BERT has and MaskedLanguageModel does not use, but whoever reads the saved model again may: the
    embeddings of segments, the first one's subtracted (type_vocab_size, D), and fields of config.json.

    `load` leaves it on the model as the attribute `spare`.
    """

    segments: Tensor
    fields: dict[str, Any]


def spare_of(model: MaskedLanguageModel) -> Spare:
    """Return what `load` left on a model; for a model of our own the least that BERT needs."""
    return getattr(model, "spare", Spare(torch.zeros(1, model.config.d_model), dict.fromkeys(DROPOUTS[:1], 0.0)))


def to_bert(model: MaskedLanguageModel) -> dict[str, Tensor]:
    """Return the weights under BERT's names: fused projections split, and the embeddings of segments, the first of
    them zeros."""
    tensors = split(model.state_dict(), names(model.config)) | {SEGMENTS: spare_of(model).segments}
    if model.config.tied_embeddings:
        del tensors[DECODER]
    else:  # if nothing is tied, Hugging Face reads the bias under its second name
        tensors[SECOND_BIAS] = tensors[BIAS].clone()
    return tensors


def from_bert(tensors: dict[str, Tensor], config: EncoderConfig, new_head: bool = False) -> dict[str, Tensor]:
    """Return BERT's weights under our names: query, key and value fused, and the first segment's embedding, which
    every token of a single sentence gets, added to the positions. What is missing is left out. new_head: give it a
    head as a new model has it if it has none."""
    tensors = {renamed(name): tensor for name, tensor in tensors.items()}
    head = {}
    if tensors and not any(name.startswith(HEAD) for name in tensors):
        if not new_head:
            raise InputError("has no masked-language-modelling head; train it further, which gives it one")
        with torch.device(next(iter(tensors.values())).device):
            layers = MaskedLMHead(config).apply(initialise)
        head = {f"head.{name}": tensor for name, tensor in layers.state_dict().items()}
    if config.tied_embeddings:
        tensors = unite(unite(tensors, TOKENS, [DECODER]), BIAS, [SECOND_BIAS])
        tensors |= {DECODER: tensors[TOKENS]} if TOKENS in tensors else {}
    elif SECOND_BIAS in tensors:  # the one that is used then
        tensors[BIAS] = tensors.pop(SECOND_BIAS)
    table = names(config)
    known = {SEGMENTS, *(name for theirs in table.values() for name in theirs)}
    unknown = sorted(tensors.keys() - known)
    if unknown:
        raise InputError(f"weights that BERT's masked language model has no place for: {summarize(unknown)}")
    if POSITIONS in tensors and SEGMENTS in tensors:
        positions, segments = tensors[POSITIONS], tensors[SEGMENTS]
        if segments.shape[1:] != positions.shape[1:] or not len(segments):
            raise InputError(f"{SEGMENTS} is {list(segments.shape)}, which does not fit config.json")
        if not positions.is_meta:  # else there are no numbers to add
            tensors[POSITIONS] = positions + segments[0]
    return head | fuse(tensors, table)


def renamed(name: str) -> str:
    """Return the name that a tensor of BERT's has today, in a model with a head."""
    stem, dot, suffix = name.rpartition(".")
    prefix = "bert." if name.startswith(("embeddings.", "encoder.", "pooler.")) else ""  # saved without a head
    return prefix + stem + OLD_NORMS.get(dot + suffix, dot + suffix)


def is_unused(name: str) -> bool:
    """Return True if the masked language model has no use for a tensor of BERT's."""
    return renamed(name).startswith(UNUSED)


def save(directory: Path, model: MaskedLanguageModel, tokenizer: Tokenizer) -> None:
    """Write the model directory, whole or not at all."""
    spare = spare_of(model)
    segments = ["token_type_ids"] if len(spare.segments) > 1 else []
    config = {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        **{field.name: getattr(model.config, ours) for ours, field in FIELDS.items()},
        **REQUIRED,
        **spare.fields,
        "type_vocab_size": len(spare.segments),
        "dtype": "float32",
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.config.max_length,
        "model_input_names": ["input_ids", *segments, "attention_mask"],
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
    )


def load(
    directory: Path, device: torch.device, setting: str = "model", new_head: bool = False
) -> tuple[MaskedLanguageModel, Tokenizer]:
    """Read a model directory, one of ours or any BERT -> the model, in evaluation mode, and its tokenizer.

    setting: the configuration field that names the directory; new_head: give the model a head that is not trained
    yet if it has none.
    """
    check_is_model(directory, "train_mlm.py", setting)
    content = read_json(directory / "config.json")
    with naming(directory / "config.json"):
        config = read_config(content)
    tokenizer = read_tokenizer(directory, config)
    model, tensors = build(
        directory,
        lambda: MaskedLanguageModel(config),
        lambda tensors: from_bert(tensors, config, new_head),
        names(config),
        is_unused,
    )
    model.spare = read_spare(content, tensors, config)
    if config.tied_embeddings:
        model.head.decoder.weight = model.encoder.embeddings.token.weight
    return model.eval().to(device), tokenizer


def read_config(content: dict[str, Any]) -> EncoderConfig:
    """Read the sizes of a model from the fields of a BERT's config.json; the first ones had no model_type."""
    check_supported({"model_type": "bert"} | content, "bert", REQUIRED)
    values = {ours: field.read(content) for ours, field in FIELDS.items()}
    if values["d_model"] % values["n_heads"]:
        raise InputError("hidden_size is not a multiple of num_attention_heads")
    return EncoderConfig(**values)


def read_spare(content: dict[str, Any], tensors: dict[str, Tensor], config: EncoderConfig) -> Spare:
    """Return what to keep of the fields of config.json, and of the tensors, of a BERT."""
    tables = [tensor for name, tensor in tensors.items() if renamed(name) == SEGMENTS]
    segments = tables[0] - tables[0][:1] if tables else torch.zeros(1, config.d_model)
    return Spare(segments, {name: content[name] for name in DROPOUTS if SHARE.contains(content.get(name))})


def read_tokenizer(directory: Path, config: EncoderConfig) -> Tokenizer:
    """Read tokenizer.json, or else vocab.txt, that has the ids of the model."""
    path = directory / "tokenizer.json"
    if not path.is_file() and (directory / "vocab.txt").is_file():
        path = directory / "vocab.txt"
        tokenizer = bert_tokenizer.read(directory)
    else:
        tokenizer = tokenizer_json.read(path, config.vocab_size, PATTERNS)
    with naming(path):
        highest = max(tokenizer.get_vocab().values(), default=-1)
        if SpecialIds.of(tokenizer).pad != config.pad_id or highest >= config.vocab_size:
            raise InputError("belongs to another model: its ids do not fit config.json")
    return tokenizer
