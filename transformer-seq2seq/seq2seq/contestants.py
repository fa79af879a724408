"""seq2seq.contestants"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from decoding import generate_all

from . import marian as pretrained
from .common.errors import InputError

Answers = list[tuple[list[int], float]]  # for each prompt the ids generated, without </s>, and the score


Engine = Callable[[list[list[int]], int, int], Answers]  # ids of the prompts, prompts a batch, beam width


@dataclass(frozen=True)
class Task:
    """So many prompts, in batches of that size, with that beam."""

    name: str
    prompts: int
    batch_size: int
    beam: int


TASKS = [
    Task("one prompt at a time, greedy", 20, 1, 1),
    Task("batches of 64, greedy", 320, 64, 1),
    Task("batches of 64, beam 5", 128, 64, 5),
]


def ours(directory: Path, device: torch.device, max_length: int) -> Engine:
    model, _ = pretrained.load(directory, device)

    def answer(prompts: list[list[int]], batch_size: int, beam: int) -> Answers:
        found = generate_all(model, prompts, max_length, batch_size, beam)
        return [(hypotheses[0].ids, hypotheses[0].score) for hypotheses in found]

    return answer


def hugging_face(directory: Path, device: torch.device, max_length: int, threads: int) -> Engine:
    """transformers' generate on so many threads; prompts of like length go into a batch together, as in
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
) -> Engine:
    """CTranslate2, which groups prompts of like length by itself, with so many batches at once and so many
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


def agreement(mine: Answers, other: Answers) -> str:
    """How many answers are the same, and, of beam search, how far the scores of those are apart."""
    same = [(a[1], b[1]) for a, b in zip(mine, other, strict=True) if a[0] == b[0]]
    apart = max((abs(a - b) for a, b in same if b), default=0.0)
    return f"{len(same)} of {len(mine)}" + (f", scores within {apart:.0e}" if apart else "")


def counted(threads: int) -> str:
    """A number of threads in words."""
    return f"{threads} thread{'s' * (threads > 1)}"


def main(directory: Path, texts: list[str], device: torch.device, rounds: int) -> None:
    """Print a table: generated tokens per second of each engine on each task, medians of the rounds."""
    model, tokenizer = pretrained.load(directory, device)  # reports what is wrong with the directory
    if not isinstance(tokenizer, Tokenizer):
        raise InputError(f"{directory}: has SentencePiece models; the benchmark needs a tokenizer.json")
    max_length = model.config.max_length - 1
    prompts = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    prompts = [ids for ids in prompts if len(ids) <= model.config.max_length]
    if not prompts:
        raise InputError("no prompt of the input is short enough for the model; give it shorter ones")
    engines = {"ours": ours(directory, device, max_length)}
    threads = torch.get_num_threads()
    for n in dict.fromkeys([threads, 1]):
        engines[f"Hugging Face, {counted(n)}"] = hugging_face(directory, device, max_length, n)
    ways = [("float32", 1, threads), ("float32", threads, 1), ("int8", threads, 1)]
    for compute_type, at_once, n in dict.fromkeys(ways):
        name = f"CTranslate2, {compute_type}, {counted(n)}" + f" x {at_once}" * (at_once > 1)
        engines[name] = ctranslate2(directory, device, max_length, tokenizer, compute_type, at_once, n)
    for task in TASKS:
        asked = [prompts[i % len(prompts)] for i in range(task.prompts)]
        rates: dict[str, list[float]] = {name: [] for name in engines}
        answers: dict[str, Answers] = {}
        for round_ in tqdm(range(-1, rounds), desc=task.name, unit="round", leave=False):
            for name, engine in engines.items():
                started = time.perf_counter()
                answers[name] = engine(asked, task.batch_size, task.beam)
                seconds = time.perf_counter() - started
                if round_ >= 0:  # the first only warms up
                    rates[name].append(sum(len(ids) + 1 for ids, _ in answers[name]) / seconds)
        print(f"\n{task.name:34}{'tokens/s':>10}{'ratio':>8}   same output as ours")
        medians = {name: statistics.median(of) for name, of in rates.items()}
        for name, rate in medians.items():
            same = agreement(answers["ours"], answers[name]) if name != "ours" else ""
            print(f"{name:34}{rate:10,.0f}{medians['ours'] / rate:8.1f}   {same}")
    print("\ntokens/s: generated, </s> included. ratio: how many times faster ours is.")
    print("x N: so many batches at once; ours of a narrow model likewise, one a core, at most four.")
