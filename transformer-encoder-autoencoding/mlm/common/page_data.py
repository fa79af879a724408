"""The parts of a page's data that both folders have: the model with its tokenizer, and how its training went."""

import base64
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import nn

from .checkpoint import is_unfinished
from .errors import InputError, warn
from .progress import CURVE, MAX_WATCHED, WATCHED
from .token_text import show_token
from .tokenizer_json import parts_of
from .web_page import MAX_PAGE_BYTES, model_bytes, pack_model

MAX_FILE = 20_000_000  # bytes of a file of records; a run of a million evaluations is no run to replay
MAX_POINTS = 1000  # of a curve, more than a screen can show


def pack_all(model: nn.Module, tokenizer: Tokenizer, encode_special: bool) -> dict:
    """Return the page's "model", "tokenizer" and "tokens". encode_special: names of special tokens in a text are text.

    A model that is too large for a page, or has a tokenizer that does not run in one, is refused in words that fit
    "why".
    """
    content = write_tokenizer(tokenizer)
    size = model_bytes(model.state_dict()) + len(content.encode())
    if size > MAX_PAGE_BYTES:
        raise InputError(
            f"the model takes {size / 1e6:,.1f} MB, and a page has room for {MAX_PAGE_BYTES / 1e6:.0f}, so it "
            "shows this text only"
        )
    ids = range(model.config.vocab_size)
    return {
        "model": pack_model(model.state_dict()),
        "tokenizer": json.loads(content) | {"encode_special": encode_special},
        "tokens": [None if tokenizer.id_to_token(i) is None else show_token(tokenizer, i) for i in ids],
    }


def write_tokenizer(tokenizer: Tokenizer) -> str:
    """Return the tokenizer.json that runs in the page, or refuse the tokenizer."""
    if not isinstance(tokenizer, Tokenizer):
        raise InputError("the page cannot carry a SentencePiece tokenizer, so it shows this text only")
    content = tokenizer.to_str()
    later = parts_of(json.loads(content), "pre_tokenizer")[1:]  # cut a character of which normalizers made several
    if any(part.get("prepend_scheme") == "first" for part in later):
        raise InputError("the page cannot tell this tokenizer's first word, so it shows this text only")
    return content


def read_training(folder: Path, is_reading: Callable[[dict], bool]) -> dict:
    """Return the page's "curve" and "watched" from a run's folder, both empty if nothing was watched there.

    is_reading: whether a record of watched.jsonl is one of this model. Files that are damaged or of another model are
    left out with a warning.
    """
    found = {"curve": [], "watched": []}
    if is_unfinished(folder / "checkpoint.pt", folder / "model" / "config.json"):
        return found  # the records are of a run that has not made this model
    if (folder / WATCHED).is_file():
        try:
            found = {"curve": read_curve(folder / CURVE), "watched": read_records(folder / WATCHED, 2 * MAX_WATCHED)}
            if not all(
                is_number(one["step"]) and is_number(one["epoch"]) and is_reading(one) for one in found["watched"]
            ):
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            warn(f"{folder / WATCHED}: is damaged or not of this model; the page does not replay its training")
            found = {"curve": [], "watched": []}
    return found


def read_records(path: Path, most: int) -> list[dict]:
    """Read the JSON object in each line of a file of at most `most` bytes, all fit for a page."""
    if path.stat().st_size > most:
        raise ValueError
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    json.dumps(records, allow_nan=False, ensure_ascii=False).encode()  # raises for what JavaScript cannot read
    return records


def read_curve(path: Path) -> list[dict]:
    """Read the two losses at every evaluation, or at MAX_POINTS of them."""
    records = read_records(path, MAX_FILE)
    every = -(-len(records) // MAX_POINTS) or 1
    names = "step", "train_loss", "held_out_loss"
    curve = [{name: record[name] for name in names} for record in [*records[:-1:every], *records[-1:]]]
    if not all(is_number(value) for record in curve for value in record.values()):
        raise ValueError
    return curve


def is_number(value: Any) -> bool:
    """Return True for a finite number from 0 up."""
    return type(value) in (int, float) and 0 <= value < math.inf


def are_texts(value: Any) -> bool:
    """Return True for a list of texts."""
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def are_candidates(value: Any) -> bool:
    """Return True for a list of tokens with their probabilities."""
    return isinstance(value, list) and all(
        isinstance(one["token"], str) and is_number(one["probability"]) for one in value
    )


def are_weights(value: Any, *shape: int) -> bool:
    """Return True for weights of this shape as pack_weights packs them."""
    return len(base64.b64decode(value, validate=True)) == 2 * math.prod(shape)
