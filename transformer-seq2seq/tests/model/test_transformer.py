"""The model: equal to PyTorch's own layers, blind to the future and to padding, the same with a cache as without.

The models here are small and random, with dropout off. Their vocabulary has 11 tokens: </s> is 0, <pad> is 10.
"""

import inspect
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from seq2seq_reference import reference_stack
from torch import nn

from seq2seq.loss import token_losses
from transformer import (
    Attentions,
    Cache,
    DecoderLayer,
    EncoderLayer,
    MultiHeadAttention,
    Transformer,
    TransformerConfig,
    attention,
    causal_mask,
    padding_mask,
    sinusoids,
)

PAD = 10


@pytest.fixture
def model(make_model):
    return make_model(PAD + 1)


def sentences(*lengths, seed=0):
    """Random ids (B, longest), each row ending in </s> and padded."""
    rng = torch.Generator().manual_seed(seed)
    rows = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in zip(rows, lengths, strict=True):
        row[: length - 1] = torch.randint(1, PAD, (length - 1,), generator=rng)
        row[length - 1] = 0
    return rows


def targets(count, length, seed=0):
    """What the decoder reads: the start token and random ids (B, 1 + length)."""
    return torch.cat([torch.full((count, 1), PAD), sentences(*[length] * count, seed=seed)], dim=1)


def read(model, source):
    """What decode needs of a source: memory and mask."""
    return model.encode(source)[0], padding_mask(source, PAD)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


# ------------------------------------------------------------------------------------------ attention

MASKS = {
    "none": torch.ones(1, 1, 5, 5, dtype=torch.bool),
    "padding": padding_mask(sentences(5, 2, 1), PAD),
    "causal": causal_mask(5),
    "both": padding_mask(sentences(5, 2, 1), PAD) & causal_mask(5),
}
with_each_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


@pytest.fixture
def qkv():
    torch.manual_seed(0)
    return torch.randn(3, 3, 2, 5, 4)


@with_each_mask
def test_attention_equals_pytorchs(qkv, mask):
    """Equation 1, spelled out, is the function that PyTorch's fused kernel computes."""
    close(attention(*qkv, mask)[0], F.scaled_dot_product_attention(*qkv, attn_mask=mask))


@with_each_mask
def test_attention_rows_add_up_to_one_and_are_zero_where_masked(qkv, mask):
    """Weights are shares: a forbidden place gets exactly nothing, every other place something."""
    weights = attention(*qkv, mask)[1]
    close(weights.sum(dim=-1), torch.ones(3, 2, 5))
    assert (weights[~mask.expand_as(weights)] == 0).all()
    assert (weights[mask.expand_as(weights)] > 0).all()


@with_each_mask
def test_asking_for_weights_changes_nothing(mask):
    """Two ways lead through MultiHeadAttention: with weights, for pictures, and with the fused kernel, for all else."""
    torch.manual_seed(0)
    module, x = MultiHeadAttention(8, 2), torch.randn(3, 5, 8)
    fused, none = module(x, module.keys_values(x), mask)
    spelled_out, weights = module(x, module.keys_values(x), mask, need_weights=True)
    assert none is None
    assert weights.shape == (3, 2, 5, 5)
    close(fused, spelled_out)


def test_masks_allow_what_they_should():
    assert padding_mask(torch.tensor([[3, 0, PAD]]), PAD).tolist() == [[[[True, True, False]]]]
    assert causal_mask(3)[0, 0].tolist() == [[True, False, False], [True, True, False], [True] * 3]


def test_every_layer_gives_its_own_weights(model):
    """Pictures show what the model does: each layer's weights, none of them averaged or lost, none of them to padding
    or to the future, and with the same logits as without asking."""
    source, target, attentions = sentences(6, 3), targets(2, 2), Attentions()
    memory, encoder = model.encode(source, need_weights=True)
    logits = model.project(model.decode(target, memory, padding_mask(source, PAD), attentions=attentions))
    layers = {(2, 2, 6, 6): encoder, (2, 2, 3, 3): attentions.decoder, (2, 2, 3, 6): attentions.cross}
    for shape, weights in layers.items():
        assert [tuple(layer.shape) for layer in weights] == [shape, shape]
        assert not torch.equal(*weights)
        for layer in weights:
            close(layer.sum(dim=-1), torch.ones(shape[:-1]))
    for layer in encoder + attentions.cross:
        assert (layer[1, ..., 3:] == 0).all(), "padding is attended to"
    for layer in attentions.decoder:
        assert (layer.triu(1) == 0).all(), "the future is attended to"
    close(logits, model(source, target))


# ----------------------------------------------------------------------------- equality with torch.nn


@pytest.mark.parametrize("activation", ["relu", "swish"])
def test_encoder_equals_pytorchs_layers(make_model, activation):
    """Layer by layer and as a stack, with the same weights."""
    model = make_model(PAD + 1, activation=activation, n_encoder_layers=3)
    source = sentences(7, 4, 1)
    x = model.embeddings(source)
    stack = reference_stack(model.encoder, model.config, nn.TransformerEncoderLayer)
    for theirs, layer in zip(stack, model.encoder, strict=True):
        expected = theirs(x, src_key_padding_mask=source == PAD)
        close(layer(x, padding_mask(source, PAD))[0], expected)
        x = expected
    close(model.encode(source)[0], x)


@pytest.mark.parametrize("activation", ["relu", "swish"])
def test_decoder_equals_pytorchs_layers(make_model, activation):
    """From the memory to the logits, with the same weights."""
    model = make_model(PAD + 1, activation=activation, n_decoder_layers=3)
    source, target = sentences(7, 4, 1), targets(3, 5)
    memory, x = model.encode(source)[0], model.embeddings(target)
    for theirs in reference_stack(model.decoder, model.config, nn.TransformerDecoderLayer):
        x = theirs(x, memory, tgt_mask=~causal_mask(target.size(1))[0, 0], memory_key_padding_mask=source == PAD)
    expected = x @ model.embeddings.token.weight.T + model.output_bias
    close(model(source, target)[..., :PAD], expected[..., :PAD])


# ----------------------------------------------------------------------------------------- embeddings


@pytest.mark.parametrize("d_model", [8, 7, 1])
def test_sinusoids_are_the_papers_with_the_cosines_moved_behind(d_model):
    table = sinusoids(50, d_model)
    order = [*range(0, d_model, 2), *range(1, d_model, 2)]
    for pos in (0, 1, 17, 49):
        paper = [0.0] * d_model
        for column in range(d_model):
            angle = pos / 10000 ** (2 * (column // 2) / d_model)
            paper[column] = math.sin(angle) if column % 2 == 0 else math.cos(angle)
        assert table[pos].tolist() == pytest.approx([paper[column] for column in order], abs=1e-6)


def test_embeddings_are_scaled_by_the_root_of_d_model(model):
    ids = sentences(8)
    close(model.embeddings(ids), 4 * model.embeddings.token.weight[ids] + sinusoids(8, 16))


def test_one_matrix_embeds_both_sides_and_projects(model):
    """Section 3.4 ties them: changing a token that neither side contains changes that token's logit alone."""
    matrices = [p for p in model.parameters() if PAD + 1 in p.shape and p.dim() == 2]
    assert len(matrices) == 1
    source, target = torch.tensor([[1, 2, 4, 0]]), torch.tensor([[PAD, 3]])
    before = model(source, target)
    with torch.no_grad():
        matrices[0][7] += 1
    after = model(source, target)
    changed = (before != after).any(dim=(0, 1)).nonzero().flatten().tolist()
    assert changed == [7]


# ----------------------------------------------------------------------------- the future, and padding


@pytest.mark.parametrize("t", range(6))
def test_a_target_token_changes_no_logit_before_it(model, t):
    """Causality: what the decoder says of position t must not depend on later tokens.

    In training all positions are computed at once, and the token that position t has to predict stands at t + 1, in
    plain sight of everything but the causal mask. If the mask leaks, the loss collapses and looks like success, but
    the model has learnt to copy from a place that is empty when it generates. So: change the token at t + 1. The
    logits up to t must stay equal, to the bit; those from t + 1 on, which may see it, must change, or the test would
    also pass for a model that reads nothing.
    """
    source, target = sentences(5), targets(1, 6)
    changed = target.clone()
    changed[0, t + 1] = target[0, t + 1] % (PAD - 1) + 1
    before, after = model(source, target), model(source, changed)
    assert torch.equal(before[:, : t + 1], after[:, : t + 1])
    assert not torch.allclose(before[:, t + 1 :], after[:, t + 1 :])


def test_padding_and_company_change_no_logit(model):
    """Padding invariance: a sentence means the same alone, in a batch, in any order, and with any padding.

    Sentences of a batch are filled up to one length with <pad>. If these places were attended to, an output would
    depend on which sentences happen to share the batch: a test set would score differently with another batch size,
    and nobody could repeat it. So each sentence is computed alone, and the same logits must come out in company.
    Padding behind the target needs no mask: it is the future, which the causal mask hides already.
    """
    lengths = [6, 2, 4, 1]
    source, target = sentences(*lengths), targets(4, 5)
    alone = torch.cat([model(source[i : i + 1, :n], target[i : i + 1]) for i, n in enumerate(lengths)])
    close(model(source, target), alone)
    close(model(F.pad(source, (0, 7), value=PAD), target), alone)
    order = torch.tensor([2, 0, 3, 1])
    close(model(source[order], target[order]), alone[order])
    longer = F.pad(target, (0, 3), value=PAD)
    close(model(source, longer)[:, : target.size(1)], alone)


def test_the_source_changes_the_logits(model):
    """Else the two tests above would also pass for a decoder that does not listen to the encoder."""
    target = torch.tensor([[PAD, 3]])
    assert not torch.allclose(model(sentences(5), target), model(sentences(5, seed=1), target), atol=1e-3)


def test_pad_has_no_probability(model):
    """<pad> starts the decoder and fills up batches; it is never an answer. One rule says so, in project, and nothing
    else in the model or in decoding needs to know."""
    with torch.no_grad():
        model.output_bias[PAD] = 100  # the weights may say what they like
    hidden = model.hidden_states(sentences(5, 3), targets(2, 4))
    logits = model.project(hidden)
    assert (logits.softmax(dim=-1)[..., PAD] == 0).all()
    expected = hidden @ model.embeddings.token.weight.T + model.output_bias
    close(logits[..., :PAD], expected[..., :PAD])


# ------------------------------------------------------------------------------------------ the cache


@pytest.mark.parametrize("pieces", [[1] * 6, [2, 3, 1], [5, 1]], ids=str)
def test_cached_decoding_equals_full_decoding(model, pieces):
    """The cache is an economy, not another model.

    Who generates word by word could read everything from the start for every word: T words would cost T^2 / 2
    positions. As no position sees those behind it, its keys and values never change, and the cache keeps them, so
    that every call computes new positions alone. However a target is cut into pieces, the pieces' logits must be
    those of the whole. A wrong position, a wrong mask or a forgotten key would show.
    """
    source, target, cache = sentences(5, 3), targets(2, 5), Cache()
    parts = [model.decode(piece, *read(model, source), cache) for piece in target.split(pieces, dim=1)]
    assert cache.length == 6
    close(model.project(torch.cat(parts, dim=1)), model(source, target))


def test_the_memory_is_read_in_the_first_call_alone(model):
    """Its keys and values do not change either: later calls take them from the cache."""
    source, target, cache = sentences(5, 3), targets(2, 5), Cache()
    memory, mask = read(model, source)
    first = model.decode(target[:, :3], memory, mask, cache)
    second = model.decode(target[:, 3:], torch.full_like(memory, torch.nan), mask, cache)
    close(torch.cat([first, second], dim=1), model.hidden_states(source, target))


def test_cached_steps_give_the_same_attention_weights(model):
    source, target, full, last, cache = sentences(5), targets(1, 2), Attentions(), Attentions(), Cache()
    model.decode(target, *read(model, source), attentions=full)
    model.decode(target[:, :2], *read(model, source), cache)
    model.decode(target[:, 2:], *read(model, source), cache, last)
    for kind in ("decoder", "cross"):
        for step, whole in zip(getattr(last, kind), getattr(full, kind), strict=True):
            close(step, whole[:, :, 2:])


def test_the_cache_keeps_and_repeats_rows_in_order(model):
    """Beam search drops hypotheses, and goes on from others twice; finished sentences leave the batch."""
    source, target, cache = sentences(5, 3, 4), targets(3, 1), Cache()
    memory, mask = read(model, source)
    model.decode(target, memory, mask, cache)
    rows = torch.tensor([2, 0, 0])
    cache.select(rows)
    cache.select_memory(rows)
    following = torch.tensor([[4], [5], [6]])
    expected = model.hidden_states(source[rows], torch.cat([target[rows], following], dim=1))[:, -1:]
    close(model.decode(following, memory[rows], mask[rows], cache), expected)


@pytest.mark.parametrize("length", [1, 4])
def test_several_targets_share_a_source(model, length):
    """The hypotheses of one source ask one memory: it is neither encoded nor kept for each of them."""
    source, target, cache = sentences(5, 3), targets(6, length), Cache()  # three targets for each source
    shared = model.decode(target, *read(model, source), cache)
    close(shared, model.hidden_states(source.repeat_interleave(3, dim=0), target))
    assert {len(k) for k, _ in cache.memory.values()} == {2}
    assert {len(k) for k, _ in cache.target.values()} == {6}


# ------------------------------------------------------------------------------------------- training


@torch.no_grad()
def test_initialisation():
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(2000, 1999, d_model=64, n_heads=4, d_ff=128))
    assert float(model.embeddings.token.weight.std()) == pytest.approx(64**-0.5, rel=0.02)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            limit = math.sqrt(6 / sum(module.weight.shape))
            assert limit * 0.98 < float(module.weight.abs().max()) <= limit
            assert (module.bias == 0).all()
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and (module.bias == 0).all()
    assert (model.embeddings.token.weight[1999] == 0).all()
    assert (model.output_bias == 0).all()


def test_the_pad_embedding_stays_zero_through_training():
    """The decoder starts from a zero embedding, in MarianMT as here: no gradient may move it, nor <pad>'s bias."""
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(PAD + 1, PAD, d_model=16, n_heads=2, d_ff=24))
    weight, bias = model.embeddings.token.weight, model.output_bias
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    start, source, labels = weight.detach().clone(), sentences(6, 3), sentences(4, 4)
    target = torch.cat([torch.full((2, 1), PAD), labels[:, :-1]], dim=1)
    for _ in range(5):
        optimizer.zero_grad()
        hidden = model.hidden_states(source, target).flatten(0, 1)
        token_losses(hidden, weight, bias, labels.flatten(), 0.1, "fp32")[0].backward()
        optimizer.step()
        assert (weight[PAD] == 0).all() and bias[PAD] == 0
    assert not torch.equal(weight[:PAD], start[:PAD])


def test_dropout_acts_in_training_and_not_in_evaluation(make_model, monkeypatch):
    model, source, target = make_model(PAD + 1, dropout=0.5), sentences(5), torch.tensor([[PAD, 3]])
    assert torch.equal(model(source, target), model(source, target))
    model.train()
    assert not torch.allclose(model(source, target), model(source, target))
    lengths = []
    monkeypatch.setattr(F, "dropout", lambda x, *_: lengths.append(x.size(1)) or x)
    model(source, target)
    assert Counter(lengths) == {5: 1 + 2 * 2, 2: 1 + 2 * 3}  # the embeddings', and one of every sublayer


def test_every_parameter_gets_a_gradient(model):
    logits = model(sentences(5, 3), torch.tensor([[PAD, 3, 4], [PAD, 5, 6]]))
    F.cross_entropy(logits.transpose(1, 2), torch.tensor([[3, 4, 0], [5, 6, 0]])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_what_others_exchange_has_these_names():
    """ablations.py changes a built model by the names of its parts and of the layers' arguments: whoever renames one
    must see here that somebody else relies on it."""
    names = {kind: list(inspect.signature(kind.forward).parameters)[1:] for kind in (EncoderLayer, DecoderLayer)}
    assert names[EncoderLayer] == ["x", "mask", "need_weights"]
    assert names[DecoderLayer] == ["x", "target_mask", "memory", "memory_mask", "cache", "need_weights"]
    model = Transformer(TransformerConfig(PAD + 1, PAD, d_model=16, n_heads=2, d_ff=24))
    for part in ("embeddings.positions", "decoder.0.cross_attention.query", "decoder.0.cross_attention.d_k"):
        owner, _, name = part.rpartition(".")
        assert hasattr(model.get_submodule(owner), name), part
