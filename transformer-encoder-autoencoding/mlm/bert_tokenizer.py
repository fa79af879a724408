"""The tokenizer of BERTs that have no tokenizer.json: WordPiece (Wu et al. 2016, section 4.1) with the words of
vocab.txt, a line each, whose number is the id, and BERT's own rules for splitting a text."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from .common.errors import InputError, naming
from .common.files import refuse_lfs_pointer
from .common.model_directory import read_json
from .tokenizer import CLS, SEP, SPECIAL_TOKENS, UNK

CLASSES = "BertTokenizer", "BertTokenizerFast"  # others, such as BertJapaneseTokenizer, split a text by other rules


def read(directory: Path) -> Tokenizer:
    """Read vocab.txt and, where there is one, tokenizer_config.json."""
    settings = read_settings(directory)
    path = directory / "vocab.txt"
    with naming(path):
        refuse_lfs_pointer(path)
        try:
            lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except UnicodeDecodeError:
            raise InputError("is not UTF-8 text; download it again") from None
        vocabulary = {line: i for i, line in enumerate(lines)}
        if missing := [token for token in SPECIAL_TOKENS if token not in vocabulary]:
            raise InputError(f"has no {' and no '.join(missing)}; use another model")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNK, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(**settings)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(token, vocabulary[token]) for token in (CLS, SEP)],
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return tokenizer


def read_settings(directory: Path) -> dict[str, Any]:
    """Return how a text is normalized, with BERT's values where tokenizer_config.json has none."""
    path = directory / "tokenizer_config.json"
    content = read_json(path) if path.is_file() else {}
    kind = content.get("tokenizer_class", read_json(directory / "config.json").get("tokenizer_class"))
    if kind not in (None, *CLASSES):
        raise InputError(f"{path}: tokenizer_class is {kind!r}; with vocab.txt supported is {CLASSES[0]!r}")
    settings = {
        "lowercase": content.get("do_lower_case", True),
        "strip_accents": content.get("strip_accents"),
        "handle_chinese_chars": content.get("tokenize_chinese_chars", True),
    }
    for name, value in settings.items():
        if not isinstance(value, bool) and (name != "strip_accents" or value is not None):
            raise InputError(f"{path}: {name} is {value!r}; true or false is needed")
    return settings
