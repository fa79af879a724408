"""Train the default model again without one mechanism at a time, to see what each is good for.

    python3 ablations.py                            all of them, three seeds: about ten minutes on two cores
    python3 ablations.py --list                     what each takes out or puts in, and was predicted to do
    python3 ablations.py no-positions one-head      these alone, beside the default
    python3 ablations.py pre-norm --corpus my.txt --held-out other.txt --epochs 10 --output my-ablations

Some are exchanges, which put another mechanism in place of BERT's; they run when they are named.

Every run makes 70 passes over the bundled text where train_mlm.py makes 180, at a learning rate a third higher, and is
judged by its final weights. A text of your own is judged by what any text has: the loss and the accuracy at hidden
tokens of held-out text. Writes to --output (default: results/ beside this file): ablations.jsonl (a line for
every finished run), ablations.md (the table), ablations.png (the learning curves). There are as many processes as
PyTorch would use threads (OMP_NUM_THREADS); the results do not depend on their number.
"""

import inspect
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any

from mlm.common.command_line import run_script  # isort: skip (before PyTorch: a quiet Ctrl-C)

import torch
from torch import Tensor, nn

from encoder import EncoderLayer
from masking import IGNORE
from mlm.cloze import Answers, EncodedCloze, accuracy, answer
from mlm.common.distributed import DistributedContext
from mlm.common.errors import InputError
from mlm.common.experiments import Job, Study
from mlm.config import TrainConfig
from mlm.relative_attention import RelativeAttention
from train_mlm import Trainer, build_trainer, make_optimizer
from train_mlm import parse_args as parse_training_args

LEARNING_RATE = 4e-3
CURVE_POINTS = 14

study = Study(
    epochs=70,
    seeds=3,
    measures={
        "train_loss": ("training loss", ".3f"),
        "recall_loss": ("recall loss", ".3f"),
        "recall": ("recall", ".1%"),
        "combinations": ("new combinations", ".1%"),
        "visible": ("visible words", ".1%"),
    },
    legend="""\
Mean over the seeds and, in brackets, the range. Training loss: of the last epochs, in nats, over the
positions that the run itself scores. Recall: the key words of the training sentences, hidden. New
combinations: those of known facts in frames never seen with them, hidden. Visible words: those of the
training sentences, none hidden, that the model names when asked what stands there.""",
    above=("train_loss", "training loss (nats)"),
    below=("recall", "recall (key words)"),
    output=Path(__file__).parent / "results",
    config=TrainConfig,
    own_flags=(
        "corpus",
        "held_out",
        "tokenizer",
        "vocab_size",
        "d_model",
        "n_layers",
        "n_heads",
        "d_ff",
        "dropout",
        "batch_tokens",
        "learning_rate",
        "warmup_steps",
    ),
    defaults={"learning_rate": f"{LEARNING_RATE:g}"},
)
study.own = replace(  # it shares the dict of ablations, which the functions below fill
    study,
    measures={
        "train_loss": ("training loss", ".3f"),
        "held_out_loss": ("held-out loss", ".3f"),
        "held_out": ("held-out tokens", ".1%"),
    },
    legend="""\
Mean over the seeds and, in brackets, the range. Training loss: of the last epochs, in nats, over the
positions that the run itself scores. Held-out loss, held-out tokens: at the hidden tokens of the held-out
text, the same in all runs, the loss in nats and the share that is right.""",
    below=("held_out", "held-out tokens"),
)


def set_existing(owner: Any, **new: Any) -> None:
    """Give an object other values for attributes, which it must have."""
    for name, value in new.items():
        getattr(owner, name)  # raises AttributeError, so that nothing is set in vain
        setattr(owner, name, value)


def replace_forward(layer: nn.Module, forward: Callable) -> None:
    """Give a layer another forward, which must take the same arguments."""
    before, after = (list(inspect.signature(one).parameters) for one in (type(layer).forward, forward))
    if before != after:
        raise TypeError(f"{type(layer).__name__}.forward takes {before}, its replacement {after}")
    set_existing(layer, forward=MethodType(forward, layer))


@study.ablation("What the others are compared with.")
def default(trainer: Trainer) -> None:
    """Nothing."""


@study.ablation(
    "Recall stays high, for the words of a short sentence nearly tell their order; new combinations suffer, "
    "for frames that differ in the order of their words alone become one."
)
def no_positions(trainer: Trainer) -> None:
    """The position embeddings: a sentence becomes a bag of words."""
    trainer.model.encoder.embeddings.position.weight.requires_grad_(False).zero_()


@study.ablation(
    "Scores are sqrt(32) = 5.7 times as large, so that the softmax begins near one-hot and passes little "
    "gradient: learning is slower, recall and new combinations end lower."
)
def no_scale(trainer: Trainer) -> None:
    """The division of the scores by sqrt(d_k): the queries are multiplied by it first."""
    for layer in trainer.model.encoder.layers:
        width, d_k = layer.attention.output.in_features, layer.attention.d_k
        factor = torch.tensor([math.sqrt(d_k), 1.0, 1.0], device=trainer.context.device).repeat_interleave(width)
        layer.attention.qkv.register_forward_hook(lambda _module, _inputs, qkv, factor=factor: qkv * factor)


@study.ablation(
    "Little is lost: sentences of eight words ask for few things at once. New combinations are a little "
    "lower, for they need the relation and the subject from two places."
)
def one_head(trainer: Trainer) -> None:
    """The division into heads: the same matrices, read as one head of full width."""
    for layer in trainer.model.encoder.layers:
        set_existing(layer.attention, n_heads=1, d_k=layer.attention.output.in_features)


@study.ablation(
    "Learning is much slower: gradients reach the embeddings through every sublayer alone, and what a word "
    "is must pass through attention even to its own place. Recall ends well below the default's."
)
def no_residual(trainer: Trainer) -> None:
    """The residual connections: LayerNorm(Sublayer(x)) instead of LayerNorm(x + Sublayer(x))."""

    def forward(self: EncoderLayer, x: Tensor, mask: Tensor, need_weights: bool = False):
        attended, weights = self.attention(x, mask, need_weights)
        x = self.attention_norm(self.dropout(attended))
        return self.feed_forward_norm(self.dropout(self.feed_forward(x))), weights

    for layer in trainer.model.encoder.layers:
        replace_forward(layer, forward)


@study.ablation(
    "At this learning rate training is rough or diverges: nothing holds the size of the sums any more. If it "
    "survives, it ends well below the default."
)
def no_layer_norm(trainer: Trainer) -> None:
    """Layer normalisation, wherever it stands: in the layers, after the embeddings, in the head."""
    for module in list(trainer.model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LayerNorm):
                set_existing(module, **{name: nn.Identity()})


class Nothing(nn.Module):
    """A sublayer that adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@study.ablation(
    "Recall falls: the feed-forward part holds half of the layers' weights and is said to be where facts are "
    "kept. New combinations fall more."
)
def no_feed_forward(trainer: Trainer) -> None:
    """The feed-forward part: LayerNorm(x) is all that is left of its sublayer."""
    for layer in trainer.model.encoder.layers:
        set_existing(layer, feed_forward=Nothing())


@study.ablation(
    "Recall and new combinations rise a little, for both are asked with [MASK], and nothing else is trained "
    "now. Visible words are lost: the model need not know any more what stands at a place that it sees."
)
def always_mask(trainer: Trainer) -> None:
    """The random and the unchanged tokens of 80/10/10: all that is to be predicted becomes [MASK]."""

    usual, special = trainer.corrupt, trainer.data.train.special

    def corrupt(ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        _, labels = usual(ids, generator)
        return ids.masked_fill(labels != IGNORE, special.mask), labels

    set_existing(trainer, corrupt=corrupt)


@study.ablation(
    "The training loss falls at once to a small value and looks wonderful, for six words of seven need only "
    "be copied; recall, the truth, ends far below the default's."
)
def all_positions(trainer: Trainer) -> None:
    """The restriction of the loss to the hidden positions: every token of a sentence is scored."""

    usual, special = trainer.corrupt, trainer.data.train.special

    def corrupt(ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs, _ = usual(ids, generator)
        return inputs, ids.masked_fill(ids == special.pad, IGNORE)

    set_existing(trainer, corrupt=corrupt)


@study.exchange(
    "With two layers and a warm-up, post-norm trains well too: the training loss falls faster in the first epochs, and "
    "all ends within the range of the default's seeds."
)
def pre_norm(trainer: Trainer) -> None:
    """LayerNorm before each sublayer, x + Sublayer(LayerNorm(x)), and once more behind the last layer, for
    LayerNorm(x + Sublayer(x)). The one behind the embeddings stays."""

    def forward(self: EncoderLayer, x: Tensor, mask: Tensor, need_weights: bool = False):
        attended, weights = self.attention(self.attention_norm(x), mask, need_weights)
        x = x + self.dropout(attended)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x))), weights

    encoder, config = trainer.model.encoder, trainer.model.config
    for layer in encoder.layers:
        replace_forward(layer, forward)
    encoder.last_norm = nn.LayerNorm(config.d_model, config.layer_norm_eps, device=trainer.context.device)
    encoder.register_forward_hook(lambda encoder, _args, out: (encoder.last_norm(out[0]), out[1]))


@study.exchange(
    "A word's neighbours are told from the first epochs on, wherever they stand: the training loss ends below the "
    "default's, and new combinations come out between the default's and those without positions. On text with long "
    "sentences the held-out loss falls further than on the bundled text."
)
def relative_positions(trainer: Trainer) -> None:
    """Relative positions (Shaw et al. 2018) in every attention, for the position embeddings."""
    no_positions(trainer)
    for layer in trainer.model.encoder.layers:
        set_existing(layer, attention=RelativeAttention(layer.attention).to(trainer.context.device))


def prepare(job: Job, folder: Path) -> Trainer:
    """Return the default's trainer, changed as the ablation says. folder: a place for the token ids."""
    config, _ = parse_training_args(job.flags)
    rate = config.learning_rate or LEARNING_RATE
    config = replace(config, epochs=job.epochs, learning_rate=rate, seed=job.seed, output=folder)
    trainer = build_trainer(config, DistributedContext(torch.device(job.device)))
    _ = trainer.held_out  # made, and kept, before an ablation changes how words are hidden
    study.ablations[job.name].apply(trainer)
    trainer.optimizer = make_optimizer(trainer.model)  # for new weights
    return trainer


@torch.no_grad()
def visible_words(trainer: Trainer) -> float:
    """Return the share of the training sentences' words, none of them hidden, that the model names."""
    data, model, device = trainer.data.train, trainer.model.eval(), trainer.context.device
    others = torch.tensor([data.special.pad, data.special.cls, data.special.sep], device=device)
    right, count = 0, 0
    for indices in data.batches(4096, seed=0):
        ids = data.batch(indices).to(device)
        words = ~torch.isin(ids, others)
        right += int((model(ids, words).argmax(dim=-1) == ids[words]).sum())
        count += int(words.sum())
    return right / count


def ask(trainer: Trainer, clozes: Sequence[EncodedCloze]) -> tuple[Answers, float]:
    """Return the answers to cloze tests, and the share that is right: none if the model outputs NaN."""
    try:
        answers = answer(clozes, trainer.model, trainer.data.tokenizer)
    except InputError:
        answers = Answers(math.nan, [""] * len(clozes))
    return answers, accuracy([test.cloze for test in clozes], answers.guesses)


def recall(trainer: Trainer) -> dict[str, float]:
    """Return the loss and the accuracy on key words of the training sentences."""
    answers, share = ask(trainer, trainer.data.recall_tests)
    return {"recall_loss": answers.loss, "recall": share}


def score_held_out(trainer: Trainer) -> dict[str, float]:
    """Return the loss and the accuracy on the held-out text: none if the model outputs NaN."""
    try:
        loss, right = trainer.score_held_out()
    except InputError:
        return {"held_out_loss": math.nan, "held_out": 0.0}
    return {"held_out_loss": loss, "held_out": right.float().mean().item()}


def learn(
    trainer: Trainer, epochs: int, measure: Callable[[Trainer], dict], epoch_done: Callable[[], None]
) -> tuple[list[dict], int | None]:
    """Train for some epochs -> the curve, measured on the way, and the step at which the loss was no longer finite,
    else None."""
    progress, curve, stopped = trainer.progress, [], None
    n_steps, every = epochs * len(trainer.batches(0)), max(1, epochs // CURVE_POINTS)
    for epoch in range(1, epochs + 1):
        try:
            for indices in trainer.batches(epoch - 1):
                trainer.update(indices, progress.step / n_steps)
        except InputError:  # the loss is no longer finite
            stopped = progress.step
        epoch_done()
        due = stopped is not None or epoch % every == 0 or epoch == epochs
        if due and (progress.nll_tokens or not curve):  # else the last point is of this step
            loss = progress.nll / max(1, progress.nll_tokens)
            curve.append({"epoch": epoch, "train_loss": loss, **measure(trainer)})
            progress.nll, progress.nll_tokens = 0.0, 0
        if stopped is not None:
            break
    return curve, stopped


def experiment(job: Job, epoch_done: Callable[[], None]) -> dict:
    """Train and measure on one thread -> the fields of the job, the measures, and the curve."""
    torch.set_num_threads(1)  # models this small gain little from a second one
    own = bool(job.files)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        trainer = prepare(job, Path(folder))
        curve, stopped = learn(trainer, job.epochs, score_held_out if own else recall, epoch_done)
        measures = {}
        if not own:
            combinations = [test for test in trainer.data.held_out_tests if test.cloze.kind == "combination"]
            measures = {"combinations": ask(trainer, combinations)[1], "visible": visible_words(trainer)}
        del trainer  # and its memory maps: Windows removes no mapped file
    return {**vars(job), "stopped": stopped, **curve[-1], **measures, "curve": curve}


def main(argv: list[str] | None = None) -> None:
    study.main(__doc__, experiment, argv)


if __name__ == "__main__":
    run_script(main)
