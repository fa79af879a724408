"""A reading: what the model makes of a prompt. Its greedy output, all attention of generating it, and the likeliest
words at each step."""

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from decoding import generate
from transformer import Attentions, Transformer, TransformerConfig, padding_mask

from ..common.errors import InputError
from ..common.page_data import are_candidates, are_texts, are_weights
from ..common.progress import check_watched
from ..common.token_text import show_token, show_tokens
from ..common.unknown_words import collect_unknown
from ..common.web_page import pack_weights
from ..config import TrainConfig
from ..generation import encode_prompts, require_outputs
from ..tokenizer import UNK

CANDIDATES, CANDIDATE_BYTES = 5, 45  # for each word, and about so many bytes of JSON for each of them
MAX_WATCHED_OUTPUT = 40  # tokens


@dataclass
class Attended:
    """What a generated text attends to. Words: source (S), those of the prompt; generated (T); and target (T), which
    the decoder reads, the start and the words before the last. Weights: cross (L, H, T, S), decoder (L, H, T, T) and
    encoder (L, H, S, S). probabilities (T, V) of the next token."""

    source: list[str]
    generated: list[str]
    target: list[str]
    cross: Tensor
    decoder: Tensor
    encoder: Tensor
    probabilities: Tensor


@torch.inference_mode()
def attend(text: str, ids: list[int], model: Transformer, tokenizer: Tokenizer, max_length: int) -> Attended:
    """Generate from a prompt, whose ids these are, greedily, at most max_length tokens, and look at all
    attention."""
    config = model.config
    source = torch.tensor([ids], device=model.output_bias.device)
    output = require_outputs(generate(model, source, max_length))[0][0].ids
    output = [*output, config.eos_id][:max_length]
    target = torch.tensor([[config.pad_id, *output[:-1]]], device=source.device)
    attentions = Attentions()
    memory, encoder = model.encode(source, need_weights=True)
    hidden = model.decode(target, memory, padding_mask(source, config.pad_id), attentions=attentions)
    generated = [show_token(tokenizer, token) for token in output]
    return Attended(
        source=show_tokens(tokenizer, ids, text, tokenizer.token_to_id(UNK)),
        generated=generated,
        target=["start", *generated[:-1]],
        cross=torch.stack(attentions.cross)[:, 0].cpu(),
        decoder=torch.stack(attentions.decoder)[:, 0].cpu(),
        encoder=torch.stack(encoder)[:, 0].cpu(),
        probabilities=model.project(hidden)[0].float().softmax(dim=-1).cpu(),
    )


def next_words(probabilities: Tensor, tokenizer: Tokenizer) -> list[list[dict]]:
    """Return the likeliest next words: probabilities (T, V) -> for each of T steps [{"token": str, "probability":
    float}, ...], the likeliest first."""
    best = probabilities.topk(min(CANDIDATES, probabilities.size(1)))
    return [
        [{"token": show_token(tokenizer, t), "probability": round(p, 3)} for t, p in zip(*step, strict=True)]
        for step in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def read(text: str, found: Attended, tokenizer: Tokenizer) -> dict:
    """Return the reading of a prompt: {"text", "source", "output" and "target": tokens as they are shown, "weights":
    {"cross": (L, H, T, S), "decoder": (L, H, T, T), "encoder": (L, H, S, S)}, packed, "next": as next_words returns
    them}."""
    return {
        "text": text,
        "source": found.source,
        "output": found.generated,
        "target": found.target,
        "weights": {kind: pack_weights(getattr(found, kind)) for kind in ("cross", "decoder", "encoder")},
        "next": next_words(found.probabilities, tokenizer),
    }


def encode_watched(config: TrainConfig, model: Transformer, tokenizer: Tokenizer) -> dict[str, list[int]]:
    """Return the prompts that a run watches, with their ids. One that the model cannot read is refused, or, if nobody
    named it, not watched."""
    sizes, texts = model.config, list(config.watched)
    target = min(MAX_WATCHED_OUTPUT, sizes.max_length)
    try:
        with collect_unknown(UNK) as unknown:
            places = [f"the watched text {text[:40]!r}" for text in texts]
            found = dict(zip(texts, encode_prompts(texts, places, model, tokenizer, unknown), strict=True))
            if unknown and config.watch is None:
                unknown.clear()
                return {}
        lengths = [len(ids) for ids in found.values()]
        pairs = [sizes.n_encoder_layers * n**2 + sizes.n_decoder_layers * target * (n + target) for n in lengths]
        check_watched(sum(sizes.n_heads * 8 / 3 * n + target * CANDIDATES * CANDIDATE_BYTES for n in pairs))
    except InputError as error:
        if config.watch is None:
            return {}
        raise InputError(str(error), "watch") from None
    return found


def read_watched(text: str, ids: list[int], model: Transformer, tokenizer: Tokenizer) -> dict:
    """Return the reading of a watched text; a model that is not trained yet may not come to an end."""
    length = min(MAX_WATCHED_OUTPUT, model.config.max_length)
    return read(text, attend(text, ids, model, tokenizer, length), tokenizer)


def is_reading(value: dict, config: TransformerConfig) -> bool:
    """Return True for a reading of a model with this configuration; False, or an error, for anything else."""
    source, output, target, weights = value["source"], value["output"], value["target"], value["weights"]
    encoder, decoder = (config.n_encoder_layers, config.n_heads), (config.n_decoder_layers, config.n_heads)
    return (
        all(map(are_texts, ([value["text"]], source, output, target)))
        and len(output) == len(target) == len(value["next"]) > 0
        and are_weights(weights["cross"], *decoder, len(output), len(source))
        and are_weights(weights["decoder"], *decoder, len(output), len(output))
        and are_weights(weights["encoder"], *encoder, len(source), len(source))
        and all(step and are_candidates(step) for step in value["next"])
    )
