"""masking"""

import torch
from torch import Tensor

from mlm.tokenizer import SPECIAL_TOKENS, SpecialIds

IGNORE = -100  # the label of a position that is not scored; PyTorch's cross-entropy skips it


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
