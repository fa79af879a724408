"""Generate for many prompts: their texts as checked token ids, prompts of like length in one batch, and, on a CPU,
several batches side by side."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import takewhile
from threading import Lock

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from decoding import Hypothesis, Pick, generate, top_candidates
from transformer import Transformer

from .common.errors import InputError
from .common.standard_input import always, batched
from .common.unknown_words import collect_unknown, find_unknown, remember
from .tokenizer import UNK

MAX_BATCHES = 4  # side by side: a part of each step is Python, which runs one thread at a time
MIN_BLOCKWISE, MIN_BLOCKS = 2**17, 8  # numbers, and blocks for each of the k largest: else torch.topk is faster
BLOCK = 64
LOCK, DECODING = Lock(), []  # PyTorch's threads before decoding began, once for each of Python's threads that decodes


def encode_prompts(
    prompts: list[str],
    places: list[str],
    model: Transformer,
    tokenizer: Tokenizer,
    unknown: dict[str, None] | None = None,
) -> list[list[int]]:
    """Return the ids of prompts. places: where each comes from, for messages.

    Words that the model does not know are added to `unknown`, an ordered set, or, without it, warned of.
    """
    if unknown is None:
        with collect_unknown(UNK) as unknown:
            return encode_prompts(prompts, places, model, tokenizer, unknown)
    for prompt, place in zip(prompts, places, strict=True):
        try:
            prompt.encode()
        except UnicodeEncodeError:  # this is how Python represents bytes of the command line that are not UTF-8
            raise InputError(f"{place} is not UTF-8 text; write it in UTF-8") from None
    unk, limit, rows = tokenizer.token_to_id(UNK), model.config.max_length, []
    for prompt, place, encoding in zip(prompts, places, tokenizer.encode_batch(prompts), strict=True):
        if len(encoding) < 2:
            raise InputError(f"{place} is empty; give it a text")
        if len(encoding) > limit:
            raise InputError(f"{place} has {len(encoding)} tokens, the model takes {limit}; shorten it")
        if unk in encoding.ids:
            remember(find_unknown(prompt, encoding.ids, encoding.offsets, unk).values(), unknown)
        rows.append(encoding.ids)
    return rows


def encode_lines(
    lines: Iterator[tuple[int, str]],
    name: str,
    model: Transformer,
    tokenizer: Tokenizer,
    size: int,
    unknown: dict[str, None],
    has_line: Callable[[], bool] = always,
) -> Iterator[tuple[list[str], dict[int, list[int]]]]:
    """Encode a stream of numbered lines, a prompt a line, of which blank ones stay blank.

    Yield `size` lines at a time, fewer if has_line() says that the next one has to be waited for, and the ids of those
    that are not blank by their place among them. If a line is refused, those before it come first. name: the stream in
    messages; unknown: as for encode_prompts.
    """
    empty = True

    def encode(chunk: list[tuple[int, str]]) -> tuple[list[str], dict[int, list[int]]]:
        filled = [i for i, (_, line) in enumerate(chunk) if line.strip()]
        places = [f"{name}, line {chunk[i][0]}," for i in filled]
        ids = encode_prompts([chunk[i][1] for i in filled], places, model, tokenizer, unknown)
        return [line for _, line in chunk], dict(zip(filled, ids, strict=True))

    def is_fine(line: tuple[int, str]) -> bool:
        try:
            encode([line])
        except InputError:
            return False
        return True

    for chunk in batched(lines, size, has_line):
        refusal = None
        try:
            texts, ids = encode(chunk)
        except InputError as error:  # of one line; those before it are answered first
            refusal = error
            texts, ids = encode(list(takewhile(is_fine, chunk)))
        if texts:
            yield texts, ids
        if refusal:
            raise refusal
        empty = empty and not ids
    if empty:
        raise InputError(f"{name}: contains no text; write one prompt per line")


def require_outputs(found: list[list[Hypothesis]]) -> list[list[Hypothesis]]:
    """Return the outputs if every prompt has some: with weights that are far too large all probabilities are NaN."""
    if not all(found):
        raise InputError("the model outputs NaN: its weights are damaged; download it again")
    return found


def blockwise_topk(x: Tensor, k: int, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Compute x.topk(k) along the last dimension, faster if it is long: the k largest numbers stand in the k blocks
    whose maxima are the largest. x (..., V) -> values and indices (..., k)."""
    blocks = x.size(-1) // block
    if k >= blocks:
        return x.topk(k)
    whole = x[..., : blocks * block].unflatten(-1, (blocks, block))
    chosen = whole.amax(dim=-1).topk(k).indices[..., None]  # (..., k, 1)
    values = whole.gather(-2, chosen.expand(*chosen.shape[:-1], block)).flatten(-2)  # (..., k block)
    indices = (chosen * block + torch.arange(block, device=x.device)).flatten(-2)
    rest = torch.arange(blocks * block, x.size(-1), device=x.device)
    values = torch.cat([values, x[..., blocks * block :]], dim=-1)
    indices = torch.cat([indices, rest.expand(*indices.shape[:-1], -1)], dim=-1)
    best = values.topk(k)
    return best.values, indices.gather(-1, best.indices)


def fast_topk(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Compute x.topk(k) along the last dimension in the faster of two ways."""
    large = x.numel() >= MIN_BLOCKWISE and x.size(-1) >= MIN_BLOCKS * BLOCK * k
    return blockwise_topk(x, k) if large else x.topk(k)


def fast_top_candidates(log_probs: Tensor, sums: Tensor, sentence: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Compute top_candidates with fast_topk."""
    return top_candidates(log_probs, sums, sentence, fast_topk)


def batches_by_length(sources: list[list[int]], size: int, at_once: int = 1) -> list[list[int]]:
    """Group sources of like length, the longest first -> the places of the sources in each group. All groups are about
    as large, at most `size`. Where several are decoded at once, every core gets the same number of groups, so that all
    end at about the same time."""
    n, groups = len(sources), -(-len(sources) // size)
    if at_once > 1:
        groups = min(n, at_once * (groups // at_once + 1))
    order = sorted(range(n), key=lambda i: len(sources[i]), reverse=True)
    return [order[i * n // groups : (i + 1) * n // groups] for i in range(groups)]


def generate_all(
    model: Transformer,
    sources: list[list[int]],
    max_length: int,
    batch_size: int = 64,
    beam: int = 1,
    length_penalty: float = 1.0,
    make_pick: Callable[[list[int]], Pick] = lambda rows: fast_top_candidates,
) -> list[list[Hypothesis]]:
    """Generate for any number of sources, each ending in </s>, as decoding.generate does for a batch: sources of like
    length together, batch_size at a time -> the hypotheses for each, in the order of the sources. make_pick: makes a
    batch's pick from the places of its sources in the list."""
    pad_id, device = model.config.pad_id, model.output_bias.device

    def decode(rows: list[int]) -> list[list[Hypothesis]]:
        source = pad_sequence([torch.tensor(sources[i]) for i in rows], batch_first=True, padding_value=pad_id)
        return generate(model, source.to(device), max_length, beam, length_penalty, make_pick(rows))

    results: list[list[Hypothesis]] = [[] for _ in sources]
    batches = batches_by_length(sources, batch_size)
    with side_by_side(model, batch_size * beam) as count:
        workers = ThreadPoolExecutor(count)
        answers = (workers.map if min(count, len(batches)) > 1 else map)(decode, batches)
        try:
            for rows, found in zip(batches, answers, strict=True):
                for i, hypotheses in zip(rows, found, strict=True):
                    results[i] = hypotheses
        finally:  # also when interrupted: no other batch begins
            workers.shutdown(cancel_futures=True)
    return results


@contextmanager
def side_by_side(model: Transformer, rows: int) -> Iterator[int]:
    """Yield the number of batches, of `rows` rows each, to decode at once. PyTorch uses one thread for each.

    On a CPU the products of a narrow model's step are so small that several threads wait for each other longer
    than they work. So each core has a batch of its own, unless a batch has so few rows that Python, which runs one
    thread at a time, takes most of the time.
    """
    if model.config.d_model >= 256 or model.output_bias.device.type != "cpu":
        yield 1
        return
    with LOCK:
        threads = DECODING[0] if DECODING else torch.get_num_threads()
        DECODING.append(threads)
        torch.set_num_threads(1)
    try:
        yield min(MAX_BATCHES, threads) if rows >= 8 else 1
    finally:
        with LOCK:
            DECODING.pop()
            if not DECODING:
                torch.set_num_threads(threads)
