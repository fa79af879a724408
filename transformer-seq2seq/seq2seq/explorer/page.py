"""attention.html: one page that carries the model, for a reader to type into and to take apart, or, where the model is
too large for a page, its reading of one prompt. page.html and the scripts and styles named here are its parts."""

from dataclasses import asdict
from pathlib import Path

from tokenizers import Tokenizer

from transformer import Transformer, TransformerConfig

from ..common.errors import InputError, warn
from ..common.page_data import pack_all, read_training
from ..common.web_page import SHARED, fill_template
from ..tokenizer import EOS, PAD, UNK
from .reading import attend, is_reading, read

FOLDER = Path(__file__).parent
STYLES = [SHARED / "style.css", SHARED / "replay.css", FOLDER / "style.css"]
SCRIPTS = [
    *(SHARED / name for name in ("numbers.js", "pretokenizer.js", "tokenizer.js")),
    *(FOLDER / name for name in ("model.js", "decoding.js")),
    *(SHARED / f"{name}.js" for name in ("maps", "page", "heads", "map", "apart", "lens", "replay", "link")),
    *(FOLDER / f"{name}.js" for name in ("live", "state", "output", "beams", "answers", "explorer", "start")),
]
MAX_BYTES = 4_000_000  # of weights in a page: what any browser opens at once, and an e-mail carries


def check_size(config: TransformerConfig, source: int, target: int) -> None:
    """Refuse a page with the attention of `source` tokens of a prompt and `target` of an output if it is too large."""
    pairs = config.n_encoder_layers * source**2 + config.n_decoder_layers * target * (source + target)
    size = pairs * config.n_heads * 2 * 4 / 3  # base64 makes four bytes of three
    if size > MAX_BYTES:
        raise InputError(
            f"a prompt of {source} tokens and an output of {target} make a page of {size / 1e6:.1f} MB, more than "
            f"{MAX_BYTES / 1e6:.1f}; shorten the prompt, or draw pictures instead of a page",
            "html",
        )


def make_data(
    model: Transformer, tokenizer: Tokenizer, text: str, ids: list[int], layer: int | None, head: int | None, run: Path
) -> dict:
    """Return the page's data. ids: those of the text; layer and head: those shown at first, from 1, None is the mean;
    run: the folder of results that the model's directory lies in."""
    config = model.config
    data = {
        "text": text,
        "layer": layer,
        "head": head,
        "config": asdict(config),
        "special": {name: tokenizer.token_to_id(token) for name, token in (("pad", PAD), ("unk", UNK), ("eos", EOS))},
        "tokens": [],
        "model": None,
        "tokenizer": None,
        "reading": None,
        "why": None,
        **read_training(run, lambda record: is_reading(record, config)),
    }
    found = attend(text, ids, model, tokenizer, config.max_length)  # refuses damaged weights
    try:
        return data | pack_all(model, tokenizer, encode_special=True)
    except InputError as why:
        check_size(config, len(found.source), len(found.target))
        warn(str(why))
        return data | {"reading": read(text, found, tokenizer), "why": f"{why}."}


def render(data: dict) -> str:
    """Return the page's text."""
    return fill_template(FOLDER / "page.html", STYLES, SCRIPTS, data)
