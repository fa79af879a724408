"""A user's mistakes, and files from strangers: each ends in one line on stderr that names what is wrong and
the remedy, exit status 2, and nothing written; what is merely odd works. All of them run as commands."""

import json
import os
import pickle
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from seq2seq import marian as pretrained
from seq2seq.common.files import replacing
from seq2seq.tokenizer import train_tokenizer

GOOD = b"a b\tb a\nc d\td c\ne f\tf e\n"
FILES = {  # what the folder of the cases holds
    "good.tsv": GOOD,
    "empty.tsv": b"",
    "blank.tsv": b"\n  \n\t\n",
    "binary.tsv": bytes(range(256)) * 4,
    "utf16.tsv": GOOD.decode().encode("utf-16"),
    "utf16be.tsv": b"\xfe\xff" + GOOD.decode().encode("utf-16-be"),
    "latin1.tsv": b"a\tb\ncaf\xe9\tb\n",
    "nul.tsv": b"a\tb\nc\0\td\n",
    "column.tsv": b"one\ntwo\n",
    "comma.tsv": b"source,target\na,b\n",
    "header.tsv": b"source\ttarget\n",
    "wide.tsv": b"source\ttarget\tkind\na\tb\nc\td\n",
    "sideless.tsv": b"a\t\n\tb\nc\t \n",
    "pair.tsv": b"a\tb\n",
    "identical.tsv": b"a\tb\na\tb\n",
    "answers.tsv": b"a\tb\na\tc\n",
    "long.tsv": b"a b c d e\tx\nf g h i j\ty\n",
    "file": b"",
    "prompts.txt": b"Good morning\n",
    "two.txt": b"one\ntwo\n",
    "empty.txt": b"",
    "blank.txt": b"\n \n",
    "latin1.txt": b"Good morning\ncaf\xe9\n",
    "utf16.txt": "Good morning\n".encode("utf-16"),
    "nul.txt": b"Good\0morning\n",
    "binary.txt": bytes(range(256)) * 4,
    "long.txt": b"Good morning\n" + b"cook " * 40 + b"\n",
    "endless.txt": b"Good morning\n" + (b"x" * 99 + b" ") * 100_000 + b"\n",  # a line of 10 MB
    # odd, but usable
    "crlf.tsv": b"\xef\xbb\xbfsource\ttarget\r\n" + GOOD.replace(b"\n", b"\r\n"),
    "ragged.tsv": GOOD * 2 + b"only\nx\ty\tz\n\tg\n" + b"g\th\n",
    "quotes.tsv": b'"a"\t\'b\nsay "x\ty"\n"\t"\n',
    "scripts.tsv": "cafe\u0301\tשלום עולם\nمرحبا\t👩‍👩‍👧 🇫🇷\n\u202eabc\t\x1b[31mcat\x07\n".encode(),
    "emoji.tsv": "😀 😃\t😀\n😀 😄\t😄\n😃 😄\t😄\n".encode(),
    "word.tsv": b"x" * 10_000 + b"\ty\na b\tb a\nc d\td c\n",
    "odd.txt": "\ufeffGood morning\r\n\r\n  Good zebra \r\n".encode(),
    "blanks.txt": b"\n\n\n",
}
NO_DEVICE = "mps" if torch.cuda.is_available() else "cuda"


def write(name, content):
    """A damage to a model directory: this file with this content."""
    return lambda model: (model / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def config(**changes):
    """... config.json with these fields changed."""

    def damage(model):
        content = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(content | changes))

    return damage


def cut(name, length):
    """... this file cut, or with zeros behind it."""
    return lambda model: (model / name).write_bytes((model / name).read_bytes().ljust(length, b"\0")[:length])


def tensors(change):
    """... the weights after change(tensors by name)."""

    def damage(model):
        weights = load_file(model / "model.safetensors")
        change(weights)
        save_file(weights, model / "model.safetensors")

    return damage


def tokenizer_json(**changes):
    """... tokenizer.json with these parts changed."""

    def damage(model):
        content = json.loads((model / "tokenizer.json").read_text())
        (model / "tokenizer.json").write_text(json.dumps(content | changes))

    return damage


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def pickled(model):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))


def doubled(model):
    """A key twice: the last one counts, as for every reader of JSON."""
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text.replace("{", '{"d_model": "x",', 1))


KEYS = "model.encoder.layers.0.self_attn.k_proj.weight"
GROWING = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 9}
PATTERN = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
BOMB = {"type": "Precompiled", "precompiled_charsmap": "////////////////////////"}  # asks for 8 GB
TEXT = {"Sequence": {"id": "A", "type_id": 0}}
TWICE = {"type": "TemplateProcessing", "single": [TEXT, TEXT], "pair": [TEXT], "special_tokens": {}}
END = {"SpecialToken": {"id": "END", "type_id": 0}}
MANY = {"id": "END", "ids": [0] * 3000, "tokens": ["x"] * 3000}  # 3,000 times 3,000 tokens
ENDS = {"single": [TEXT, *[END] * 3000], "pair": [TEXT], "special_tokens": {"END": MANY}}
OUTSIDE = {"type": "BertProcessing", "sep": ["</s>", 4_000_000_000], "cls": ["</s>", 0]}

MODELS = {  # name of the directory: what has been done to a sound one, what the line must say
    # pieces missing, or of another kind
    "without-config": (lambda model: (model / "config.json").unlink(), "without-config: no model here"),
    "without-weights": (
        lambda model: (model / "model.safetensors").unlink(),
        "model.safetensors: is missing; get it anew",
    ),
    "without-tokenizer": (
        lambda model: (model / "tokenizer.json").unlink(),
        "and so is source.spm; save the model with its tokenizer",
    ),
    "pickle": (pickled, "pytorch_model.bin is a pickle, which is never read; save as safetensors"),
    "pickle-renamed": (write("model.safetensors", pickle.dumps(Trap())), "model.safetensors: is damaged"),
    "index-out": (
        write("model.safetensors.index.json", '{"weight_map": {"a": "../sound/model.safetensors", "b": "/"}}'),
        "is missing",
    ),
    "index-nul": (write("model.safetensors.index.json", r'{"weight_map": {"a": "x\u0000y"}}'), "is missing"),
    "index-long": (
        write("model.safetensors.index.json", json.dumps({"weight_map": {"a": "x" * 300}})),
        "is missing; get it anew",
    ),
    "index-list": (write("model.safetensors.index.json", "[]"), "index.json: is not a JSON object"),
    "gpt": (config(model_type="gpt2"), "model_type is 'gpt2'; supported is 'marian'"),
    # config.json
    "text": (write("config.json", "once upon a time"), "config.json: is not a JSON object"),
    "deep": (write("config.json", "[" * 100_000), "config.json: is not a JSON object"),
    "deep-value": (write("config.json", '{"a": ' + "[" * 100_000), "config.json: is not a JSON object"),
    "digits": (write("config.json", '{"vocab_size": ' + "9" * 10_000 + "}"), "is not a JSON object"),
    "negative": (config(d_model=-32), "config.json: d_model is -32, which is not supported"),
    "zero": (config(encoder_attention_heads=0), "encoder_attention_heads is 0"),
    "float": (config(encoder_layers=1.0), "encoder_layers is 1.0"),
    "string": (config(d_model="32"), "d_model is '32'"),
    "true": (config(encoder_layers=True), "encoder_layers is True"),
    "null": (config(vocab_size=None), "vocab_size is None"),
    "list": (config(vocab_size=[70]), "vocab_size is [70]"),
    "tera-width": (config(d_model=1_000_000), "do not fit config.json"),
    "tera-words": (config(vocab_size=10_000_000, decoder_vocab_size=10_000_000), "do not fit config.json"),
    "tera-layers": (config(encoder_layers=1_000), "do not fit config.json"),
    "tera-all": (config(d_model=10**15), "d_model is 1000000000000000"),
    "nan": (config(dropout=float("nan")), "dropout is nan"),
    "infinity": (config(dropout=float("inf")), "dropout is inf"),
    "endless-value": (
        config(activation_function="x\n\x1b[31m" * 100_000),
        "activation_function is 'x\\n\\x1b[31m",
    ),
    "other-pad": (config(pad_token_id=5, decoder_start_token_id=5), "belongs to another model"),
    "two-sizes": (config(decoder_vocab_size=7), "config.json: decoder_vocab_size is 7; supported is"),
    "tera-positions": (config(max_position_embeddings=1_000_000), "max_position_embeddings is 1000000"),
    # model.safetensors
    "no-weights": (write("model.safetensors", b""), "model.safetensors: is damaged"),
    "cut": (cut("model.safetensors", 3000), "model.safetensors: is damaged"),
    "longer": (cut("model.safetensors", 1_000_000), "model.safetensors: is damaged"),
    "huge-header": (write("model.safetensors", struct.pack("<Q", 2**62) + b"{}"), "is damaged"),
    "header-beyond": (write("model.safetensors", struct.pack("<Q", 10**6) + b"{}"), "is damaged"),
    "huge-shape": (
        write(
            "model.safetensors",
            struct.pack("<Q", 65) + b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}'[:65],
        ),
        "is damaged",
    ),
    "shape": (
        tensors(lambda w: w.update({KEYS: torch.zeros(32, 31)})),
        "shape: weights of different shapes",
    ),
    "missing-tensor": (tensors(lambda w: w.pop(KEYS)), "key_value.weight is missing"),
    "extra-tensor": (
        tensors(lambda w: w.update({"a\n\x1b[2Jb": torch.zeros(2)})),
        "weights that a MarianMT model has no place for: a \\x1b[2Jb",
    ),
    "integers": (tensors(lambda w: w.update({KEYS: w[KEYS].int()})), f"{KEYS} is torch.int32"),
    "complex": (tensors(lambda w: w.update({KEYS: w[KEYS] + 0j})), f"{KEYS} is torch.complex64"),
    "nan-weight": (tensors(lambda w: w[KEYS][3].fill_(torch.nan)), f"{KEYS} holds NaN or infinity"),
    "overflow": (
        tensors(lambda w: [t.fill_(3e38) for t in w.values()]),
        "its weights are damaged; get it anew",
    ),
    # tokenizer.json
    "no-json": (write("tokenizer.json", b"\xff\x00"), "tokenizer.json: is not a tokenizer"),
    "no-tokenizer": (write("tokenizer.json", "{}"), "tokenizer.json: is not a tokenizer"),
    "deep-tokenizer": (write("tokenizer.json", "[" * 100_000), "tokenizer.json: is not a tokenizer"),
    "other-tokenizer": (
        lambda model: train_tokenizer([f"word{i}" for i in range(300)], "word", 400).save(
            str(model / "tokenizer.json")
        ),
        "tokenizer.json: belongs to another model",
    ),
    "ids-outside": (tokenizer_json(post_processor=OUTSIDE), "tokenizer.json: belongs to another model"),
    "repeating": (
        tokenizer_json(post_processor=TWICE),
        "is a TemplateProcessing that makes of a text more",
    ),
    "ending": (
        tokenizer_json(post_processor={"type": "TemplateProcessing", **ENDS}),
        "is a TemplateProcessing that makes of a text more",
    ),
    "lacking": (
        tokenizer_json(post_processor=TWICE | {"single": [TEXT, END]}),
        "is a TemplateProcessing that makes of a text more",
    ),
    "other-text": (
        tokenizer_json(post_processor=TWICE | {"single": [{"Sequence": {"id": "B", "type_id": 0}}]}),
        "is a TemplateProcessing that makes of a text more",
    ),
    "growing": (tokenizer_json(normalizer=GROWING), "is a Replace that makes text longer"),
    "pattern": (tokenizer_json(pre_tokenizer=PATTERN), "is a Split by a pattern of its own"),
    "bomb": (tokenizer_json(normalizer=BOMB), "its normalizer is of the kind 'Precompiled'"),
    "bomb-hidden": (
        tokenizer_json(normalizer={"type": "Sequence", "decoy": [], "normalizers": [BOMB]}),
        "its normalizer is of the kind 'Precompiled'",
    ),
    "bomb-untyped": (
        tokenizer_json(normalizer={"precompiled_charsmap": BOMB["precompiled_charsmap"]}),
        "its normalizer is of the kind None",
    ),
    "dice": (
        tokenizer_json(model={"type": "BPE", "vocab": {"a": 9}, "merges": [], "dropout": 0.5}),
        "has dropout",
    ),
}
MODELS_THAT_WORK = {"doubled": doubled}

REFUSED = {  # by topic: the command line, what the line on stderr must say
    "text": [
        ("train.py --pairs missing.tsv", "missing.tsv: no such file; name a text file"),
        ("train.py --pairs folder", "folder: is a folder; name a text file"),
        ("train.py --pairs ''", ".: is a folder"),
        ("train.py --pairs nowhere.txt", "nowhere.txt: a broken link; name a text file"),
        ("train.py --pairs locked.txt", "locked.txt: Permission denied; change its permissions"),
        ("train.py --pairs file/below.tsv", "file/below.tsv: no such file"),
        (f"train.py --pairs {'x' * 300}", "File name too long"),
        ("train.py --pairs caf\udce9.tsv", "caf\\udce9.tsv: no such file"),
        ("train.py --pairs good.tsv --output caf\udce9", "the name is not UTF-8"),
        ("train.py --pairs good.tsv --output taken", "taken/model: is a file; name a folder"),
        ("train.py --pairs good.tsv --init caf\udce9", "the name is not UTF-8"),
        ("train.py --pairs empty.tsv", "empty.tsv: holds no text"),
        ("train.py --pairs /dev/null", "/dev/null: can be read but once; save its text as a file"),
        ("train.py --pairs /dev/stdin < good.tsv", "/dev/stdin: can be read but once; save"),
        ("train.py --pairs blank.tsv", "blank.tsv: holds no text"),
        ("train.py --pairs binary.tsv", "binary.tsv, line 1: holds a NUL byte"),
        ("train.py --pairs utf16.tsv", "utf16.tsv: is UTF-16; save it as UTF-8"),
        ("train.py --pairs utf16be.tsv", "utf16be.tsv: is UTF-16; save it as UTF-8"),
        ("train.py --pairs latin1.tsv", "latin1.tsv, line 2: byte 4 is not UTF-8; save the file as UTF-8"),
        ("train.py --pairs nul.tsv", "nul.tsv, line 2: holds a NUL byte"),
        ("train.py --pairs column.tsv", "column.tsv: has one column; source and target, separated by a tab"),
        ("train.py --pairs comma.tsv", "comma.tsv: has one column; source and target, separated by a tab"),
        ("train.py --pairs header.tsv", "header.tsv: holds no pair; a source and a target"),
        (
            "train.py --pairs wide.tsv",
            "wide.tsv: the header has 3 columns, most lines have 2; give all as many",
        ),
        ("train.py --pairs pair.tsv", "one distinct source; at least two are needed"),
        ("train.py --pairs identical.tsv", "one distinct source; at least two are needed"),
        ("train.py --pairs answers.tsv", "one distinct source; at least two are needed"),
        ("train.py --pairs good.tsv missing.tsv", "missing.tsv: no such file"),
        ("train.py --pairs good.tsv --held-out missing.tsv", "missing.tsv: no such file"),
        (
            "train.py --pairs good.tsv --held-out good.tsv",
            "good.tsv: holds all sources of the training pairs",
        ),
        ("train.py --pairs good.tsv --source-column french", "no column 'french'; it has a b, b a or 1 to 2"),
        ("train.py --pairs good.tsv --target-column 3", "has no column '3'; it has 1, 2 or 1 to 2"),
        ("train.py --pairs good.tsv --target-column 0", "has no column '0'"),
        (
            "train.py --pairs good.tsv --source-column 2",
            "column 2 would be source and target; give --source-col",
        ),
        ("train.py --pairs crlf.tsv --source-column target", "column 2 would be source and target"),
        ("train.py --pairs long.tsv --max-length 3", "at most 3 tokens on each side; raise --max-length"),
    ],
    "flags": [
        ("train.py --pairs", "--pairs: expected at least one argument"),
        ("train.py --d-model 30 --n-heads 4", "--d-model 30 is not a multiple of --n-heads 4"),
        ("train.py --d-model 0", "--d-model: needs a whole number from 1"),
        ("train.py --d-model -8", "--d-model: needs a whole number from 1"),
        ("train.py --d-model 1e3", "--d-model: needs a whole number"),
        ("train.py --d-model 99999999999999999999", "--d-model: needs a whole number"),
        (f"train.py --epochs {'9' * 5000}", "--epochs: needs a whole number"),
        ("train.py --epochs '1\n2'", "not '1\\n2'"),
        ("train.py --n-layers 0", "--n-layers: needs a whole number"),
        ("train.py --n-layers 1000000", "--n-layers: needs a whole number"),
        ("train.py --vocab-size 2", "--vocab-size: needs a whole number from 10"),
        ("train.py --tokenizer bpe --vocab-size 299", "--vocab-size 299: subwords are made of 256 bytes"),
        ("train.py --dropout 1", "--dropout: needs a number from 0 to 0.99"),
        ("train.py --dropout nan", "--dropout: needs a number"),
        ("train.py --learning-rate 0", "--learning-rate: needs a number"),
        ("train.py --learning-rate inf", "--learning-rate: needs a number"),
        ("train.py --learning-rate nan", "--learning-rate: needs a number"),
        ("train.py --label-smoothing -0.1", "--label-smoothing: needs a number"),
        ("train.py --batch-tokens 0", "--batch-tokens: needs a whole number"),
        ("train.py --epochs 0", "--epochs: needs a whole number"),
        ("train.py --max-steps -5", "--max-steps: needs a whole number"),
        ("train.py --max-minutes 0", "--max-minutes: needs a number"),
        ("train.py --seed -1", "--seed: needs a whole number"),
        ("train.py --tokenizer char", "--tokenizer: invalid choice: 'char'"),
        ("train.py --precision fp8", "--precision: invalid choice"),
        ("train.py --epocs 3", "unrecognized arguments: --epocs"),
        (f"train.py --pairs good.tsv --device {NO_DEVICE}", f"--device {NO_DEVICE}: this machine has none"),
        (
            "train.py --pairs good.tsv --resume",
            "checkpoint.pt: no checkpoint here to resume from; run without",
        ),
        ("train.py --pairs good.tsv --output garbage --resume", "checkpoint.pt: is damaged"),
        ("train.py --pairs good.tsv --output file", "--output file: is a file; name a folder"),
        (
            "train.py --pairs good.tsv --output file/below",
            "--output file/below: Not a directory; name a folder",
        ),
        ("train.py --pairs good.tsv --init missing", "missing: no model here"),
        ("train.py --pairs good.tsv --init sound --d-model 64", "--init and --d-model exclude each other"),
        (
            "train.py --pairs good.tsv --init sound --tokenizer word",
            "--init and --tokenizer exclude each other",
        ),
        ("inference.py --model sound --references two.txt cook", "not with arguments"),
        (
            "inference.py --model sound --input prompts.txt cook",
            "--input and prompts as arguments exclude each",
        ),
        ("inference.py --model sound --n-best 3 cook", "--n-best 3 needs --beam 3 or more, or --sample"),
        ("inference.py --model sound --n-best 3 --beam 2 cook", "--n-best 3 needs --beam 3 or more"),
        (
            "inference.py --model sound --n-best 2 --beam 2 --input prompts.txt",
            "needs --json, as a line answers",
        ),
        ("inference.py --model sound --sample --beam 2 cook", "--sample and --beam exclude each other"),
        ("inference.py --model sound --top-k 3 cook", "--temperature, --top-k and --top-p need --sample"),
        ("inference.py --model sound --temperature 0.5 cook", "need --sample"),
        ("inference.py --model sound --sample --temperature 0 cook", "--temperature: needs a number"),
        ("inference.py --model sound --sample --temperature nan cook", "--temperature: needs a number"),
        ("inference.py --model sound --sample --top-p 0 cook", "--top-p: needs a number"),
        ("inference.py --model sound --sample --top-p 1.5 cook", "--top-p: needs a number"),
        ("inference.py --model sound --sample --top-k -1 cook", "--top-k: needs a whole number"),
        ("inference.py --model sound --beam 0 cook", "--beam: needs a whole number from 1 to 1000"),
        ("inference.py --model sound --beam 100000000000 cook", "--beam: needs a whole number"),
        ("inference.py --model sound --length-penalty inf cook", "--length-penalty: needs a number"),
        ("inference.py --model sound --max-length 0 cook", "--max-length: needs a whole number"),
        (
            "inference.py --model sound --max-length 17 cook",
            "--max-length 17: the model knows 16 positions; lower",
        ),
        ("inference.py --model sound --batch-size 0 cook", "--batch-size: needs a whole number"),
        (
            f"inference.py --model sound --device {NO_DEVICE} cook",
            f"--device {NO_DEVICE}: this machine has none",
        ),
        ("inference.py --model sound --device gpu cook", "--device: invalid choice: 'gpu'"),
        ("inference.py --model sound -cook", "write -- before a text that begins with -"),
        ("inference.py --model sound --output folder cook", "--output folder: is a folder; name a file"),
        (
            "inference.py --model sound --output file/out.txt cook",
            "--output file/out.txt: file is no folder; name a file",
        ),
        ("visualize_attention.py --model sound --layer 2 cook", "--layer 2: the model has 1; give a number"),
        ("visualize_attention.py --model sound --head 3 cook", "--head 3: the model has 2; give a number"),
        ("visualize_attention.py --model sound --layer 0 cook", "--layer: needs a whole number from 1"),
        (
            "visualize_attention.py --model sound --output file cook",
            "--output file: is a file; name a folder",
        ),
        ("visualize_attention.py --model sound two prompts", "unrecognized arguments: prompts"),
        ("visualize_attention.py --model missing", "missing: no model here"),
        ("visualize_attention.py --model overflow cook", "its weights are damaged; get it anew"),
        ("inference.py --model overflow --sample cook", "its weights are damaged; get it anew"),
        ("inference.py --model overflow --beam 3 cook", "its weights are damaged; get it anew"),
    ],
    "models": [
        (
            "inference.py --model missing cook",
            "missing: no model here (no config.json); run train.py first, or",
        ),
        ("inference.py --model folder cook", "folder: no model here"),
        ("inference.py --model file cook", "file: no model here"),
        ("inference.py --model nowhere.txt cook", "nowhere.txt: no model here"),
        ("inference.py --model locked cook", "Permission denied; change its permissions"),
        *((f"inference.py --model {name} 'Good a'", reason) for name, (_, reason) in MODELS.items()),
    ],
    "prompts": [
        ("inference.py --model sound ''", "prompt 1 is empty; give it a text"),
        ("inference.py --model sound cook '  '", "prompt 2 is empty; give it a text"),
        (
            "inference.py --model sound 'a a a a a a a a a a a a a a a a'",
            "prompt 1 has 17 tokens, the model takes",
        ),
        (
            f"inference.py --model sound '{'cook ' * 5000}'",
            "prompt 1 has 5001 tokens, the model takes 16; shorten",
        ),
        ("inference.py --model sound caf\udce9", "prompt 1 is not UTF-8 text; write it in UTF-8"),
        ("inference.py --model sound --input missing.txt", "missing.txt: no such file; name a text file"),
        ("inference.py --model sound --input folder", "folder: is a folder; name a text file"),
        (
            "inference.py --model sound --input empty.txt",
            "empty.txt: holds no text; a prompt a line is needed",
        ),
        ("inference.py --model sound --input blanks.txt", "blanks.txt: holds no text"),
        ("inference.py --model sound --input latin1.txt", "latin1.txt, line 2: byte 4 is not UTF-8"),
        ("inference.py --model sound --input utf16.txt", "utf16.txt: is UTF-16; save it as UTF-8"),
        ("inference.py --model sound --input nul.txt", "nul.txt, line 1: holds a NUL byte"),
        ("inference.py --model sound --input binary.txt", "binary.txt, line 1: holds a NUL byte"),
        (
            "inference.py --model sound --input long.txt",
            "long.txt, line 2, has 41 tokens, the model takes 16",
        ),
        ("inference.py --model sound --input long.txt --output new/out.txt", "line 2, has 41 tokens"),
        (
            "inference.py --model sound --input endless.txt",
            "line 2, has 100001 tokens, the model takes 16; shorten",
        ),
        (
            "inference.py --model sound --input prompts.txt --references missing.txt",
            "missing.txt: no such file",
        ),
        (
            "inference.py --model sound --input prompts.txt --references two.txt --output o",
            "two.txt: has 2 lines",
        ),
        ("inference.py --model sound < empty.txt", "standard input: holds no text"),
        ("inference.py --model sound < latin1.txt", "standard input, line 2: byte 4 is not UTF-8"),
        ("inference.py --model sound < nul.txt", "standard input, line 1: holds a NUL byte"),
        ("visualize_attention.py --model sound ''", "the prompt is empty; give it a text"),
        (
            "visualize_attention.py --model sound 'a a a a a a a a a a a a a a a a'",
            "the prompt has 17 tokens",
        ),
        ("visualize_attention.py --model sound caf\udce9", "the prompt is not UTF-8 text"),
    ],
}

WORKING = [  # the command line, what stdout must hold, the warnings on stderr
    ("train.py --pairs crlf.tsv", "2 pairs to train on, 1 held out", []),
    ("train.py --pairs crlf.tsv --source-column 2 --target-column 1", "2 pairs to train on", []),
    ("train.py --pairs ragged.tsv", "pairs to train on", ["skipped 2 of 10 lines", "skipped 1 of 10 lines"]),
    ("train.py --pairs quotes.tsv", "2 pairs to train on", []),
    ("train.py --pairs scripts.tsv --tokenizer bpe", "2 pairs to train on", []),
    ("train.py --pairs emoji.tsv", "2 pairs to train on", []),
    ("train.py --pairs word.tsv", "2 pairs to train on", []),
    (
        "train.py --pairs long.tsv good.tsv --held-out pair.tsv --max-length 4",
        "pairs to train on",
        ["left out"],
    ),
    ("train.py --pairs good.tsv --batch-tokens 2147483647 --seed 2147483647", "1 held out", []),
    ("inference.py --model doubled 'Good morning'", "Output: Good morning, cook", []),
    ("inference.py --model sound --beam 1000 --n-best 1000 Good", "Output: ", []),
    ("inference.py --model sound --sample --top-k 2147483647 --temperature 1000 Good", "Output: ", []),
    ("inference.py --model sound 'zebra gnu'", "Input : zebra gnu", ["sees <unk> for it: zebra, gnu"]),
    (f"inference.py --model sound {'x' * 100_000}", "Output: ", ["for it: " + "x" * 39 + "…"]),
    ("inference.py --model sound '</s> <pad> <unk>'", "Output: ", ["unknown to the model"]),
    ("inference.py --model sound 'a\x1b[31m\x07 שלום 👩‍👩‍👧'", "Output: ", ["unknown to the model"]),
    ("inference.py --model sound -- -cook", "Output: ", ["<unk> for it: -cook"]),
    ("inference.py --model sound < odd.txt", "Good morning, cook\n\n", ["zebra", "1 blank lines"]),
    ("inference.py --model sound --input /dev/stdin < prompts.txt", "Good morning, cook\n", []),
    ("inference.py --model sound --output /dev/null cook", "", []),
    ("visualize_attention.py --model sound '😀 日本 $x$'", "heads.png", ["unknown to", "the font lacks"]),
    ("visualize_attention.py --model sound --output caf\udce9 cook", "attention_heads.png", []),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, trained):
    """The folder in which the commands run. Every case must leave it as it is, for the next one."""
    place = tmp_path_factory.mktemp("place")
    for name, content in FILES.items():
        (place / name).write_bytes(content)
    (place / "folder").mkdir()
    (place / "taken").mkdir()
    (place / "taken" / "model").write_text("mine")
    (place / "garbage").mkdir()
    (place / "garbage" / "checkpoint.pt").write_bytes(pickle.dumps(Trap()))
    (place / "nowhere.txt").symlink_to("gone.txt")
    shutil.copytree(trained / "model", place / "sound")
    damages = MODELS_THAT_WORK | {name: damage for name, (damage, _) in MODELS.items()}
    for name, damage in damages.items():
        damage(shutil.copytree(place / "sound", place / name))
    shutil.copytree(place / "sound", place / "locked")
    (place / "locked" / "config.json").chmod(0)
    shutil.copy(place / "good.tsv", place / "locked.txt")
    (place / "locked.txt").chmod(0)
    return place


@pytest.fixture
def run(command, place):
    """run(line) -> what has come of a command line as a shell has it, `< FILE` included. What writes has
    --output out unless the line says otherwise, and a training is of one step."""

    def run(line, **options):
        name, *flags = shlex.split(line)
        if "<" in flags:
            *flags, _, file = flags
            options["stdin"] = (place / file).read_bytes()
        if name != "inference.py" and "--output" not in flags:
            flags = ["--output", "out", *flags]
        if name == "train.py":
            flags = ["--max-steps", "1", "--device", "cpu", *flags]
        return command(name, *flags, cwd=place, **options)

    return run


def snapshot(folder):
    """What there is in a folder: a file as its times and size, which every writing changes."""
    stats = {path: path.lstat() for path in folder.rglob("*")}
    return {path: path.is_dir() or (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}


def assert_refused(done, script, reason):
    assert "Traceback" not in done.stderr, done.stderr
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), (done.returncode, done.stderr)
    assert done.stderr.startswith(f"{script}: ") and done.stderr.endswith("\n")
    assert reason in done.stderr
    assert len(done.stderr.encode()) < 4000 and done.stderr[:-1].isprintable()


CASES = [pytest.param(*case, id=f"{case[0][:60]}") for cases in REFUSED.values() for case in cases]


@pytest.mark.parametrize(("line", "reason"), CASES)
def test_refused(run, place, line, reason):
    """... within a memory that an honest model of this size never needs."""
    if "locked" in line and os.geteuid() == 0:
        pytest.skip("nothing is locked for root")
    before = snapshot(place)
    done = run(line, limits={"RLIMIT_AS": 24 * 2**30})
    assert_refused(done, line.split()[0], reason)
    assert done.stdout == ""
    assert snapshot(place) == before


@pytest.mark.parametrize(("line", "shown", "warnings"), WORKING, ids=[line[:60] for line, *_ in WORKING])
def test_odd_but_working(run, place, line, shown, warnings):
    before = snapshot(place)
    try:
        done = run(line)
        assert done.returncode == 0 and shown in done.stdout, (done.stdout, done.stderr)
        given = [text for text in re.split("[\r\n]", done.stderr) if "arning" in text]
        assert len(given) == len(warnings) and all(map(str.__contains__, given, warnings)), given
        assert all(text.startswith(f"{line.split()[0]}: warning: ") for text in given)
    finally:
        for path in snapshot(place).keys() - before.keys():
            shutil.rmtree(path, ignore_errors=True)
    assert snapshot(place) == before


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("train.py --pairs latin1.tsv", "latin1.tsv, line 2"),
        ("train.py --d-model x", "--d-model: needs a whole number"),
        ("inference.py --model bomb cook", "Precompiled"),
        ("inference.py --model sound caf\udce9", "UTF-8"),
        ("visualize_attention.py --model sound --layer 9 cook", "--layer 9"),
    ],
)
def test_refused_in_a_fresh_interpreter(run, place, line, reason):
    before = snapshot(place)
    done = run(line, fresh=True)
    assert_refused(done, line.split()[0], reason)
    assert snapshot(place) == before


def test_a_named_pipe_is_refused_as_it_can_be_read_but_once(run, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    done = run(f"train.py --pairs {tmp_path / 'pipe'} --output {tmp_path / 'out'}")
    assert_refused(done, "train.py", "pipe: can be read but once; save its text as a file, and name that")


def test_what_cannot_be_written_whole_leaves_what_was_there(tmp_path):
    path = tmp_path / "picture.png"
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):
        path.write_bytes(b"before")
        with pytest.raises(type(error)) as caught, replacing(path) as part:
            part.write_bytes(b"ha")
            raise error
        assert getattr(caught.value, "filename", str(path)) == str(path)
        assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("picture.png", b"before")]
    path.chmod(0o600)
    with replacing(path) as part:
        part.write_bytes(b"after")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"after", 0o600)


def test_a_model_of_too_many_heads_for_a_picture_is_refused(run, place, make_model, tokenizer):
    before = snapshot(place)
    model = make_model(tokenizer.get_vocab_size(), n_decoder_layers=49)
    pretrained.save(place / "too-many", model, tokenizer)
    try:
        done = run("visualize_attention.py --model too-many cook")
        assert_refused(done, "visualize_attention.py", "49 layers with 2 heads, and a picture has")
    finally:
        shutil.rmtree(place / "too-many")
    assert snapshot(place) == before


def test_a_full_standard_output_ends_in_one_line(run):
    for options in ({}, {"fresh": True}):
        done = run("inference.py --model sound cook", to="/dev/full", **options)
        assert_refused(done, "inference.py", "output: No space left on device; make room")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_closed_stream_is_an_empty_one(place, folder, closed):
    line = shlex.join([sys.executable, str(folder / "inference.py"), "--model", "sound"])
    prompt = "" if closed == "<&-" else "cook"
    done = subprocess.run(["bash", "-c", f"{line} {prompt} {closed}"], cwd=place, capture_output=True)
    expected = b"inference.py: standard input: holds no text; a prompt a line is needed\n"
    assert (done.returncode, done.stderr) == ((2, expected) if closed == "<&-" else (0, b""))


@pytest.mark.parametrize("most", [1_000, 30_000, 150_000], ids=lambda most: f"at {most} bytes")
def test_a_disk_that_is_full_keeps_the_model_of_the_run_before(run, tmp_path, place, most):
    """A file cannot grow beyond a limit, be it the checkpoint's or the model's."""
    shutil.copytree(place / "sound", tmp_path / "out" / "model")
    before = snapshot(tmp_path)
    line = f"train.py --pairs good.tsv --d-model 32 --output {tmp_path / 'out'}"
    done = run(line, limits={"RLIMIT_FSIZE": most})
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("train.py: ") and "large" in last.lower()
    assert {path: stat for path, stat in snapshot(tmp_path).items() if path in before} == before
    assert run(f"inference.py --model {tmp_path / 'out' / 'model'} cook").returncode == 0


def test_a_model_that_does_not_fit_into_memory_is_refused(run, place):
    """Its first matrix alone would take 17 GB, where the process may have 12."""
    before = snapshot(place)
    line = "train.py --pairs good.tsv --n-heads 1 --d-model 65536 --d-ff 1000000"
    assert_refused(run(line, limits={"RLIMIT_AS": 12 * 2**30}), "train.py", "not enough memory")
    assert snapshot(place) == before


@pytest.mark.parametrize("flags", [["--pairs", "latin1.tsv"], ["--pairs", "good.tsv", "--learning-rate", "0"]])
def test_the_model_that_was_there_survives_a_failing_run(script, place, trained, monkeypatch, tmp_path, flags):
    shutil.copytree(trained, tmp_path / "out")
    monkeypatch.chdir(place)
    before = snapshot(tmp_path)
    assert script("train", *flags, "--output", tmp_path / "out")[0] == 2
    assert snapshot(tmp_path) == before


def test_the_model_that_was_there_survives_a_run_whose_loss_is_no_number(script, place, trained, monkeypatch, tmp_path):
    shutil.copytree(trained, tmp_path / "out")
    before = snapshot(tmp_path / "out" / "model"), snapshot(tmp_path / "out" / "samples")
    monkeypatch.setattr("training.token_losses", lambda states, *_: (states.sum() * torch.nan,) * 2)
    flags = ["--max-steps", 2, "--pairs", place / "good.tsv", "--output", tmp_path / "out"]
    status, _, err = script("train", *flags)
    assert status == 2 and "no longer finite" in err.splitlines()[-1]
    assert (snapshot(tmp_path / "out" / "model"), snapshot(tmp_path / "out" / "samples")) == before


def test_the_checkpoint_of_another_run_is_named(script, place, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "out")
    before = snapshot(tmp_path)
    flags = ["--pairs", place / "good.tsv", "--output", tmp_path / "out", "--resume"]
    status, _, err = script("train", *flags)
    assert status == 2 and "belongs to a run with" in err and len(err.splitlines()) == 1
    assert snapshot(tmp_path) == before


def test_a_reader_that_goes_early_ends_the_output_quietly(place, folder, tmp_path):
    (tmp_path / "in.txt").write_text("Good morning\n" * 5000, encoding="utf-8")
    line = [
        sys.executable,
        folder / "inference.py",
        "--model",
        place / "sound",
        "--input",
        tmp_path / "in.txt",
    ]
    process = subprocess.Popen(
        list(map(str, line)),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"Good morning, cook\n"
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 1


def test_a_request_to_terminate_leaves_nothing_half_written(place, folder, tmp_path):
    (tmp_path / "in.txt").write_text("Good morning\n" * 500_000, encoding="utf-8")
    flags = ["--model", place / "sound", "--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt"]
    with subprocess.Popen(
        [sys.executable, folder / "inference.py", *map(str, flags)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size for path in tmp_path.glob(".*.part*")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        process.terminate()
    assert process.returncode == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]
