"""From a trained model to text: greedy decoding, beam search and sampling, all in one loop.

A beam of n hypotheses grows by one token a step. Greedy decoding is a beam of one; sampling is a beam of
one that draws its token instead of taking the likeliest. The decoder computes each position once and
keeps its keys and values in a cache.

Legend: B sentences still being decoded, n beam width, V vocabulary, t tokens generated so far.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from transformer import Transformer

# (log-probabilities of the next token (B, n, V), summed log-probabilities so far (B, n))
# -> the candidates to go on with, best first: their sums, the beams they extend, their tokens (B, c) each
Pick = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]

MOST_AT_ONCE = 4  # batches: a part of each step is Python, which runs one thread at a time
SMALL = 2**16  # up to so many numbers, topk is faster than `largest`


@dataclass(frozen=True)
class Hypothesis:
    """One output: its token ids, without start and </s>; the sum of the log-probabilities of its tokens,
    </s> included (nats); and that sum over length**length_penalty, by which hypotheses are ranked."""

    ids: list[int]
    log_probability: float
    score: float


def likeliest(log_probs: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The candidates of beam search: the best 2 n of all n V extensions, so that n are left to go on with
    even if n of them end; for greedy decoding (n = 1) the best one."""
    n, vocab_size = log_probs.shape[1:]
    count = min(2 * n, n * vocab_size) if n > 1 else 1
    top = largest if log_probs.numel() > SMALL else torch.topk
    best, tokens = top(log_probs, min(count, vocab_size))  # of each beam (B, n, c)
    totals, chosen = (sums[:, :, None] + best).flatten(1).topk(count)  # (B, c)
    return totals, chosen // best.size(2), tokens.flatten(1).gather(1, chosen)


def largest(x: Tensor, k: int, block: int = 64) -> tuple[Tensor, Tensor]:
    """x.topk(k) along the last dimension, faster where it is long: the k largest stand in the k blocks whose
    maxima are the largest. x (..., V) -> values and indices (..., k)."""
    blocks = x.size(-1) // block
    if k >= blocks:
        return x.topk(k)
    even = x[..., : blocks * block].unflatten(-1, (blocks, block))
    chosen = even.amax(dim=-1).topk(k).indices[..., None]  # (..., k, 1)
    values = even.gather(-2, chosen.expand(*chosen.shape[:-1], block)).flatten(-2)  # (..., k block)
    indices = (chosen * block + torch.arange(block, device=x.device)).flatten(-2)
    rest = torch.arange(blocks * block, x.size(-1), device=x.device)
    values = torch.cat([values, x[..., blocks * block :]], dim=-1)
    indices = torch.cat([indices, rest.expand(*indices.shape[:-1], -1)], dim=-1)
    best = values.topk(k)
    return best.values, indices.gather(-1, best.indices)


@dataclass
class Sampler:
    """Draws the next token (n = 1) from the model's distribution, sharpened and cut.

    temperature divides the logits; of what results, top_k keeps the k likeliest tokens (0: all), and
    top_p (Holtzman et al. 2020, section 3.1, "nucleus sampling") the likeliest ones whose probabilities
    first add up to top_p. The sums stay those of the model itself.
    """

    generator: torch.Generator
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __call__(self, log_probs: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        probs = (log_probs[:, 0] / self.temperature).softmax(dim=-1)  # (B, V)
        if cut := self.top_k > 0 or self.top_p < 1:  # else there is nothing to sort for
            probs, tokens = probs.sort(descending=True)
            if self.top_k:
                probs[:, self.top_k :] = 0
                probs /= probs.sum(dim=-1, keepdim=True)
            probs[probs.cumsum(dim=-1) - probs >= self.top_p] = 0  # keeps a token if those before fall short
        drawn = torch.multinomial(probs.cpu(), 1, generator=self.generator).to(probs.device)  # (B, 1)
        token = tokens.gather(1, drawn) if cut else drawn
        return sums + log_probs[:, 0].gather(1, token), torch.zeros_like(token), token


@torch.inference_mode()
def generate(
    model: Transformer,
    source: Tensor,
    max_length: int,
    beam: int = 1,
    length_penalty: float = 1.0,
    pick: Pick = likeliest,
) -> list[list[Hypothesis]]:
    """Decode a batch: greedily (beam 1), by beam search (Graves 2012; ranked as in Wu et al. 2016, section
    7, with length**length_penalty as the divisor), or with a Sampler as pick.

    source (B, S) -> for each sentence at most `beam` hypotheses of at most max_length tokens, best first.
    A sentence is done when it has `beam` finished hypotheses and none of the unfinished, were it to end
    now, would rank before the last of them; it then leaves the batch. Of the candidates that end, those among
    the best n finish: a worse one must not end before a better one goes on. Like all beam search it can, if
    rarely, end below greedy decoding, whose path may have left the beam on the way.

    Indices: entry b of the batch is sentence[b] of the source; its beam i is row b n + i of the cache.
    """
    config, device, n = model.config, source.device, beam
    memory, _ = model.encode(source)
    cache = model.cache(source, memory)
    results: list[list[Hypothesis]] = [[] for _ in range(len(source))]

    sentence = list(range(len(source)))  # which one each entry of the batch is
    tokens = torch.full((len(source), n, 1), config.pad_id, device=device)  # (B, n, t), starts with <pad>
    sums = torch.full((len(source), n), -math.inf, device=device)  # log-probabilities of the unfinished
    sums[:, 0] = 0  # all beams are still the same: go on from one
    to_beat = torch.full((len(source),), -math.inf, device=device)  # the score of the n-th finished one

    for t in range(1, max_length + 1):
        log_probs = model.decode(tokens[:, :, -1].reshape(-1, 1), cache)[:, -1].float().log_softmax(dim=-1)
        log_probs[:, config.pad_id] = -math.inf
        totals, parents, next_tokens = pick(log_probs.unflatten(0, (-1, n)), sums)  # (B, c) each

        ends = (next_tokens == config.eos_id) | (t == max_length)
        for b, i in ends[:, :n].nonzero().tolist():
            ids = [*tokens[b, parents[b, i], 1:].tolist(), int(next_tokens[b, i])]
            found = results[sentence[b]]
            finish(found, ids[:-1] if ids[-1] == config.eos_id else ids, float(totals[b, i]), t, length_penalty)
            del found[n:]
            to_beat[b] = found[-1].score if len(found) == n else -math.inf

        open_totals = totals.masked_fill(ends, -math.inf)
        sums, order = (part[:, :n] for part in open_totals.sort(dim=1, descending=True, stable=True))
        parents, next_tokens = parents.gather(1, order), next_tokens.gather(1, order)  # (B, n)
        tokens = torch.cat([tokens.gather(1, parents[:, :, None].expand(-1, -1, t)), next_tokens[:, :, None]], 2)

        going_on = to_beat < sums[:, 0] / t**length_penalty  # (B,)
        alive = going_on.nonzero().flatten()
        if not len(alive):
            break
        rows = torch.arange(len(tokens), device=device)[:, None] * n + parents  # (B, n) of the cache
        fewer = len(alive) < len(tokens)
        if fewer:
            sentence = [sentence[b] for b in alive.tolist()]
            tokens, sums, to_beat, rows = tokens[alive], sums[alive], to_beat[alive], rows[alive]
            cache.select_sources(alive)
        if fewer or n > 1:
            cache.select(rows.flatten())
    return results


def generate_all(
    model: Transformer,
    sources: list[list[int]],
    max_length: int,
    batch_size: int = 64,
    beam: int = 1,
    length_penalty: float = 1.0,
    pick: Pick = likeliest,
) -> list[list[Hypothesis]]:
    """What generate gives for any number of sources, each ending in </s>, in their order. Those of like
    length are decoded together, batch_size at a time; batches_at_once says how many such batches at once."""
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]), reverse=True)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def decode(rows: list[int]) -> list[list[Hypothesis]]:
        source = torch.full((len(rows), len(sources[rows[0]])), model.config.pad_id)
        for row, i in enumerate(rows):
            source[row, : len(sources[i])] = torch.tensor(sources[i])
        source = source.to(model.output_bias.device)
        return generate(model, source, max_length, beam, length_penalty, pick)

    results: list[list[Hypothesis]] = [[] for _ in sources]
    with batches_at_once(model, batch_size * beam, pick) as count:
        workers = ThreadPoolExecutor(count)
        answers = workers.map(decode, batches) if count > 1 else map(decode, batches)
        try:
            for rows, found in zip(batches, answers, strict=True):
                for i, hypotheses in zip(rows, found, strict=True):
                    results[i] = hypotheses
        finally:  # also when interrupted, without beginning another batch
            workers.shutdown(cancel_futures=True)
    return results


@contextmanager
def batches_at_once(model: Transformer, rows: int, pick: Pick) -> Iterator[int]:
    """How many batches of so many rows to decode side by side. Within it PyTorch uses one thread for each.

    On a CPU the products of a narrow model's step are so small that several threads wait for each other
    longer than they work: each core has a batch of its own instead, unless its rows are so few that Python,
    which runs one thread at a time, takes most of the time, or tokens are drawn, whose order a seed fixes.
    """
    threads = torch.get_num_threads()
    if model.config.d_model >= 256 or model.output_bias.device.type != "cpu":
        yield 1
        return
    torch.set_num_threads(1)
    try:
        yield min(MOST_AT_ONCE, threads) if rows >= 8 and pick is likeliest else 1
    finally:
        torch.set_num_threads(threads)


def finish(found: list[Hypothesis], ids: list[int], total: float, length: int, length_penalty: float) -> None:
    """Put a hypothesis of so many tokens, </s> included, into its place among those found, best first."""
    if total > -math.inf:
        found.append(Hypothesis(ids, total, total / length**length_penalty))
        found.sort(key=lambda hypothesis: hypothesis.score, reverse=True)
