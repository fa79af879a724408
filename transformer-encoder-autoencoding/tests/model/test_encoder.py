"""The encoder computes what its docstrings say: it equals PyTorch's own layers, padding leaves no trace, and every
word sees the words on both sides of it.

All in double precision: what is equal in theory is equal to ten digits, and a mistake cannot hide in the noise.
"""

import pytest
import torch
import torch.nn.functional as F
from mlm_reference import copy_attention, torch_layer
from torch import nn

from encoder import EncoderConfig, MaskedLanguageModel, MultiHeadSelfAttention, attention, padding_mask

PAD = 0
IDS = torch.tensor([[2, 7, 8, 9, 7, 3], [2, 9, 3, PAD, PAD, PAD], [2, 5, 6, 8, 3, PAD]])  # (B, S) = (3, 6)


@pytest.fixture
def model(make_model):
    """A random model: D = 16, two layers, two heads, V = 12."""
    return make_model(12).double()


def assert_equal(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


# ---- Attention, layer and stack equal PyTorch's
#
# PyTorch has these parts too, written and tested by others. With the same weights, ours must give the same numbers:
# one wrong sign, a forgotten bias, a norm before the sum instead of after it, and they differ.


def test_attention_equals_the_fused_kernel():
    """softmax(Q K^T / sqrt(d_k)) V, spelled out in three lines, is what F.scaled_dot_product_attention computes in
    one kernel. The model uses the kernel to train and the lines to show its weights, so the two must agree."""
    q, k, v = torch.randn(3, 3, 2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = padding_mask(IDS, PAD)
    values, weights = attention(q, k, v, mask)
    assert_equal(values, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    assert_equal(weights @ v, values)


def test_asking_for_weights_changes_nothing(model):
    """A picture of attention shows the model as it is: with weights or without, the hidden states are the same."""
    hidden_states, weights = model.encoder(IDS, need_weights=True)
    fused, none = model.encoder(IDS)
    assert_equal(hidden_states, fused)
    assert none == [None, None]
    assert len(weights) == 2 and not torch.equal(*weights)


def test_multi_head_attention_equals_pytorchs():
    """Both the values and each head's weights, which PyTorch averages over the heads unless it is told not to."""
    torch.manual_seed(2)
    ours = MultiHeadSelfAttention(16, 4).double()
    theirs = nn.MultiheadAttention(16, 4, batch_first=True).double()
    copy_attention(theirs, ours)
    x, mask = torch.randn(3, 6, 16, dtype=torch.float64), padding_mask(IDS, PAD)
    values, weights = ours(x, mask, need_weights=True)
    expected = theirs(x, x, x, key_padding_mask=IDS == PAD, average_attn_weights=False)
    assert_equal(values, expected[0])
    assert_equal(weights, expected[1])


def test_layer_equals_pytorchs(model):
    """What stands at padding is not compared: nobody reads it."""
    x, mask = torch.randn(3, 6, 16, dtype=torch.float64), padding_mask(IDS, PAD)
    ours = model.encoder.layers[0]
    expected = torch_layer(ours, model.config)(x, src_key_padding_mask=IDS == PAD)
    assert_equal(ours(x, mask)[0][IDS != PAD], expected[IDS != PAD])


def test_stack_equals_pytorchs(model):
    """Layer on layer: the output of each is the input of the next, under the same mask."""
    stack = nn.TransformerEncoder(torch_layer(model.encoder.layers[0], model.config), 2).eval()
    stack.layers = nn.ModuleList(torch_layer(layer, model.config) for layer in model.encoder.layers)
    expected = stack(model.encoder.embeddings(IDS), src_key_padding_mask=IDS == PAD)
    assert_equal(model.encoder(IDS)[0][IDS != PAD], expected[IDS != PAD])


# ---- What PyTorch does not have: embeddings and head, against their formulas


def test_embedding_is_the_normalised_sum_of_token_and_position(model):
    embeddings = model.encoder.embeddings
    total = embeddings.token.weight[IDS] + embeddings.position.weight[:6]
    norm = embeddings.norm
    assert_equal(embeddings(IDS), F.layer_norm(total, (16,), norm.weight, norm.bias, 1e-12))


def test_head_is_its_formula_over_the_embedding(model):
    head, hidden_states = model.head, model.encoder(IDS)[0]
    h = F.gelu(hidden_states @ head.transform.weight.T + head.transform.bias)
    h = F.layer_norm(h, (16,), head.norm.weight, head.norm.bias, 1e-12)
    assert_equal(model(IDS), h @ model.encoder.embeddings.token.weight.T + head.decoder.bias)


def test_tied_embeddings_are_one_tensor_and_untied_ones_are_two(make_model):
    tied, untied = make_model(12), make_model(12, tied_embeddings=False)
    assert tied.head.decoder.weight is tied.encoder.embeddings.token.weight
    assert untied.head.decoder.weight is not untied.encoder.embeddings.token.weight
    assert not torch.equal(untied.head.decoder.weight, untied.encoder.embeddings.token.weight)


def test_hidden_positions_select_before_the_head_what_could_be_selected_after(model):
    """Training computes logits at the hidden positions alone. That saves most of the work, and changes nothing."""
    hidden = torch.rand(IDS.shape, generator=torch.Generator().manual_seed(3)) < 0.4
    assert 0 < hidden.sum() < hidden.numel()
    assert_equal(model(IDS, hidden), model(IDS)[hidden])


# ---- Padding


def test_padding_mask_allows_all_but_padding():
    mask = padding_mask(IDS, PAD)
    assert mask.shape == (3, 1, 1, 6) and mask.dtype == torch.bool
    assert mask[:, 0, 0].sum(dim=1).tolist() == [6, 3, 5]


def test_weights_are_a_distribution_over_the_words_that_are_there(model):
    """Every row of attention adds up to 1. Padding gets exactly 0, and every word gets something: -inf before the
    softmax does that, a large negative number would only come close."""
    for weights in model.encoder(IDS, need_weights=True)[1]:
        assert weights.shape == (3, 2, 6, 6)
        assert_equal(weights.sum(dim=-1), torch.ones(3, 2, 6, dtype=torch.float64))
        at_padding = (IDS == PAD)[:, None, None, :].expand_as(weights)
        assert (weights[at_padding] == 0).all() and (weights[~at_padding] > 0).all()


def test_padding_changes_no_logit(model):
    """A sentence gets the same logits alone and in a batch, however wide the batch is padded.

    Sentences of one batch differ in length, and the short ones are filled up with [PAD]. That is only for the
    rectangle's sake: no word may attend to it. If one did, a sentence's answer would depend on the company it
    happens to be in, and training would not be that of the formulas. Such a leak raises no error and may cost a
    point of accuracy, so it can go unnoticed for years; this test is how to notice. The same sentence is given with
    no padding, with a batch's, and with five positions more.
    """
    together, wider = model(IDS), model(F.pad(IDS, (0, 5), value=PAD))
    for row, ids in enumerate(IDS):
        length = int((ids != PAD).sum())
        alone = model(ids[None, :length])[0]
        assert_equal(together[row, :length], alone)
        assert_equal(wider[row, :length], alone)


def test_the_order_of_a_batch_changes_no_logit(model):
    """Sentences of a batch do not see each other."""
    order = torch.tensor([2, 0, 1])
    assert_equal(model(IDS[order]), model(IDS)[order])


def test_padding_may_be_any_id(make_model):
    """The mask follows the configuration, not the id 0: of some published BERTs [PAD] is another."""
    model = make_model(12, pad_id=11).double()
    ids = IDS.masked_fill(IDS == PAD, 11)
    wider = F.pad(ids, (0, 3), value=11)
    assert_equal(model(wider)[:, :6][ids != 11], model(ids)[ids != 11])


# ---- What each word sees


@pytest.mark.parametrize(("changed", "seen"), [(1, 4), (4, 1)])
def test_every_word_sees_words_on_both_sides(model, changed, seen):
    """Another word at `changed` makes another prediction at `seen`, be it before or after. A decoder's words see only
    what stands before them; to fill a gap, an encoder needs both sides."""
    other = IDS[:1].clone()
    other[0, changed] = 10
    assert (model(IDS[:1])[0, seen] - model(other)[0, seen]).abs().max() > 1e-3


def test_without_positions_a_sentence_is_a_bag_of_words(model):
    """Attention knows no order: it is position embeddings that tell "dog bites man" from "man bites dog". With them,
    swapping two words does more than swap their outputs; without them, it does just that."""
    swapped = torch.tensor([0, 2, 1, 3, 4, 5])
    difference = model(IDS[:1][:, swapped])[:, swapped] - model(IDS[:1])
    assert difference.abs().max() > 1e-3
    model.encoder.embeddings.position.weight.data.zero_()
    assert_equal(model(IDS[:1][:, swapped])[:, swapped], model(IDS[:1]))


# ---- Training


def test_dropout_acts_in_training_and_never_in_evaluation(make_model):
    model = make_model(12, dropout=0.5)
    assert torch.equal(model(IDS), model(IDS))
    model.train()
    assert not torch.equal(model(IDS), model(IDS))


def test_dropout_is_of_the_embeddings_and_of_every_sublayer(model, monkeypatch):
    """Doubling in its place shows where it stands (Vaswani et al. 2017, section 5.4)."""
    monkeypatch.setattr(F, "dropout", lambda x, *_: 2 * x)
    embeddings, layer, mask = model.encoder.embeddings, model.encoder.layers[0], padding_mask(IDS, PAD)
    x = embeddings(IDS)
    assert_equal(x, 2 * embeddings.norm(embeddings.token.weight[IDS] + embeddings.position.weight[:6]))
    middle = layer.attention_norm(x + 2 * layer.attention(x, mask)[0])
    assert_equal(layer(x, mask)[0], layer.feed_forward_norm(middle + 2 * layer.feed_forward(middle)))


def test_every_parameter_gets_a_gradient(model):
    """A parameter without one would never learn."""
    model(IDS).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("d_model", [64, 256])
def test_first_logits_are_of_moderate_size_at_any_width(d_model):
    """A new model is unsure, neither indifferent nor certain of anything, whatever its width."""
    torch.manual_seed(4)
    model = MaskedLanguageModel(EncoderConfig(500, d_model=d_model, n_heads=4)).eval()
    ids = torch.randint(500, (8, 20))
    deviation = model(ids).std(dim=-1).mean().item()
    assert 0.2 < deviation < 2, deviation
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    assert all((p == 0).all() for p in biases)
