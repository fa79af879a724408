"""The model: equal to PyTorch's own layers, blind to the future and to padding, tied, cached."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seq2seq.loss import token_losses
from transformer import (
    NEVER,
    Attentions,
    MultiHeadAttention,
    Transformer,
    TransformerConfig,
    attention,
    causal_mask,
    padding_mask,
    sinusoids,
)

PAD = 10  # vocabulary of 11, <pad> the last


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


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


def random_attention(mask):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 3, 2, 5, 4)
    return attention(q, k, v, mask), (q, k, v)


MASKS = {
    "none": torch.ones(1, 1, 5, 5, dtype=torch.bool),
    "padding": padding_mask(sentences(5, 2, 1), PAD),
    "causal": causal_mask(5),
    "both": padding_mask(sentences(5, 2, 1), PAD) & causal_mask(5),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_attention_equals_pytorchs(mask):
    (values, _), (q, k, v) = random_attention(mask)
    close(values, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_attention_rows_add_up_to_one_and_are_zero_where_masked(mask):
    (_, weights), _ = random_attention(mask)
    close(weights.sum(dim=-1), torch.ones(3, 2, 5))
    assert (weights[~mask.expand_as(weights)] == 0).all()
    assert (weights[mask.expand_as(weights)] > 0).all()


def test_masks_allow_what_they_should():
    assert padding_mask(torch.tensor([[3, 0, PAD]]), PAD).tolist() == [[[[True, True, False]]]]
    assert causal_mask(3)[0, 0].tolist() == [[True, False, False], [True, True, False], [True] * 3]


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_weights_path_equals_the_fused_path(mask):
    torch.manual_seed(0)
    module, x = MultiHeadAttention(8, 2), torch.randn(3, 5, 8)
    fused, none = module(x, module.keys_values(x), mask)
    plain, weights = module(x, module.keys_values(x), mask, need_weights=True)
    assert none is None
    assert weights.shape == (3, 2, 5, 5)
    close(fused, plain)


def test_every_layer_gives_its_own_weights(model):
    source, target, attentions = sentences(6, 3), torch.tensor([[PAD, 3, 4], [PAD, 5, 6]]), Attentions()
    memory, encoder = model.encode(source, need_weights=True)
    logits = model.decode(target, model.cache(source, memory), attentions)
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


def copy_attention(theirs, ours):
    theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
    theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
    theirs.out_proj.load_state_dict(ours.output.state_dict())


@torch.no_grad()
def reference_stack(layers, config, kind):
    """PyTorch's own layers with our weights."""
    stack = []
    for ours in layers:
        theirs = kind(
            config.d_model,
            config.n_heads,
            config.d_ff,
            dropout=0.0,
            activation=F.relu if config.activation == "relu" else F.silu,
            batch_first=True,
            norm_first=False,
        )
        norms = [ours.self_attention_norm, ours.feed_forward_norm]
        copy_attention(theirs.self_attn, ours.self_attention)
        if kind is nn.TransformerDecoderLayer:
            copy_attention(theirs.multihead_attn, ours.cross_attention)
            norms.insert(1, ours.cross_attention_norm)
        theirs.linear1.load_state_dict(ours.feed_forward.inner.state_dict())
        theirs.linear2.load_state_dict(ours.feed_forward.outer.state_dict())
        for i, norm in enumerate(norms, start=1):
            getattr(theirs, f"norm{i}").load_state_dict(norm.state_dict())
        stack.append(theirs.train())  # without dropout the same as evaluation, and no fused fast path
    return stack


@pytest.mark.parametrize("activation", ["relu", "swish"])
def test_encoder_equals_pytorchs_layers(make_model, activation):
    model = make_model(PAD + 1, activation=activation, n_encoder_layers=3)
    source = sentences(7, 4, 1)
    padding = source == PAD
    x = model.embeddings(source)
    ours = model.encode(source)[0]
    for theirs, layer in zip(
        reference_stack(model.encoder, model.config, nn.TransformerEncoderLayer), model.encoder, strict=True
    ):
        expected = theirs(x, src_key_padding_mask=padding)
        close(layer(x, padding_mask(source, PAD))[0], expected)
        x = expected
    close(ours, x)


@pytest.mark.parametrize("activation", ["relu", "swish"])
def test_decoder_equals_pytorchs_layers(make_model, activation):
    model = make_model(PAD + 1, activation=activation, n_decoder_layers=3)
    source, target = sentences(7, 4, 1), torch.cat([torch.full((3, 1), PAD), sentences(5, 5, 5)], dim=1)
    memory, x = model.encode(source)[0], model.embeddings(target)
    for theirs in reference_stack(model.decoder, model.config, nn.TransformerDecoderLayer):
        x = theirs(x, memory, tgt_mask=~causal_mask(target.size(1))[0, 0], memory_key_padding_mask=source == PAD)
    expected = x @ model.embeddings.token.weight.T + model.output_bias
    close(model(source, target), expected)


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


def test_a_position_is_the_same_wherever_reading_starts(model):
    ids = sentences(8)
    close(model.embeddings(ids)[:, 5:], model.embeddings(ids[:, 5:], start=5))


def test_embeddings_are_scaled_by_the_root_of_d_model(model):
    ids = sentences(8)
    close(model.embeddings(ids), 4 * model.embeddings.token.weight[ids] + sinusoids(8, 16))


@pytest.mark.parametrize("t", range(6))
def test_a_target_token_changes_no_logit_before_it(model, t):
    source, target = sentences(5), torch.cat([torch.tensor([[PAD]]), sentences(6)], dim=1)
    changed = target.clone()
    changed[0, t + 1] = target[0, t + 1] % (PAD - 1) + 1
    before, after = model(source, target), model(source, changed)
    assert torch.equal(before[:, : t + 1], after[:, : t + 1])
    assert not torch.allclose(before[:, t + 1 :], after[:, t + 1 :])


def test_padding_and_company_change_no_logit(model):
    lengths = [6, 2, 4, 1]
    source, target = sentences(*lengths), torch.cat([torch.full((4, 1), PAD), sentences(5, 5, 5, 5)], dim=1)
    expected = torch.cat([model(source[i : i + 1, :n], target[i : i + 1]) for i, n in enumerate(lengths)])
    close(model(source, target), expected)
    close(model(F.pad(source, (0, 7), value=PAD), target), expected)
    order = torch.tensor([2, 0, 3, 1])
    close(model(source[order], target[order]), expected[order])
    longer = F.pad(target, (0, 3), value=PAD)
    close(model(source, longer)[:, : target.size(1)], expected)


def test_the_source_changes_the_logits(model):
    target = torch.tensor([[PAD, 3]])
    assert not torch.allclose(model(sentences(5), target), model(sentences(5, seed=1), target), atol=1e-3)


def test_one_matrix_embeds_both_sides_and_projects(model):
    matrices = [p for p in model.parameters() if PAD + 1 in p.shape and p.dim() == 2]
    assert len(matrices) == 1
    source, target = torch.tensor([[1, 2, 4, 0]]), torch.tensor([[PAD, 3]])
    before = model(source, target)
    with torch.no_grad():
        matrices[0][7] += 1  # a token of neither side: only its own logit may change
    after = model(source, target)
    changed = (before != after).any(dim=(0, 1)).nonzero().flatten().tolist()
    assert changed == [7]


def test_the_pad_embedding_stays_zero_through_training():
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(PAD + 1, PAD, d_model=16, n_heads=2, d_ff=24))
    weight, bias = model.embeddings.token.weight, model.output_bias
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    start, source, labels = weight.detach().clone(), sentences(6, 3), sentences(4, 4)
    target = torch.cat([torch.full((2, 1), PAD), labels[:, :-1]], dim=1)
    for _ in range(5):
        assert (weight[PAD] == 0).all()
        assert bias[PAD] == NEVER
        optimizer.zero_grad()
        states = model.states(source, target).flatten(0, 1)
        token_losses(states, weight, bias, labels.flatten(), 0.1, "fp32")[0].backward()
        optimizer.step()
    assert (weight[PAD] == 0).all()
    assert bias[PAD] == NEVER
    assert not torch.equal(weight[:PAD], start[:PAD])
    assert (model.eval()(source, target).softmax(dim=-1)[..., PAD] == 0).all()


@pytest.mark.parametrize("chunks", [[1] * 6, [2, 3, 1], [5, 1]])
def test_cached_decoding_equals_full_decoding(model, chunks):
    source, target = sentences(5, 3), torch.cat([torch.full((2, 1), PAD), sentences(5, 5)], dim=1)
    cache = model.cache(source, model.encode(source)[0])
    parts = [model.decode(piece, cache) for piece in target.split(chunks, dim=1)]
    assert cache.length == 6
    close(torch.cat(parts, dim=1), model(source, target))


def test_cached_steps_give_the_same_attention_weights(model):
    source, target = sentences(5), torch.tensor([[PAD, 2, 3]])
    full, last = Attentions(), Attentions()
    model.decode(target, model.cache(source, model.encode(source)[0]), full)
    cache = model.cache(source, model.encode(source)[0])
    model.decode(target[:, :2], cache)
    model.decode(target[:, 2:], cache, last)
    for kind in ("decoder", "cross"):
        for step, whole in zip(getattr(last, kind), getattr(full, kind), strict=True):
            close(step, whole[:, :, 2:])


def test_cache_select_keeps_and_repeats_rows_in_order(model):
    source, target = sentences(5, 3, 4), torch.tensor([[PAD, 1], [PAD, 2], [PAD, 3]])
    cache = model.cache(source, model.encode(source)[0])
    model.decode(target, cache)
    rows = torch.tensor([2, 0, 0])
    cache.select(rows)
    cache.select_sources(rows)
    following = torch.tensor([[4], [5], [6]])
    expected = model(source[rows], torch.cat([target[rows], following], dim=1))[:, -1:]
    close(model.decode(following, cache), expected)


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
    assert (model.output_bias[:-1] == 0).all() and model.output_bias[-1] == NEVER


def test_dropout_acts_in_training_and_not_in_evaluation(make_model):
    model, source, target = make_model(PAD + 1, dropout=0.5), sentences(5), torch.tensor([[PAD, 3]])
    assert torch.equal(model(source, target), model(source, target))
    model.train()
    assert not torch.allclose(model(source, target), model(source, target))


def test_every_parameter_gets_a_gradient(model):
    logits = model(sentences(5, 3), torch.tensor([[PAD, 3, 4], [PAD, 5, 6]]))
    F.cross_entropy(logits.transpose(1, 2), torch.tensor([[3, 4, 0], [5, 6, 0]])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
