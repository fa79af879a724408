"""What decodes: decoding.py, in PyTorch, or CTranslate2, a faster library made for decoding.

An engine holds a model. Its method `decoder` takes the settings of generation and returns the function that decodes
with them: prompts, token ids that each end in </s> -> for each prompt its hypotheses, best first.
"""

import itertools
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from decoding import Hypothesis, Sampler
from transformer import MultiHeadAttention, Transformer

from .common.command_line import explain
from .common.errors import InputError
from .config import GenerationConfig
from .generation import batches_by_length, generate_all, require_outputs

Decode = Callable[[list[list[int]]], list[list[Hypothesis]]]
ENGINES = "pytorch", "ctranslate2"
PRECISIONS = "float32", "int8", "bfloat16"  # CTranslate2's, of matrix products
PATIENCE = 2  # with 1, its own default, five times as many outputs differ from those of decoding.py


class Engine(Protocol):
    """A model that decodes."""

    def decoder(self, config: GenerationConfig) -> Decode:
        """Return the function that decodes with these settings."""


def by_probability(hypotheses: Iterable[Hypothesis]) -> list[Hypothesis]:
    """Sort the hypotheses of a prompt, the likeliest first."""
    return sorted(hypotheses, key=lambda hypothesis: -hypothesis.log_probability)


class PyTorchEngine:
    """decoding.py, on the device where the model is."""

    def __init__(self, model: Transformer):
        self.model = model

    def decoder(self, config: GenerationConfig) -> Decode:
        """Return the function that decodes with these settings. When it samples, every output has random numbers of its
        own, which the seed and the number of outputs before it decide."""
        size, length, n_best, places = config.batch_size, config.max_length, config.n_best, itertools.count()

        def search(sources: list[list[int]]) -> list[list[Hypothesis]]:
            return require_outputs(generate_all(self.model, sources, length, size, config.beam, config.length_penalty))

        def sample(sources: list[list[int]]) -> list[list[Hypothesis]]:
            repeated = [source for source in sources for _ in range(n_best)]
            seeds = [np.random.SeedSequence((config.seed, next(places))).generate_state(1).item() for _ in repeated]

            def make_sampler(rows: list[int]) -> Sampler:
                generators = [torch.Generator().manual_seed(seeds[row]) for row in rows]
                return Sampler(generators, config.temperature, config.top_k, config.top_p)

            try:
                found = generate_all(self.model, repeated, length, size, make_pick=make_sampler)
            except RuntimeError as error:
                if "probability tensor" not in str(error):  # which contains NaN
                    raise
                found = [[]]
            drawn = [hypotheses[0] for hypotheses in require_outputs(found)]
            return [by_probability(drawn[i : i + n_best]) for i in range(0, len(drawn), n_best)]

        return sample if config.sample else search


class CTranslate2Engine:
    """CTranslate2 (github.com/OpenNMT/CTranslate2) with the weights of our model: a batch for each core at once.

    It finds what decoding.py finds, up to rounding, with one exception: its beam search ends when there are PATIENCE
    times as many finished hypotheses as beams (Kasai et al. 2022, arXiv:2204.05424), whether or not a better one may
    follow.
    """

    def __init__(self, model: Transformer, device: str = "auto", precision: str = "float32"):
        """device: "auto", "cpu" or "cuda". precision: one of PRECISIONS."""
        try:
            import ctranslate2
        except ImportError as error:
            raise InputError(f"CTranslate2 cannot be loaded ({error}); pip install ctranslate2", "engine") from None
        self.library, gpus = ctranslate2, ctranslate2.get_cuda_device_count()
        if device not in ("auto", "cpu") and not (device == "cuda" and gpus):
            raise InputError(f"device {device}: this machine has none that CTranslate2 can use; use cpu", "device")
        self.device = "cuda" if gpus and device != "cpu" else "cpu"
        there = ctranslate2.get_supported_compute_types(self.device)
        if precision not in there:
            choices = ", ".join(one for one in PRECISIONS if one in there)
            raise InputError(f"this processor has no {precision}; use one of {choices}", "engine_precision")
        self.precision = precision
        self.cores = torch.get_num_threads() if self.device == "cpu" else 1
        self.files = model_files(ctranslate2.specs, model)
        self.eos_id, self.tokens = model.config.eos_id, [str(token) for token in range(model.config.vocab_size)]

    @cached_property
    def searcher(self) -> Any:
        """The ctranslate2.Translator of every search: a batch for each core at once."""
        return self.start(self.cores, 1)

    def start(self, batches_at_once: int, threads: int) -> Any:
        """Return a ctranslate2.Translator that decodes so many batches at once, each with so many threads."""
        return self.library.Translator(
            "model",  # a name, no directory: the files are given
            files=self.files,
            device=self.device,
            compute_type=self.precision,
            inter_threads=batches_at_once,
            intra_threads=threads,
        )

    def decoder(self, config: GenerationConfig) -> Decode:
        """Return the function that decodes with these settings. When it samples, all prompts draw from one stream of
        random numbers: an output depends on the seed, on the prompts before it, and on the batches."""
        size, options = config.batch_size, {"num_hypotheses": config.beam if config.n_best > 1 else 1}
        if config.sample:
            at_once, translator = 1, self.start(1, self.cores)  # two would draw in an order of their own
            size = max(1, size // config.n_best)  # of prompts: each has n_best rows
            options = {
                "num_hypotheses": 1 if config.top_k == 1 else config.n_best,  # top_k 1 is greedy
                "sampling_temperature": config.temperature,
                "sampling_topk": config.top_k if config.top_k < len(self.tokens) - 1 else 0,  # 0: all but <pad>
                "sampling_topp": config.top_p,
            }
        else:
            at_once, translator = self.cores, self.searcher
        options |= {
            "beam_size": config.beam,
            "patience": PATIENCE,
            "length_penalty": config.length_penalty,
            "max_input_length": 0,  # any
            "max_decoding_length": config.max_length,
            "min_decoding_length": 0,
            "return_end_token": True,
            "return_scores": True,
        }

        def decode(sources: list[list[int]]) -> list[list[Hypothesis]]:
            if config.sample:
                self.library.set_random_seed(config.seed)  # read by a thread when it first draws
            found: list[list[Hypothesis]] = [[] for _ in sources]
            batches = batches_by_length(sources, size, at_once)
            prompts = ([[self.tokens[token] for token in sources[row]] for row in rows] for rows in batches)
            for rows, results in zip(batches, self.translate(translator, prompts, at_once, options), strict=True):
                for row, result in zip(rows, results, strict=True):
                    found[row] = self.hypotheses(result, config.length_penalty)
            found = require_outputs(found)
            return [by_probability(hypotheses) for hypotheses in found] if config.sample else found

        return decode

    def translate(
        self, translator: Any, batches: Iterable[list[list[str]]], at_once: int, options: dict[str, Any]
    ) -> Iterator[list[Any]]:
        """Yield the ctranslate2.TranslationResults of each batch, in order. While Python looks at them, the next ones
        are decoded; while it waits for them, one more is queued. An interrupt waits for all of these."""
        running: deque[list[Any]] = deque()
        try:
            for prompts in batches:
                running.append(translator.translate_batch(prompts, asynchronous=True, **options))
                if len(running) > at_once:
                    yield [one.result() for one in running.popleft()]
            while running:
                yield [one.result() for one in running.popleft()]
        except RuntimeError as error:
            if self.device == "cpu" or explain(error):  # too little memory
                raise
            raise InputError(f"CTranslate2 fails on device {self.device}: {error}; use cpu", "device") from None

    def hypotheses(self, result: Any, length_penalty: float) -> list[Hypothesis]:
        """Return the hypotheses of a ctranslate2.TranslationResult as ours, without those of NaN."""
        found = []
        for tokens, score in zip(result.hypotheses, result.scores, strict=True):
            if score == score:
                ids = [int(token) for token in tokens]
                total = score * len(ids) ** length_penalty
                found.append(Hypothesis.of(ids, total, self.eos_id, length_penalty))
        return found


def model_files(specs: Any, model: Transformer) -> dict[str, bytes]:
    """Return the files of a CTranslate2 model, by name. specs: the module ctranslate2.specs.

    Its tokens are our ids, in decimal, without <pad>: the decoder starts from zeros instead.
    """
    config = model.config
    rows = [row for row in range(config.vocab_size) if row != config.pad_id]
    activation = {"relu": specs.Activation.RELU, "swish": specs.Activation.SWISH}[config.activation]
    layers = config.n_encoder_layers, config.n_decoder_layers
    spec = specs.TransformerSpec.from_config(layers, config.n_heads, pre_norm=False, activation=activation)

    def numbers(tensor: Tensor) -> np.ndarray:
        return tensor.detach().float().cpu().numpy()

    def set_linear(linear: Any, *modules: nn.Linear) -> None:
        linear.weight = np.concatenate([numbers(module.weight) for module in modules])
        linear.bias = np.concatenate([numbers(module.bias) for module in modules])

    def set_norm(norm: Any, module: nn.LayerNorm) -> None:
        norm.gamma, norm.beta = numbers(module.weight), numbers(module.bias)

    def set_attention(attention: Any, module: MultiHeadAttention, norm: nn.LayerNorm) -> None:
        first, *others, last = attention.linear
        projections = [[module.query, module.key_value]] if not others else [[module.query], [module.key_value]]
        for linear, modules in zip([first, *others], projections, strict=True):
            set_linear(linear, *modules)
        set_linear(last, module.output)
        set_norm(attention.layer_norm, norm)

    embeddings, positions = numbers(model.embeddings.token.weight)[rows], numbers(model.embeddings.positions)
    for part in (spec.encoder, spec.decoder):
        part.scale_embeddings, part.position_encodings.encodings = True, positions
    spec.encoder.embeddings[0].weight = spec.decoder.embeddings.weight = embeddings
    spec.decoder.projection.weight, spec.decoder.projection.bias = embeddings, numbers(model.output_bias)[rows]
    spec.decoder.start_from_zero_embedding = True
    for theirs, ours in zip([*spec.encoder.layer, *spec.decoder.layer], [*model.encoder, *model.decoder], strict=True):
        set_attention(theirs.self_attention, ours.self_attention, ours.self_attention_norm)
        if hasattr(ours, "cross_attention"):
            set_attention(theirs.attention, ours.cross_attention, ours.cross_attention_norm)
        set_linear(theirs.ffn.linear_0, ours.feed_forward.inner)
        set_linear(theirs.ffn.linear_1, ours.feed_forward.outer)
        set_norm(theirs.ffn.layer_norm, ours.feed_forward_norm)

    spec.register_source_vocabulary([str(row) for row in rows])
    spec.register_target_vocabulary([str(row) for row in rows])
    spec.config.eos_token = spec.config.decoder_start_token = str(config.eos_id)
    spec.config.bos_token = spec.config.unk_token = str(config.eos_id)  # neither is used
    spec.validate()
    spec.optimize()
    with tempfile.TemporaryDirectory() as folder:
        spec.save(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}
