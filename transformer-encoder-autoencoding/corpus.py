"""Text to tokenizer to ids to batches: lines are read, split into tokens, cut into windows, grouped by
length, and corrupted for masked language modelling (Devlin et al. 2018, section 3.1, "Task #1").

Legend: B sentences of a batch, S length of the longest of them.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, WordLevelTrainer
from torch import Tensor
from tqdm import tqdm

from cli import InputError, warn

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORD = r"\w+(?:[-'’]\w+)*"  # letters, marks and digits, hyphens and apostrophes inside: one word
TOKEN = WORD + r"|[^\w\s]"  # a word, or a mark
IGNORE = -100  # the label of a position that is not scored; PyTorch's cross-entropy skips it


def numbered_lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """The lines of a binary stream as text, stripped, blank ones skipped, a byte order mark dropped, each
    with its number, from 1.

    Raises InputError at a line that is not UTF-8 text, naming it.
    """
    for number, raw in enumerate(stream, start=1):
        if number == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError(f"{name}: is UTF-16; save it as UTF-8")
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name}, line {number}: byte {error.start + 1} is not UTF-8; save the file as UTF-8"
            ) from None
        if "\0" in line:
            raise InputError(f"{name}, line {number}: holds a NUL byte; a text file is needed")
        if line:
            yield number, line


def decode_lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """The lines of numbered_lines without their numbers."""
    return (line for _, line in numbered_lines(stream, name))


def open_text(path: Path) -> BinaryIO:
    """A file, or a pipe. Raises InputError where there is none."""
    if path.is_dir() or not path.exists():
        reason = "is a folder" if path.is_dir() else "a broken link" if path.is_symlink() else "no such file"
        raise InputError(f"{path}: {reason}; name a text file")
    return path.open("rb")


def read_lines(path: Path) -> list[str]:
    """All lines of a text file, as decode_lines gives them.

    Raises InputError where there is no such file, or nothing but blank lines in it.
    """
    with open_text(path) as stream:
        lines = list(decode_lines(stream, str(path)))
    if not lines:
        raise InputError(f"{path}: holds no text; a file with a sentence a line is needed")
    return lines


def split(sentences: Iterable[str], seed: int) -> tuple[list[str], list[str]]:
    """Set one distinct sentence in twenty aside, at least one and at most 1,000.

    Returns the sentences to train on, in order and with their repetitions, and those held out. The two
    share no sentence. Raises InputError where there are fewer than two distinct sentences.
    """
    sentences = list(sentences)
    distinct = list(dict.fromkeys(sentences))
    if len(distinct) < 2:
        raise InputError("the corpus holds one distinct sentence; at least two are needed, one to hold out")
    held_out = random.Random(seed).sample(distinct, min(1000, max(1, len(distinct) // 20)))
    aside = set(held_out)
    return [sentence for sentence in sentences if sentence not in aside], held_out


def training_and_held_out(
    files: list[Path], held_out_file: Path | None, seed: int
) -> tuple[list[str], list[str]]:
    """The sentences to train on and those held out, which share none: what is in the held-out file is left
    out of training. Without that file, split holds some out."""
    sentences = [sentence for path in files for sentence in read_lines(path)]
    if held_out_file is None:
        return split(sentences, seed)
    held_out = read_lines(held_out_file)
    aside = set(held_out)
    kept = [sentence for sentence in sentences if sentence not in aside]
    if not kept:
        raise InputError(f"{held_out_file}: holds all training sentences; nothing is left to train on")
    if len(kept) < len(sentences):
        warn(f"left {len(sentences) - len(kept)} sentences out of training: they are in {held_out_file}")
    return kept, held_out


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


class Corpus:
    """Tokenized windows of text, one behind the other: window i is ids[offsets[i] : offsets[i + 1]]."""

    def __init__(self, sentences: list[str], tokenizer: Tokenizer, max_length: int):
        """Each window is [CLS], at most max_length - 2 tokens, [SEP]; a longer sentence becomes several
        windows of nearly equal length. Windows in which no token could be hidden, as all are special or
        unknown, are left out and counted in a warning. Raises InputError where no window is left."""
        special = SpecialIds.of(tokenizer)
        windows: list[np.ndarray] = []
        never_hidden = list(vars(special).values())
        self.unknown = 0  # how many tokens are [UNK]
        left_out = 0
        chunks = range(0, len(sentences), 1000)
        for start in tqdm(chunks, desc="tokenizing", unit="k lines", leave=False, delay=1):
            for encoding in tokenizer.encode_batch(sentences[start : start + 1000], add_special_tokens=False):
                ids = np.asarray(encoding.ids, dtype=np.int32)
                self.unknown += int((ids == special.unk).sum())
                for part in np.array_split(ids, max(1, -(-len(ids) // (max_length - 2)))):
                    if np.isin(part, never_hidden).all():
                        left_out += 1
                    else:
                        windows.append(np.concatenate([[special.cls], part, [special.sep]]))
        if not windows:
            raise InputError(
                f"nothing to learn from or to test in {len(sentences)} sentences, the first being "
                f"{sentences[0][:40]!r}: the tokenizer knows no word in them; name other text"
            )
        if left_out:
            total = left_out + len(windows)
            warn(f"left out {left_out} of {total} passages, in which the tokenizer knows no word")
        self.special = special
        self.ids = np.concatenate(windows).astype(np.int32)
        self.lengths = np.array([len(window) for window in windows])
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """The number of tokens, [CLS] and [SEP] included."""
        return len(self.ids)

    def rows(self, indices: np.ndarray) -> Tensor:
        """The windows with these indices, padded: int64 (B, S)."""
        lengths = self.lengths[indices]
        within = np.arange(lengths.max())
        positions = np.minimum(self.offsets[indices][:, None] + within, len(self.ids) - 1)
        batch = np.where(within < lengths[:, None], self.ids[positions], self.special.pad)
        return torch.from_numpy(batch.astype(np.int64))

    def plan(self, batch_tokens: int, rng: np.random.Generator) -> list[np.ndarray]:
        """One epoch's batches, as arrays of window indices.

        Windows of like length go together, so that B * S <= batch_tokens holds little padding. Which of
        the same length meet, and the order of the batches, is drawn anew from rng. A window longer than
        batch_tokens is a batch alone.
        """
        order = rng.permutation(len(self))
        order = order[np.argsort(self.lengths[order], kind="stable")]
        batches, start = [], 0
        for i, length in enumerate(self.lengths[order].tolist()):
            if i > start and (i + 1 - start) * length > batch_tokens:
                batches.append(order[start:i])
                start = i
        batches.append(order[start:])
        return [batches[i] for i in rng.permutation(len(batches))]


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
    drawn = lottery.argsort(dim=1).argsort(dim=1) < wanted  # the `wanted` lowest tickets of each row
    labels = ids.where(drawn, torch.tensor(IGNORE))

    fate = torch.rand(ids.shape, generator=generator)
    random_ids = torch.randint(max(1, vocab_size - len(SPECIAL_TOKENS)), ids.shape, generator=generator)
    for special_id in sorted(vars(special).values()):  # step over the special ids, so that none is drawn
        random_ids += random_ids >= special_id
    inputs = ids.masked_fill(drawn & (fate < 0.8), special.mask)
    inputs = inputs.where(~drawn | (fate < 0.8) | (fate >= 0.9), random_ids)
    return inputs, labels
