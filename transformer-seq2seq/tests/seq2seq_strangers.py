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

from seq2seq.tokenizer import train_tokenizer

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


def other_tokenizer(*texts: str) -> Damage:
    """The tokenizer was learnt from these texts, as that of another model."""
    return lambda model: train_tokenizer(texts, "word", 400).save(str(model / "tokenizer.json"))


def key_twice(model: Path) -> None:
    """A field stands in config.json twice: the last one counts, as for every reader of JSON."""
    text = (model / "config.json").read_text(encoding="utf-8")
    (model / "config.json").write_text(text.replace("{", '{"d_model": "x",', 1), encoding="utf-8")


KEYS, VALUES = (f"model.encoder.layers.0.self_attn.{part}_proj.weight" for part in "kv")
EMBEDDING, BIAS, INNER = "model.shared.weight", "final_logits_bias", "model.decoder.layers.0.fc1.bias"
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
OUTSIDE = {"type": "BertProcessing", "sep": ["</s>", 4_000_000_000], "cls": ["</s>", 0]}
HUGE_SHAPE = b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}'

MODELS: dict[str, tuple[Damage, str]] = {  # the damage, and a part of what the refusal says
    # files missing, or of another kind
    "without config": (remove("config.json"), "no model here (no config.json); run train.py first, or name another"),
    "without weights": (remove("model.safetensors"), "model.safetensors: is missing; train or download it again"),
    "without tokenizer": (remove("tokenizer.json"), "tokenizer.json: is missing, and so is source.spm; save the model"),
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
    "gpt": (config(model_type="gpt2"), "config.json: model_type is 'gpt2'; supported is 'marian'"),
    "list for a type": (config(model_type=["marian"]), "config.json: model_type is ['marian']; supported is 'marian'"),
    "endless value": (config(activation_function="x\n\x1b[31m" * 100_000), "not 'x\\n\\x1b[31m"),
    "negative": (config(d_model=-32), "config.json: d_model needs a whole number from 1 to 1,000,000, not -32"),
    "other activation": (config(activation_function="gelu"), "activation_function needs relu or swish, not 'gelu'"),
    "odd heads": (
        config(encoder_attention_heads=3, decoder_attention_heads=3),
        "config.json: d_model is not a multiple of encoder_attention_heads",
    ),
    "end outside": (config(eos_token_id=1000), "pad_token_id or eos_token_id is not below vocab_size"),
    "long and wide": (
        config(d_model=20_000, max_position_embeddings=100_000),
        "max_position_embeddings is too large for d_model",
    ),
    "terabytes of width": (config(d_model=1_000_000), "do not fit config.json: model.shared.weight is"),
    "terabytes of words": (config(vocab_size=10_000_000, decoder_vocab_size=10_000_000), "do not fit config.json"),
    "terabytes of layers": (config(encoder_layers=1_000), "do not fit config.json: encoder.2.self_attention"),
    "other sizes": (config(encoder_ffn_dim=25, decoder_ffn_dim=25), "do not fit config.json: encoder.0.feed_forward"),
    "fewer layers": (config(decoder_layers=1), "has no place for: model.decoder.layers.1."),
    "other pad": (config(pad_token_id=5, decoder_start_token_id=5), "the tokenizer belongs to another model"),
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
    "few words": (tensor(EMBEDDING, torch.zeros(5, 16)), "do not fit config.json: model.shared.weight is [5, 16]"),
    "long bias": (tensor(INNER, torch.zeros(25)), "decoder.0.feed_forward.inner.bias is [25], not [24]"),
    "few biases": (tensor(BIAS, torch.zeros(1, 3)), "output_bias is [3]"),
    "narrow keys": (tensor(KEYS, torch.zeros(16, 15)), "weights of different shapes, (16, 15); (16, 16)"),
    "scalar keys": (tensor(KEYS, torch.tensor(1.0)), "weights of different shapes, (); (16, 16)"),
    "keys and values that add up": (
        tensors(lambda weights: weights.update({KEYS: torch.zeros(20, 16), VALUES: torch.zeros(12, 16)})),
        "weights of different shapes, (12, 16); (20, 16)",
    ),
    "missing tensor": (tensors(lambda weights: weights.pop(VALUES)), "0.self_attention.key_value.weight is missing"),
    "extra tensor": (tensor("a\n\x1b[2Jb", torch.zeros(2)), "weights that a MarianMT model has no place for: a"),
    "integers": (tensors(lambda weights: weights.update({KEYS: weights[KEYS].int()})), f"{KEYS} is torch.int32, not"),
    "complex": (tensors(lambda weights: weights.update({KEYS: weights[KEYS] + 0j})), "is torch.complex64, not"),
    "NaN": (tensors(lambda weights: weights[KEYS][3].fill_(torch.nan)), f"{KEYS} contains NaN or infinity"),
    # tokenizer.json
    "no tokenizer": (write("tokenizer.json", b"\xff\x00"), "tokenizer.json: is not a tokenizer"),
    "empty tokenizer": (write("tokenizer.json", "{}"), "tokenizer.json: is not a tokenizer"),
    "half a tokenizer": (write("tokenizer.json", '{"model": {"type": "WordLevel"}}'), "tokenizer.json: its model"),
    "deep tokenizer": (write("tokenizer.json", "[" * 100_000), "tokenizer.json: is not a tokenizer"),
    "larger tokenizer": (
        other_tokenizer(*(f"word{i}" for i in range(300))),
        "tokenizer.json: belongs to another model",
    ),
    "smaller tokenizer": (other_tokenizer("one two"), "the tokenizer belongs to another model"),
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
