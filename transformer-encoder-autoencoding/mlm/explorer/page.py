"""attention.html: one page with every head's attention weights for a sentence, and the model's guesses for each of
its words. page.html, style.css and the scripts beside this file are its parts."""

import math
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from encoder import MaskedLanguageModel

from ..common.errors import InputError
from ..common.plots import entropy, with_means
from ..common.token_text import show_token
from ..common.web_page import SCALE, fill_template, pack_weights
from ..filling import hide_each, ids_without_token, likeliest, predict
from ..tokenizer import SpecialIds

FOLDER = Path(__file__).parent
SCRIPTS = "explorer.js", "hide.js"
MAX_BYTES = 4_000_000  # of weights in a page, which any browser opens at once, and an e-mail can carry
GUESSES = 5


def check_size(n_layers: int, n_heads: int, length: int) -> None:
    """Refuse a sentence with so many tokens that the page gets too large."""
    bytes_per_pair = (n_layers + 1) * (n_heads + 1) * 2 * 4 / 3  # base64 makes four bytes of three
    most = math.isqrt(int(MAX_BYTES / bytes_per_pair))
    if length > most:
        raise InputError(
            f"the sentence has {length} tokens, and a page has room for {most} with {n_layers} layers of {n_heads} "
            "heads; shorten it, or draw the pictures instead of the page",
            "html",
        )


def guess_each(
    ids: list[int], model: MaskedLanguageModel, tokenizer: Tokenizer, device: torch.device
) -> list[dict | None]:
    """Let the model guess each token from all others.

    Return for each id {"best": the likeliest [{"token": str, "probability": float, "right": bool}, ...],
    "itself": the probability of the token that is there, None if that is [MASK]}; None for [CLS] and [SEP].
    """
    special, found = SpecialIds.of(tokenizer), [None] * len(ids)
    queries, absent = hide_each(ids, special), ids_without_token(tokenizer, model)
    for q, log_probs in predict(queries, model, special, device):
        (position,) = queries[q].positions
        token, (best,) = ids[position], likeliest(log_probs, GUESSES, absent)
        found[position] = {
            "best": [
                {"token": show_token(tokenizer, t), "probability": round(p, 3), "right": t == token} for t, p in best
            ],
            "itself": None if token == special.mask else round(log_probs[0, token].exp().item(), 3),
        }
    return found


def render(
    sentence: str,
    words: list[str],
    weights: Tensor,
    guesses: list[dict | None],
    layer: int | None,
    head: int | None,
) -> str:
    """Return the page's text. weights: (L, H, S, S); layer and head: those shown at first, from 1; None is the
    mean."""
    maps, (n_layers, n_heads) = with_means(weights), weights.shape[:2]
    data = {
        "sentence": sentence,
        "words": words,
        "layers": n_layers,
        "heads": n_heads,
        "layer": (layer or n_layers + 1) - 1,
        "head": (head or n_heads + 1) - 1,
        "entropy": [[round(bits, 2) for bits in row] for row in entropy(maps).tolist()],
        "guesses": guesses,
        "scale": SCALE,
        "weights": pack_weights(maps),
    }
    scripts = [FOLDER / name for name in SCRIPTS]
    return fill_template(FOLDER / "page.html", [FOLDER / "style.css"], scripts, data)
