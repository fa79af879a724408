"""seq2seq.marian"""

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

from transformer import ACTIVATIONS, Transformer, TransformerConfig

from .common import tokenizer_json
from .common.errors import InputError
from .common.files import check_name, flush
from .marian_tokenizer import FILES as SENTENCEPIECE_FILES
from .marian_tokenizer import MarianTokenizer
from .tokenizer import EOS, PAD, UNK

# Within a layer: our module -> MarianMT's, or those which, one above the other, make our fused one.
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


# copies of the embedding, and tables that are computed, which a checkpoint may hold as well
UNUSED = {
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "lm_head.weight",
    "model.encoder.embed_positions.weight",
    "model.decoder.embed_positions.weight",
}


# Our config's field -> MarianMT's. Where there are two they must agree.
FIELDS = {
    "vocab_size": ["vocab_size", "decoder_vocab_size"],
    "pad_id": ["pad_token_id", "decoder_start_token_id"],
    "eos_id": ["eos_token_id"],
    "d_model": ["d_model"],
    "n_encoder_layers": ["encoder_layers"],
    "n_decoder_layers": ["decoder_layers"],
    "n_heads": ["encoder_attention_heads", "decoder_attention_heads"],
    "d_ff": ["encoder_ffn_dim", "decoder_ffn_dim"],
    "dropout": ["dropout"],
    "max_length": ["max_position_embeddings"],
    "activation": ["activation_function"],
}


MOST_POSITIONS = 2**26  # numbers in the table of positions, which is computed and stands in no file


LARGEST = {  # of the others: 1,000,000
    **dict.fromkeys(["vocab_size", "pad_id", "eos_id"], 10_000_000),
    **dict.fromkeys(["n_encoder_layers", "n_decoder_layers"], 1_000),
    "max_length": 100_000,  # of which no weight is a witness
}


# what config.json must say, if it says anything, for the model to be ours
REQUIRED = {
    "scale_embedding": True,
    "share_encoder_decoder_embeddings": True,
    "tie_word_embeddings": True,
    "normalize_before": False,
    "normalize_embedding": False,
    "add_final_layer_norm": False,
    "static_position_embeddings": True,
}


def names(config: TransformerConfig) -> dict[str, list[str]]:
    """Our name of every tensor -> MarianMT's, or those of the tensors which, one above the other, make it."""
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
    """The weights under MarianMT's names, fused projections split."""
    weights = model.state_dict()
    marian = {}
    for ours, theirs in names(model.config).items():
        for name, part in zip(theirs, weights[ours].cpu().chunk(len(theirs)), strict=True):
            marian[name] = part.clone()
    marian[BIAS] = marian[BIAS][None]
    return marian


def from_marian(marian: dict[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """The weights under our names, keys and values fused; what is missing is left out.

    Raises InputError where there are tensors that no MarianMT model has.
    """
    table = names(config)
    unknown = marian.keys() - UNUSED - {name for theirs in table.values() for name in theirs}
    if unknown:
        raise InputError(f"weights that a MarianMT model has no place for: {some(sorted(unknown))}")
    marian[BIAS] = marian[BIAS].flatten() if BIAS in marian else torch.zeros(config.vocab_size)
    for theirs in table.values():  # those that make a fused one are alike
        shapes = {tuple(marian[name].shape) for name in theirs if name in marian}
        if len(shapes) > 1:
            raise InputError(f"weights of different shapes, {some(sorted(map(str, shapes)))}: {some(theirs)}")
    return {
        ours: torch.cat([marian[name] for name in theirs]) if len(theirs) > 1 else marian[theirs[0]]
        for ours, theirs in table.items()
        if all(name in marian for name in theirs)
    }


def save(directory: Path, model: Transformer, tokenizer: Tokenizer | MarianTokenizer) -> None:
    """Write the model directory. Every file is written beside its place first, then all are moved in, and
    config.json, without which there is no model, is taken away first and moved in last: a kill in between
    leaves no mixture of two models that could be taken for one.

    Raises InputError or OSError where they cannot be written.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile has wrapped
    config = model.config
    pieces = isinstance(tokenizer, MarianTokenizer)
    ids = {
        "pad_token_id": config.pad_id,
        "decoder_start_token_id": config.pad_id,
        "eos_token_id": config.eos_id,
    }
    contents = {
        "config.json": {
            "model_type": "marian",
            "architectures": ["MarianMTModel"],
            "is_encoder_decoder": True,
            **{theirs: getattr(config, ours) for ours, fields in FIELDS.items() for theirs in fields},
            **REQUIRED,
            "attention_dropout": 0.0,
            "activation_dropout": 0.0,
            "forced_eos_token_id": None,
            "dtype": "float32",
        },
        "generation_config.json": {
            **ids,
            "bad_words_ids": [[config.pad_id]],
            "max_length": config.max_length,
            "num_beams": 1,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "MarianTokenizer" if pieces else "PreTrainedTokenizerFast",
            "model_max_length": config.max_length,
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": not pieces,  # "</s>" in a text is text
            "eos_token": EOS,
            "unk_token": UNK,
            "pad_token": PAD,
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
            tokenizer.save(folder if pieces else str(folder / "tokenizer.json"))
            save_file(to_marian(model), folder / "model.safetensors", metadata={"format": "pt"})
        except OSError:
            raise
        except Exception as error:  # the libraries' own kinds, for a full disk as well
            raise InputError(f"{directory}: cannot be written ({error}); what was there is as before") from None
        shutil.copymode(folder / "config.json", folder / "model.safetensors")  # else for its owner alone
        flush(folder)
        written = {file.name for file in folder.iterdir()}
        others = {"tokenizer.json", *SENTENCEPIECE_FILES, "model.safetensors.index.json"} - written
        for name in ("config.json", *others):  # of a model that was here before
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


def load(directory: Path, device: torch.device) -> tuple[Transformer, Tokenizer | MarianTokenizer]:
    """Read a model directory: one of ours, or a MarianMT with SentencePiece models as Helsinki-NLP
    publishes them. Returns the model, in evaluation mode, and its tokenizer.

    Raises InputError where something is missing, damaged or of another kind.
    """
    check_name(directory)
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory}: no model here (no config.json); run train.py first, or name one with --model")
    config = read_config(directory / "config.json")
    tokenizer = read_tokenizer(directory, config)
    tensors = read_tensors(directory)
    try:
        weights = from_marian(tensors, config)
    except InputError as error:
        raise InputError(f"{directory}: {error}") from None
    if missing := [f"{name} is missing" for name in names(config) if name not in weights]:
        raise InputError(f"{directory}: the weights do not fit config.json: {some(missing)}")
    found, wanted = list(weights["embeddings.token.weight"].shape), [config.vocab_size, config.d_model]
    if found != wanted:  # else positions of a width that no file bears out would be computed
        raise InputError(
            f"{directory}: the weights do not fit config.json: embeddings.token.weight is {found}, not {wanted}"
        )
    with torch.device("meta"), Undrawn():  # shapes alone: nothing is allocated before they are known to fit
        model = Transformer(config)
    wrong = [
        f"{name} is {list(weights[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in model.state_dict().items()
        if weights[name].shape != tensor.shape
    ]
    if wrong:
        raise InputError(f"{directory}: the weights do not fit config.json: {some(wrong)}")
    model.load_state_dict(weights, assign=True)
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


def read_config(path: Path) -> TransformerConfig:
    """The model's sizes from a MarianMT config.json. Raises InputError where it is not such a file."""
    content = read_json(path)
    if content.get("model_type") != "marian":
        raise InputError(f"{path}: model_type is {content.get('model_type')!r}; supported is 'marian'")
    for field, supported in REQUIRED.items():
        if content.get(field, supported) != supported:
            raise InputError(f"{path}: {field} is {content[field]!r}; supported is {supported!r}")
    values = {}
    for ours, fields in FIELDS.items():
        value = values[ours] = content.get(fields[0])
        kind = TransformerConfig.__annotations__[ours]
        if kind is int:
            low, high = 0 if ours in ("pad_id", "eos_id") else 1, LARGEST.get(ours, 1_000_000)
            fits = type(value) is int and low <= value <= high
        elif kind is float:
            fits = type(value) in (int, float) and 0 <= value < 1
        else:
            fits = isinstance(value, str) and value in ACTIVATIONS
        if not fits:
            raise InputError(f"{path}: {fields[0]} is {value!r}, which is not supported")
        for other in fields[1:]:
            if content.get(other, value) != value:
                raise InputError(f"{path}: {other} is {content[other]!r}; supported is {fields[0]}'s {value!r}")
    if values["d_model"] % values["n_heads"]:
        raise InputError(f"{path}: d_model is not a multiple of encoder_attention_heads")
    if values["max_length"] * values["d_model"] > MOST_POSITIONS:
        raise InputError(f"{path}: max_position_embeddings is too large for d_model, which is not supported")
    if max(values["pad_id"], values["eos_id"]) >= values["vocab_size"]:
        raise InputError(f"{path}: pad_token_id or eos_token_id is not below vocab_size")
    return TransformerConfig(**values)


def read_tokenizer(directory: Path, config: TransformerConfig) -> Tokenizer | MarianTokenizer:
    """tokenizer.json, or else the SentencePiece models. Raises InputError where both are missing, or are
    damaged, or have ids that the model has not."""
    path = directory / "tokenizer.json"
    if (directory / "source.spm").is_file() and not path.is_file():
        tokenizer = MarianTokenizer(directory)
    else:
        tokenizer = tokenizer_json.read(path, config.vocab_size)
        tokenizer.encode_special_tokens = True
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    ends = tokenizer.token_to_id(EOS), tokenizer.token_to_id(PAD)
    if highest >= config.vocab_size or ends != (config.eos_id, config.pad_id):
        raise InputError(f"{directory}: the tokenizer belongs to another model: its ids do not fit config.json")
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
            elif name not in UNUSED:
                raise InputError(f"{path}: {name} is {tensor.dtype}, no floating-point type; get it anew")
    return tensors


def some(items: list[str]) -> str:
    """The first few of a list, and how many more there are."""
    return "; ".join(items[:3]) + (f"; and {len(items) - 3} more" if len(items) > 3 else "")
