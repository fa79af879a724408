"""mlm.explorer.page"""

import base64
import hashlib
import json
import math
import re
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from encoder import MaskedLanguageModel

from ..common.errors import InputError
from ..filling import ask, hide_each, to_word
from ..tokenizer import SpecialIds

FOLDER = Path(__file__).parent / "explorer"


SCRIPTS = "explorer.js", "hide.js"


SCALE = 1000  # weights are kept as whole thousandths, so that the three decimals shown are the model's


MOST_BYTES = 4_000_000  # of weights in a page: what any browser opens at once, and an e-mail carries


GUESSES = 5


def with_means(weights: Tensor) -> Tensor:
    """weights (L, H, S, S) -> (L + 1, H + 1, S, S): behind the last head the mean of all heads, behind the
    last layer the mean of all layers."""
    weights = torch.cat([weights, weights.mean(dim=1, keepdim=True)], dim=1)
    return torch.cat([weights, weights.mean(dim=0, keepdim=True)], dim=0)


def label(tokenizer: Tokenizer, token: int) -> str:
    """One token as it reads in a sentence; as it stands in the vocabulary where it is no whole character."""
    word = to_word(tokenizer, token)
    return (tokenizer.id_to_token(token) or "?") if not word or "\ufffd" in word else word


def packed(weights: Tensor) -> str:
    """Weights from 0 to 1, rounded to thousandths, as text: two bytes each, the lower first, in base64."""
    thousandths = (weights.double() * SCALE).round().numpy().astype("<u2")
    return base64.b64encode(thousandths.tobytes()).decode()


def check_size(n_layers: int, n_heads: int, length: int) -> None:
    """Raises InputError where a sentence of so many tokens makes too large a page."""
    bytes_a_pair = (n_layers + 1) * (n_heads + 1) * 2 * 4 / 3  # base64 makes four bytes of three
    most = math.isqrt(int(MOST_BYTES / bytes_a_pair))
    if length > most:
        raise InputError(
            f"--html: the sentence has {length} tokens, a page has room for {most} of a model of {n_layers} "
            f"layers with {n_heads} heads; shorten it, or leave out --html"
        )


def guesses(
    ids: list[int], model: MaskedLanguageModel, tokenizer: Tokenizer, device: torch.device
) -> list[dict | None]:
    """What the model takes each token for when that one is hidden.

    For each of ids {"best": the likeliest [{"token": str, "probability": float, "right": bool}, ...],
    "itself": the probability of the token hidden, None where it is [MASK] already}; None for [CLS] and [SEP].
    """
    special, found = SpecialIds.of(tokenizer), [None] * len(ids)
    questions = hide_each(ids, special)
    for q, log_probs in ask(questions, model, special, device):
        (position,) = questions[q].positions
        probabilities, token = log_probs[0].exp(), ids[position]
        best = probabilities.topk(min(GUESSES, len(probabilities)))
        found[position] = {
            "best": [
                {"token": label(tokenizer, t), "probability": round(p, 3), "right": t == token}
                for p, t in zip(*(part.tolist() for part in best), strict=True)
            ],
            "itself": None if token == special.mask else round(probabilities[token].item(), 3),
        }
    return found


def page(
    sentence: str,
    words: list[str],
    weights: Tensor,
    entropy: Tensor,
    guesses: list[dict | None],
    layer: int | None,
    head: int | None,
) -> str:
    """The page's text. weights (L + 1, H + 1, S, S) and entropy (L + 1, H + 1) hold the means last;
    layer and head, from 1, are those shown at first, None is the mean."""
    n_layers, n_heads = weights.size(0) - 1, weights.size(1) - 1
    data = {
        "sentence": sentence,
        "words": words,
        "layers": n_layers,
        "heads": n_heads,
        "layer": (layer or n_layers + 1) - 1,
        "head": (head or n_heads + 1) - 1,
        "entropy": [[round(bits, 2) for bits in row] for row in entropy.tolist()],
        "guesses": guesses,
        "scale": SCALE,
        "weights": packed(weights),
    }
    return fill(data)


def fill(data: dict) -> str:
    """explorer/page.html with its style, its scripts and the data in place."""
    style = (FOLDER / "style.css").read_text(encoding="utf-8")
    script = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)
    parts = {
        "style": style,
        "style_hash": digest(style),
        "script": script,
        "script_hash": digest(script),
        "data": json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),  # no text can end the element
    }
    template = (FOLDER / "page.html").read_text(encoding="utf-8")
    # in one pass, so that the data is not searched for places to fill
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template)


def digest(text: str) -> str:
    """The name of a script or style in a Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
