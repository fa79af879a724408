"""From sentences to batches of token ids: sentences are split into tokens, once, and cut into windows, and windows
of like length are batched.

Legend: B windows of a batch, S length of the longest, [CLS] and [SEP] included.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from masking import IGNORE

from .cloze import EncodedCloze, encode_clozes, read_clozes
from .common import checkpoint
from .common.batching import BatchSampler
from .common.coverage import MAX_TEXTS, Coverage
from .common.errors import InputError, warn
from .common.files import fingerprint
from .common.lines import check_rereadable, chunks
from .common.token_store import Sequences, SequenceWriter, TokenStore, concatenate, open_sequences
from .config import TrainConfig
from .text import SPLITTING, TextFile, TextSource, draw_held_out_sentences, read_all
from .tokenizer import TOKENIZING, UNK, SpecialIds, text_alone, train_tokenizer

EVALUATED = 1000  # windows of which tokens are hidden at a time, for evaluation


@dataclass(frozen=True)
class Windows:
    """Some windows: their ids, one behind the other; the length of each; and the number of windows that were left
    out, as nothing can be hidden in them."""

    ids: np.ndarray
    lengths: np.ndarray
    n_left_out: int


def windows(sentences: list[str], tokenizer: Tokenizer, max_length: int) -> Windows:
    """Turn sentences into token ids: each becomes a window [CLS], its tokens, [SEP]; if it has more tokens than fit
    into max_length, several windows of nearly equal length. Windows of special and unknown tokens alone, in which
    nothing can be hidden, are left out."""
    special, room = SpecialIds.of(tokenizer), max_length - 2
    never_hidden = set(special.all)
    ids, lengths, n_left_out = [], [], 0
    with text_alone(tokenizer):
        encodings = tokenizer.encode_batch_fast(sentences, add_special_tokens=False)
    for encoding in encodings:
        tokens = encoding.ids
        n_windows = max(1, -(-len(tokens) // room))
        size, n_longer = divmod(len(tokens), n_windows)  # the first n_longer windows have a token more
        start = 0
        for i in range(n_windows):
            window = tokens[start : start + size + (i < n_longer)]
            start += len(window)
            if never_hidden.issuperset(window):
                n_left_out += 1
            else:
                ids += [special.cls, *window, special.sep]
                lengths.append(len(window) + 2)
    return Windows(np.array(ids, dtype=np.int64), np.array(lengths, dtype=np.int64), n_left_out)


def warn_of_left_out(n_kept: int, n_left_out: int, sentences: Iterable[str]) -> None:
    """Say how many windows were left out; refuse sentences of which none was kept."""
    if not n_kept:
        first = next(iter(sentences))
        raise InputError(
            f"the tokenizer knows no word in sentences such as {first[:40]!r}, so there is nothing to hide; name "
            "another text, or train a new model with subwords",
            "tokenizer",
        )
    if n_left_out:
        warn(f"left out {n_left_out} of {n_kept + n_left_out} passages, in which the tokenizer knows no word")


def cover(held_out: Sequence[str], tokenizer: Tokenizer, init: bool = False) -> Coverage:
    """Measure how the vocabulary covers held-out text; warn of unknown tokens, which no figure shows. init: True if the
    vocabulary is that of a model to start from."""
    texts, ids = held_out[:MAX_TEXTS], []
    with text_alone(tokenizer):
        for some in chunks(texts):
            encodings = tokenizer.encode_batch_fast(some, add_special_tokens=False)
            ids += [token for encoding in encodings for token in encoding.ids]
    coverage = Coverage.of(texts, np.array(ids, dtype=np.int64), tokenizer.token_to_id(UNK))
    coverage.warn("held-out tokens", ", and left out of all figures", init)
    return coverage


class MLMDataset:
    """Tokenized windows of text, in memory or, of any size, on disk."""

    def __init__(self, special: SpecialIds, sequences: Sequences):
        self.special, self.sequences = special, sequences

    @classmethod
    def in_memory(cls, sentences: Sequence[str], tokenizer: Tokenizer, max_length: int) -> "MLMDataset":
        """Tokenize sentences in memory."""
        parts = [windows(chunk, tokenizer, max_length) for chunk in chunks(sentences)]
        n_kept, n_left_out = sum(len(part.lengths) for part in parts), sum(part.n_left_out for part in parts)
        warn_of_left_out(n_kept, n_left_out, sentences)
        return cls(SpecialIds.of(tokenizer), Sequences(*concatenate((part.ids, part.lengths) for part in parts)))

    @classmethod
    def on_disk(cls, store: TokenStore, tokenizer: Tokenizer) -> "MLMDataset":
        """Open the windows that fill_store has written."""
        return cls(SpecialIds.of(tokenizer), Sequences(*open_sequences(store.folder, "windows")))

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def n_tokens(self) -> int:
        """The number of tokens in all windows."""
        return len(self.sequences.ids)

    def batch(self, indices: np.ndarray) -> Tensor:
        """Return the windows with these indices, padded: int64 (B, S)."""
        return torch.from_numpy(self.sequences.padded(indices, self.special.pad))

    def batches(self, batch_tokens: int, seed: int | list[int]) -> BatchSampler:
        """Return one epoch's batches, as indices of windows: B * S <= batch_tokens."""
        return BatchSampler([self.sequences], batch_tokens, seed)


# ids (B, S), generator -> inputs and labels (B, S)
Corrupt = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]


class FixedMasks:
    """Windows in which tokens have been hidden once and for all: inputs and labels.

    Which tokens are hidden depends on the windows alone, so that runs on the same held-out text compare, whatever
    their seed and the size of their batches.
    """

    def __init__(self, dataset: MLMDataset, corrupt: Corrupt):
        self.dataset = dataset
        sequences = dataset.sequences
        self.inputs, self.labels = (
            Sequences(np.empty(len(sequences.ids), np.int32), sequences.lengths, sequences.offsets) for _ in range(2)
        )
        for start in range(0, len(dataset), EVALUATED):
            indices = np.arange(start, min(start + EVALUATED, len(dataset)))
            part = slice(sequences.offsets[indices[0]], sequences.offsets[indices[-1] + 1])
            ids = dataset.batch(indices)
            real = np.arange(ids.size(1)) < sequences.lengths[indices, None]  # not padding
            inputs, labels = corrupt(ids, torch.Generator().manual_seed(start))
            self.inputs.ids[part], self.labels.ids[part] = inputs.numpy()[real], labels.numpy()[real]

    def batches(self, batch_tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and labels (B, S), padded; B * S <= batch_tokens."""
        for indices in self.dataset.batches(batch_tokens, 0):
            inputs = self.inputs.padded(indices, self.dataset.special.pad)
            yield torch.from_numpy(inputs), torch.from_numpy(self.labels.padded(indices, IGNORE))


@dataclass(frozen=True)
class Metadata:
    """The notes in a token store: the sentences that were drawn to be held out (none if a file has them), and the
    numbers of training sentences and of lines that are left out of them, as they are held out."""

    held_out: list[str]
    n_sentences: int
    n_left_out: int


def fill_store(
    store: TokenStore, text: TextSource, drawn: list[str], tokenizer: Tokenizer, max_length: int
) -> Metadata:
    """Write the windows of the training sentences, the tokenizer, and the metadata, which is returned."""
    n_sentences = n_left_out = n_empty = 0
    with store.fill() as (folder, noted):
        vocab_size = 1 + max(tokenizer.get_vocab().values())  # not the number of tokens: some vocabularies have gaps
        with SequenceWriter(folder, "windows", vocab_size) as writer:
            for chunk in chunks(read_all(text.files, "tokenizing")):
                sentences = [sentence for sentence in chunk if not text.is_held_out(sentence)]
                part = windows(sentences, tokenizer, max_length)
                writer.append(part.ids, part.lengths)
                n_sentences += len(sentences)
                n_left_out += len(chunk) - len(sentences)
                n_empty += part.n_left_out
            warn_of_left_out(len(writer), n_empty, text)
        (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
        metadata = Metadata(drawn, n_sentences, n_left_out)
        noted |= asdict(metadata)
    return metadata


@dataclass(frozen=True)
class Data:
    """All that a training run has of its text: as sentences, as token ids, and the cloze tests that stand beside it.

    text: the training sentences, and those held out. coverage: of the held-out ones by the vocabulary. cache_key:
    all that the token ids depend on.
    """

    tokenizer: Tokenizer
    text: TextSource
    n_sentences: int
    train: MLMDataset
    held_out: MLMDataset
    coverage: Coverage
    recall_tests: list[EncodedCloze]
    held_out_tests: list[EncodedCloze]
    cache_key: dict[str, Any]


def prepare_data(
    config: TrainConfig, tokenizer: Tokenizer | None = None, resumed: dict[str, Any] | None = None
) -> Data:
    """Read the text, hold some out, learn a vocabulary and tokenize, or take all this from the output folder's
    tokens/, if that was made from the same text in the same way.

    tokenizer: that of the model to start from, if there is one. resumed: the checkpoint of the run to resume,
    which must have had the same data.
    """
    paths, held_out_path = config.files
    files = [TextFile(path) for path in paths]
    recall = [cloze for path in paths for cloze in read_clozes(path)]
    held_out_clozes = read_clozes(held_out_path) if held_out_path else []
    key = cache_key(config, files, tokenizer)
    if resumed:
        checkpoint.check_run(config.checkpoint, resumed, {"seed": config.seed, **key})
    store = TokenStore(config.output / "tokens", key)
    metadata = Metadata(**noted) if (noted := store.read()) else None

    drawn = [] if held_out_path else metadata.held_out if metadata else draw_held_out_sentences(files, config.seed)
    text = TextSource(files, list(TextFile(held_out_path)) if held_out_path else drawn)
    if not tokenizer:
        if metadata:
            tokenizer = Tokenizer.from_file(str(store.folder / "tokenizer.json"))
        else:
            tokenizer = train_tokenizer(text.sample("learning the vocabulary"), *config.vocabulary)
    recall = [cloze for cloze in recall if not text.is_held_out(cloze.sentence)]
    tests = [encode_clozes(clozes, tokenizer, config.max_length) for clozes in (recall, held_out_clozes)]
    held_out = MLMDataset.in_memory(text.held_out, tokenizer, config.max_length)
    metadata = metadata or fill_store(store, text, drawn, tokenizer, config.max_length)
    if held_out_path and metadata.n_left_out:
        warn(f"left {metadata.n_left_out} sentences out of training, as they are in {held_out_path}")
    train = MLMDataset.on_disk(store, tokenizer)
    coverage = cover(text.held_out, tokenizer, config.init is not None)
    return Data(tokenizer, text, metadata.n_sentences, train, held_out, coverage, *tests, key)


def cache_key(config: TrainConfig, files: list[TextFile], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Return all that the token ids depend on."""
    held_out_path = config.files[1]
    held_out = fingerprint(check_rereadable(held_out_path))["sha256"] if held_out_path else f"seed {config.seed}"
    return {
        "files": [file.fingerprint["sha256"] for file in files],
        "held_out": held_out,
        "splitting": SPLITTING,
        "tokenizing": TOKENIZING,
        "vocabulary": hashlib.sha256(tokenizer.to_str().encode()).hexdigest() if tokenizer else list(config.vocabulary),
        "max_length": config.max_length,
    }
