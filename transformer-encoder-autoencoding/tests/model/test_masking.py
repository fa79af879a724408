"""What corrupt() hides, and what it puts in its place."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masking import IGNORE, corrupt
from mlm.tokenizer import SpecialIds

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)


def hide(ids, special=SPECIAL, vocab_size=1000, mask_prob=0.15, seed=0):
    return corrupt(ids, special.all, special.mask, vocab_size, mask_prob, torch.Generator().manual_seed(seed))


def sentences(rows, length, vocab_size, special=SPECIAL, seed=9):
    """Random ids (rows, length) that are not special, between [CLS] and [SEP]."""
    ordinary = torch.tensor([i for i in range(vocab_size) if i not in special.all])
    ids = ordinary[torch.randint(len(ordinary), (rows, length), generator=torch.Generator().manual_seed(seed))]
    ids[:, 0], ids[:, -1] = special.cls, special.sep
    return ids


def assert_binomial(count, n, p):
    """count is within five standard deviations of what n draws of probability p give."""
    assert abs(count - n * p) < 5 * math.sqrt(n * p * (1 - p)), (count, n, p)


def test_80_percent_of_the_drawn_tokens_become_mask_10_another_10_stay():
    """BERT's rule. A model that saw nothing but [MASK] at the places to predict would learn nothing about what
    stands at the others; here it cannot know which of the tokens that it sees are the right ones."""
    ids = sentences(300, 202, 1000)
    inputs, labels = hide(ids)
    drawn = labels != IGNORE
    n = int(drawn.sum())
    assert n == 300 * 30  # exactly 15 % of the 200 tokens of each row
    assert_binomial(int((inputs[drawn] == SPECIAL.mask).sum()), n, 0.8)
    assert_binomial(int((inputs[drawn] == ids[drawn]).sum()), n, 0.1 + 0.1 / 995)
    other = (inputs != ids) & (inputs != SPECIAL.mask)
    assert_binomial(int(other.sum()), n, 0.1 * 994 / 995)


def test_every_position_is_drawn_alike():
    ids = sentences(4000, 12, 50)
    drawn = hide(ids, vocab_size=50, mask_prob=0.3, seed=2)[1] != IGNORE
    assert drawn[:, 0].sum() == drawn[:, -1].sum() == 0
    for count in drawn[:, 1:-1].sum(dim=0).tolist():
        assert_binomial(count, 4000, 0.3)


@settings(deadline=None, max_examples=60, derandomize=True, database=None)
@given(
    st.integers(1, 6),
    st.integers(1, 14),
    st.floats(0.001, 0.999),
    st.sampled_from([SPECIAL, SpecialIds(0, 20, 21, 22, 23), SpecialIds(17, 3, 2, 38, 20)]),
    st.integers(0, 2**31),
)
def test_corruption_keeps_its_promises(rows, words, mask_prob, special, seed):
    """On any sentences, wherever the special ids are in the vocabulary."""
    ids = sentences(rows, words + 2, 40, special, seed)
    for row in range(1, rows):  # padding of all lengths
        ids[row, max(2, words + 2 - row) :] = special.pad
    before = ids.clone()
    inputs, labels = hide(ids, special, 40, mask_prob, seed)
    assert torch.equal(ids, before)
    drawn = labels != IGNORE
    assert torch.equal(labels[drawn], ids[drawn])
    assert torch.equal(inputs[~drawn], ids[~drawn])
    special_ids = torch.tensor(special.all)
    assert not torch.isin(ids[drawn], special_ids).any()
    changed = inputs[inputs != ids]
    assert not torch.isin(changed[changed != special.mask], special_ids).any()
    assert (inputs >= 0).all() and (inputs < 40).all()
    eligible = (~torch.isin(ids, special_ids)).sum(dim=1)
    wanted = torch.minimum((eligible * mask_prob).round().clamp(min=1), eligible)
    assert drawn.sum(dim=1).tolist() == wanted.int().tolist()
    again = hide(ids, special, 40, mask_prob, seed)
    assert torch.equal(inputs, again[0]) and torch.equal(labels, again[1])


def test_another_seed_hides_other_tokens():
    ids = sentences(10, 40, 100)
    first, second = (hide(ids, vocab_size=100, seed=seed)[1] for seed in (0, 1))
    assert not torch.equal(first, second)


def test_special_and_unknown_tokens_of_the_text_are_never_asked_for():
    ids = torch.tensor([[2, 4, 4, 7, 0, 1, 4, 3]]).repeat(50, 1)
    labels = hide(ids, vocab_size=40, mask_prob=0.999)[1]
    assert labels.unique().tolist() == [IGNORE, 7]


@pytest.mark.parametrize("special", [SPECIAL, SpecialIds(0, 10, 11, 12, 13), SpecialIds(17, 3, 2, 29, 8)])
def test_replacements_are_spread_over_all_ordinary_tokens(special):
    ids = sentences(500, 102, 30, special)
    ids[:, 1:-1] = ids[0, 1]  # one word alone, so that every other is a replacement
    inputs, _ = hide(ids, special, 30, 0.9, seed=3)
    counts = Counter(inputs[(inputs != ids) & (inputs != special.mask)].tolist())
    assert len(counts) == 24 and not counts.keys() & {int(ids[0, 1]), *special.all}
    for count in counts.values():
        assert_binomial(count, sum(counts.values()), 1 / 24)
