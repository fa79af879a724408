"""The tokenizers: learn one from a text, load it, and turn its token ids back into text."""

import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import WordLevelTrainer

from .common.subwords import Sizing, train_subwords

EOS, UNK, PAD = "</s>", "<unk>", "<pad>"  # MarianMT's names; the first two ids and the last one
# A word has the space before it as its first character, whatever stands there; a word that follows without a space,
# as in "(so", has the token CLOSE_UP before it, and a mark behind a space the token SPACE.
SPACE, CLOSE_UP = "▁", "⁐"
STAND_INS = {SPACE: "\ufdd0", CLOSE_UP: "\ufdd1"}  # for these signs within a text: Unicode never assigns them
INVISIBLE = "[\u00ad\u200b]"  # where a line may break
SPACES = r"\s+"
LETTER = r"[\w&&[^\p{Han}]]"  # or digit, or combining mark; each ideograph is a token, as in BERT
JOINT = "['’\u200c\u200d-]"  # belongs to a word between two letters
MARK = rf"\p{{Han}}\p{{M}}*|(?<!{LETTER}){JOINT}|{JOINT}(?!{LETTER})|[^\w{SPACE}'’\u200c\u200d-]"
# between a mark or an ideograph and a word
GLUED = rf"(?<=[^\w\s'’\u200c\u200d-])(?={LETTER})|(?<=\p{{Han}})(?!\p{{M}})(?={LETTER})"
GLUED += rf"|(?<=^{JOINT})(?={LETTER})|(?<=[[^\w]\p{{Han}}]{JOINT})(?={LETTER})"
CLOSED_UP = rf"(?<={CLOSE_UP})(?={LETTER})"
OLD_MARK = rf"[^\w{SPACE}'’-]"  # of models from before words were the same behind every mark
PATTERNS = {SPACES, INVISIBLE, MARK, GLUED, CLOSED_UP, OLD_MARK}  # all regular expressions in these tokenizers
# Of a small text the subwords soon are whole sentences, and no other sentence can be made of those
SIZING = Sizing(min_frequency=10, characters_per_merge=400)
TOKENIZING = 2  # goes up when another version makes other tokens of a text


def train_tokenizer(texts: Iterable[str], kind: str, vocab_size: int | None) -> Tokenizer:
    """Learn a vocabulary of at most vocab_size entries: </s> and <unk> first, <pad> last.

    kind "word": words and punctuation marks are tokens, rare ones are <unk>.
    kind "bpe": byte pair encoding over bytes (Sennrich et al. 2016; Radford et al. 2019), never <unk>. Without
    vocab_size, the text decides.
    Decoding gives back the text except for repeated spaces, and, from words, soft hyphens and zero-width spaces.
    """
    parts = [normalizers.NFC(), normalizers.Replace(Regex(SPACES), " "), normalizers.Strip()]
    if kind == "word":
        tokenizer = word_tokenizer(parts)
        trainer = WordLevelTrainer(vocab_size=vocab_size - 1, special_tokens=[EOS, UNK], show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        if tokenizer.token_to_id(CLOSE_UP) is None:  # the text has no such word: in another it is as any word
            tokenizer.normalizer = word_normalizer(parts, closed_up=False)
    else:
        tokenizer = Tokenizer(models.BPE(unk_token=UNK))
        tokenizer.normalizer = normalizers.Sequence(parts)
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
        train_subwords(tokenizer, texts, vocab_size and vocab_size - 1, SIZING, [EOS, UNK], UNK)
    tokenizer.add_special_tokens([PAD])
    tokenizer.encode_special_tokens = True  # "</s>" in a text is text
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, tokenizer.token_to_id(EOS))]
    )
    return tokenizer


def word_tokenizer(parts: list[normalizers.Normalizer]) -> Tokenizer:
    """Return a tokenizer of words and punctuation marks, without a vocabulary. parts: its first normalizers."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
    tokenizer.normalizer = word_normalizer(parts, closed_up=True)
    words = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    marks = pre_tokenizers.Split(Regex(MARK), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, marks])
    spaces = {CLOSE_UP + SPACE: "", CLOSE_UP: "", SPACE: " "}
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Fuse(),
            *(decoders.Replace(sign, text) for sign, text in spaces.items()),
            decoders.Strip(" ", 1, 0),
            *(decoders.Replace(stand_in, sign) for sign, stand_in in STAND_INS.items()),
        ]
    )
    return tokenizer


def word_normalizer(parts: list[normalizers.Normalizer], closed_up: bool) -> normalizers.Normalizer:
    """Return the normalizer of words: parts, then the sign SPACE before a word that has no space before it, and, if
    closed_up, CLOSE_UP before that."""
    signs = [normalizers.Replace(Regex(GLUED), CLOSE_UP), normalizers.Replace(Regex(CLOSED_UP), SPACE)]
    return normalizers.Sequence(
        [
            normalizers.Replace(Regex(INVISIBLE), ""),
            *parts,
            *(normalizers.Replace(sign, stand_in) for sign, stand_in in STAND_INS.items()),
            *(signs if closed_up else [normalizers.Replace(Regex(GLUED), SPACE)]),
        ]
    )


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer that train_tokenizer made and its method save wrote."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True  # the file does not say so
    return tokenizer


def to_text(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Turn token ids, without start and </s>, into one line of text. A token outside the vocabulary becomes <unk>,
    and control characters, which a terminal would obey, are replaced."""
    text = tokenizer.decode(ids, skip_special_tokens=False)
    text = re.sub(r"\s+", " ", re.sub(rf"(?<=\S){UNK}", f" {UNK}", text)).strip()
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "\ufffd", text)
