"""A user's mistakes, and files from strangers: each ends in one line on stderr that names what is wrong and
the remedy, exit status 2, and nothing written; what is merely odd works. All of them run as commands."""

import json
import os
import pickle
import re
import shlex
import shutil
import struct
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import fill_mask
import visualize_attention
from mlm import bert as pretrained
from mlm.common.files import replacing
from mlm.tokenizer import MASK, train_tokenizer

GOOD = "the cat sat\nthe dog sat\na cat ran\n"
CLOZES = b"sentence\tkey\tkind\n"
FILES = {  # what the folder of the cases holds
    "good.txt": GOOD.encode(),
    "same.txt": GOOD.encode(),
    "empty.txt": b"",
    "blank.txt": b"\n  \n\t\r\n",
    "binary.txt": bytes(range(256)) * 10,
    "utf16.txt": GOOD.encode("utf-16"),
    "utf16be.txt": b"\xfe\xff" + GOOD.encode("utf-16-be"),
    "latin1.txt": "the cat sat\nthe café\n".encode("latin-1"),
    "nul.txt": b"the cat sat\nthe \0 dog\n",
    "one.txt": b"the cat sat\n",
    "identical.txt": b"the cat sat\n" * 5,
    "masks.txt": f"{MASK}\n{MASK} [PAD]\n".encode(),
    "strange.txt": b"zebras graze\nyaks browse\n",
    "good.cloze.tsv": CLOZES + b"the cat sat\tcat\tfree\n",
    "file": b"a file",
    # beside a sound text a cloze file that is not
    **{f"{name}.txt": GOOD.encode() for name in ("absent", "ragged", "latin", "long", "comma", "foreign")},
    "absent.cloze.tsv": CLOZES + b"the cat sat\tdog\tfree\n",
    "ragged.cloze.tsv": CLOZES + b"the cat sat\tcat\tfree\nthe cat sat\tcat\n",
    "latin.cloze.tsv": CLOZES + b"the caf\xe9 sat\tsat\tfree\n",
    "long.cloze.tsv": CLOZES + b"the cat sat\tcat\tfree\n" + b"the " * 200 + b"cat\tcat\tfree\n",
    "comma.cloze.tsv": b"sentence,key,kind\nthe cat sat,cat,free\n",
    "foreign.cloze.tsv": b"Satz\tWort\tArt\nthe cat sat\tcat\tfree\n",
    # odd, but usable
    "headless.txt": GOOD.encode(),
    "headless.cloze.tsv": b"the cat sat\tcat\tfree\na cat ran\tcat\tfree\n",
    "crlf.txt": b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode(),
    "scripts.txt": "cafe\u0301 שלום!\nمرحبا بالعالم!\n👩‍👩‍👧 🇫🇷 \u202eabc!\nthe \x1b[31mcat\x07!\n".encode(),
    "emoji.txt": "😀 😃\n😀 😄\n😃 😄\n".encode(),
    "endless.txt": (b"x" * 99 + b" ") * 100_000 + b"\nthe dog sat\n",  # a line of 10 MB
    "word.txt": b"x" * 1_000_000 + b"\nthe dog sat\n",
    "mixed.txt": b"the cat sat\nzebras graze\n",
    "asked.txt": f"the {MASK}\n\n\nthe cat\n{MASK}\n".encode(),
    "broken.txt": f"the {MASK}\nthe c\xe2t {MASK}\n".encode("latin-1"),
    "masked.txt": "\ufeffthe [MASK] sat\r\n\r\n  a zebra [MASK]\r\n".encode(),
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
    (model / "config.json").write_text(text.replace("{", '{"hidden_size": "x",', 1))


QUERY = "bert.encoder.layer.0.attention.self.query.weight"
GROWING = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 9}
PATTERN = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
BOMB = {"type": "Precompiled", "precompiled_charsmap": "////////////////////////"}  # asks for 8 GB
TEXT = {"Sequence": {"id": "A", "type_id": 0}}
TWICE = {"type": "TemplateProcessing", "single": [TEXT, TEXT], "pair": [TEXT], "special_tokens": {}}
END = {"SpecialToken": {"id": "END", "type_id": 0}}
MANY = {"id": "END", "ids": [0] * 3000, "tokens": ["x"] * 3000}  # 3,000 times 3,000 tokens
ENDS = {"single": [TEXT, *[END] * 3000], "pair": [TEXT], "special_tokens": {"END": MANY}}
OUTSIDE = {"type": "BertProcessing", "sep": ["[SEP]", 4_000_000_000], "cls": ["[CLS]", 2]}

MODELS = {  # name of the directory: what has been done to a sound one, what the line must say
    # pieces missing, or of another kind
    "without-config": (lambda model: (model / "config.json").unlink(), "without-config: no model here"),
    "without-weights": (
        lambda model: (model / "model.safetensors").unlink(),
        "model.safetensors: is missing; get it anew",
    ),
    "without-tokenizer": (
        lambda model: (model / "tokenizer.json").unlink(),
        "tokenizer.json: is missing; save the model with its fast tokenizer",
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
    "gpt": (config(model_type="gpt2"), "model_type is 'gpt2'; supported is 'bert'"),
    # config.json
    "text": (write("config.json", "once upon a time"), "config.json: is not a JSON object"),
    "deep": (write("config.json", "[" * 100_000), "config.json: is not a JSON object"),
    "deep-value": (write("config.json", '{"a": ' + "[" * 100_000), "config.json: is not a JSON object"),
    "digits": (write("config.json", '{"vocab_size": ' + "9" * 10_000 + "}"), "is not a JSON object"),
    "negative": (config(hidden_size=-16), "config.json: hidden_size is -16, which is not supported"),
    "zero": (config(num_attention_heads=0), "num_attention_heads is 0"),
    "float": (config(num_hidden_layers=2.0), "num_hidden_layers is 2.0"),
    "string": (config(hidden_size="16"), "hidden_size is '16'"),
    "true": (config(num_hidden_layers=True), "num_hidden_layers is True"),
    "null": (config(vocab_size=None), "vocab_size is None"),
    "list": (config(vocab_size=[70]), "vocab_size is [70]"),
    "tera-width": (config(hidden_size=1_000_000, num_attention_heads=1), "do not fit config.json"),
    "tera-words": (config(vocab_size=10_000_000), "do not fit config.json"),
    "tera-layers": (config(num_hidden_layers=1_000), "do not fit config.json"),
    "tera-all": (config(hidden_size=10**15), "hidden_size is 1000000000000000"),
    "nan": (config(hidden_dropout_prob=float("nan")), "hidden_dropout_prob is nan"),
    "infinity": (config(layer_norm_eps=float("inf")), "layer_norm_eps is inf"),
    "endless-value": (config(hidden_act="x\n\x1b[31m" * 100_000), "hidden_act is 'x\\n\\x1b[31m"),
    "other-pad": (config(pad_token_id=5), "tokenizer.json: belongs to another model"),
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
        tensors(lambda w: w.update({QUERY: torch.zeros(16, 15)})),
        "shape: weights of different shapes",
    ),
    "missing-tensor": (tensors(lambda w: w.pop("cls.predictions.bias")), "decoder.bias is missing"),
    "extra-tensor": (
        tensors(lambda w: w.update({"a\n\x1b[2Jb": torch.zeros(2)})),
        "weights that BERT's masked language model has no place for: a \\x1b[2Jb",
    ),
    "integers": (tensors(lambda w: w.update({QUERY: w[QUERY].int()})), f"{QUERY} is torch.int32"),
    "complex": (tensors(lambda w: w.update({QUERY: w[QUERY] + 0j})), f"{QUERY} is torch.complex64"),
    "nan-weight": (tensors(lambda w: w[QUERY][3].fill_(torch.nan)), f"{QUERY} holds NaN or infinity"),
    "overflow": (tensors(lambda w: w[QUERY].fill_(3e38)), "its weights are damaged; get it anew"),
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
    "no-mask": (
        lambda model: write("tokenizer.json", (model / "tokenizer.json").read_text().replace("[MASK]", "<mask>"))(
            model
        ),
        "tokenizer.json: the tokenizer has no [MASK]",
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
MODELS_THAT_WORK = {"sound": lambda model: None, "doubled": doubled}

REFUSED = {  # by topic: the command line, what the line on stderr must say
    "text": [
        ("train_mlm.py --corpus missing.txt", "missing.txt: no such file; name a text file"),
        ("train_mlm.py --corpus folder", "folder: is a folder; name a text file"),
        ("train_mlm.py --corpus ''", ".: is a folder"),
        ("train_mlm.py --corpus nowhere.txt", "nowhere.txt: a broken link"),
        ("train_mlm.py --corpus locked.txt", "locked.txt: Permission denied; change its permissions"),
        ("train_mlm.py --corpus file/below.txt", "file/below.txt: no such file"),
        (f"train_mlm.py --corpus {'x' * 300}", "File name too long"),
        ("train_mlm.py --corpus caf\udce9.txt", "caf\\udce9.txt: no such file"),
        ("train_mlm.py --corpus good.txt --output caf\udce9", "the name is not UTF-8"),
        ("train_mlm.py --corpus good.txt --output taken", "taken/model: is a file; name a folder"),
        ("train_mlm.py --corpus good.txt --init caf\udce9", "the name is not UTF-8"),
        ("train_mlm.py --corpus empty.txt", "empty.txt: holds no text"),
        ("train_mlm.py --corpus /dev/null", "/dev/null: can be read but once; save its text as a file"),
        ("train_mlm.py --corpus /dev/stdin < good.txt", "/dev/stdin: can be read but once; save"),
        ("train_mlm.py --corpus blank.txt", "blank.txt: holds no text"),
        ("train_mlm.py --corpus binary.txt", "binary.txt, line 1: holds a NUL byte"),
        ("train_mlm.py --corpus utf16.txt", "utf16.txt: is UTF-16; save it as UTF-8"),
        ("train_mlm.py --corpus utf16be.txt", "utf16be.txt: is UTF-16; save it as UTF-8"),
        (
            "train_mlm.py --corpus latin1.txt",
            "latin1.txt, line 2: byte 8 is not UTF-8; save the file as UTF-8",
        ),
        ("train_mlm.py --corpus nul.txt", "nul.txt, line 2: holds a NUL byte"),
        ("train_mlm.py --corpus one.txt", "one distinct sentence; at least two are needed"),
        ("train_mlm.py --corpus identical.txt", "one distinct sentence; at least two are needed"),
        ("train_mlm.py --corpus masks.txt", "the tokenizer knows no word in them"),
        ("train_mlm.py --corpus good.txt missing.txt", "missing.txt: no such file"),
        ("train_mlm.py --corpus good.txt --held-out missing.txt", "missing.txt: no such file"),
        ("train_mlm.py --corpus good.txt --held-out empty.txt", "empty.txt: holds no text"),
        ("train_mlm.py --corpus good.txt --held-out good.txt", "good.txt: holds all training sentences"),
        ("train_mlm.py --corpus good.txt --held-out same.txt", "same.txt: holds all training sentences"),
        (
            "train_mlm.py --corpus good.txt --held-out strange.txt",
            "'zebras graze': the tokenizer knows no word",
        ),
        ("train_mlm.py --corpus strange.txt --init sound", "the tokenizer knows no word in them"),
    ],
    "cloze files": [
        ("train_mlm.py --corpus absent.txt", "absent.cloze.tsv, line 2: needs a sentence, a word that it"),
        ("train_mlm.py --corpus ragged.txt", "ragged.cloze.tsv, line 3: needs a sentence"),
        ("train_mlm.py --corpus latin.txt", "latin.cloze.tsv, line 2: byte 8 is not UTF-8"),
        ("train_mlm.py --corpus comma.txt", "comma.cloze.tsv, line 1: needs a sentence"),
        ("train_mlm.py --corpus foreign.txt", "foreign.cloze.tsv, line 1: needs a sentence"),
        (
            "train_mlm.py --corpus long.txt",
            "long.cloze.tsv, line 3: the sentence has 203 tokens, the model takes 128; shorten it, or raise",
        ),
    ],
    "flags": [
        ("train_mlm.py --corpus", "--corpus: expected at least one argument"),
        ("train_mlm.py --d-model 30 --n-heads 4", "--d-model 30 is not a multiple of --n-heads 4"),
        ("train_mlm.py --d-model 0", "--d-model: needs a whole number from 1"),
        ("train_mlm.py --d-model 1e3", "--d-model: needs a whole number"),
        ("train_mlm.py --d-model 99999999", "--d-model: needs a whole number from 1 to 65536"),
        (f"train_mlm.py --epochs {'9' * 5000}", "--epochs: needs a whole number"),
        ("train_mlm.py --epochs 0", "--epochs: needs a whole number"),
        ("train_mlm.py --epochs '1\n2'", "not '1\\n2'"),
        ("train_mlm.py --n-layers -1", "--n-layers: needs a whole number"),
        ("train_mlm.py --n-heads 0", "--n-heads: needs a whole number"),
        ("train_mlm.py --d-ff 0", "--d-ff: needs a whole number"),
        ("train_mlm.py --dropout 1", "--dropout: needs a number from 0 to 0.99, not '1'"),
        ("train_mlm.py --dropout nan", "--dropout: needs a number"),
        ("train_mlm.py --learning-rate nan", "--learning-rate: needs a number"),
        ("train_mlm.py --learning-rate inf", "--learning-rate: needs a number"),
        ("train_mlm.py --learning-rate 0", "--learning-rate: needs a number"),
        ("train_mlm.py --learning-rate 1e400", "--learning-rate: needs a number"),
        ("train_mlm.py --mask-prob 0", "--mask-prob: needs a number"),
        ("train_mlm.py --mask-prob 1", "--mask-prob: needs a number"),
        ("train_mlm.py --max-minutes -1", "--max-minutes: needs a number"),
        ("train_mlm.py --max-minutes nan", "--max-minutes: needs a number"),
        ("train_mlm.py --max-steps 0", "--max-steps: needs a whole number"),
        ("train_mlm.py --max-steps 99999999999999999999", "--max-steps: needs a whole number"),
        ("train_mlm.py --warmup-steps -1", "--warmup-steps: needs a whole number"),
        ("train_mlm.py --batch-tokens 0", "--batch-tokens: needs a whole number"),
        ("train_mlm.py --max-length 3", "--max-length: needs a whole number"),
        ("train_mlm.py --vocab-size 3", "--vocab-size: needs a whole number from 10"),
        ("train_mlm.py --tokenizer bpe --vocab-size 299", "--vocab-size 299: subwords are made of 256 bytes"),
        ("train_mlm.py --seed -1", "--seed: needs a whole number"),
        ("train_mlm.py --tokenizer letters", "--tokenizer: invalid choice: 'letters'"),
        ("train_mlm.py --precision fp8", "--precision: invalid choice: 'fp8'"),
        ("train_mlm.py --device gpu", "--device: invalid choice: 'gpu'"),
        (
            f"train_mlm.py --device {NO_DEVICE}",
            "this machine has none that PyTorch can use; try --device cpu",
        ),
        ("train_mlm.py --no-such-flag", "unrecognized arguments: --no-such-flag"),
        ("train_mlm.py 'a\nb'", "unrecognized arguments: a b"),
        ("train_mlm.py --init folder", "folder: no model here"),
        ("train_mlm.py --corpus good.txt --init cut", "model.safetensors: is damaged"),
        ("train_mlm.py --init sound --d-model 32", "--init and --d-model exclude each other"),
        ("train_mlm.py --init sound --dropout 0", "--init and --dropout exclude each other"),  # its default
        ("train_mlm.py --corpus good.txt --resume", "checkpoint.pt: no checkpoint here to resume from; run"),
        ("train_mlm.py --corpus good.txt --output garbage --resume", "checkpoint.pt: is damaged"),
        ("train_mlm.py --corpus good.txt --output file", "--output file: is a file; name a folder"),
        (
            "train_mlm.py --corpus good.txt --output file/below",
            "--output file/below: Not a directory; name a",
        ),
        (
            "train_mlm.py --corpus good.txt --output /proc/x",
            "--output /proc/x: No such file or directory; name",
        ),
        ("fill_mask.py --model sound --top-k 0 [MASK]", "--top-k: needs a whole number from 1"),
        ("fill_mask.py --model sound --top-k -5 [MASK]", "--top-k: needs a whole number from 1"),
        ("fill_mask.py --model sound --top-k many [MASK]", "--top-k: needs a whole number from 1"),
        ("fill_mask.py --model sound --score --top-k 3 cat", "--score and --top-k exclude each other"),
        ("fill_mask.py --model sound --tpo-k 3 [MASK]", "--tpo-k"),
        ("fill_mask.py --model sound -[MASK]", "write -- before a text that begins with -"),
        ("fill_mask.py --model", "--model: expected one argument"),
        (
            "visualize_attention.py --model sound --layer 3 cat",
            "--layer 3: the model has 2; give a number from 1",
        ),
        (
            "visualize_attention.py --model sound --head 3 cat",
            "--head 3: the model has 2; give a number from 1",
        ),
        ("visualize_attention.py --model sound --layer 0 cat", "--layer: needs a whole number from 1"),
        ("visualize_attention.py --model sound --head -1 cat", "--head: needs a whole number from 1"),
        ("visualize_attention.py --model sound the cat", "unrecognized arguments: cat"),
        ("visualize_attention.py --model sound --output file cat", "--output file: is a file; name a folder"),
        ("visualize_attention.py --model nan-weight cat", "holds NaN or infinity"),
        ("visualize_attention.py --model overflow cat", "its weights are damaged; get it anew"),
    ],
    "models": [
        ("fill_mask.py --model typo [MASK]", "typo: no model here; run train_mlm.py first, or name one with"),
        ("fill_mask.py --model folder [MASK]", "folder: no model here"),
        ("fill_mask.py --model file [MASK]", "file: no model here"),
        ("fill_mask.py --model nowhere.txt [MASK]", "nowhere.txt: no model here"),
        ("fill_mask.py --model locked [MASK]", "Permission denied; change its permissions"),
        *((f"fill_mask.py --model {name} 'the {MASK} a'", reason) for name, (_, reason) in MODELS.items()),
    ],
    "sentences": [
        ("fill_mask.py --model sound ''", "sentence 1: the sentence is empty; give one with words"),
        ("fill_mask.py --model sound --score '  '", "sentence 1: the sentence is empty; give one with words"),
        ("fill_mask.py --model sound '\t\n' '[MASK] a'", "sentence 1: the sentence is empty"),
        ("fill_mask.py --model sound --score '[CLS] [PAD]'", "sentence 1: the sentence is empty"),
        ("fill_mask.py --model sound --score 'the [MASK]'", "sentence 1: holds [MASK], which is no word"),
        (
            "fill_mask.py --model sound 'the cat'",
            "sentence 1: no [MASK] in 'the cat'; write [MASK] for the word",
        ),
        ("fill_mask.py --model sound '[mask] cat'", "sentence 1: no [MASK] in '[mask] cat'"),
        (
            f"fill_mask.py --model sound '{'the cat ' * 12}[MASK]'",
            "27 tokens, the model takes 24; shorten it",
        ),
        (
            f"fill_mask.py --model sound '{'the cat ' * 4000}[MASK]'",
            "8003 tokens, the model takes 24; shorten it",
        ),
        ("fill_mask.py --model sound 'caf\udce9 [MASK]'", "sentence 1: the sentence is not UTF-8 text"),
        (
            "fill_mask.py --model sound < empty.txt",
            "no sentence given; pass one as an argument or on standard",
        ),
        ("fill_mask.py --model sound < blank.txt", "no sentence given"),
        ("fill_mask.py --model sound < latin1.txt", "standard input, line 1: no [MASK] in 'the cat sat'"),
        ("fill_mask.py --model sound < utf16.txt", "standard input: is UTF-16; save it as UTF-8"),
        ("fill_mask.py --model sound < binary.txt", "standard input, line 1: holds a NUL byte"),
        (
            "fill_mask.py --model sound < endless.txt",
            "standard input, line 1: the sentence has 100002 tokens",
        ),
        ("visualize_attention.py --model sound ''", "SENTENCE: the sentence is empty"),
        ("visualize_attention.py --model sound [CLS]", "SENTENCE: the sentence is empty"),
        (f"visualize_attention.py --model sound '{'the cat ' * 12}'", "26 tokens, the model takes 24"),
        ("visualize_attention.py --model sound caf\udce9", "SENTENCE: the sentence is not UTF-8 text"),
    ],
}

WORKING = [  # the command line, what stdout or a file in out/ must hold, the lines on stderr (bars apart)
    ("train_mlm.py --corpus crlf.txt", "2 sentences to train on, 1 held out", []),
    ("train_mlm.py --corpus scripts.txt", "3 sentences to train on, 1 held out", []),
    ("train_mlm.py --corpus scripts.txt --tokenizer bpe", "3 sentences to train on", []),
    ("train_mlm.py --corpus emoji.txt", "2 sentences to train on", []),
    ("train_mlm.py --corpus headless.txt --held-out identical.txt", "training sentences (1)", ["left 1 sen"]),
    ("train_mlm.py --corpus word.txt --held-out mixed.txt", "2 sentences to train on", ["left out 1 of 2"]),
    (
        "train_mlm.py --corpus good.txt --held-out one.txt",
        "2 sentences to train on",
        ["left 1 sentences out"],
    ),
    ("train_mlm.py --corpus good.txt --batch-tokens 2147483647 --seed 2147483647", "1 held out", []),
    ("fill_mask.py --model doubled 'the [MASK]'", "the ", []),
    ("fill_mask.py --model sound --top-k 2147483647 'the [MASK]'", "the ", []),
    ("fill_mask.py --model sound 'un[MASK]able [MASK][MASK]'", "un", ["un, able"]),
    ("fill_mask.py --model sound '[PAD] [CLS] [SEP] [UNK] [MASK]'", "[PAD] [CLS] [SEP] [UNK] ", ["[UNK]"]),
    ("fill_mask.py --model sound 'zebra gnu [MASK]'", "zebra gnu ", ["sees [UNK] for it: zebra, gnu"]),
    (f"fill_mask.py --model sound '{'x' * 100_000} [MASK]'", "x" * 100, ["for it: " + "x" * 39 + "…"]),
    ("fill_mask.py --model sound -- '-[MASK]'", "-", ["for it: -"]),
    ("fill_mask.py --model sound 'a\x1b[31m\x07 [MASK]'", "a", ["unknown to the model"]),
    ("fill_mask.py --model sound 'שלום café 👩‍👩‍👧 [MASK]'", "שלום café", ["unknown to the model"]),
    ("fill_mask.py --model sound --json < masked.txt", '"input": "a zebra [MASK]"', ["for it: sat, zebra"]),
    ("fill_mask.py --model sound --score --json [PAD]a", '"input": "[PAD]a"', []),
    ("visualize_attention.py --model sound '😀 日本 $x$ \x07'", "heads.png", ["unknown", "the font lacks"]),
    ("visualize_attention.py --model sound --output caf\udce9 cat", "attention_heads.png", []),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny, tokenizer):
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
    pretrained.save(place / "sound", tiny, tokenizer)
    damages = MODELS_THAT_WORK | {name: damage for name, (damage, _) in MODELS.items()}
    for name, damage in damages.items():
        if name != "sound":
            damage(shutil.copytree(place / "sound", place / name))
    shutil.copytree(place / "sound", place / "locked")
    (place / "locked" / "config.json").chmod(0)
    shutil.copy(place / "good.txt", place / "locked.txt")
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
        if name != "fill_mask.py" and "--output" not in flags:
            flags = ["--output", "out", *flags]
        if name == "train_mlm.py":
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
        given = [text for text in given if "the model knows little more" not in text]  # after a step: true
        assert len(given) == len(warnings) and all(map(str.__contains__, given, warnings)), given
        assert all(text.startswith(f"{line.split()[0]}: warning: ") for text in given)
    finally:
        for path in snapshot(place).keys() - before.keys():
            shutil.rmtree(path, ignore_errors=True)
    assert snapshot(place) == before


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("train_mlm.py --corpus missing.txt", "missing.txt: no such file"),
        ("train_mlm.py --dropout nan", "--dropout"),
        ("fill_mask.py --model bomb [MASK]", "Precompiled"),
        ("fill_mask.py --model sound 'caf\udce9 [MASK]'", "UTF-8"),
        ("visualize_attention.py --model cut cat", "is damaged"),
    ],
)
def test_refused_in_a_fresh_interpreter(run, place, line, reason):
    before = snapshot(place)
    done = run(line, fresh=True)
    assert_refused(done, line.split()[0], reason)
    assert snapshot(place) == before


@pytest.mark.parametrize(
    ("line", "answered", "reason"),
    [
        (
            "fill_mask.py --model sound --json < asked.txt",
            1,
            "standard input, line 4: no [MASK] in 'the cat'",
        ),
        ("fill_mask.py --model sound --json < broken.txt", 1, "standard input, line 2: byte 6 is not UTF-8"),
        (
            "fill_mask.py --model sound --json '[MASK]' 'zebra [MASK]' '' cat",
            2,
            "sentence 3: the sentence is",
        ),
    ],
)
def test_what_stands_before_a_mistake_is_answered_once(run, line, answered, reason):
    """The number of the line is the one that an editor shows; a warning is not given twice."""
    done = run(line)
    assert all(json.loads(answer)["masks"] for answer in done.stdout.splitlines())
    assert len(done.stdout.splitlines()) == answered
    *warnings, last = done.stderr.splitlines()
    assert done.returncode == 2 and reason in last
    assert len(warnings) == line.count("zebra")


def test_a_named_pipe_is_refused_as_it_can_be_read_but_once(run, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    done = run(f"train_mlm.py --corpus {tmp_path / 'pipe'} --output {tmp_path / 'out'}")
    assert_refused(done, "train_mlm.py", "pipe: can be read but once; save its text as a file, and name that")


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
    pretrained.save(place / "too-many", make_model(tokenizer.get_vocab_size(), n_layers=49), tokenizer)
    try:
        done = run("visualize_attention.py --model too-many cat")
        assert_refused(done, "visualize_attention.py", "49 layers with 2 heads, and a picture has")
    finally:
        shutil.rmtree(place / "too-many")
    assert snapshot(place) == before


def test_a_full_standard_output_ends_in_one_line(run):
    for options in ({}, {"fresh": True}):
        done = run(f"fill_mask.py --model sound {MASK}", to="/dev/full", **options)
        assert_refused(done, "fill_mask.py", "output: No space left on device; make room")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_closed_stream_is_an_empty_one(place, folder, closed):
    line = shlex.join([sys.executable, str(folder / "fill_mask.py"), "--model", "sound"])
    sentence = "" if closed == "<&-" else shlex.quote(MASK)
    done = subprocess.run(["bash", "-c", f"{line} {sentence} {closed}"], cwd=place, capture_output=True)
    expected = b"fill_mask.py: no sentence given; pass one as an argument or on standard input\n"
    assert (done.returncode, done.stderr) == ((2, expected) if closed == "<&-" else (0, b""))


@pytest.mark.parametrize("most", [1_000, 30_000, 150_000], ids=lambda most: f"at {most} bytes")
def test_a_disk_that_is_full_keeps_the_model_of_the_run_before(run, tmp_path, place, most):
    """A file cannot grow beyond a limit, be it the checkpoint's or the model's."""
    shutil.copytree(place / "sound", tmp_path / "out" / "model")
    before = snapshot(tmp_path)
    line = f"train_mlm.py --corpus good.txt --d-model 32 --output {tmp_path / 'out'}"
    done = run(line, limits={"RLIMIT_FSIZE": most})
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("train_mlm.py: ") and "large" in last.lower()
    assert {path: stat for path, stat in snapshot(tmp_path).items() if path in before} == before
    assert run(f"fill_mask.py --model {tmp_path / 'out' / 'model'} {MASK}").returncode == 0


def test_a_model_that_does_not_fit_into_memory_is_refused(run, place):
    """Its first layer alone would take 51 GB, where the process may have half of it."""
    before = snapshot(place)
    line = "train_mlm.py --corpus good.txt --n-heads 1 --d-model 65536 --d-ff 1000000"
    assert_refused(run(line, limits={"RLIMIT_AS": 24 * 2**30}), "train_mlm.py", "not enough memory")
    assert snapshot(place) == before


@pytest.mark.parametrize("module", [fill_mask, visualize_attention], ids=lambda module: module.__name__)
def test_before_the_first_training_the_remedy_is_named(script, tmp_path, monkeypatch, module):
    monkeypatch.setattr(module, "HERE", tmp_path)
    status, _, stderr = script(module.__name__, f"the {MASK}")
    assert status == 2 and "no model here; run train_mlm.py first" in stderr


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--corpus good.txt --learning-rate 10 --max-steps 5000 --n-layers 1", "no longer finite"),
        ("--corpus good.txt --max-steps 3 --resume", "is damaged"),
        ("--corpus missing.txt --max-steps 3", "no such file"),
    ],
)
def test_a_run_that_fails_leaves_the_model_of_the_run_before(script, place, tmp_path, monkeypatch, flags, reason):
    monkeypatch.chdir(place)
    shutil.copytree("sound", tmp_path / "model")
    (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
    before = snapshot(tmp_path / "model")
    if "10" in flags:  # as a rate that is far too high makes it
        corrupted = torch.nn.functional.cross_entropy
        monkeypatch.setattr(torch.nn.functional, "cross_entropy", lambda *a, **k: corrupted(*a, **k) * torch.nan)
    status, _, stderr = script("train_mlm", "--output", tmp_path, "--device", "cpu", *flags.split())
    assert status == 2 and reason in stderr.splitlines()[-1].split("\r")[-1]
    assert "Traceback" not in stderr
    assert snapshot(tmp_path / "model") == before
