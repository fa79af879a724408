"""Pairs of texts to tokenizer to ids to batches: tab-separated files are read, both sides are split into
tokens of one joint vocabulary, and pairs of like length are grouped.

Legend: B pairs of a batch, S and T lengths of their longest source and target, </s> included.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, WordLevelTrainer
from torch import Tensor
from tqdm import tqdm

from cli import InputError, warn

EOS, UNK, PAD = "</s>", "<unk>", "<pad>"  # MarianMT's names; the first two ids and the last one
SPACE = "▁"  # stands for the space before a word, so that joining tokens gives back the text
SPACES, MARK = r"\s+", rf"[^\w{SPACE}'’-]"
IGNORE = -100  # the label of padding; PyTorch's cross-entropy skips it


@dataclass(frozen=True)
class Pair:
    """A prompt, the text that should come of it, and the kind of the task ("" where a file names none)."""

    source: str
    target: str
    kind: str = ""


def decode_lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """The lines of a binary stream as text, without their ends, a byte order mark dropped.

    Raises InputError at a line that is not UTF-8 text, naming it.
    """
    for number, raw in enumerate(stream, start=1):
        if number == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError(f"{name}: is UTF-16; save it as UTF-8")
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name}, line {number}: byte {error.start + 1} is not UTF-8; save the file as UTF-8"
            ) from None
        if "\0" in line:
            raise InputError(f"{name}, line {number}: holds a NUL byte; a text file is needed")
        yield line


def open_text(path: Path) -> BinaryIO:
    """A file, or a pipe. Raises InputError where there is none."""
    if path.is_dir() or not path.exists():
        reason = "is a folder" if path.is_dir() else "a broken link" if path.is_symlink() else "no such file"
        raise InputError(f"{path}: {reason}; name a text file")
    return path.open("rb")


def find_column(wanted: str, header: list[str], path: Path) -> int:
    """The index of a column named by its header or its number (from 1).

    Raises InputError where there is none such.
    """
    if wanted in header:
        return header.index(wanted)
    if wanted.isdecimal() and len(wanted) < 10 and 1 <= int(wanted) <= len(header):
        return int(wanted) - 1
    raise InputError(
        f"{path}: has no column {wanted!r}; it has {', '.join(header)} or 1 to {len(header)}, to be named by "
        "--source-column and --target-column"
    )


def read_pairs(path: Path, source_column: str | None = None, target_column: str | None = None) -> list[Pair]:
    """The pairs of a tab-separated file, quotes taken as they stand.

    Columns are named by a header line or by number, from 1. Without names the columns "source" and
    "target" are taken if the first line has them, else the first two, and the first line is a pair, unless
    it is "source" and "target".
    Lines with another number of columns than most, and lines with an empty side, are skipped and counted
    in a warning. Raises InputError where the file has no such column, or no pair at all.
    """
    with open_text(path) as stream:
        rows = [line.split("\t") for line in decode_lines(stream, str(path)) if line.strip()]
    if not rows:
        raise InputError(f"{path}: holds no text; a file of tab-separated pairs is needed")
    width = Counter(map(len, rows)).most_common(1)[0][0]
    if width < 2:
        raise InputError(f"{path}: has one column; source and target, separated by a tab, are needed")
    wanted = [source_column or "source", target_column or "target"]
    header = [name.strip() for name in rows[0]]
    if {"source", "target"} <= set(header) or any(
        not name.isdecimal() for name in (source_column, target_column) if name
    ):
        columns = [find_column(name, header, path) for name in wanted]
        rows = rows[1:]
        if len(header) != width:
            raise InputError(
                f"{path}: the header has {len(header)} columns, most lines have {width}; give all as many"
            )
    else:
        numbers = [str(i + 1) for i in range(width)]
        columns = [
            find_column(name or default, numbers, path)
            for name, default in ((source_column, "1"), (target_column, "2"))
        ]
        header = []
    if columns[0] == columns[1]:
        raise InputError(
            f"{path}: column {columns[0] + 1} would be source and target; give --source-column and "
            "--target-column, two different ones"
        )
    kind = header.index("kind") if "kind" in header else None

    pairs, odd, empty = [], 0, 0
    for row in rows:
        if len(row) != width:
            odd += 1
            continue
        source, target = (row[column].strip() for column in columns)
        if source and target:
            pairs.append(Pair(source, target, row[kind].strip() if kind is not None else ""))
        else:
            empty += 1
    if odd:
        warn(f"{path}: skipped {odd} of {len(rows)} lines, which have not {width} columns as most have")
    if empty:
        warn(f"{path}: skipped {empty} of {len(rows)} lines, which have an empty side")
    if not pairs:
        raise InputError(f"{path}: holds no pair; a source and a target, separated by a tab, are needed")
    return pairs


def split(pairs: list[Pair], seed: int) -> tuple[list[Pair], list[Pair]]:
    """Set the pairs of one distinct source in twenty aside, at least one and at most 1,000 sources.

    Returns the pairs to train on and those held out; they share no source. Raises InputError where there
    are fewer than two distinct sources.
    """
    distinct = list(dict.fromkeys(pair.source for pair in pairs))
    if len(distinct) < 2:
        raise InputError("the pairs have one distinct source; at least two are needed, one to hold out")
    aside = set(random.Random(seed).sample(distinct, min(1000, max(1, len(distinct) // 20))))
    return [p for p in pairs if p.source not in aside], [p for p in pairs if p.source in aside]


def training_and_held_out(
    files: list[Path], held_out_file: Path | None, columns: tuple[str | None, str | None], seed: int
) -> tuple[list[Pair], list[Pair]]:
    """The pairs to train on and those held out, which share no source: a pair whose source is in the
    held-out file is left out of training. Without that file, split holds some out."""
    pairs = [pair for path in files for pair in read_pairs(path, *columns)]
    if held_out_file is None:
        return split(pairs, seed)
    held_out = read_pairs(held_out_file, *columns)
    aside = {pair.source for pair in held_out}
    kept = [pair for pair in pairs if pair.source not in aside]
    if not kept:
        raise InputError(
            f"{held_out_file}: holds all sources of the training pairs; nothing is left to train on"
        )
    if len(kept) < len(pairs):
        warn(f"left {len(pairs) - len(kept)} pairs out of training: their sources are in {held_out_file}")
    return kept, held_out


def train_tokenizer(texts: Iterable[str], kind: str, vocab_size: int) -> Tokenizer:
    """Learn a vocabulary of at most vocab_size entries: </s> and <unk> first, <pad> last.

    kind "word": words and punctuation marks are tokens, rare ones are <unk>.
    kind "bpe": byte pair encoding over bytes (Sennrich et al. 2016; Radford et al. 2019), never <unk>.
    Decoding gives back the text but for repeated spaces.
    """
    if kind == "word":
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
        words = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
        marks = pre_tokenizers.Split(Regex(MARK), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, marks])
        tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
        trainer = WordLevelTrainer(vocab_size=vocab_size - 1, special_tokens=[EOS, UNK], show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE(unk_token=UNK))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = BpeTrainer(
            vocab_size=vocab_size - 1,
            special_tokens=[EOS, UNK],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(SPACES), " "), normalizers.Strip()]
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([PAD])
    tokenizer.encode_special_tokens = True  # "</s>" in a text is text
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, tokenizer.token_to_id(EOS))]
    )
    return tokenizer


def to_text(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Token ids, without start and </s>, as one line of text; a token outside the vocabulary reads <unk>."""
    text = tokenizer.decode(ids, skip_special_tokens=False)
    return re.sub(r"\s+", " ", re.sub(rf"(?<=\w){UNK}", f" {UNK}", text)).strip()


@dataclass(frozen=True)
class Batch:
    """source (B, S), padded; target (B, T), what the decoder reads: the start token (the padding token),
    then the reference without its last token; labels (B, T), what it has to predict at each position: the
    reference, IGNORE where there is padding."""

    source: Tensor
    target: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))


class Side:
    """Tokenized texts, one behind the other: text i is ids[offsets[i] : offsets[i + 1]]."""

    def __init__(self, texts: list[np.ndarray]):
        self.ids = np.concatenate(texts)
        self.lengths = np.array([len(ids) for ids in texts])
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])

    def rows(self, indices: np.ndarray, padding: int) -> np.ndarray:
        """The texts with these indices, padded: int64 (B, the longest's length)."""
        lengths = self.lengths[indices]
        within = np.arange(lengths.max())
        positions = np.minimum(self.offsets[indices][:, None] + within, len(self.ids) - 1)
        return np.where(within < lengths[:, None], self.ids[positions], padding).astype(np.int64)


class PairCorpus:
    """Tokenized pairs, each side ending in </s>."""

    def __init__(self, pairs: list[Pair], tokenizer: Tokenizer, max_length: int):
        """Pairs with a side of more than max_length tokens are left out and counted in `too_long`.

        Raises InputError where no pair is left.
        """
        self.pad_id = tokenizer.token_to_id(PAD)
        sources, targets = [], []
        for start in tqdm(
            range(0, len(pairs), 1000), desc="tokenizing", unit="k pairs", leave=False, delay=1
        ):
            chunk = pairs[start : start + 1000]
            encode_targets = getattr(tokenizer, "encode_targets", tokenizer.encode_batch)
            encoded = (
                tokenizer.encode_batch([p.source for p in chunk]),
                encode_targets([p.target for p in chunk]),
            )
            for source, target in zip(*encoded, strict=True):
                if max(len(source), len(target)) <= max_length:
                    sources.append(np.array(source.ids, dtype=np.int32))
                    targets.append(np.array(target.ids, dtype=np.int32))
        if not sources:
            raise InputError(f"no pair has at most {max_length} tokens on each side; raise --max-length")
        self.too_long = len(pairs) - len(sources)
        self.source, self.target = Side(sources), Side(targets)

    def __len__(self) -> int:
        return len(self.source.lengths)

    def batch(self, indices: np.ndarray) -> Batch:
        """The pairs with these indices."""
        labels = self.target.rows(indices, IGNORE)
        start = np.full((len(labels), 1), self.pad_id)
        read = np.concatenate([start, np.where(labels == IGNORE, self.pad_id, labels)[:, :-1]], axis=1)
        arrays = self.source.rows(indices, self.pad_id), read, labels
        return Batch(*(torch.from_numpy(array) for array in arrays))

    def plan(self, batch_tokens: int, rng: np.random.Generator) -> list[np.ndarray]:
        """One epoch's batches, as arrays of pair indices.

        Pairs of like length go together, so that B * max(S, T) <= batch_tokens holds little padding. Which
        of the same length meet, and the order of the batches, is drawn anew from rng. A pair longer than
        batch_tokens is a batch alone.
        """
        order = rng.permutation(len(self))
        order = order[np.lexsort((self.source.lengths[order], self.target.lengths[order]))]
        longest = np.maximum(self.source.lengths, self.target.lengths)
        batches, start, width = [], 0, 0
        for i, length in enumerate(longest[order].tolist()):
            if i > start and (i + 1 - start) * max(width, length) > batch_tokens:
                batches.append(order[start:i])
                start, width = i, 0
            width = max(width, length)
        batches.append(order[start:])
        return [batches[i] for i in rng.permutation(len(batches))]
