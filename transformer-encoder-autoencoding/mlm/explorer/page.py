"""attention.html: one page that carries the model, for a reader to type into and to take apart, or, where the model is
too large for a page, its reading of one sentence. page.html and the scripts and styles named here are its parts."""

import math
from dataclasses import asdict
from pathlib import Path

from encoder import EncoderConfig

from ..common.errors import InputError, warn
from ..common.page_data import pack_all, read_training
from ..common.web_page import SHARED, fill_template
from ..filler import MaskFiller
from .reading import attend, is_reading, read

FOLDER = Path(__file__).parent
STYLES = [SHARED / "style.css", SHARED / "replay.css", FOLDER / "style.css"]
SCRIPTS = [
    *(SHARED / name for name in ("numbers.js", "pretokenizer.js", "tokenizer.js")),
    FOLDER / "model.js",
    *(SHARED / f"{name}.js" for name in ("page", "maps", "heads", "map", "apart", "lens", "replay", "link")),
    *(FOLDER / f"{name}.js" for name in ("filling", "sentence", "answers", "explorer", "start")),
]
MAX_BYTES = 4_000_000  # of weights in a page, which any browser opens at once, and an e-mail can carry


def check_size(config: EncoderConfig, length: int) -> None:
    """Refuse a sentence with so many tokens that a page with its attention gets too large."""
    bytes_per_pair = config.n_layers * config.n_heads * 2 * 4 / 3  # base64 makes four bytes of three
    most = math.isqrt(int(MAX_BYTES / bytes_per_pair))
    if length > most:
        raise InputError(
            f"the sentence has {length} tokens, and a page has room for {most} with {config.n_layers} layers of "
            f"{config.n_heads} heads; shorten it, or draw the pictures instead of the page",
            "html",
        )


def make_data(filler: MaskFiller, text: str, ids: list[int], layer: int | None, head: int | None, run: Path) -> dict:
    """Return the page's data. ids: those of the text; layer and head: those shown at first, from 1, None is the mean;
    run: the folder of results that the model's directory lies in."""
    model, tokenizer = filler.model, filler.tokenizer
    data = {
        "text": text,
        "layer": layer,
        "head": head,
        "config": asdict(model.config),
        "special": asdict(filler.special),
        "tokens": [],
        "model": None,
        "tokenizer": None,
        "reading": None,
        "why": None,
        **read_training(run, lambda record: is_reading(record, model.config)),
    }
    attend(ids, model)  # refuses damaged weights
    try:
        return data | pack_all(model, tokenizer, encode_special=False)
    except InputError as why:
        check_size(model.config, len(ids))
        warn(str(why))
        return data | {"reading": read(text, ids, model, tokenizer), "why": f"{why}."}


def render(data: dict) -> str:
    """Return the page's text."""
    return fill_template(FOLDER / "page.html", STYLES, SCRIPTS, data)
