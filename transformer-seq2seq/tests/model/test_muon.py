"""The optimizer of matrices, against PyTorch's own and against what it promises."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from seq2seq.muon import Muon, make_optimizers, orthogonalise


def matrices(shapes, seed=0):
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


@pytest.mark.parametrize("rank", [3, 24])
def test_orthogonalise_keeps_the_singular_vectors_and_levels_the_values(rank):
    torch.manual_seed(0)
    x = torch.randn(5, 24, rank) @ torch.randn(5, rank, 40)
    left, values, right = torch.linalg.svd(x, full_matrices=False)
    out = left.mT @ orthogonalise(x) @ right.mT  # in the basis of the singular vectors
    levelled = out.diagonal(dim1=1, dim2=2)
    counted = values > 0.003 * torch.linalg.matrix_norm(x, keepdim=True)[..., 0]
    assert counted.sum() >= 5 * (rank - 1)
    assert levelled[counted].min() > 0.6
    assert levelled[counted].max() < 1.3
    assert (out - levelled.diag_embed()).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_steps_are_those_of_pytorch(dtype):
    """Its products are in bfloat16, which gives the five steps' result to about one percent."""
    shapes = [(12, 12), (12, 12), (8, 20), (20, 8), (20, 8)]
    ours, theirs = matrices(shapes), matrices(shapes)
    optimizers = (
        Muon(ours, dtype=dtype),
        torch.optim.Muon(theirs, weight_decay=0, adjust_lr_fn="match_rms_adamw"),
    )
    for step in range(5):
        for weights, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            for weight, gradient in zip(weights, matrices(shapes, seed=step + 1), strict=True):
                weight.grad = gradient.data
            optimizer.step()
    for before, a, b in zip(matrices(shapes), ours, theirs, strict=True):
        moved = (b - before).abs().max()
        assert moved > 0.05
        assert (a - b).abs().max() < 0.04 * moved


def test_one_gradient_alone_moves_a_matrix_as_much_as_another():
    """The update's size does not depend on that of the gradient, and it goes downhill."""
    big, small = weights = matrices([(16, 16), (16, 16)])
    before = [weight.detach().clone() for weight in weights]
    big.grad, small.grad = torch.randn(16, 16) * 1e3, torch.randn(16, 16) * 1e-3
    Muon(weights).step()
    for weight, start in zip(weights, before, strict=True):
        moved = weight.detach() - start
        assert (moved * weight.grad).sum() < 0
        assert moved.square().mean().sqrt() == pytest.approx(0.2 * 1e-3, rel=0.2)


def test_a_matrix_without_a_gradient_stays_where_it_is():
    used, unused = weights = matrices([(6, 6), (6, 6)])
    start, before = used.detach().clone(), unused.detach().clone()
    used.grad = torch.ones(6, 6)
    Muon(weights).step()
    assert torch.equal(unused, before)
    assert not torch.equal(used, start)


def test_a_gradient_of_zero_moves_nothing():
    (weight,) = weights = matrices([(6, 6)])
    before, weight.grad = weight.detach().clone(), torch.zeros(6, 6)
    Muon(weights).step()
    assert torch.equal(weight, before)


def test_a_saved_state_goes_on_exactly():
    shapes = [(6, 10), (10, 6)]
    weights = matrices(shapes)
    optimizer = Muon(weights)

    def step(weights, optimizer, seed):
        for weight, gradient in zip(weights, matrices(shapes, seed), strict=True):
            weight.grad = gradient.data
        optimizer.step()

    step(weights, optimizer, 1)
    others = [nn.Parameter(weight.detach().clone()) for weight in weights]
    other = Muon(others)
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    step(weights, optimizer, 2)
    step(others, other, 2)
    for a, b in zip(weights, others, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name, n_matrices", [("adam", 0), ("muon", 5 + 8)])
def test_every_weight_has_one_optimizer_and_matrices_of_layers_have_muon(make_model, name, n_matrices):
    model = make_model(10, n_encoder_layers=1, n_decoder_layers=1)
    adam, *muon = make_optimizers(model, name, "fp32")
    matrices = [weight for part in muon for weight in part.param_groups[0]["params"]]
    assert sorted(map(id, [*adam.param_groups[0]["params"], *matrices])) == sorted(map(id, model.parameters()))
    assert len(matrices) == n_matrices  # an encoder layer has five, a decoder layer eight
    assert (adam.defaults["betas"], adam.defaults["eps"]) == ((0.9, 0.98), 1e-9)  # the paper's, section 5.3
    assert all(weight.ndim == 2 and weight is not model.embeddings.token.weight for weight in matrices)
