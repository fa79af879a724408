"""Model directories from strangers, which may be damaged or meant to do harm, and the memory that reading them may
take."""

import json
import os
import pickle
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mlm.tokenizer import train_tokenizer

Damage = Callable[[Path], object]  # what is done to the directory of a good model


@contextmanager
def little_memory() -> Iterator[None]:
    """Inside the block, the process may take a gigabyte more than it has."""
    if sys.platform != "linux":
        yield
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# ---- kinds of damage


def write(name: str, content: str | bytes) -> Damage:
    """This file has this content."""
    return lambda model: (model / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def remove(name: str) -> Damage:
    """This file is missing."""
    return lambda model: (model / name).unlink()


def config(**changes) -> Damage:
    """config.json has other values in these fields."""
    return change_json("config.json", changes)


def tokenizer_json(**changes) -> Damage:
    """tokenizer.json has these other parts."""
    return change_json("tokenizer.json", changes)


def change_json(name: str, changes: dict) -> Damage:
    """A JSON file has other values in these fields."""

    def damage(model):
        content = json.loads((model / name).read_text(encoding="utf-8"))
        (model / name).write_text(json.dumps(content | changes), encoding="utf-8")

    return damage


def cut(name: str, length: int) -> Damage:
    """This file is cut, or longer, with zeros behind it."""
    return lambda model: (model / name).write_bytes((model / name).read_bytes().ljust(length, b"\0")[:length])


def tensors(change: Callable[[dict], object]) -> Damage:
    """The weights are what change(tensors by name) makes of them."""

    def damage(model):
        weights = load_file(model / "model.safetensors")
        change(weights)
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, model / "model.safetensors")

    return damage


def tensor(name: str, value: torch.Tensor) -> Damage:
    """One of the weights has this value."""
    return tensors(lambda weights: weights.update({name: value}))


def index(content: str) -> Damage:
    """There is an index of shards, and no whole file."""

    def damage(model):
        (model / "model.safetensors").unlink()
        (model / "model.safetensors.index.json").write_text(content, encoding="utf-8")

    return damage


class Trap:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def pickled(model: Path) -> None:
    """The weights are a pickle."""
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))


def other_mask(model: Path) -> None:
    """The token [MASK] has another name."""
    text = (model / "tokenizer.json").read_text(encoding="utf-8")
    (model / "tokenizer.json").write_text(text.replace("[MASK]", "<mask>"), encoding="utf-8")


def other_tokenizer(model: Path) -> None:
    """The tokenizer is that of another model."""
    train_tokenizer([f"word{i}" for i in range(300)], "word", 400).save(str(model / "tokenizer.json"))


QUERY = "bert.encoder.layer.0.attention.self.query.weight"
EMBEDDINGS = "bert.embeddings"
GROWING = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 9}
VANISHING = GROWING | {"content": ""}
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
A_TOKEN = {"id": 5, "content": "a", "normalized": True} | FLAGS
PATTERN = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
BOMB = {"type": "Precompiled", "precompiled_charsmap": "////////////////////////"}  # asks for 8 GB
TEXT = {"Sequence": {"id": "A", "type_id": 0}}
TWICE = {"type": "TemplateProcessing", "single": [TEXT, TEXT], "pair": [TEXT], "special_tokens": {}}
END = {"SpecialToken": {"id": "END", "type_id": 0}}
BOTH = {"type": "Sequence", "processors": [TWICE | {"single": [TEXT]}] * 2}
MANY = {"id": "END", "ids": [0] * 3000, "tokens": ["x"] * 3000}  # 3,000 times 3,000 tokens
ENDS = TWICE | {"single": [TEXT, *[END] * 3000], "special_tokens": {"END": MANY}}
OUTSIDE = {"type": "BertProcessing", "sep": ["[SEP]", 4_000_000_000], "cls": ["[CLS]", 2]}
HUGE_SHAPE = b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}'

MODELS: dict[str, tuple[Damage, str]] = {  # the damage, and a part of what the refusal says
    # files missing, or of another kind
    "without config": (
        remove("config.json"),
        "no model here (no config.json); run train_mlm.py first, or name another directory",
    ),
    "without weights": (remove("model.safetensors"), "model.safetensors: is missing; train or download it again"),
    "without tokenizer": (remove("tokenizer.json"), "tokenizer.json: is missing; save the model with its fast"),
    "pickle": (pickled, "pytorch_model.bin is a pickle, which is never read; save as safetensors"),
    "pickle under another name": (write("model.safetensors", pickle.dumps(Trap())), "safetensors: is damaged"),
    # the index of shards
    "index out of the directory": (index('{"weight_map": {"a": "../good/model.safetensors", "b": "/"}}'), "is missing"),
    "index with NUL": (index(r'{"weight_map": {"a": "x\u0000y"}}'), "is missing"),
    "index with long name": (
        index(json.dumps({"weight_map": {"a": "x" * 300}})),
        "is missing; train or download it again",
    ),
    "index of another kind": (index("[]"), "index.json: is not a JSON object"),
    "index without files": (index('{"weight_map": 3}'), "is missing"),
    # config.json
    "no JSON": (write("config.json", "once upon a time"), "config.json: is not a JSON object"),
    "no text": (write("config.json", b"\xff\xfe\x00{}"), "config.json: is not a JSON object"),
    "no object": (write("config.json", "[1, 2]"), "config.json: is not a JSON object"),
    "deep": (write("config.json", '{"a": ' + "[" * 100_000), "config.json: is not a JSON object"),
    "digits": (write("config.json", '{"vocab_size": ' + "9" * 10_000 + "}"), "config.json: is not a JSON object"),
    "gpt": (config(model_type="gpt2"), "config.json: model_type is 'gpt2'; supported is 'bert'"),
    "other activation": (config(hidden_act="relu"), "config.json: hidden_act is 'relu'; supported is 'gelu'"),
    "endless value": (config(hidden_act="x\n\x1b[31m" * 100_000), "hidden_act is 'x\\n\\x1b[31m"),
    "decoder": (config(is_decoder=True), "config.json: is_decoder is True; supported is False"),
    "negative": (config(hidden_size=-16), "config.json: hidden_size needs a whole number from 1 to 1,000,000, not -16"),
    "odd heads": (config(num_attention_heads=3), "config.json: hidden_size is not a multiple of num_attention_heads"),
    "terabytes of width": (config(hidden_size=1_000_000, num_attention_heads=1), "do not fit config.json"),
    "terabytes of words": (config(vocab_size=10_000_000), "do not fit config.json"),
    "terabytes of layers": (config(num_hidden_layers=1_000), "do not fit config.json: encoder.layers.2"),
    "other pad": (config(pad_token_id=5), "tokenizer.json: belongs to another model"),
    "untied": (config(tie_word_embeddings=False), "do not fit config.json: head.decoder.weight is missing"),
    # model.safetensors
    "no weights": (write("model.safetensors", b""), "model.safetensors: is damaged"),
    "cut in the header": (cut("model.safetensors", 100), "model.safetensors: is damaged"),
    "cut in the numbers": (cut("model.safetensors", 3000), "model.safetensors: is damaged"),
    "longer": (cut("model.safetensors", 1_000_000), "model.safetensors: is damaged"),
    "huge header": (write("model.safetensors", struct.pack("<Q", 2**62) + b"{}"), "model.safetensors: is damaged"),
    "header beyond": (write("model.safetensors", struct.pack("<Q", 10**6) + b"{}"), "model.safetensors: is damaged"),
    "huge shape": (
        write("model.safetensors", struct.pack("<Q", len(HUGE_SHAPE)) + HUGE_SHAPE),
        "model.safetensors: is damaged",
    ),
    "narrow tensor": (tensor(QUERY, torch.zeros(16, 15)), "weights of different shapes"),
    "scalar": (tensor(f"{EMBEDDINGS}.LayerNorm.weight", torch.tensor(1.0)), "embeddings.norm.weight is []"),
    "few words": (tensor(f"{EMBEDDINGS}.word_embeddings.weight", torch.zeros(5, 16)), "token.weight is [5, 16]"),
    "few positions": (config(max_position_embeddings=20), "embeddings.position.weight is [24, 16], not [20, 16]"),
    "narrow positions": (
        tensor(f"{EMBEDDINGS}.position_embeddings.weight", torch.zeros(24, 15)),
        "token_type_embeddings.weight is [1, 16], which does not fit",
    ),
    "no segment": (
        tensor(f"{EMBEDDINGS}.token_type_embeddings.weight", torch.zeros(0, 16)),
        "token_type_embeddings.weight is [0, 16], which does not fit",
    ),
    "missing tensor": (tensors(lambda weights: weights.pop("cls.predictions.bias")), "head.decoder.bias is missing"),
    "extra layer": (tensor("bert.encoder.layer.2.output.dense.bias", torch.zeros(16)), "layer.2.output.dense.bias"),
    "extra tensor": (
        tensor("a\n\x1b[2Jb", torch.zeros(2)),
        "weights that BERT's masked language model has no place for: a",
    ),
    "integers": (tensors(lambda weights: weights.update({QUERY: weights[QUERY].int()})), f"{QUERY} is torch.int32"),
    "complex": (tensors(lambda weights: weights.update({QUERY: weights[QUERY] + 0j})), "is torch.complex64, not"),
    "NaN": (tensors(lambda weights: weights[QUERY][3].fill_(torch.nan)), f"{QUERY} contains NaN or infinity"),
    # tokenizer.json
    "no tokenizer": (write("tokenizer.json", b"\xff\x00"), "tokenizer.json: is not a tokenizer"),
    "empty tokenizer": (write("tokenizer.json", "{}"), "tokenizer.json: is not a tokenizer"),
    "half a tokenizer": (write("tokenizer.json", '{"model": {"type": "WordLevel"}}'), "tokenizer.json: its model"),
    "deep tokenizer": (write("tokenizer.json", "[" * 100_000), "tokenizer.json: is not a tokenizer"),
    "other tokenizer": (other_tokenizer, "tokenizer.json: belongs to another model"),
    "no mask": (other_mask, "tokenizer.json: the tokenizer has no [MASK]"),
    "ids outside": (tokenizer_json(post_processor=OUTSIDE), "tokenizer.json: belongs to another model"),
    "repeating": (tokenizer_json(post_processor=TWICE), "is a TemplateProcessing that does more than add a few"),
    "ending": (tokenizer_json(post_processor=ENDS), "is a TemplateProcessing that does more than add a few"),
    "lacking": (
        tokenizer_json(post_processor=TWICE | {"single": [TEXT, END]}),
        "is a TemplateProcessing that does more than add a few",
    ),
    "other text": (
        tokenizer_json(post_processor=TWICE | {"single": [{"Sequence": {"id": "B", "type_id": 0}}]}),
        "is a TemplateProcessing that does more than add a few",
    ),
    "two templates": (tokenizer_json(post_processor=BOTH), "its post_processor adds tokens twice"),
    "vanishing": (
        tokenizer_json(normalizer=VANISHING, added_tokens=[A_TOKEN]),
        "its normalizer leaves nothing of its token 'a'",
    ),
    "growing": (tokenizer_json(normalizer=GROWING), "its normalizer is a Replace that makes text longer"),
    "pattern": (tokenizer_json(pre_tokenizer=PATTERN), "its pre_tokenizer is a Split with the pattern"),
    "bomb": (tokenizer_json(normalizer=BOMB), "its normalizer is of type 'Precompiled'"),
    "hidden bomb": (
        tokenizer_json(normalizer={"type": "Sequence", "decoy": [], "normalizers": [BOMB]}),
        "its normalizer is of type 'Precompiled'",
    ),
    "bomb without type": (
        tokenizer_json(normalizer={"precompiled_charsmap": BOMB["precompiled_charsmap"]}),
        "its normalizer is of type None",
    ),
    "dice": (
        tokenizer_json(model={"type": "BPE", "vocab": {"a": 9}, "merges": [], "dropout": 0.5}),
        "its model has dropout",
    ),
}
