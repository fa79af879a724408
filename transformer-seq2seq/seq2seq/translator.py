"""From prompts to texts, with a model directory.

from seq2seq import Translator

translator = Translator.load("samples/model")
translator("AI improves healthcare")                         # a text
translator(["What is attention?", "Explain AI"], beam=5)     # a list of texts
translator("What is attention?", beam=5, n_best=3)           # its three best texts
Translator.load("samples/model", engine="ctranslate2")       # faster; needs the package ctranslate2
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from decoding import Hypothesis
from transformer import Transformer

from . import marian
from .common.command_line import pick_device
from .common.errors import InputError, plural, warn
from .common.standard_input import always
from .config import GenerationConfig
from .engines import ENGINES, CTranslate2Engine, Engine, PyTorchEngine
from .generation import encode_lines, encode_prompts
from .tokenizer import to_text

BATCHES = 32  # of lines are read and held at a time, and those of like length decoded together


@dataclass(frozen=True)
class Output:
    """A generated text, the sum of the log-probabilities of its tokens (nats), and False if it was cut at the maximum
    length."""

    text: str
    log_probability: float
    finished: bool


class Session:
    """A model that answers with the same settings, call after call."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, config: GenerationConfig, engine: Engine):
        self.config = config.resolve(model)
        self.model, self.tokenizer = model, tokenizer
        self.max_length, positions = self.config.max_length, model.config.max_length
        if self.max_length > positions:
            raise InputError(
                f"max_length {self.max_length}: the model has {positions} positions; lower it", "max_length"
            )
        self.decode = engine.decoder(self.config)

    def answer(self, prompts: list[str], places: list[str] | None = None) -> list[list[Output]]:
        """Return the n_best outputs for each prompt, best first. places: where each comes from, for messages."""
        places = places or [f"prompt {i}" for i in range(1, len(prompts) + 1)]
        found = self.generate(encode_prompts(prompts, places, self.model, self.tokenizer))
        self.warn_of_cuts(sum(not output.finished for outputs in found for output in outputs))
        return found

    def answer_lines(
        self,
        lines: Iterator[tuple[int, str]],
        name: str,
        unknown: dict[str, None],
        has_line: Callable[[], bool] = always,
    ) -> Iterator[tuple[str, list[Output]]]:
        """Answer a stream of numbered lines of any length, as encode_lines reads it: yield every line with its n_best
        outputs, a blank one with an empty output."""
        cut = 0
        try:
            for chunk, ids in self.encode_lines(lines, name, unknown, has_line):
                found = dict(zip(ids, self.generate(list(ids.values())), strict=True))
                cut += sum(not output.finished for outputs in found.values() for output in outputs)
                for i, line in enumerate(chunk):
                    yield line, found.get(i, [Output("", 0.0, True)])
        finally:
            self.warn_of_cuts(cut)

    def warn_of_cuts(self, count: int) -> None:
        """Warn of outputs that did not come to their end."""
        if count:
            cut = f"{plural(count, 'output')} cut at {plural(self.max_length, 'token')}"
            if self.max_length == self.model.config.max_length:
                warn(f"{cut}, all the model has")
            else:
                warn(f"{cut}; a larger limit gives more", "max_length")

    def check_lines(self, lines: Iterator[tuple[int, str]], name: str) -> None:
        """Refuse a stream with a line that cannot be answered."""
        for _ in self.encode_lines(lines, name, {}):
            pass

    def encode_lines(
        self,
        lines: Iterator[tuple[int, str]],
        name: str,
        unknown: dict[str, None],
        has_line: Callable[[], bool] = always,
    ) -> Iterator[tuple[list[str], dict[int, list[int]]]]:
        """Encode the lines of BATCHES batches at a time."""
        size = BATCHES * self.config.batch_size
        return encode_lines(lines, name, self.model, self.tokenizer, size, unknown, has_line)

    def generate(self, sources: list[list[int]]) -> list[list[Output]]:
        """Return the n_best different outputs for each source, or as many as were found, best first. sources: token
        ids, each ending in </s>."""
        return [self.different_texts(hypotheses) for hypotheses in self.decode(sources)]

    def different_texts(self, hypotheses: list[Hypothesis]) -> list[Output]:
        """Return the n_best outputs; of hypotheses with the same text the first."""
        outputs: dict[str, Output] = {}
        for one in hypotheses:
            text = to_text(self.tokenizer, one.ids)
            outputs.setdefault(text, Output(text, one.log_probability, one.finished))
            if len(outputs) == self.config.n_best:
                break
        return list(outputs.values())


class Translator:
    """A trained encoder-decoder with its tokenizer, and the engine that decodes (default: PyTorch)."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, engine: Engine | None = None):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.engine = engine or PyTorchEngine(model)

    @classmethod
    def load(
        cls, directory: Path | str, device: str = "auto", engine: str = "pytorch", engine_precision: str | None = None
    ) -> "Translator":
        """Load a model directory, one of train.py or any MarianMT's. device, engine and engine_precision: as the flags
        of inference.py."""
        if engine not in ENGINES:
            raise InputError(f"engine is {engine!r}; use one of {', '.join(ENGINES)}", "engine")
        if engine == "pytorch":
            if engine_precision:
                raise InputError("engine_precision is a setting of the engine ctranslate2", "engine_precision")
            return cls(*marian.load(Path(directory), pick_device(device)))
        model, tokenizer = marian.load(Path(directory), torch.device("cpu"))
        return cls(model, tokenizer, CTranslate2Engine(model, device, engine_precision or "float32"))

    def __call__(
        self,
        prompts: str | list[str],
        *,
        beam: int | None = GenerationConfig.beam,
        length_penalty: float | None = GenerationConfig.length_penalty,
        n_best: int = GenerationConfig.n_best,
        sample: bool = GenerationConfig.sample,
        temperature: float = GenerationConfig.temperature,
        top_k: int = GenerationConfig.top_k,
        top_p: float = GenerationConfig.top_p,
        seed: int = GenerationConfig.seed,
        max_length: int | None = GenerationConfig.max_length,
        batch_size: int = GenerationConfig.batch_size,
    ) -> str | list[str] | list[list[str]]:
        """Answer a prompt, or each of several, with the settings of GenerationConfig.

        Return the text for a prompt, a list of texts for a list. If n_best is more than 1, each text becomes a list
        of the n_best different texts, or as many as were found, the best first.
        """
        config = GenerationConfig(
            beam, length_penalty, n_best, sample, temperature, top_k, top_p, seed, max_length, batch_size
        )
        found = self.session(config).answer([prompts] if isinstance(prompts, str) else list(prompts))
        texts = [[output.text for output in outputs] for outputs in found]
        if n_best == 1:
            texts = [text for (text,) in texts]
        return texts[0] if isinstance(prompts, str) else texts

    def session(self, config: GenerationConfig) -> Session:
        """Return the model with these settings: for log-probabilities, streams of lines, and scripts."""
        return Session(self.model, self.tokenizer, config, self.engine)
