"""A reading: what the model makes of a sentence. All its attention weights, and its guesses for each word."""

import torch
from tokenizers import Tokenizer
from torch import Tensor

from encoder import EncoderConfig, MaskedLanguageModel

from ..common.errors import InputError
from ..common.page_data import are_candidates, are_texts, are_weights, is_number
from ..common.progress import check_watched
from ..common.token_text import show_token, show_tokens
from ..common.unknown_words import collect_unknown
from ..common.web_page import pack_weights
from ..config import TrainConfig
from ..filler import MaskFiller, Sentence
from ..filling import hide_each, ids_without_token, likeliest, predict
from ..tokenizer import UNK, SpecialIds

GUESSES, GUESS_BYTES = 5, 60  # for each word, and about so many bytes of JSON for each of them


@torch.inference_mode()
def attend(ids: list[int], model: MaskedLanguageModel) -> tuple[Tensor, Tensor]:
    """Let the encoder read a sentence -> hidden states (S, D) and all attention weights (L, H, S, S)."""
    device = model.head.decoder.weight.device
    hidden_states, layers = model.encoder(torch.tensor([ids], device=device), need_weights=True)
    weights = torch.stack(layers)[:, 0].cpu()
    if not weights.isfinite().all():
        raise InputError("the model's attention is NaN: its weights are damaged; download it again")
    return hidden_states[0], weights


def guess_each(ids: list[int], model: MaskedLanguageModel, tokenizer: Tokenizer) -> list[dict | None]:
    """Let the model guess each token from all others.

    Return for each id {"best": the likeliest [{"token": str, "probability": float, "right": bool}, ...],
    "itself": the probability of the token that is there, None if that is [MASK]}; None for [CLS] and [SEP].
    """
    special, found = SpecialIds.of(tokenizer), [None] * len(ids)
    queries, absent = hide_each(ids, special), ids_without_token(tokenizer, model)
    for q, log_probs in predict(queries, model, special, model.head.decoder.weight.device):
        (position,) = queries[q].positions
        token, (best,) = ids[position], likeliest(log_probs, GUESSES, absent)
        found[position] = {
            "best": [
                {"token": show_token(tokenizer, t), "probability": round(p, 3), "right": t == token} for t, p in best
            ],
            "itself": None if token == special.mask else round(log_probs[0, token].exp().item(), 3),
        }
    return found


def read(text: str, ids: list[int], model: MaskedLanguageModel, tokenizer: Tokenizer) -> dict:
    """Return the reading of a sentence with these ids: {"text", "words": each token as it is shown, "weights": the
    attention (L, H, S, S), packed, "guesses": as guess_each returns them}."""
    _, weights = attend(ids, model)
    return {
        "text": text,
        "words": show_tokens(tokenizer, ids, text, SpecialIds.of(tokenizer).unk),
        "weights": pack_weights(weights),
        "guesses": guess_each(ids, model, tokenizer),
    }


def encode_watched(config: TrainConfig, model: MaskedLanguageModel, tokenizer: Tokenizer) -> dict[str, list[int]]:
    """Return the sentences that a run watches, with their ids. One that the model cannot read is refused, or, if
    nobody named it, not watched."""
    filler, found, n_maps = MaskFiller(model, tokenizer), {}, model.config.n_layers * model.config.n_heads
    try:
        with collect_unknown(UNK) as unknown:
            for text in config.watched:
                place = f"the watched text {text[:40]!r}"
                found[text] = filler.encode(Sentence(text, place), unknown).ids
                if set(found[text]) <= {*filler.special.all} - {filler.special.mask}:
                    raise InputError(f"{place}: the model knows none of its words; give another")
            if unknown and config.watch is None:
                unknown.clear()
                return {}
        check_watched(sum(n_maps * 8 / 3 * len(ids) ** 2 + GUESSES * GUESS_BYTES * len(ids) for ids in found.values()))
    except InputError as error:
        if config.watch is None:
            return {}
        raise InputError(str(error), "watch") from None
    return found


def is_reading(value: dict, config: EncoderConfig) -> bool:
    """Return True for a reading of a model with this configuration; False, or an error, for anything else."""
    words, guesses = value["words"], value["guesses"]
    found = [guess for guess in guesses if guess is not None]
    return (
        are_texts([value["text"]])
        and are_texts(words)
        and are_weights(value["weights"], config.n_layers, config.n_heads, len(words), len(words))
        and len(guesses) == len(words)
        and all(are_candidates(guess["best"]) for guess in found)
        and all(guess["itself"] is None or is_number(guess["itself"]) for guess in found)
    )
