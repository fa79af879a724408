"""The model directory: Hugging Face's layout for a MarianMT model. What `save` writes opens with
transformers.AutoModelForSeq2SeqLM and with CTranslate2; `load` reads that, and MarianMT models as Helsinki-NLP
publishes them, whose tokenizers are SentencePiece models."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from transformer import ACTIVATIONS, Transformer, TransformerConfig

from .common import tokenizer_json
from .common.command_line import Range, float_in, int_in
from .common.errors import InputError, naming, warn
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
from .marian_tokenizer import MarianTokenizer
from .tokenizer import EOS, PAD, PATTERNS, UNK

# Within a layer: our module -> MarianMT's, or those which, stacked, make our fused one.
SELF_ATTENTION = {
    "self_attention.query": ["self_attn.q_proj"],
    "self_attention.key_value": ["self_attn.k_proj", "self_attn.v_proj"],
    "self_attention.output": ["self_attn.out_proj"],
    "self_attention_norm": ["self_attn_layer_norm"],
}
CROSS_ATTENTION = {
    "cross_attention.query": ["encoder_attn.q_proj"],
    "cross_attention.key_value": ["encoder_attn.k_proj", "encoder_attn.v_proj"],
    "cross_attention.output": ["encoder_attn.out_proj"],
    "cross_attention_norm": ["encoder_attn_layer_norm"],
}
FEED_FORWARD = {
    "feed_forward.inner": ["fc1"],
    "feed_forward.outer": ["fc2"],
    "feed_forward_norm": ["final_layer_norm"],
}
ENCODER_LAYER = SELF_ATTENTION | FEED_FORWARD
DECODER_LAYER = SELF_ATTENTION | CROSS_ATTENTION | FEED_FORWARD
EMBEDDING, BIAS = "model.shared.weight", "final_logits_bias"
# other names of the embedding, and tables that are computed, which a checkpoint may contain as well
TIED = "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"
UNUSED = "model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"
PAD_BIAS = -1e4  # what is saved for <pad>: other programs know no rule like Transformer.project's


@dataclass(frozen=True)
class OneOf:
    """The type of a field with one of a few texts."""

    texts: Collection[str]

    def contains(self, value: Any) -> bool:
        """Return True if value is one of them."""
        return isinstance(value, str) and value in self.texts

    def __str__(self) -> str:
        return f"needs {' or '.join(self.texts)}"


class Field(NamedTuple):
    """A field of config.json: the values that are supported, its name, and another that must have the same value."""

    values: Range | OneOf
    name: str
    twin: str | None = None

    def read(self, content: dict[str, Any]) -> Any:
        """Return the field's value."""
        value = content.get(self.name)
        if not self.values.contains(value):
            raise InputError(f"{self.name} {self.values}, not {value!r}")
        if self.twin and content.get(self.twin, value) != value:
            raise InputError(f"{self.twin} is {content[self.twin]!r}; supported is {self.name}'s {value!r}")
        return value


SIZE, ID, LAYERS = int_in(1, 1_000_000), int_in(0, 10_000_000), int_in(1, 1_000)
FIELDS = {  # of our configuration -> of MarianMT's
    "vocab_size": Field(int_in(1, 10_000_000), "vocab_size", "decoder_vocab_size"),
    "pad_id": Field(ID, "pad_token_id", "decoder_start_token_id"),
    "eos_id": Field(ID, "eos_token_id"),
    "d_model": Field(SIZE, "d_model"),
    "n_encoder_layers": Field(LAYERS, "encoder_layers"),
    "n_decoder_layers": Field(LAYERS, "decoder_layers"),
    "n_heads": Field(SIZE, "encoder_attention_heads", "decoder_attention_heads"),
    "d_ff": Field(SIZE, "encoder_ffn_dim", "decoder_ffn_dim"),
    "dropout": Field(float_in(0, 0.99), "dropout"),
    "max_length": Field(int_in(1, 100_000), "max_position_embeddings"),
    "activation": Field(OneOf(ACTIVATIONS), "activation_function"),
}
MAX_POSITIONS = 2**26  # numbers in the table of positions, which is computed and stands in no file
REQUIRED = {  # what config.json must say, if it says anything, for the model to be ours
    "scale_embedding": True,
    "share_encoder_decoder_embeddings": True,
    "tie_word_embeddings": True,
    "normalize_before": False,
    "normalize_embedding": False,
    "add_final_layer_norm": False,
    "static_position_embeddings": True,
}


GENERATION = {  # the fields of generation_config.json that are the defaults of generation, and their values
    "num_beams": int_in(1, 1000),
    "length_penalty": float_in(-10, 10),
    "max_length": int_in(2, 10_000_000),  # the start of the output included
}
UNSUPPORTED = {  # what it may also ask for, with the values that ask for nothing; null is always one
    "do_sample": False,
    "early_stopping": False,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "max_new_tokens": None,
    "min_new_tokens": None,
    "forced_bos_token_id": None,
    "suppress_tokens": None,
    "sequence_bias": None,
}


def names(config: TransformerConfig) -> Names:
    """Return our name of every tensor -> MarianMT's, or those of the tensors which, stacked, make it."""
    table = {"embeddings.token.weight": [EMBEDDING], "output_bias": [BIAS]}
    stacks = (
        ("encoder", config.n_encoder_layers, ENCODER_LAYER),
        ("decoder", config.n_decoder_layers, DECODER_LAYER),
    )
    for stack, n_layers, modules in stacks:
        for layer in range(n_layers):
            for ours, theirs in modules.items():
                for kind in ("weight", "bias"):
                    parts = [f"model.{stack}.layers.{layer}.{part}.{kind}" for part in theirs]
                    table[f"{stack}.{layer}.{ours}.{kind}"] = parts
    return table


def to_marian(model: Transformer) -> dict[str, Tensor]:
    """Return the weights under MarianMT's names, fused projections split."""
    tensors = split(model.state_dict(), names(model.config))
    tensors[BIAS][model.config.pad_id] = PAD_BIAS
    return tensors | {BIAS: tensors[BIAS][None]}


def from_marian(tensors: dict[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """Return MarianMT's weights under our names, keys and values fused; what is missing is left out."""
    tensors, table = unite(tensors, EMBEDDING, TIED), names(config)
    found, wanted = tensors.get(EMBEDDING), [config.vocab_size, config.d_model]
    if found is not None and list(found.shape) != wanted:  # else a table of positions of any width would be made
        raise InputError(f"the weights do not fit config.json: {EMBEDDING} is {list(found.shape)}, not {wanted}")
    unknown = tensors.keys() - {name for theirs in table.values() for name in theirs}
    if unknown:
        raise InputError(f"weights that a MarianMT model has no place for: {summarize(sorted(unknown))}")
    bias = tensors[BIAS].flatten() if BIAS in tensors else torch.zeros(config.vocab_size)
    return fuse(tensors | {BIAS: bias}, table)


def config_files(config: TransformerConfig, has_pieces: bool, generation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what goes into the JSON files of a model. has_pieces: its tokenizer has SentencePiece models; generation:
    the defaults of generation, as read_generation returns them."""
    special_ids = {
        "pad_token_id": config.pad_id,
        "decoder_start_token_id": config.pad_id,
        "eos_token_id": config.eos_id,
    }
    names = [(ours, name) for ours, field in FIELDS.items() for name in (field.name, field.twin) if name]
    fields = {name: getattr(config, ours) for ours, name in names}
    return {
        "config.json": {
            "model_type": "marian",
            "architectures": ["MarianMTModel"],
            "is_encoder_decoder": True,
            **fields,
            **REQUIRED,
            "attention_dropout": 0.0,
            "activation_dropout": 0.0,
            "forced_eos_token_id": None,
            "dtype": "float32",
        },
        "generation_config.json": {
            **special_ids,
            "bad_words_ids": [[config.pad_id]],
            "max_length": config.max_length + 1,  # the start of the output included
            "num_beams": 1,
            **generation,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "MarianTokenizer" if has_pieces else "PreTrainedTokenizerFast",
            "model_max_length": config.max_length,
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": not has_pieces,  # "</s>" in a text is text
            "eos_token": EOS,
            "unk_token": UNK,
            "pad_token": PAD,
        },
    }


def save(directory: Path, model: Transformer, tokenizer: Tokenizer | MarianTokenizer) -> None:
    """Write the model directory, whole or not at all."""
    has_pieces = isinstance(tokenizer, MarianTokenizer)
    write_directory(
        directory,
        config_files(model.config, has_pieces, generation_of(model)),
        to_marian(model),
        lambda folder: tokenizer.save(folder if has_pieces else str(folder / "tokenizer.json")),
    )


def load(
    directory: Path, device: torch.device, setting: str = "model"
) -> tuple[Transformer, Tokenizer | MarianTokenizer]:
    """Read a model directory, one of ours or any MarianMT -> the model, in evaluation mode, and its tokenizer.
    setting: the configuration field that names the directory."""
    check_is_model(directory, "train.py", setting)
    config = read_config(directory / "config.json")
    tokenizer = read_tokenizer(directory, config)
    model, _ = build(
        directory,
        lambda: Transformer(config),
        lambda tensors: from_marian(tensors, config),
        names(config),
        UNUSED.__contains__,
    )
    model.generation = read_generation(directory)
    return model.eval().to(device), tokenizer


def generation_of(model: Transformer) -> dict[str, Any]:
    """Return the defaults of generation that `load` left on a model as its attribute `generation`, if it did."""
    return getattr(model, "generation", {})


def read_generation(directory: Path) -> dict[str, Any]:
    """Read the defaults of generation: the fields GENERATION of generation_config.json or, without it, as in older
    models, of config.json. One warning names what is not supported."""
    path = directory / "generation_config.json"
    if not path.is_file():
        path = directory / "config.json"
    content = read_json(path)
    with naming(path):
        found = {name: content[name] for name in GENERATION if content.get(name) is not None}
        for name, value in found.items():
            if not GENERATION[name].contains(value):
                raise InputError(f"{name} {GENERATION[name]}, not {value!r}")
    if odd := [name for name, neutral in UNSUPPORTED.items() if content.get(name) not in (None, neutral)]:
        warn(f"{path}: {', '.join(odd)} {'is' if len(odd) == 1 else 'are'} not supported, and left out")
    return found


def read_config(path: Path) -> TransformerConfig:
    """Read the sizes of a model from a MarianMT's config.json."""
    content = read_json(path)
    with naming(path):
        check_supported(content, "marian", REQUIRED)
        values = {ours: field.read(content) for ours, field in FIELDS.items()}
        if values["d_model"] % values["n_heads"]:
            raise InputError("d_model is not a multiple of encoder_attention_heads")
        if values["max_length"] * values["d_model"] > MAX_POSITIONS:
            raise InputError("max_position_embeddings is too large for d_model, which is not supported")
        if max(values["pad_id"], values["eos_id"]) >= values["vocab_size"]:
            raise InputError("pad_token_id or eos_token_id is not below vocab_size")
    return TransformerConfig(**values)


def read_tokenizer(directory: Path, config: TransformerConfig) -> Tokenizer | MarianTokenizer:
    """Read tokenizer.json, or else the SentencePiece models, that have the ids of the model."""
    path = directory / "tokenizer.json"
    if path.is_file():
        tokenizer = tokenizer_json.read(path, config.vocab_size, PATTERNS)
        tokenizer.encode_special_tokens = True
    elif (directory / "source.spm").is_file():
        tokenizer = MarianTokenizer(directory)
    else:
        raise InputError(f"{path}: is missing, and so is source.spm; save the model with its tokenizer")
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    special_ids = tokenizer.token_to_id(EOS), tokenizer.token_to_id(PAD)
    if highest >= config.vocab_size or special_ids != (config.eos_id, config.pad_id):
        raise InputError(f"{directory}: the tokenizer belongs to another model: its ids do not fit config.json")
    return tokenizer
