"""What makes training fast on a CPU changes nothing but the speed."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from seq2seq.common import fast_cpu
from seq2seq.common.fast_cpu import MAX_SHORT_ROW, best_precision, byte_dropout, fast_training, fp32_attention
from seq2seq.loss import CHUNK, token_losses
from transformer import Transformer, TransformerConfig, causal_mask, padding_mask

CPU = torch.device("cpu")


def scored_tokens(n, d_model=16, vocab_size=40):
    """Hidden states, weight, bias (all with gradients) and labels, none of them the padding token."""
    torch.manual_seed(0)
    tensors = torch.randn(n, d_model), torch.randn(vocab_size, d_model), torch.randn(vocab_size)
    return *(tensor.requires_grad_() for tensor in tensors), torch.randint(vocab_size - 1, (n,))


@pytest.mark.parametrize("n", [1, 7, CHUNK, 2 * CHUNK + 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_loss_and_gradients_are_pytorchs_without_the_pad_column(n, smoothing):
    *parameters, labels = scored_tokens(n)
    logits = F.linear(*parameters)[:, :-1]
    expected = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
    loss, nll = token_losses(*parameters, labels, smoothing, "fp32")
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(nll, F.cross_entropy(logits, labels, reduction="sum"))
    gradients = [torch.autograd.grad(value / 7, parameters) for value in (loss, expected)]  # as of a mean
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (gradients[0][1][-1] == 0).all() and gradients[0][2][-1] == 0  # the padding token's


@pytest.mark.parametrize("n", [700, 16 * CHUNK])
def test_bf16_loss_is_the_same_to_its_precision(n):
    """However often a label occurs: words are as frequent as in text, the first a quarter of all."""
    *parameters, _ = scored_tokens(n)
    labels = torch.multinomial(1 / torch.arange(1.0, 40), n, replacement=True)
    values = [token_losses(*parameters, labels, 0.1, precision) for precision in ("fp32", "bf16")]
    for exact, rounded in zip(*values, strict=True):
        assert exact.item() != rounded.item() == pytest.approx(exact.item(), rel=0.01)
    exact, rounded = (torch.autograd.grad(loss, parameters) for loss, _ in values)
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == torch.float32
        assert (a - b).norm() < 0.02 * a.norm()


def test_bf16_gradients_of_a_certain_model_have_no_bias():
    """1 - e itself is rounded in bfloat16; were it subtracted there, all errors would have one sign."""
    torch.manual_seed(0)
    weight, labels = torch.randn(500, 64), torch.randint(499, (2000,))
    parameters = [x.requires_grad_() for x in (0.8 * weight[labels], weight, torch.zeros(500))]
    loss, _ = token_losses(*parameters, labels, 0.1, "bf16")
    (of_bias,) = torch.autograd.grad(loss, parameters[2:])
    assert abs(of_bias.sum()) < 5e-4 * len(labels)  # of each position the sum is zero


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_dropout_drops_every_position_alike_and_keeps_the_mean(p):
    torch.manual_seed(0)
    x = torch.ones(4096, 64, requires_grad=True)
    y = byte_dropout(x, p)
    rate = round(256 * p) / 256
    kept = y[y != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - rate)))
    deviation = (rate * (1 - rate) / 4096) ** 0.5
    dropped = (y == 0).float().mean(dim=0)  # of each of the eight bytes that one draw gives, eight times over
    assert ((dropped - rate).abs() < 5 * deviation).all()
    assert dropped.mean().item() == pytest.approx(rate, abs=5 * deviation / 8)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # what was dropped gets no gradient, what was kept the same scale


def test_dropout_of_less_than_a_byte_can_say_is_pytorchs():
    y = byte_dropout(torch.ones(1_000_000), 0.001)
    assert 800 < (y == 0).sum() < 1200 and y.max().item() == pytest.approx(1 / 0.999)


def test_dropout_rests_and_repeats_as_pytorchs_does():
    x = torch.randn(3, 5)
    assert byte_dropout(x, 0.5, training=False) is x and byte_dropout(x, 0.0) is x
    assert byte_dropout(x.bfloat16(), 0.5).dtype == torch.bfloat16
    torch.manual_seed(1)
    first, second = byte_dropout(x, 0.5), byte_dropout(x, 0.5)
    torch.manual_seed(1)
    assert torch.equal(byte_dropout(x, 0.5), first) and not torch.equal(first, second)


@pytest.mark.parametrize("precision, tolerance", [("fp32", 0), ("bf16", 0.02)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_and_its_gradients_are_pytorchs_with_a_bias_and_without(precision, tolerance, bias):
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(16, 24, bias=bias), torch.randn(3, 7, 16, requires_grad=True)
    usual = layer(x)
    with fast_training(CPU, precision):
        fast = layer(x).float()
    gradients = [torch.autograd.grad(out.square().sum(), [x, *layer.parameters()]) for out in (usual, fast)]
    for ours, theirs in zip((fast, *gradients[1]), (usual, *gradients[0]), strict=True):
        assert ours.dtype == theirs.dtype and (ours - theirs).norm() <= tolerance * theirs.norm()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Transformer(TransformerConfig(50, 49, d_model=16, n_heads=2, d_ff=32, dropout=0.0)).train()


SOURCE = torch.tensor([[3, 4, 5, 0], [6, 7, 0, 49]])
TARGET = torch.tensor([[49, 8, 9], [49, 10, 11]])


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-6), ("bf16", 0.05)])
def test_a_model_computes_the_same(model, precision, tolerance):
    usual = model.hidden_states(SOURCE, TARGET)
    with fast_training(CPU, precision):
        fast = model.hidden_states(SOURCE, TARGET)
    torch.testing.assert_close(fast.float(), usual, rtol=tolerance, atol=tolerance)
    assert (precision == "bf16") == (not torch.allclose(fast.float(), usual, rtol=1e-6, atol=1e-6))
    gradients = [
        torch.autograd.grad(out.float().square().sum(), list(model.parameters())[:-1], allow_unused=True)
        for out in (usual, fast)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2 * tolerance, atol=20 * tolerance)


def test_the_models_own_functions_are_replaced_within_the_context_and_only_there(model, monkeypatch):
    calls = []

    def watched(name):
        replacement = getattr(fast_cpu, name)
        return lambda *args, **kwargs: calls.append(name) or replacement(*args, **kwargs)

    for name in ("padded_linear", "byte_dropout", "fp32_attention"):
        monkeypatch.setattr(fast_cpu, name, watched(name))
    with fast_training(CPU, "bf16"):
        model.hidden_states(SOURCE, TARGET)
    assert set(calls) == {"padded_linear", "byte_dropout", "fp32_attention"}
    calls.clear()
    model.hidden_states(SOURCE, TARGET)
    assert not calls


class Products(TorchDispatchMode):
    """Inside this context the shapes of the matrix products are recorded, as PyTorch carries them out."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.shapes.add(tuple(tuple(arg.shape) for arg in args[-2:]))
        return function(*args, **(kwargs or {}))


def test_batches_of_many_sizes_have_products_of_few_shapes_in_bf16(model):
    """PyTorch's library compiles a product for every new shape, and keeps it in memory."""

    def shapes(pairs, length, precision):
        target = torch.randint(3, 40, (pairs, length))
        with Products() as products:
            with fast_training(CPU, precision):
                hidden_states = model.hidden_states(target, target).flatten(0, 1)
            weight, bias = model.embeddings.token.weight, model.output_bias
            loss, _ = token_losses(hidden_states, weight, bias, target.flatten(), 0.1, precision)
            loss.backward()
        return products.shapes

    assert shapes(2, 3, "bf16") == shapes(5, 7, "bf16") != shapes(60, 8, "bf16")
    assert shapes(2, 3, "fp32") != shapes(5, 7, "fp32")


@pytest.mark.parametrize("length", [1, 5, 16, 17, MAX_SHORT_ROW, MAX_SHORT_ROW + 1])
@pytest.mark.parametrize("kind", ["causal", "padding", "none"])
def test_attention_is_pytorchs_in_fp32_at_any_length(length, kind):
    torch.manual_seed(length)
    q, k, v = torch.randn(3, 3, 2, length, 8).bfloat16()
    ids = torch.arange(length) + torch.tensor([[0], [length // 3], [length - 1]])
    masks = {"causal": causal_mask(length), "padding": padding_mask(ids.clamp(max=length), length)}
    results = []
    for attend in (F.scaled_dot_product_attention, fp32_attention):
        inputs = [x.float().requires_grad_() for x in (q, k, v)]
        out = attend(*inputs, attn_mask=masks.get(kind))
        results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    with fast_training(CPU, "bf16"):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=masks.get(kind))
    rounding = 2**-8 if out.dtype == torch.bfloat16 else 1e-4  # computed in bfloat16, it would be off by 1e-2
    torch.testing.assert_close(out.float(), results[0][0], rtol=rounding, atol=1e-4)


@pytest.mark.parametrize("has, precision", [({"avx512_bf16": True}, "bf16"), ({"avx2": True}, "fp32"), ({}, "fp32")])
def test_precision_follows_the_processor(monkeypatch, has, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert best_precision(CPU) == precision
    assert best_precision(torch.device("mps")) == "fp32"


def test_the_draws_are_of_whole_bytes():
    """An int64 drawn without bounds has no sign bit, and its highest byte would be below 128."""
    torch.manual_seed(0)
    x = torch.ones(8 * 4096)
    dropped = (byte_dropout(x, 0.5) == 0).view(-1, 8).float().mean(dim=0)
    np.testing.assert_allclose(dropped, 0.5, atol=0.04)
