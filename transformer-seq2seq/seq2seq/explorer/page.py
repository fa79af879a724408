"""seq2seq.explorer.page"""

import base64
import hashlib
import json
import re
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from transformer import TransformerConfig

from ..common.errors import InputError
from ..tokenizer import to_text

FOLDER = Path(__file__).parent / "explorer"


SCRIPTS = "explorer.js", "steps.js"


SCALE = 1000  # weights are kept as whole thousandths, so that the three decimals shown are the model's


MOST_BYTES = 4_000_000  # of weights in a page: what any browser opens at once, and an e-mail carries


CANDIDATES = 5


def with_means(weights: Tensor) -> Tensor:
    """weights (L, H, T, S) -> (L + 1, H + 1, T, S): behind the last head the mean of all heads, behind the
    last layer the mean of all layers."""
    weights = torch.cat([weights, weights.mean(dim=1, keepdim=True)], dim=1)
    return torch.cat([weights, weights.mean(dim=0, keepdim=True)], dim=0)


def label(tokenizer: Tokenizer, token: int) -> str:
    """One token as it reads in a text; as it stands in the vocabulary where it is no whole character."""
    text = to_text(tokenizer, [token])
    return (tokenizer.id_to_token(token) or "?") if not text or "\ufffd" in text else text


def packed(weights: Tensor) -> str:
    """Weights from 0 to 1, rounded to thousandths, as text: two bytes each, the lower first, in base64."""
    thousandths = (weights.double() * SCALE).round().numpy().astype("<u2")
    return base64.b64encode(thousandths.tobytes()).decode()


def check_size(config: TransformerConfig, source: int, target: int) -> None:
    """Raises InputError where so many tokens of prompt and output make too large a page."""
    encoder = (config.n_encoder_layers + 1) * source**2
    decoder = (config.n_decoder_layers + 1) * target * (source + target)
    size = (encoder + decoder) * (config.n_heads + 1) * 2 * 4 / 3  # base64 makes four bytes of three
    if size > MOST_BYTES:
        raise InputError(
            f"--html: a prompt of {source} tokens and an output of {target} make a page of "
            f"{size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.1f}; shorten the prompt, or leave out --html"
        )


def attention(weights: Tensor, spread: Tensor, rows: list[str], columns: list[str], kind: str) -> dict:
    """What the page needs of one kind of attention, "cross", "decoder" or "encoder".

    weights (L + 1, H + 1, T, S) and their entropy, spread (L + 1, H + 1), hold the means last."""
    return {
        "layers": weights.size(0) - 1,
        "heads": weights.size(1) - 1,
        "from": rows,
        "to": columns,
        "grows": kind != "encoder",  # a row with every word written
        "causal": kind == "decoder",
        "entropy": [[round(bits, 2) for bits in row] for row in spread.tolist()],
        "weights": packed(weights),
    }


def likeliest(probabilities: Tensor, tokenizer: Tokenizer) -> list[list[dict]]:
    """probabilities (T, V) of the next word -> for each step [{"token": str, "probability": float}, ...], the
    likeliest first."""
    best = probabilities.topk(min(CANDIDATES, probabilities.size(1)))
    return [
        [{"token": label(tokenizer, t), "probability": round(p, 3)} for t, p in zip(*step, strict=True)]
        for step in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def page(
    prompt: str,
    attentions: dict[str, dict],
    next_words: list[list[dict]],
    layer: int | None,
    head: int | None,
) -> str:
    """The page's text. layer and head, from 1, are those shown at first; None is the mean."""
    cross = attentions["cross"]
    data = {
        "prompt": prompt,
        "layer": (layer or cross["layers"] + 1) - 1,
        "head": (head or cross["heads"] + 1) - 1,
        "next": next_words,
        "scale": SCALE,
        "attentions": attentions,
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
