"""The optimizers: Muon, which is for matrices, and Adam for all other weights."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from transformer import Transformer


def orthogonalise(x: Tensor) -> Tensor:
    """Compute roughly the nearest semi-orthogonal matrices: x (N, R, C) -> (N, R, C), with the same singular
    vectors and with singular values between 0.6 and 1.3 or so.

    Five steps of a Newton-Schulz iteration, x <- a x + b (x x^T) x + c (x x^T)^2 x, which is the polynomial
    a s + b s^3 + c s^5 of every singular value s and takes those from 0 to 1 near 1. Its coefficients are Jordan's,
    chosen for speed: it does not converge, but even a singular value of 0.003 gets there in the five steps.
    """
    if x.size(1) > x.size(2):  # of a tall matrix x^T x is the smaller product
        return orthogonalise(x.mT).mT
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)  # as its square is the sum of theirs
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Gradient descent with Nesterov's momentum, whose updates are made orthogonal (Jordan et al. 2024, "Muon: An
    optimizer for hidden layers in neural networks", kellerjordan.github.io/posts/muon).

        M_t = mu M_(t-1) + (1 - mu) G_t
        U_t = orthogonalise(mu M_t + (1 - mu) G_t)
        W_t = W_(t-1) - lr 0.2 sqrt(max(R, C)) U_t           for W (R, C)

    A matrix's gradient is mostly a few directions, and gradient descent learns these alone; in U_t all count
    alike. Keys and values, which are one matrix here, are made orthogonal together, not each alone. The factor
    gives the updates the size that Adam's have in practice (Liu et al. 2025, arXiv:2502.16982, section 2.2), so
    that one learning rate suits both.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], momentum: float = 0.95, dtype: torch.dtype = torch.float32):
        """matrices: (R, C) each. dtype: that of the products in orthogonalise."""
        super().__init__(matrices, {"lr": 1e-3, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix that has a gradient, those of one shape together."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    alike.setdefault(weight.shape, []).append(weight)
            for (rows, columns), weights in alike.items():
                scale = 0.2 * max(rows, columns) ** 0.5
                updates = orthogonalise(self.directions(weights, group["momentum"]))
                for weight, update in zip(weights, updates, strict=True):
                    weight.sub_(update, alpha=group["lr"] * scale)

    def directions(self, weights: list[nn.Parameter], momentum: float) -> Tensor:
        """Update the momentum of N matrices of one shape (R, C) -> what is to be made orthogonal (N, R, C)."""
        directions = []
        for weight in weights:
            state = self.state[weight]
            if not state:
                state["momentum"] = torch.zeros_like(weight)
            average = state["momentum"].lerp_(weight.grad, 1 - momentum)
            directions.append(weight.grad.lerp(average, momentum))
        return torch.stack(directions).to(self.dtype)


def make_optimizers(model: Transformer, name: str, precision: str) -> list[torch.optim.Optimizer]:
    """Return Adam with the paper's constants (section 5.3) for all weights or, with the name "muon", Muon for the
    layers' matrices and Adam for the others: vectors, and the embedding, each of whose rows is one token's."""
    matrices = []
    if name == "muon":
        layers = [*model.encoder.parameters(), *model.decoder.parameters()]
        matrices = [weight for weight in layers if weight.ndim == 2]
    others = [weight for weight in model.parameters() if not any(weight is matrix for matrix in matrices)]
    adam = torch.optim.Adam(others, betas=(0.9, 0.98), eps=1e-9, fused=True)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return [adam, Muon(matrices, dtype=dtype)] if matrices else [adam]
