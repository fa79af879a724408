"""The tokenizers: learn one from a text, and know its special tokens."""

import re
from collections.abc import Iterable
from dataclasses import astuple, dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, WordLevelTrainer

from .common.errors import InputError

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # BERT's names
WORD = r"\w+(?:[-'’]\w+)*"  # letters, marks and digits, hyphens and apostrophes inside: one word
TOKEN = WORD + r"|[^\w\s]"  # a word, or a punctuation mark
PATTERNS = {TOKEN}  # all regular expressions in these tokenizers
LONG_WORD = re.compile(r"\S{1000}")  # the time to learn subwords from one word grows with its square


def train_tokenizer(sentences: Iterable[str], kind: str, vocab_size: int) -> Tokenizer:
    """Learn a vocabulary of at most vocab_size entries, the five special tokens first.

    kind "word": words and punctuation marks are tokens, rare ones are [UNK].
    kind "bpe": byte pair encoding over bytes (Sennrich et al. 2016; Radford et al. 2019), never [UNK].
    """
    if kind == "word":
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(TOKEN), behavior="removed", invert=True)
        trainer = WordLevelTrainer(vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, show_progress=False)
    else:
        sentences = (LONG_WORD.sub(r"\g<0> ", sentence) for sentence in sentences)
        tokenizer = Tokenizer(models.BPE(unk_token=UNK))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=SPECIAL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.train_from_iterator(sentences, trainer)
    cls_id, sep_id = tokenizer.token_to_id(CLS), tokenizer.token_to_id(SEP)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}", special_tokens=[(CLS, cls_id), (SEP, sep_id)]
    )
    # [MASK] takes the space before it, so that the word after it looks as it would after any word
    tokenizer.add_special_tokens([AddedToken(MASK, lstrip=True, special=True)])
    return tokenizer


@dataclass(frozen=True)
class SpecialIds:
    """The ids of the five special tokens in one vocabulary."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "SpecialIds":
        """Return those of a tokenizer, which must have all five."""
        ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
        if None in ids:
            raise InputError(f"the tokenizer has no {SPECIAL_TOKENS[ids.index(None)]}; BERT's is needed")
        if len(set(ids)) < len(ids):
            raise InputError(f"the tokenizer has one id for several of {', '.join(SPECIAL_TOKENS)}; BERT's is needed")
        return cls(*ids)

    @property
    def all(self) -> tuple[int, ...]:
        """All five."""
        return astuple(self)
