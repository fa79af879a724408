"""tokenizer.json, read as if a stranger had written it: whatever is in it, it is refused, or can do no more
than split text into tokens of the model's vocabulary.

The library that runs it knows more parts than are taken here, among them some with which a few bytes claim
gigabytes, make every text grow without end, take hours over a word, or end the process.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from cli import InputError
from corpus import TOKEN

PARTS = {  # what is taken, of each part
    "normalizer": "NFC NFD NFKC NFKD Lowercase Strip StripAccents BertNormalizer Replace",
    "pre_tokenizer": "BertPreTokenizer Whitespace WhitespaceSplit Punctuation Digits ByteLevel Metaspace "
    "Split",
    "post_processor": "TemplateProcessing BertProcessing ByteLevel",
    "decoder": "WordPiece ByteLevel Metaspace BPEDecoder",
    "model": "WordLevel WordPiece BPE",
}
SEQUENCES = {  # where a part is a sequence, the name of its list
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
PATTERNS = {TOKEN}  # regular expressions: those of this folder's own tokenizers


def read(path: Path, vocab_size: int) -> Tokenizer:
    """Raises InputError where the file is missing, is no such tokenizer, or has ids of vocab_size or more."""
    if not path.is_file():
        raise InputError(f"{path}: is missing; save the model with its fast tokenizer")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not a tokenizer ({error}); get it anew") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError(f"{path}: is not a tokenizer, as it has no model; get it anew")
    for name in PARTS:
        for part in parts_of(content, name):
            if complaint := refusal(part, name):
                raise InputError(f"{path}: its {name} {complaint}; take another model")
    try:
        # what has been checked is what the library gets: duplicate keys, for one, it reads differently
        tokenizer = Tokenizer.from_str(json.dumps(content | {"truncation": None, "padding": None}))
        ids = [*tokenizer.get_vocab(with_added_tokens=True).values(), *tokenizer.encode("a").ids]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # of no narrower kind, as this library raises them
        raise InputError(f"{path}: is not a tokenizer ({error}); get it anew") from None
    if max(ids, default=0) >= vocab_size:
        raise InputError(f"{path}: belongs to another model: its ids do not fit config.json")
    return tokenizer


def parts_of(content: dict, name: str) -> list:
    """A part of tokenizer.json as a list: the members of a sequence, or the one part, or none."""
    part = content.get(name)
    if isinstance(part, dict) and part.get("type") == "Sequence" and name in SEQUENCES:
        members = part.get(SEQUENCES[name])
        return members if isinstance(members, list) else [part]
    return [] if part is None else [part]


def refusal(part: Any, name: str) -> str:
    """What is wrong with a part of tokenizer.json of this name; "" if nothing is."""
    kinds = PARTS[name].split()
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in kinds:
        return f"is of the kind {kind!r}, where {', '.join(kinds)} are supported"
    if "pattern" in part and kind in ("Split", "Replace"):
        pattern, grown = part["pattern"], part.get("content", "")
        one = isinstance(pattern, dict) and len(pattern) == 1
        regex, text = (pattern.get("Regex"), pattern.get("String")) if one else (None, None)
        if not (isinstance(regex, str) and regex in PATTERNS) and not (isinstance(text, str) and text):
            return f"is a {kind} by a pattern of its own, {pattern!r}, which is not supported"
        if not isinstance(grown, str) or len(grown) > len(text or " "):
            return f"is a {kind} that makes text longer, which is not supported"
    if kind == "TemplateProcessing":
        try:
            pieces = part["single"]
            texts = [piece["Sequence"]["id"] for piece in pieces if "SpecialToken" not in piece]
            added = {piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece}
            fits = texts == ["A"] and added <= part["special_tokens"].keys() and len(str(part)) < 2000
        except (TypeError, KeyError, AttributeError):
            fits = False
        if not fits:
            return (
                "is a TemplateProcessing that makes of a text more than the text with a few tokens around it"
            )
    if name == "model":
        vocabulary, unknown = part.get("vocab"), part.get("unk_token")
        if not isinstance(vocabulary, dict):
            return "has no vocabulary"
        if (kind != "BPE" or unknown is not None) and (
            not isinstance(unknown, str) or unknown not in vocabulary
        ):
            return f"has {unknown!r} for unknown words, which its vocabulary lacks"
        prefix = part.get("continuing_subword_prefix")
        if part.get("dropout") or part.get("end_of_word_suffix") or prefix not in (None, "", "##"):
            return "has dropout, a suffix, or a prefix other than ##, which is not supported"
        longest = part.get("max_input_chars_per_word", 100)
        if kind == "WordPiece" and not (type(longest) is int and 0 < longest <= 1000):
            return f"takes words of {longest!r} characters, where at most 1,000 are supported"
    return ""
