"""From prompts to texts, with a model directory.

from seq2seq import Translator

translator = Translator.load("samples/model")
translator("AI improves healthcare")                         # a text
translator(["What is attention?", "Explain AI"], beam=5)     # a list of texts
translator("What is attention?", beam=5, n_best=3)           # its three best texts
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from decoding import Hypothesis, Sampler
from transformer import Transformer

from . import marian
from .common.command_line import check_fields, flag, float_in, int_in, pick_device
from .common.errors import InputError, warn
from .common.standard_input import always
from .generation import encode_lines, encode_prompts, generate_all, require_outputs
from .tokenizer import to_text

BATCHES = 32  # of lines are read and held at a time, and those of like length decoded together


@dataclass(frozen=True)
class GenerationConfig:
    """The settings of generation: flags of inference.py, keyword arguments of Translator."""

    beam: int | None = flag(
        None, "the beam width; 1 is greedy decoding (default: the model's, 1 if it has none)", type=int_in(1, 1000)
    )
    length_penalty: float | None = flag(
        None,
        "the A in log p / length^A, by which outputs are ranked (default: the model's, 1 if it has none)",
        type=float_in(-10, 10),
        metavar="A",
    )
    n_best: int = flag(1, "the number of outputs for each prompt", type=int_in(1, 1000))
    sample: bool = flag(False, "draw the tokens at random instead")
    temperature: float = flag(
        1.0, "the divisor of the logits: above 1 flatter, below 1 sharper", type=float_in(1e-3, 1e3)
    )
    top_k: int = flag(0, "the number of likeliest tokens to draw from; 0 is all of them", type=int_in(0))
    top_p: float = flag(1.0, "the probability of the likeliest tokens to draw from", type=float_in(1e-6, 1))
    seed: int = flag(0, "the seed of the sampling", type=int_in(0))
    max_length: int | None = flag(
        None, "the most tokens in an output, </s> included (default: the model's)", type=int_in(1, 100_000)
    )
    batch_size: int = flag(64, "the number of prompts decoded together", type=int_in(1, 100_000))

    def __post_init__(self):
        check_fields(self)
        if self.beam and self.n_best > self.beam and not self.sample:
            raise InputError(f"n_best {self.n_best} needs a beam of {self.n_best} or more, or sampling", "n_best")
        if self.sample and (self.beam or 1) > 1:
            raise InputError("sampling and beam search exclude each other", "sample")
        if not self.sample and (self.temperature, self.top_k, self.top_p) != (1.0, 0, 1.0):
            raise InputError("temperature, top_k and top_p need sampling", "sample")

    def resolve(self, model: Transformer) -> "GenerationConfig":
        """Return the configuration with a model's defaults, those of its generation_config.json, for what is None."""
        defaults, positions = marian.generation_of(model), model.config.max_length
        beam = 1 if self.sample else defaults.get("num_beams", 1)
        return replace(
            self,
            beam=beam if self.beam is None else self.beam,
            length_penalty=defaults.get("length_penalty", 1.0) if self.length_penalty is None else self.length_penalty,
            max_length=self.max_length or min(positions, defaults.get("max_length", positions + 1) - 1),
        )


@dataclass(frozen=True)
class Output:
    """A generated text, the sum of the log-probabilities of its tokens (nats), and False if it was cut at the maximum
    length."""

    text: str
    log_probability: float
    finished: bool


class Session:
    """A model that answers with the same settings, call after call; when sampling, each prompt has random numbers of
    its own, which the seed and the number of prompts before it decide."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, config: GenerationConfig):
        config = config.resolve(model)
        self.model, self.tokenizer, self.config = model, tokenizer, config
        positions = model.config.max_length
        self.max_length = config.max_length
        if self.max_length > positions:
            raise InputError(
                f"max_length {self.max_length}: the model has {positions} positions; lower it", "max_length"
            )
        self.prompts_seen = 0

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
            remedy = "all the model has" if self.max_length == self.model.config.max_length else "raise max_length"
            warn(f"{count:,} output{'s' * (count > 1)} cut at {self.max_length} tokens ({remedy})")

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
        found = self.sample(sources) if self.config.sample else self.search(sources)
        return [self.different_texts(hypotheses) for hypotheses in found]

    def different_texts(self, hypotheses: list[Hypothesis]) -> list[Output]:
        """Return the n_best outputs; of hypotheses with the same text the first."""
        outputs: dict[str, Output] = {}
        for one in hypotheses:
            text = to_text(self.tokenizer, one.ids)
            outputs.setdefault(text, Output(text, one.log_probability, one.finished))
            if len(outputs) == self.config.n_best:
                break
        return list(outputs.values())

    def search(self, sources: list[list[int]]) -> list[list[Hypothesis]]:
        """Decode greedily or by beam search."""
        config = self.config
        return require_outputs(
            generate_all(self.model, sources, self.max_length, config.batch_size, config.beam, config.length_penalty)
        )

    def sample(self, sources: list[list[int]]) -> list[list[Hypothesis]]:
        """Draw outputs, and rank those for one source by their probability."""
        config, n_best, first = self.config, self.config.n_best, self.prompts_seen * self.config.n_best
        repeated = [source for source in sources for _ in range(n_best)]

        def make_sampler(rows: list[int]) -> Sampler:
            seeds = (np.random.SeedSequence((config.seed, first + row)).generate_state(1) for row in rows)
            generators = [torch.Generator().manual_seed(int(seed)) for (seed,) in seeds]
            return Sampler(generators, config.temperature, config.top_k, config.top_p)

        self.prompts_seen += len(sources)
        try:
            found = generate_all(self.model, repeated, self.max_length, config.batch_size, make_pick=make_sampler)
        except RuntimeError as error:
            if "probability tensor" not in str(error):  # which contains NaN
                raise
            found = [[]]
        drawn = [hypotheses[0] for hypotheses in require_outputs(found)]
        groups = [drawn[i : i + n_best] for i in range(0, len(drawn), n_best)]
        return [sorted(group, key=lambda hypothesis: -hypothesis.log_probability) for group in groups]


class Translator:
    """A trained encoder-decoder with its tokenizer."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer):
        self.model, self.tokenizer = model.eval(), tokenizer

    @classmethod
    def load(cls, directory: Path | str, device: str = "auto") -> "Translator":
        """Load a model directory, one of train.py or any MarianMT's. device: as the scripts' --device."""
        return cls(*marian.load(Path(directory), pick_device(device)))

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
        return Session(self.model, self.tokenizer, config)
