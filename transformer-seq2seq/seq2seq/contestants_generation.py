"""What benchmark.py compares in generation: our engines, Hugging Face's generate, and CTranslate2 driven by hand."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from transformer import Transformer

from .common.errors import plural
from .config import GenerationConfig
from .engines import CTranslate2Engine, Engine, PyTorchEngine

Answers = list[tuple[list[int], float]]  # for each prompt the generated ids, without </s>, and the score
Answerer = Callable[[list[list[int]], int, int], Answers]  # ids of the prompts, prompts a batch, beam width


@dataclass(frozen=True)
class Task:
    """A number of prompts, in batches of this size, decoded with this beam."""

    name: str
    prompts: int
    batch_size: int
    beam: int


TASKS = [
    Task("one prompt at a time, greedy", 20, 1, 1),
    Task("batches of 64, greedy", 320, 64, 1),
    Task("batches of 64, beam 5", 128, 64, 5),
]


def ours(engine: Engine, max_length: int) -> Answerer:
    """Return this project's generation by one of its engines."""

    def answer(prompts: list[list[int]], batch_size: int, beam: int) -> Answers:
        decode = engine.decoder(GenerationConfig(beam, 1.0, max_length=max_length, batch_size=batch_size))
        at_once = 1 if batch_size == 1 else len(prompts)  # else CTranslate2 would take several at a time
        parts = [prompts[start : start + at_once] for start in range(0, len(prompts), at_once)]
        return [(best.ids, best.score) for part in parts for best, *_ in decode(part)]

    return answer


def hugging_face(directory: Path, device: torch.device, max_length: int, threads: int) -> Answerer:
    """Return transformers' generate on some threads; prompts of like length go into a batch together, as in
    ours."""
    from transformers import AutoModelForSeq2SeqLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = AutoModelForSeq2SeqLM.from_pretrained(directory).to(device).eval()
    pad, eos = model.config.pad_token_id, model.config.eos_token_id
    rules = {"max_length": max_length + 1, "length_penalty": 1.0, "early_stopping": False}

    def answer(prompts: list[list[int]], batch_size: int, beam: int) -> Answers:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return decode(prompts, batch_size, beam)
        finally:
            torch.set_num_threads(before)

    def decode(prompts: list[list[int]], batch_size: int, beam: int) -> Answers:
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        answers: dict[int, tuple[list[int], float]] = {}
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            rows = [torch.tensor(prompts[i]) for i in chosen]
            source = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad).to(device)
            out = model.generate(
                input_ids=source,
                attention_mask=(source != pad).long(),
                num_beams=beam,
                return_dict_in_generate=True,
                output_scores=beam > 1,
                **rules,
            )
            scores = out.sequences_scores.tolist() if beam > 1 else [0.0] * len(chosen)
            for i, ids, score in zip(chosen, out.sequences[:, 1:].tolist(), scores, strict=True):
                answers[i] = (ids[: ids.index(eos)] if eos in ids else ids, score)
        return [answers[i] for i in range(len(prompts))]

    return answer


def ctranslate2(
    directory: Path,
    device: torch.device,
    max_length: int,
    tokenizer: Tokenizer,
    compute_type: str,
    at_once: int,
    threads: int,
) -> Answerer:
    """Return CTranslate2, which groups prompts of like length by itself, with a number of batches at once and of
    threads for each."""
    import ctranslate2

    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "model"
        ctranslate2.converters.TransformersConverter(str(directory)).convert(str(converted))
        translator = ctranslate2.Translator(
            str(converted),
            device=device.type if device.type == "cuda" else "cpu",
            compute_type=compute_type,
            inter_threads=at_once,
            intra_threads=threads,
        )

    def answer(prompts: list[list[int]], batch_size: int, beam: int) -> Answers:
        if batch_size == 1:  # else it would take several at a time
            return [one for prompt in prompts for one in decode([prompt], 1, beam)]
        return decode(prompts, batch_size, beam)

    def decode(prompts: list[list[int]], batch_size: int, beam: int) -> Answers:
        found = translator.translate_batch(
            [[tokenizer.id_to_token(i) for i in ids] for ids in prompts],
            max_batch_size=batch_size,
            beam_size=beam,
            max_decoding_length=max_length,
            length_penalty=1.0,
            return_scores=True,
        )
        return [([tokenizer.token_to_id(token) for token in one.hypotheses[0]], one.scores[0]) for one in found]

    return answer


def generation_engines(
    directory: Path, model: Transformer, tokenizer: Tokenizer, device: torch.device
) -> dict[str, Answerer]:
    """Return the engines by name, ready to decode with the model of a directory."""
    max_length, threads = model.config.max_length - 1, torch.get_num_threads()
    engines = {
        "ours": ours(PyTorchEngine(model), max_length),
        "ours, ctranslate2": ours(CTranslate2Engine(model, "cuda" if device.type == "cuda" else "cpu"), max_length),
    }
    for n in dict.fromkeys([threads, 1]):
        engines[f"Hugging Face, {plural(n, 'thread')}"] = hugging_face(directory, device, max_length, n)
    ways = [("float32", 1, threads), ("float32", threads, 1), ("int8", threads, 1)]
    for compute_type, at_once, n in dict.fromkeys(ways):
        name = f"CTranslate2, {compute_type}, {plural(n, 'thread')}" + f" x {at_once}" * (at_once > 1)
        engines[name] = ctranslate2(directory, device, max_length, tokenizer, compute_type, at_once, n)
    return engines


def agreement(mine: Answers, other: Answers) -> str:
    """Say how many answers are the same and, of beam search, how far the scores of those are apart."""
    same = [(a[1], b[1]) for a, b in zip(mine, other, strict=True) if a[0] == b[0]]
    apart = max((abs(a - b) for a, b in same if b), default=0.0)
    return f"{len(same)} of {len(mine)}" + (f", scores within {apart:.0e}" if apart else "")
