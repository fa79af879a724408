"""Masked language modelling: hide some tokens of a text, and ask a model for them.

Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding"
(arXiv:1810.04805), section 3.1, "Task #1: Masked LM", and appendix A.1.

Legend: B sentences in a batch, S length of the longest.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

IGNORE = -100  # the label of a position that is not scored; PyTorch's cross-entropy skips it


def corrupt(
    ids: Tensor,
    special_ids: Sequence[int],
    mask_id: int,
    vocab_size: int,
    mask_prob: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw the tokens to predict, and hide them: 80 % become [MASK], 10 % a random token, 10 % stay.

    The 20 % that are not masked make the model predict at visible tokens too: when it is used, hardly any token is
    [MASK]. Special tokens, such as [PAD] and [UNK], are neither drawn nor put in another's place (BERT's random token
    may be any).

    ids (B, S) -> inputs (B, S) and labels (B, S), which are the original ids at the positions to predict and
    IGNORE elsewhere.
    """
    special = torch.isin(ids, torch.tensor(special_ids))
    drawn = draw_positions(~special, mask_prob, generator)
    labels = ids.masked_fill(~drawn, IGNORE)

    fate = torch.rand(ids.shape, generator=generator)
    masked, replaced = drawn & (fate < 0.8), drawn & (fate >= 0.8) & (fate < 0.9)
    random_ids = draw_ids(ids.shape, special_ids, vocab_size, generator)
    inputs = torch.where(replaced, random_ids, ids).masked_fill(masked, mask_id)
    return inputs, labels


def draw_positions(eligible: Tensor, mask_prob: float, generator: torch.Generator) -> Tensor:
    """Draw mask_prob of the eligible positions in each row, and at least one: bool (B, S) -> bool (B, S)."""
    counts = eligible.sum(dim=1, keepdim=True)  # (B, 1)
    wanted = (counts * mask_prob).round().clamp(min=1).minimum(counts)
    lottery = torch.rand(eligible.shape, generator=generator).masked_fill(~eligible, 2.0)  # (B, S)
    ranks = lottery.argsort(dim=1).argsort(dim=1)  # of tickets .7 .2 .9 .4 the ranks are 2 0 3 1
    return ranks < wanted


def draw_ids(shape: torch.Size, special_ids: Sequence[int], vocab_size: int, generator: torch.Generator) -> Tensor:
    """Draw ids uniformly from those that are not special."""
    ordinary = torch.ones(vocab_size, dtype=torch.bool)
    ordinary[list(special_ids)] = False
    choices = ordinary.nonzero().flatten()
    return choices[torch.randint(len(choices), shape, generator=generator)]
