"""The tokenizers: learn one from a text, and know its special tokens."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import WordLevelTrainer

from .common.errors import InputError
from .common.subwords import Sizing, train_subwords

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # BERT's names
LETTER = r"[\w&&[^\p{Han}]]"  # or digit, or combining mark
# letters with hyphens, apostrophes and U+200C and U+200D between them; each ideograph is a word, as in BERT
WORD = rf"{LETTER}+(?:[-'’\u200c\u200d]{LETTER}+)*|\p{{Han}}\p{{M}}*"
TOKEN = WORD + r"|[^\w\s]"  # a word, or a punctuation mark
RUN = rf" ?(?:{WORD}|[^\w\s]+)| "  # what subwords are parts of, the space before it included
INVISIBLE, SPACES = "[\u00ad\u200b]", r"\s+"  # where a line may break; white space
OLD_TOKEN = r"\w+(?:[-'’]\w+)*|[^\w\s]"  # of models from before ideographs were words
PATTERNS = {TOKEN, RUN, INVISIBLE, SPACES, OLD_TOKEN}  # all regular expressions in these tokenizers
# A word in several pieces is hardly ever hidden whole, and so not learnt: as many words as may be are one piece
SIZING = Sizing(min_frequency=2, characters_per_merge=1)
TOKENIZING = 3  # goes up when another version makes other tokens of a text


def train_tokenizer(sentences: Iterable[str], kind: str, vocab_size: int | None) -> Tokenizer:
    """Learn a vocabulary of at most vocab_size entries, the five special tokens first.

    kind "word": words and punctuation marks are tokens, rare ones are [UNK].
    kind "bpe": byte pair encoding over bytes (Sennrich et al. 2016; Radford et al. 2019), never [UNK]. Without
    vocab_size, the text decides.
    Replacing any word by [MASK] changes no other id.
    """
    if kind == "word":
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex(INVISIBLE), ""), normalizers.NFC()])
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(TOKEN), behavior="removed", invert=True)
        trainer = WordLevelTrainer(vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, show_progress=False)
        tokenizer.train_from_iterator(sentences, trainer)
    else:
        tokenizer = Tokenizer(models.BPE(unk_token=UNK))
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(SPACES), " "), normalizers.Strip(left=False)]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                # the first word gets a space too, but not what stands behind a [MASK]
                pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False),
                pre_tokenizers.Split(Regex(RUN), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
        train_subwords(tokenizer, sentences, vocab_size, SIZING, SPECIAL_TOKENS, UNK)
    cls_id, sep_id = tokenizer.token_to_id(CLS), tokenizer.token_to_id(SEP)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}", pair=f"{CLS} $A {SEP} $B {SEP}", special_tokens=[(CLS, cls_id), (SEP, sep_id)]
    )
    # [MASK] takes the space before it, so that the word after it looks as it would after any word
    tokenizer.add_special_tokens([AddedToken(MASK, lstrip=True, special=True)])
    return tokenizer


@contextmanager
def text_alone(tokenizer: Tokenizer) -> Iterator[None]:
    """Within the block, let the tokenizer take names of special tokens, such as [PAD], for text."""
    tokenizer.encode_special_tokens = True
    try:
        yield
    finally:
        tokenizer.encode_special_tokens = False


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
