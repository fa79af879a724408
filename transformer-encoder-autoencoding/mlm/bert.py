"""mlm.bert"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.overrides import TorchFunctionMode

from encoder import EncoderConfig, MaskedLanguageModel

from .common import tokenizer_json
from .common.errors import InputError
from .common.files import check_name, flush
from .tokenizer import CLS, MASK, PAD, SEP, UNK, SpecialIds

# Our module -> BERT's, or those which, one above the other, make our fused one.
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


WORDS = "bert.embeddings.word_embeddings.weight"


TENSORS = {
    "encoder.embeddings.token.weight": [WORDS],
    "encoder.embeddings.position.weight": ["bert.embeddings.position_embeddings.weight"],
    "head.decoder.weight": ["cls.predictions.decoder.weight"],
    "head.decoder.bias": ["cls.predictions.bias"],
}


SEGMENTS = "bert.embeddings.token_type_embeddings.weight"


# what a checkpoint may hold beyond the masked language model: other heads, and copies
UNUSED = ("bert.pooler.", "cls.seq_relationship.", "bert.embeddings.position_ids", "cls.predictions.decoder.")


# Our config's field -> BERT's.
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


BERT_DEFAULTS = {
    "hidden_dropout_prob": 0.1,
    "pad_token_id": 0,
    "layer_norm_eps": 1e-12,
    "tie_word_embeddings": True,
}


LARGEST = {"vocab_size": 10_000_000, "pad_id": 10_000_000, "n_layers": 1_000}  # of the others: 1,000,000


# what config.json must say, if it says anything, for the model to be ours
REQUIRED = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


def names(config: EncoderConfig) -> dict[str, list[str]]:
    """Our name of every tensor -> BERT's, or those of the tensors which, one above the other, make it."""
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
    """The weights under BERT's names: fused projections split, and a segment embedding of zeros."""
    weights = model.state_dict()
    bert = {SEGMENTS: torch.zeros(1, model.config.d_model)}
    for ours, theirs in names(model.config).items():
        for name, part in zip(theirs, weights[ours].cpu().chunk(len(theirs)), strict=True):
            bert[name] = part.clone()
    if model.config.tied_embeddings:
        del bert["cls.predictions.decoder.weight"]
    else:  # where nothing is tied, Hugging Face reads the bias under its second name
        bert["cls.predictions.decoder.bias"] = bert["cls.predictions.bias"].clone()
    return bert


def from_bert(bert: dict[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    """The weights under our names: query, key and value fused; the first segment's embedding, which every
    token of a single sentence gets, added to the positions. What is missing is left out.

    Raises InputError where there are tensors that no BERT has.
    """
    old = {".gamma": ".weight", ".beta": ".bias"}  # layer norms of the first checkpoints
    for name in [name for name in bert if name.endswith(tuple(old))]:
        stem, dot, suffix = name.rpartition(".")
        bert[stem + old[dot + suffix]] = bert.pop(name)
    if config.tied_embeddings and WORDS in bert:
        bert["cls.predictions.decoder.weight"] = bert[WORDS]
    if not config.tied_embeddings and "cls.predictions.decoder.bias" in bert:  # the one that is used then
        bert["cls.predictions.bias"] = bert["cls.predictions.decoder.bias"]
    table = names(config)
    known = {SEGMENTS, *(name for theirs in table.values() for name in theirs)}
    unknown = sorted(name for name in bert if name not in known and not name.startswith(UNUSED))
    if unknown:
        raise InputError(f"weights that BERT's masked language model has no place for: {some(unknown)}")
    for theirs in table.values():  # those that make a fused one are alike
        shapes = {tuple(bert[name].shape) for name in theirs if name in bert}
        if len(shapes) > 1:
            raise InputError(f"weights of different shapes, {some(sorted(map(str, shapes)))}: {some(theirs)}")
    weights = {
        ours: torch.cat([bert[name] for name in theirs]) if len(theirs) > 1 else bert[theirs[0]]
        for ours, theirs in table.items()
        if all(name in bert for name in theirs)
    }
    positions, segments = weights.get("encoder.embeddings.position.weight"), bert.get(SEGMENTS)
    if positions is not None and segments is not None:
        if segments.shape[1:] != positions.shape[1:] or not len(segments):
            raise InputError(f"{SEGMENTS} is {list(segments.shape)}, which does not fit config.json")
        weights["encoder.embeddings.position.weight"] = positions + segments[0]
    return weights


def save(directory: Path, model: MaskedLanguageModel, tokenizer: Tokenizer) -> None:
    """Write the model directory. Every file is written beside its place first, then all are moved in, and
    config.json, without which there is no model, is taken away first and moved in last: a kill in between
    leaves no mixture of two models that could be taken for one.

    Raises InputError or OSError where they cannot be written.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile has wrapped
    config = model.config
    contents = {
        "config.json": {
            "model_type": "bert",
            "architectures": ["BertForMaskedLM"],
            **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
            **REQUIRED,
            "attention_probs_dropout_prob": 0.0,
            "type_vocab_size": 1,
            "dtype": "float32",
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.max_length,
            "model_input_names": ["input_ids", "attention_mask"],
            "pad_token": PAD,
            "unk_token": UNK,
            "cls_token": CLS,
            "sep_token": SEP,
            "mask_token": MASK,
        },
    }
    directory.mkdir(parents=True, exist_ok=True)
    for left in directory.glob(".saving-*"):  # by a save that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=directory) as name:
        folder = Path(name)
        for file, content in contents.items():
            (folder / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        try:
            tokenizer.save(str(folder / "tokenizer.json"))
            save_file(to_bert(model), folder / "model.safetensors", metadata={"format": "pt"})
        except OSError:
            raise
        except Exception as error:  # the libraries' own kinds, for a full disk as well
            raise InputError(f"{directory}: cannot be written ({error}); what was there is as before") from None
        shutil.copymode(folder / "config.json", folder / "model.safetensors")  # else for its owner alone
        flush(folder)
        written = {file.name for file in folder.iterdir()}
        for name in ("config.json", "model.safetensors.index.json"):  # of a model that was here before
            (directory / name).unlink(missing_ok=True)
        for name in (*(written - {"config.json"}), "config.json"):
            os.replace(folder / name, directory / name)


class Undrawn(TorchFunctionMode):
    """Leaves out the drawing of initial weights: those of a file take their place. PyTorch would import its
    compiler to draw what has no storage, and that takes as long as importing PyTorch itself."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.__name__ in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def load(directory: Path, device: torch.device) -> tuple[MaskedLanguageModel, Tokenizer]:
    """Read a model directory: one of ours, or any BERT with its fast tokenizer.

    Returns the model, in evaluation mode, and its tokenizer.
    Raises InputError where something is missing, damaged or of another kind.
    """
    check_name(directory)
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory}: no model here; run train_mlm.py first, or name one with --model")
    config = read_config(directory / "config.json")
    tokenizer = read_tokenizer(directory / "tokenizer.json", config)
    tensors = read_tensors(directory)
    try:
        weights = from_bert(tensors, config)
    except InputError as error:
        raise InputError(f"{directory}: {error}") from None
    if missing := [f"{name} is missing" for name in names(config) if name not in weights]:
        raise InputError(f"{directory}: the weights do not fit config.json: {some(missing)}")
    with torch.device("meta"), Undrawn():  # shapes alone: nothing is allocated before they are known to fit
        model = MaskedLanguageModel(config)
    wrong = [
        f"{name} is {list(weights[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in model.state_dict().items()
        if weights[name].shape != tensor.shape
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
    values = {}
    for ours, theirs in FIELDS.items():
        value = values[ours] = content.get(theirs, BERT_DEFAULTS.get(theirs))
        kind = EncoderConfig.__annotations__[ours]
        if kind is int:
            fits = type(value) is int and (ours != "pad_id") <= value <= LARGEST.get(ours, 1_000_000)
        elif kind is float:
            fits = type(value) in (int, float) and 0 <= value < 1
        else:
            fits = type(value) is bool
        if not fits:
            raise InputError(f"{path}: {theirs} is {value!r}, which is not supported")
    if values["d_model"] % values["n_heads"]:
        raise InputError(f"{path}: hidden_size is not a multiple of num_attention_heads")
    return EncoderConfig(**values)


def read_tokenizer(path: Path, config: EncoderConfig) -> Tokenizer:
    """Raises InputError where it is missing, unreadable, or has not the ids that the model has."""
    tokenizer = tokenizer_json.read(path, config.vocab_size)
    try:
        special = SpecialIds.of(tokenizer)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if special.pad != config.pad_id:
        raise InputError(f"{path}: belongs to another model: its ids do not fit config.json")
    return tokenizer


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of model.safetensors, or of the shards that its index names, as fp32.

    Raises InputError where a file is missing or damaged, or holds what is no number.
    """
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        files = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
    else:
        files = ["model.safetensors"]
    there = {file.name for file in directory.iterdir() if file.is_file()}
    tensors = {}
    for name in files:
        path = directory / Path(name).name  # a shard lies in the directory, whatever the index says
        if path.name not in there:
            pickled = "pytorch_model.bin" in there
            hint = (
                "pytorch_model.bin is a pickle, which is never read; save as safetensors" if pickled else "get it anew"
            )
            raise InputError(f"{path}: is missing; {hint}")
        try:
            with safe_open(path, "pt") as file:
                read = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:  # the library and PyTorch raise many kinds
            raise InputError(f"{path}: is damaged ({error}); get it anew") from None
        for name, tensor in read.items():
            if tensor.is_floating_point():
                tensors[name] = tensor.float()
                if not tensors[name].isfinite().all():
                    raise InputError(f"{path}: {name} holds NaN or infinity; take weights of a sound run")
            elif not name.startswith(UNUSED):
                raise InputError(f"{path}: {name} is {tensor.dtype}, no floating-point type; get it anew")
    return tensors


def some(items: list[str]) -> str:
    """The first few of a list, and how many more there are."""
    return "; ".join(items[:3]) + (f"; and {len(items) - 3} more" if len(items) > 3 else "")
