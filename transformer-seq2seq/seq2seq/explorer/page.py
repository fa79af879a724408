"""attention.html: one page with every head's attention weights for a prompt and its output, and the likeliest next
words at each step. page.html, style.css and the scripts beside this file are its parts."""

from pathlib import Path

from tokenizers import Tokenizer
from torch import Tensor

from transformer import TransformerConfig

from ..common.errors import InputError
from ..common.token_text import show_token
from ..common.web_page import SCALE, fill_template, pack_weights

FOLDER = Path(__file__).parent
SCRIPTS = "explorer.js", "steps.js"
MAX_BYTES = 4_000_000  # of weights in a page: what any browser opens at once, and an e-mail carries
CANDIDATES = 5


def check_size(config: TransformerConfig, source: int, target: int) -> None:
    """Refuse a page with the attention of `source` tokens of a prompt and `target` of an output if it is too large."""
    encoder = (config.n_encoder_layers + 1) * source**2
    decoder = (config.n_decoder_layers + 1) * target * (source + target)
    size = (encoder + decoder) * (config.n_heads + 1) * 2 * 4 / 3  # base64 makes four bytes of three
    if size > MAX_BYTES:
        raise InputError(
            f"a prompt of {source} tokens and an output of {target} make a page of {size / 1e6:.1f} MB, more than "
            f"{MAX_BYTES / 1e6:.1f}; shorten the prompt, or draw pictures instead of a page",
            "html",
        )


def attention_data(weights: Tensor, spread: Tensor, rows: list[str], columns: list[str], kind: str) -> dict:
    """Return the page's data of one kind of attention, "cross", "decoder" or "encoder".

    weights (L + 1, H + 1, T, S) and their entropy, spread (L + 1, H + 1), have the means last.
    """
    return {
        "layers": weights.size(0) - 1,
        "heads": weights.size(1) - 1,
        "from": rows,
        "to": columns,
        "grows": kind != "encoder",  # a row with every word written
        "causal": kind == "decoder",
        "entropy": [[round(bits, 2) for bits in row] for row in spread.tolist()],
        "weights": pack_weights(weights),
    }


def next_words(probabilities: Tensor, tokenizer: Tokenizer) -> list[list[dict]]:
    """Return the likeliest next words: probabilities (T, V) -> for each of T steps [{"token": str, "probability":
    float}, ...], the likeliest first."""
    best = probabilities.topk(min(CANDIDATES, probabilities.size(1)))
    return [
        [{"token": show_token(tokenizer, t), "probability": round(p, 3)} for t, p in zip(*step, strict=True)]
        for step in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def render(
    prompt: str,
    attentions: dict[str, dict],
    steps: list[list[dict]],
    layer: int | None,
    head: int | None,
) -> str:
    """Return the page's text. attentions: attention_data of each kind; steps: next_words; layer and head: those shown
    at first, from 1; None is the mean."""
    cross = attentions["cross"]
    data = {
        "prompt": prompt,
        "layer": (layer or cross["layers"] + 1) - 1,
        "head": (head or cross["heads"] + 1) - 1,
        "next": steps,
        "scale": SCALE,
        "attentions": attentions,
    }
    scripts = [FOLDER / name for name in SCRIPTS]
    return fill_template(FOLDER / "page.html", [FOLDER / "style.css"], scripts, data)
