"""Read tokenizer.json as a file from a stranger: it is refused, or it can do no more than split text into tokens
of the model's vocabulary.

The library that runs it knows more parts than are accepted here. With some of them a few bytes can claim
gigabytes of memory, make every text grow without end, spend hours on a word, or end the process.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from .errors import InputError, naming
from .files import refuse_lfs_pointer

PARTS = {  # the supported types of each part
    "normalizer": "NFC NFD NFKC NFKD Lowercase Strip StripAccents BertNormalizer Replace",
    "pre_tokenizer": "BertPreTokenizer Whitespace WhitespaceSplit Punctuation Digits ByteLevel Metaspace Split",
    "post_processor": "TemplateProcessing BertProcessing ByteLevel",
    "decoder": "WordPiece ByteLevel Metaspace BPEDecoder Fuse Replace Strip",
    "model": "WordLevel WordPiece BPE",
}
SEQUENCES = {  # the name of the list in a part that is a sequence
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}


def read(path: Path, vocab_size: int, patterns: set[str]) -> Tokenizer:
    """Read a tokenizer whose ids are below vocab_size. patterns: the regular expressions that it may use."""
    if not path.is_file():
        raise InputError(f"{path}: is missing; save the model with its fast tokenizer")
    with naming(path):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            refuse_lfs_pointer(path)
            raise InputError(f"is not a tokenizer ({error}); download it again") from None
        if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
            raise InputError("is not a tokenizer, as it has no model; download it again")
        content["model"].setdefault("type", type_of(content["model"]))
        for name in PARTS:
            for part in parts_of(content, name):
                if complaint := refusal(part, name, patterns):
                    raise InputError(f"its {name} {complaint}; use another model")
        if sum(part["type"] != "ByteLevel" for part in parts_of(content, "post_processor")) > 1:
            raise InputError("its post_processor adds tokens twice, which is not supported; use another model")
        try:
            # pass on what has been checked: the library reads duplicate keys, for one, differently
            tokenizer = Tokenizer.from_str(json.dumps(content | {"truncation": None, "padding": None}))
            ids = [*tokenizer.get_vocab(with_added_tokens=True).values(), *tokenizer.encode("a").ids]
            normalize = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
            added = [one.content for one in tokenizer.get_added_tokens_decoder().values() if one.normalized]
            vanishing = [token for token in added if not normalize(token)]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # this library raises no narrower kind
            raise InputError(f"is not a tokenizer ({error}); download it again") from None
        if vanishing:  # it would be found between all bytes of a text, within characters too
            raise InputError(f"its normalizer leaves nothing of its token {vanishing[0]!r}; use another model")
        if max(ids, default=0) >= vocab_size:
            raise InputError("belongs to another model: its ids do not fit config.json")
    return tokenizer


def type_of(model: dict) -> str:
    """Return the type that the library gives a model without one, as that of bert-base-uncased."""
    return "BPE" if "merges" in model else "WordPiece" if "max_input_chars_per_word" in model else "WordLevel"


def parts_of(content: dict, name: str) -> list:
    """Return a part of tokenizer.json as a list: the members of a sequence, the one part, or nothing."""
    part = content.get(name)
    if isinstance(part, dict) and part.get("type") == "Sequence" and name in SEQUENCES:
        members = part.get(SEQUENCES[name])
        return members if isinstance(members, list) else [part]
    return [] if part is None else [part]


def refusal(part: Any, name: str, patterns: set[str]) -> str:
    """Say what is wrong with a part of tokenizer.json of this name; return "" if nothing is."""
    kinds = PARTS[name].split()
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in kinds:
        return f"is of type {kind!r}; supported are {', '.join(kinds)}"
    if "pattern" in part and kind in ("Split", "Replace"):
        pattern, grown = part["pattern"], part.get("content", "")
        one = isinstance(pattern, dict) and len(pattern) == 1
        regex, text = (pattern.get("Regex"), pattern.get("String")) if one else (None, None)
        if not (isinstance(regex, str) and regex in patterns) and not (isinstance(text, str) and text):
            return f"is a {kind} with the pattern {pattern!r}, which is not supported"
        if not isinstance(grown, str) or len(grown) > len(text or " "):
            return f"is a {kind} that makes text longer, which is not supported"
    if name == "decoder" and kind == "Strip" and (part.get("start"), part.get("stop")) != (1, 0):
        return "is a Strip of more than the first space, which is not supported"
    if kind == "TemplateProcessing":
        try:
            pieces = part["single"]
            texts = [piece["Sequence"]["id"] for piece in pieces if "SpecialToken" not in piece]
            added = {piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece}
            fits = texts == ["A"] and added <= part["special_tokens"].keys() and len(str(part)) < 2000
        except (TypeError, KeyError, AttributeError):
            fits = False
        if not fits:
            return "is a TemplateProcessing that does more than add a few tokens around the text"
    if name == "model":
        vocabulary, unknown = part.get("vocab"), part.get("unk_token")
        if not isinstance(vocabulary, dict):
            return "has no vocabulary"
        if (kind != "BPE" or unknown is not None) and (not isinstance(unknown, str) or unknown not in vocabulary):
            return f"has {unknown!r} for unknown words, which is not in its vocabulary"
        prefix = part.get("continuing_subword_prefix")
        if part.get("dropout") or part.get("end_of_word_suffix") or prefix not in (None, "", "##"):
            return "has dropout, a suffix, or a prefix other than ##, which is not supported"
        longest = part.get("max_input_chars_per_word", 100)
        if kind == "WordPiece" and not (type(longest) is int and 0 < longest <= 1000):
            return f"takes words of {longest!r} characters; at most 1,000 are supported"
    return ""
