"""Text to tokenizer to ids to batches: sentences are split into tokens, cut into windows, grouped by length,
and corrupted for masked language modelling (Devlin et al. 2018, section 3.1, "Task #1").

Legend: B sentences of a batch, S length of the longest of them.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, WordLevelTrainer
from torch import Tensor

from cli import InputError, warn
from reading import Text, chunks
from store import Plan, Sequences, Store, Writer, gathered, mapped

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORD = r"\w+(?:[-'’]\w+)*"  # letters, marks and digits, hyphens and apostrophes inside: one word
TOKEN = WORD + r"|[^\w\s]"  # a word, or a mark
ENDLESS = re.compile(r"\S{1000}")  # the time to learn subwords from one word grows with its square
IGNORE = -100  # the label of a position that is not scored; PyTorch's cross-entropy skips it


def train_tokenizer(sentences: Iterable[str], kind: str, vocab_size: int) -> Tokenizer:
    """Learn a vocabulary of at most vocab_size entries, the five special tokens first.

    kind "word": every word and every punctuation mark is a token, rare ones are [UNK].
    kind "bpe": byte pair encoding over bytes (Sennrich et al. 2016; Radford et al. 2019), never [UNK].
    """
    if kind == "word":
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(TOKEN), behavior="removed", invert=True)
        trainer = WordLevelTrainer(vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, show_progress=False)
    else:
        sentences = (ENDLESS.sub(r"\g<0> ", sentence) for sentence in sentences)
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
        """Raises InputError where one is missing, or two are the same."""
        ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
        if None in ids:
            raise InputError(f"the tokenizer has no {SPECIAL_TOKENS[ids.index(None)]}; BERT's is needed")
        if len(set(ids)) < len(ids):
            raise InputError(f"the tokenizer has one id for several of {', '.join(SPECIAL_TOKENS)}")
        return cls(*ids)


def windows(
    sentences: Iterable[str], tokenizer: Tokenizer, max_length: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Sentences as token ids, some at a time: the ids of windows, one behind the other, and their lengths.

    Each window is [CLS], at most max_length - 2 tokens, [SEP]; a longer sentence becomes several windows of
    nearly equal length. Windows in which nothing can be hidden, as all tokens are special or unknown, are
    left out; how many, comes third.
    """
    special, room = SpecialIds.of(tokenizer), max_length - 2
    for chunk in chunks(sentences):
        encodings = tokenizer.encode_batch_fast(chunk, add_special_tokens=False)
        rows = [encoding.ids for encoding in encodings]
        ids, totals = np.fromiter(chain.from_iterable(rows), np.int64), np.array(list(map(len, rows)))
        left_out = int((totals == 0).sum())
        if not len(ids):
            yield ids, ids, left_out
            continue
        parts = -(-totals // room)  # how many windows a sentence becomes, whose first ones are longer by one
        nth = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
        totals, parts = np.repeat(totals, parts), np.repeat(parts, parts)
        lengths = totals // parts + (nth < totals % parts)
        hidden = ~np.isin(ids, list(vars(special).values()))  # what may be
        keep = np.add.reduceat(hidden, np.cumsum(lengths) - lengths) > 0
        left_out += int((~keep).sum())
        ids, lengths = ids[np.repeat(keep, lengths)], lengths[keep]
        ends = np.cumsum(lengths)
        around = np.repeat([special.sep, special.cls], len(ends))  # where both go, the end goes first
        yield np.insert(ids, np.concatenate([ends, ends - lengths]), around), lengths + 2, left_out


def check_windows(kept: int, left_out: int, sentences: Iterable[str]) -> None:
    """Warn of windows that were left out. Raises InputError where none was kept."""
    if not kept:
        first = next(iter(sentences))
        raise InputError(
            f"nothing to learn from or to test in sentences such as {first[:40]!r}: the tokenizer knows no "
            "word in them; name other text, or try --tokenizer bpe"
        )
    if left_out:
        warn(f"left out {left_out} of {kept + left_out} passages, in which the tokenizer knows no word")


class Corpus(Sequences):
    """Tokenized windows of text, in memory or, of any size, on disk."""

    def __init__(self, special: SpecialIds, ids: np.ndarray, lengths: np.ndarray, offsets: np.ndarray):
        super().__init__(ids, lengths, offsets)
        self.special = special

    @classmethod
    def of(cls, sentences: Sequence[str], tokenizer: Tokenizer, max_length: int) -> "Corpus":
        """Tokenize sentences in memory. Raises InputError where the tokenizer knows no word in them."""
        pieces = list(windows(sentences, tokenizer, max_length))
        kept = sum(len(lengths) for _, lengths, _ in pieces)
        left_out = sum(left_out for *_, left_out in pieces)
        check_windows(kept, left_out, sentences)
        return cls(SpecialIds.of(tokenizer), *gathered((ids, lengths) for ids, lengths, _ in pieces))

    @classmethod
    def open(cls, store: Store, tokenizer: Tokenizer) -> "Corpus":
        """The windows that tokenize has written."""
        return cls(SpecialIds.of(tokenizer), *mapped(store.folder, "windows"))

    @property
    def tokens(self) -> int:
        """The number of tokens, [CLS] and [SEP] included."""
        return len(self.ids)

    def rows(self, indices: np.ndarray) -> Tensor:
        """The windows with these indices, padded: int64 (B, S)."""
        return torch.from_numpy(super().rows(indices, self.special.pad))

    def plan(self, batch_tokens: int, seed: int | list[int]) -> Plan:
        """One epoch's batches of windows, B * S <= batch_tokens, as the seed has them."""
        return Plan([self], batch_tokens, seed)


def tokenize(text: Text, tokenizer: Tokenizer, max_length: int, store: Store) -> None:
    """Fill a store: the windows of the training sentences, what is held out, and the tokenizer.

    Raises InputError where the tokenizer knows no word in them.
    """
    with store.fill() as (folder, notes):
        unlearnable = 0
        highest = max(tokenizer.get_vocab().values())  # not their number: some vocabularies have gaps
        with Writer(folder, "windows", highest + 1) as writer:
            for ids, lengths, left_out in windows(text.read("tokenizing"), tokenizer, max_length):
                writer.append(ids, lengths)
                unlearnable += left_out
            check_windows(len(writer), unlearnable, text)
        (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
        drawn = None if text.held_out_file else text.held_out
        notes |= {"held_out": drawn, "sentences": text.sentences, "left_out": text.left_out}


def corrupt(
    ids: Tensor, special: SpecialIds, vocab_size: int, mask_prob: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Hide tokens for masked language modelling (Devlin et al. 2018, section 3.1 and appendix A.1).

    In each sentence mask_prob of the tokens that are neither special nor unknown, and at least one, are drawn
    to be predicted. Of these 80 % become [MASK], 10 % a random token that is not special, 10 % stay.

    ids (B, S) -> inputs (B, S) and labels (B, S), which are the original ids where a prediction is due
    and IGNORE elsewhere.
    """
    eligible = torch.ones_like(ids, dtype=torch.bool)
    for special_id in vars(special).values():
        eligible &= ids != special_id
    counts = eligible.sum(dim=1, keepdim=True)
    wanted = (counts * mask_prob).round().clamp(min=1).minimum(counts)  # (B, 1)
    lottery = torch.rand(ids.shape, generator=generator).masked_fill(~eligible, 2.0)
    ranks = lottery.argsort(dim=1).argsort(dim=1)  # of tickets .7 .2 .9 .4 the ranks are 2 0 3 1
    drawn = ranks < wanted
    labels = ids.where(drawn, torch.tensor(IGNORE))

    fate = torch.rand(ids.shape, generator=generator)
    random_ids = torch.randint(max(1, vocab_size - len(SPECIAL_TOKENS)), ids.shape, generator=generator)
    # Of five ids of which 1 and 3 are special, 0 1 2 are drawn: stepping over 1, then over 3, gives 0 2 4.
    for special_id in sorted(vars(special).values()):
        random_ids += random_ids >= special_id
    inputs = ids.masked_fill(drawn & (fate < 0.8), special.mask)
    inputs = inputs.where(~drawn | (fate < 0.8) | (fate >= 0.9), random_ids)
    return inputs, labels
