"""seq2seq.generation"""

from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

from tokenizers import Tokenizer

from decoding import Hypothesis
from transformer import Transformer

from .common.errors import InputError, warn
from .tokenizer import UNK

MOST_UNKNOWN = 1000  # words are remembered to be warned of


def look_up(
    prompts: list[str], places: list[str], model: Transformer, tokenizer: Tokenizer, unknown: dict[str, None]
) -> list[list[int]]:
    """The ids of prompts; places says of each where it comes from. Words that the model does not know are
    added to `unknown`, a set in order.

    Raises InputError, naming the place, where one is empty or too long for the model.
    """
    for place, prompt in zip(places, prompts, strict=True):
        try:
            prompt.encode()
        except UnicodeEncodeError:  # how Python holds bytes of the command line that are not UTF-8
            raise InputError(f"{place} is not UTF-8 text; write it in UTF-8") from None
    unk, limit, rows = tokenizer.token_to_id(UNK), model.config.max_length, []
    for place, prompt, encoding in zip(places, prompts, tokenizer.encode_batch(prompts), strict=True):
        if len(encoding) < 2:
            raise InputError(f"{place} is empty; give it a text")
        if len(encoding) > limit:
            raise InputError(f"{place} has {len(encoding)} tokens, the model takes {limit}; shorten it")
        if unk in encoding.ids:
            spans = zip(encoding.offsets, encoding.ids, strict=True)
            words = [prompt[start:end].strip() for (start, end), token in spans if token == unk]
            if len(unknown) < MOST_UNKNOWN:
                unknown |= dict.fromkeys(filter(None, words))
        rows.append(encoding.ids)
    return rows


def encode(prompts: list[str], places: list[str], model: Transformer, tokenizer: Tokenizer) -> list[list[int]]:
    """As look_up, with a warning that names unknown words."""
    unknown: dict[str, None] = {}
    rows = look_up(prompts, places, model, tokenizer, unknown)
    warn_of(unknown)
    return rows


def warn_of(unknown: dict[str, None]) -> None:
    """Say which words the model does not know, if there are any."""
    if unknown:
        words = [word if len(word) < 40 else f"{word[:39]}…" for word in islice(unknown, 5)]
        at_least = "at least " if len(unknown) >= MOST_UNKNOWN else ""
        more = f" and {at_least}{len(unknown) - 5} more" if len(unknown) > 5 else ""
        warn(f"unknown to the model, which sees {UNK} for it: {', '.join(words)}{more}")


def sound(found: list[list[Hypothesis]]) -> list[list[Hypothesis]]:
    """The outputs, if there are some for every prompt. Raises InputError where there are none, as of weights
    that are far too large, with which all probabilities are NaN."""
    if not all(found):
        raise InputError("the model answers with what is no number, so its weights are damaged; get it anew")
    return found


def encoded_chunks(
    lines: Iterator[str],
    name: str,
    model: Transformer,
    tokenizer: Tokenizer,
    size: int,
    unknown: dict[str, None],
) -> Iterator[tuple[list[str], dict[int, list[int]]]]:
    """Read `size` lines at a time: the lines, and the ids of those that are not blank, by their place among
    them. Raises InputError where all are blank, or one cannot be answered."""
    before, answerable = 0, False
    while chunk := list(islice(lines, size)):
        asked = [i for i, line in enumerate(chunk) if line.strip()]
        places = [f"{name}, line {before + i + 1}," for i in asked]
        ids = look_up([chunk[i] for i in asked], places, model, tokenizer, unknown)
        yield chunk, dict(zip(asked, ids, strict=True))
        before, answerable = before + len(chunk), answerable or bool(asked)
    if not answerable:
        raise InputError(f"{name}: holds no text; a prompt a line is needed")


def position(stream: BinaryIO) -> int | None:
    """Where a stream is, if it can be read again from there: a file can, a pipe or a terminal cannot."""
    try:
        return stream.tell()
    except OSError:
        return None
