"""Pairs of texts to tokenizer to ids to batches: both sides are split into tokens of one joint vocabulary,
and pairs of like length are grouped.

Legend: B pairs of a batch, S and T lengths of their longest source and target, </s> included.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from itertools import chain, compress
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, WordLevelTrainer
from torch import Tensor

from cli import InputError
from reading import Pair, Pairs, chunks
from store import Plan, Sequences, Store, Writer, gathered, mapped

EOS, UNK, PAD = "</s>", "<unk>", "<pad>"  # MarianMT's names; the first two ids and the last one
SPACE = "▁"  # stands for the space before a word, so that joining tokens gives back the text
SPACES, MARK = r"\s+", rf"[^\w{SPACE}'’-]"
SIDES = "source", "target"
ENDLESS = re.compile(r"\S{1000}")  # the time to learn subwords from one word grows with its square
IGNORE = -100  # the label of padding; PyTorch's cross-entropy skips it


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
        texts = (ENDLESS.sub(r"\g<0> ", text) for text in texts)
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


def load_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer that train_tokenizer made and its method save wrote."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True  # which the file does not say
    return tokenizer


def to_text(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Token ids, without start and </s>, as one line of text; a token outside the vocabulary reads <unk>,
    and control characters, which a terminal would obey, are replaced."""
    text = tokenizer.decode(ids, skip_special_tokens=False)
    text = re.sub(r"\s+", " ", re.sub(rf"(?<=[\w>]){UNK}", f" {UNK}", text)).strip()
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "\ufffd", text)


@dataclass(frozen=True)
class Batch:
    """source (B, S), padded; target (B, T), what the decoder reads: the start token (the padding token),
    then the reference without its last token; labels (B, T), what it has to predict at each position: the
    reference, IGNORE where there is padding."""

    source: Tensor
    target: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same on that device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))


class PairCorpus:
    """Tokenized pairs, each side ending in </s>, in memory or, of any size, on disk."""

    def __init__(self, pad_id: int, source: Sequences, target: Sequences):
        self.pad_id, self.source, self.target = pad_id, source, target

    @classmethod
    def of(cls, pairs: Iterable[Pair], tokenizer: Tokenizer, max_length: int) -> "PairCorpus":
        """Tokenize pairs in memory. Raises InputError where none is short enough."""
        pieces = [sides for _, sides in encoded(pairs, tokenizer, max_length)]
        if not any(len(lengths) for (_, lengths), _ in pieces):
            raise InputError(too_long(max_length))
        sides = (Sequences(*gathered(side)) for side in zip(*pieces, strict=True))
        return cls(tokenizer.token_to_id(PAD), *sides)

    @classmethod
    def open(cls, store: Store, tokenizer: Tokenizer) -> "PairCorpus":
        """The pairs that tokenize has written."""
        sides = (Sequences(*mapped(store.folder, name)) for name in SIDES)
        return cls(tokenizer.token_to_id(PAD), *sides)

    def __len__(self) -> int:
        return len(self.source.lengths)

    def batch(self, indices: np.ndarray) -> Batch:
        """The pairs with these indices."""
        source, labels = self.source.rows(indices, self.pad_id), self.target.rows(indices, IGNORE)
        start = np.full((len(labels), 1), self.pad_id)
        read = np.concatenate([start, np.where(labels == IGNORE, self.pad_id, labels)[:, :-1]], axis=1)
        return Batch(*map(torch.from_numpy, (source, read, labels)))

    def plan(self, batch_tokens: int, seed: int | list[int]) -> Plan:
        """One epoch's batches of pairs, B * max(S, T) <= batch_tokens, as the seed has them."""
        return Plan([self.source, self.target], batch_tokens, seed)


def too_long(max_length: int) -> str:
    """What is wrong where no pair is left."""
    return f"no pair has at most {max_length} tokens on each side; raise --max-length"


def encoded(
    pairs: Iterable[Pair], tokenizer: Tokenizer, max_length: int
) -> Iterator[tuple[list[Pair], list[tuple[np.ndarray, np.ndarray]]]]:
    """Pairs as token ids, some at a time: the pairs, and for either side the ids of all, one behind the
    other, and how many each has. Pairs with a side of more than max_length tokens are left out."""
    encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
    encode_targets = getattr(tokenizer, "encode_targets", encode)
    for chunk in chunks(pairs):
        texts = [pair.source for pair in chunk], [pair.target for pair in chunk]
        rows = [[e.ids for e in encode(texts[0])], [e.ids for e in encode_targets(texts[1])]]
        short = [max(map(len, both)) <= max_length for both in zip(*rows, strict=True)]
        sides = [list(compress(side, short)) for side in rows]
        yield (
            list(compress(chunk, short)),
            [
                (
                    np.fromiter(chain.from_iterable(side), np.int64),
                    np.array(list(map(len, side)), dtype=np.int64),
                )
                for side in sides
            ],
        )


def short_enough(pairs: Iterable[Pair], tokenizer: Tokenizer, max_length: int) -> list[Pair]:
    """The pairs of which neither side has more than max_length tokens."""
    return [pair for kept, _ in encoded(pairs, tokenizer, max_length) for pair in kept]


def tokenize(pairs: Pairs, tokenizer: Tokenizer, max_length: int, store: Store) -> None:
    """Fill a store: both sides of the training pairs, what is held out, and the tokenizer.

    Raises InputError where no pair is short enough.
    """
    vocab_size = 1 + max(tokenizer.get_vocab().values())  # not their number: some vocabularies have gaps
    with store.fill() as (folder, notes):
        with (
            Writer(folder, "source", vocab_size) as sources,
            Writer(folder, "target", vocab_size) as targets,
        ):
            for _, (source, target) in encoded(pairs.read("tokenizing"), tokenizer, max_length):
                sources.append(*source)
                targets.append(*target)
            if not len(sources):
                raise InputError(too_long(max_length))
        if isinstance(tokenizer, Tokenizer):  # else it came with --init, and comes again
            (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
        notes |= {
            "held_out": [] if pairs.held_out_file else [astuple(pair) for pair in pairs.held_out],
            "pairs": pairs.kept,
            "left_out": pairs.left_out,
            "skipped": [file.skipped for file in pairs.files],
        }
