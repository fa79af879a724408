"""The model directory, read and written in Hugging Face's layout for BERT: config.json, model.safetensors,
tokenizer.json, tokenizer_config.json. Nothing is unpickled, and no code from a directory is run."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from cli import InputError
from corpus import CLS, MASK, PAD, SEP, UNK, SpecialIds
from encoder import EncoderConfig, MaskedLanguageModel

# our name -> BERT's; {} is the number of the layer
NAMES = {
    "encoder.embeddings.token": "bert.embeddings.word_embeddings",
    "encoder.embeddings.position": "bert.embeddings.position_embeddings",
    "encoder.embeddings.norm": "bert.embeddings.LayerNorm",
    "encoder.layers.{}.attention.output": "bert.encoder.layer.{}.attention.output.dense",
    "encoder.layers.{}.attention_norm": "bert.encoder.layer.{}.attention.output.LayerNorm",
    "encoder.layers.{}.feed_forward.inner": "bert.encoder.layer.{}.intermediate.dense",
    "encoder.layers.{}.feed_forward.outer": "bert.encoder.layer.{}.output.dense",
    "encoder.layers.{}.feed_forward_norm": "bert.encoder.layer.{}.output.LayerNorm",
    "head.transform": "cls.predictions.transform.dense",
    "head.norm": "cls.predictions.transform.LayerNorm",
    "head.decoder": "cls.predictions.decoder",
}
# our fused projection <- BERT's three, one above the other
QKV = "encoder.layers.{}.attention.qkv"
QUERY_KEY_VALUE = [f"bert.encoder.layer.{{}}.attention.self.{part}" for part in ("query", "key", "value")]
SEGMENT = "bert.embeddings.token_type_embeddings.weight"
DECODER_BIAS = "cls.predictions.bias"
# what a BERT checkpoint may hold beyond its masked language model
UNUSED = ("bert.pooler.", "cls.seq_relationship.", "bert.embeddings.position_ids", "cls.predictions.decoder.")

# our config's field -> BERT's
FIELDS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
    "dropout": "hidden_dropout_prob",
    "max_length": "max_position_embeddings",
    "pad_id": "pad_token_id",
    "layer_norm_eps": "layer_norm_eps",
    "tied_embeddings": "tie_word_embeddings",
}
# what config.json must say, if it says anything, for the model to be ours
REQUIRED = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
BERT_DEFAULTS = {
    "hidden_dropout_prob": 0.1,
    "pad_token_id": 0,
    "layer_norm_eps": 1e-12,
    "tie_word_embeddings": True,
}


def save(directory: Path, model: MaskedLanguageModel, tokenizer: Tokenizer) -> None:
    """Write the model directory. Every file is written beside its place first, then all are moved in."""
    config = model.config
    hf_config = {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
        **REQUIRED,
        "attention_probs_dropout_prob": 0.0,
        "type_vocab_size": 1,
        "dtype": "float32",
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "pad_token": PAD,
        "unk_token": UNK,
        "cls_token": CLS,
        "sep_token": SEP,
        "mask_token": MASK,
    }
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=directory) as name:
        folder = Path(name)
        for file, content in (("config.json", hf_config), ("tokenizer_config.json", tokenizer_config)):
            (folder / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        tokenizer.save(str(folder / "tokenizer.json"))
        save_file(to_bert(model), folder / "model.safetensors", metadata={"format": "pt"})
        for file in sorted(folder.iterdir()):
            os.replace(file, directory / file.name)


def load(directory: Path, device: torch.device) -> tuple[MaskedLanguageModel, Tokenizer]:
    """Read a model directory: one of ours, or any of BERT's saved with a fast tokenizer.

    Returns the model, in evaluation mode, and its tokenizer.
    Raises InputError where something is missing, damaged or of another kind.
    """
    if not (directory / "config.json").is_file():
        raise InputError(
            f"{directory}: no model here (no config.json); run train_mlm.py first, or name one with --model"
        )
    config = read_config(directory / "config.json")
    tokenizer = read_tokenizer(directory / "tokenizer.json", config)
    with torch.device("meta"):
        model = MaskedLanguageModel(config)
    weights = from_bert(read_tensors(directory), config)
    wrong = [
        f"{name} {tuple(weights[name].shape) if name in weights else 'is missing'}, expected {tuple(t.shape)}"
        for name, t in model.state_dict().items()
        if name not in weights or weights[name].shape != t.shape
    ]
    if wrong:
        raise InputError(f"{directory}: the weights do not fit config.json: {some(wrong)}")
    model.load_state_dict(weights, assign=True)
    if config.tied_embeddings:
        model.head.decoder.weight = model.encoder.embeddings.token.weight
    return model.eval().to(device), tokenizer


def read_json(path: Path) -> dict[str, Any]:
    """Raises InputError where the file is not a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{path}: is not a JSON object; the model directory is damaged")
    return content


def read_config(path: Path) -> EncoderConfig:
    """The model's sizes from a BERT's config.json. Raises InputError where it is not such a file."""
    content = read_json(path)
    if content.get("model_type") != "bert":
        raise InputError(f"{path}: model_type is {content.get('model_type')!r}; supported is 'bert'")
    for field, supported in REQUIRED.items():
        if content.get(field, supported) != supported:
            raise InputError(f"{path}: {field} is {content[field]!r}; supported is {supported!r}")
    values = {ours: content.get(theirs, BERT_DEFAULTS.get(theirs)) for ours, theirs in FIELDS.items()}
    limits = {"vocab_size": 10_000_000, "n_layers": 1_000, "pad_id": 10_000_000}
    for ours, value in values.items():
        theirs, kind = FIELDS[ours], EncoderConfig.__annotations__[ours]
        if kind is int:
            low, high = 0 if ours == "pad_id" else 1, limits.get(ours, 1_000_000)
            fits = type(value) is int and low <= value <= high
        elif kind is float:
            fits = type(value) in (int, float) and 0 <= value < 1
        else:
            fits = type(value) is bool
        if not fits:
            raise InputError(f"{path}: {theirs} is {value!r}; a plausible {kind.__name__} is needed")
    if values["d_model"] % values["n_heads"]:
        raise InputError(f"{path}: hidden_size is not a multiple of num_attention_heads")
    return EncoderConfig(**values)


def read_tokenizer(path: Path, config: EncoderConfig) -> Tokenizer:
    """Raises InputError where it is missing, unreadable, or has ids that the model has not."""
    if not path.is_file():
        raise InputError(f"{path}: is missing; save the model with its fast tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"{path}: is not a tokenizer ({error})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if highest >= config.vocab_size or SpecialIds.of(tokenizer).pad != config.pad_id:
        raise InputError(f"{path}: belongs to another model: its ids do not fit config.json")
    return tokenizer


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of model.safetensors, or of the shards that its index names, as fp32.

    Raises InputError where a file is missing or damaged.
    """
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
    else:
        names = ["model.safetensors"]
    tensors = {}
    for name in names:
        path = directory / Path(name).name  # a shard lies in the directory, whatever the index says
        if not path.is_file():
            pickled = (
                " (pytorch_model.bin is a pickle and is not read)"
                * (directory / "pytorch_model.bin").is_file()
            )
            raise InputError(f"{path}: is missing{pickled}; weights are read from safetensors files")
        try:
            with safe_open(path, "pt") as file:
                tensors |= {key: file.get_tensor(key).float() for key in file.keys()}
        except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"{path}: is damaged ({error}); get it anew") from None
    return tensors


def to_bert(model: MaskedLanguageModel) -> dict[str, Tensor]:
    """The weights under BERT's names: the fused projection split, a segment embedding of zeros added."""
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    bert = {SEGMENT: torch.zeros(1, model.config.d_model)}
    for ours, theirs, kind in pairs_of_names(model.config):
        if isinstance(theirs, list):
            bert |= {
                f"{part}.{kind}": t
                for part, t in zip(theirs, weights[f"{ours}.{kind}"].chunk(3), strict=True)
            }
        else:
            bert[f"{theirs}.{kind}"] = weights[f"{ours}.{kind}"]
    bert[DECODER_BIAS] = bert.pop("cls.predictions.decoder.bias")
    if model.config.tied_embeddings:
        del bert["cls.predictions.decoder.weight"]
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in bert.items()}


def from_bert(bert: dict[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    """The weights under our names: query, key and value fused, the first segment's embedding, which all
    tokens of a single sentence share, folded into the positions.

    What is missing is left out. Raises InputError where there are tensors that no BERT has.
    """
    bert = {name.replace(".gamma", ".weight").replace(".beta", ".bias"): t for name, t in bert.items()}
    if "cls.predictions.decoder.bias" not in bert and DECODER_BIAS in bert:
        bert["cls.predictions.decoder.bias"] = bert[DECODER_BIAS]
    if config.tied_embeddings and "bert.embeddings.word_embeddings.weight" in bert:
        bert["cls.predictions.decoder.weight"] = bert["bert.embeddings.word_embeddings.weight"]
    weights, used = {}, {SEGMENT, DECODER_BIAS}
    for ours, theirs, kind in pairs_of_names(config):
        parts = [f"{part}.{kind}" for part in (theirs if isinstance(theirs, list) else [theirs])]
        used.update(parts)
        if all(part in bert for part in parts):
            weights[f"{ours}.{kind}"] = (
                torch.cat([bert[part] for part in parts]) if len(parts) > 1 else bert[parts[0]]
            )
    unknown = [name for name in bert if name not in used and not name.startswith(UNUSED)]
    if unknown:
        raise InputError(f"weights that this BERT has no place for: {some(unknown)}")
    positions = "encoder.embeddings.position.weight"
    if SEGMENT in bert and positions in weights:
        weights[positions] = weights[positions] + bert[SEGMENT][0]
    return weights


def pairs_of_names(config: EncoderConfig):
    """(our name, BERT's name or three names, "weight" or "bias") of every parameter."""
    for ours, theirs in [*NAMES.items(), (QKV, QUERY_KEY_VALUE)]:
        for layer in range(config.n_layers) if "{}" in ours else [0]:
            filled = [t.format(layer) for t in theirs] if isinstance(theirs, list) else theirs.format(layer)
            for kind in (
                ("weight",)
                if ours in ("encoder.embeddings.token", "encoder.embeddings.position")
                else ("weight", "bias")
            ):
                yield ours.format(layer), filled, kind


def some(items: list[str]) -> str:
    """The first few of a list, and how many more there are."""
    return "; ".join(items[:3]) + (f"; and {len(items) - 3} more" if len(items) > 3 else "")
