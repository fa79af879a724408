"""Train a BERT-style encoder by masked language modelling: hide words, and learn to fill them in.

    python3 train_mlm.py                                    the bundled sentences, about a minute
    python3 train_mlm.py --corpus my.txt --tokenizer bpe --max-minutes 30 --output my-run
    python3 train_mlm.py --resume                           go on after an interruption

Writes to --output (default: results/ beside this file): model/ (a Hugging Face BERT directory),
metrics.jsonl (a line for every evaluation), metrics.json (the final figures), loss_curve.png, tokens/ (the
text as token ids, used again while it is the same), checkpoint.pt and checkpoint.before.pt (for
--resume). The model directory is replaced only when a run ends or is interrupted.

Memory does not grow with the corpus. Of more than 30 MB of text, the vocabulary is learnt from an evenly
spread part of about that size.
"""

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path

import torch
from tokenizers import Tokenizer

from encoder import EncoderConfig, MaskedLanguageModel
from mlm import bert as pretrained
from mlm import cloze as evaluation
from mlm.cloze import Cloze
from mlm.common import checkpoint
from mlm.common.command_line import Interrupt, Parser, pick_device, real, run, whole
from mlm.common.distributed import Team
from mlm.common.errors import warn
from mlm.common.fast_cpu import best_precision
from mlm.common.files import claimed, fingerprint
from mlm.common.lines import plain
from mlm.common.token_store import Store
from mlm.dataset import Corpus, tokenize
from mlm.text import Text
from mlm.tokenizer import PAD, train_tokenizer
from mlm.training import Run

HERE = Path(__file__).parent
DEFAULT_EPOCHS = 180
VOCAB_SIZE = {"word": 30_000, "bpe": 8_000}
SMALL_BATCH, LARGE_BATCH = 1024, 4096
OF_INIT = "tokenizer", "vocab_size", "d_model", "n_layers", "n_heads", "d_ff", "dropout"  # not with --init
FIXED = "seed", "batch_tokens", "learning_rate", "warmup_steps", "mask_prob"  # when a run is resumed


def parse_args(flags: list[str] | None = None) -> argparse.Namespace:
    size = {f.name: f.default for f in fields(EncoderConfig)}
    parser = Parser(__doc__)
    add = parser.add_argument
    add(
        "--corpus",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="UTF-8, a sentence a line (default: data/train.txt)",
    )
    add("--held-out", type=Path, metavar="FILE", help="text to evaluate on (default: one sentence in 20)")
    add("--init", type=Path, metavar="DIR", help="go on with this BERT's weights, sizes and tokenizer")
    add("--tokenizer", choices=list(VOCAB_SIZE), default="word", help="what a token is")
    add(
        "--vocab-size",
        type=whole(10, 1_000_000),
        help="at most so many tokens (default: 30,000 words, 8,000 subwords; of these at least 300)",
    )
    add("--d-model", type=whole(1, 65_536), default=size["d_model"], help="width")
    add("--n-layers", type=whole(1, 1_000), default=size["n_layers"], help="layers")
    add("--n-heads", type=whole(1, 65_536), default=size["n_heads"], help="attention heads a layer")
    add("--d-ff", type=whole(1, 1_000_000), default=size["d_ff"], help="inner width of the feed-forward part")
    add("--dropout", type=real(0, 0.99), default=size["dropout"], help="dropout rate")
    add(
        "--max-length",
        type=whole(4, 100_000),
        default=size["max_length"],
        help="most tokens, [CLS] and [SEP] included",
    )
    add("--epochs", type=whole(1), help=f"passes over the text (default: {DEFAULT_EPOCHS} if no limit is set)")
    add("--max-steps", type=whole(1), help="stop after so many updates")
    add("--max-minutes", type=real(0.001), help="stop after so many minutes")
    add(
        "--batch-tokens",
        type=whole(4),
        help=f"a batch's tokens, with padding (default: {SMALL_BATCH:,}, or on a GPU {LARGE_BATCH:,} for a "
        f"corpus of more than {100 * LARGE_BATCH:,})",
    )
    add("--learning-rate", type=real(1e-9, 10), default=3e-3, help="the highest, before the cosine")
    add("--warmup-steps", type=whole(0), default=100, help="updates until it is reached")
    add("--mask-prob", type=real(0.001, 0.999), default=0.15, help="share of the tokens to predict")
    add("--precision", choices=["fp32", "bf16"], help="of the matrix products (default: fastest)")
    add("--seed", type=whole(0), default=0, help="of weights, order, masks, dropout, and what is held out")
    add("--resume", action="store_true", help="go on from the checkpoint in --output")
    add("--output", type=Path, default=HERE / "results", metavar="DIR", help="default: results/")
    args = argparse.Namespace(**dict.fromkeys(OF_INIT))  # None: was not given
    parser.parse_args(flags, args)
    own = [f"--{name}".replace("_", "-") for name in OF_INIT if getattr(args, name) is not None]
    if args.init and own:
        parser.error(f"--init and {own[0]} exclude each other: the directory has its own")
    for name in OF_INIT:
        if getattr(args, name) is None:
            setattr(args, name, parser.get_default(name))
    if args.d_model % args.n_heads:
        parser.error(f"--d-model {args.d_model} is not a multiple of --n-heads {args.n_heads}")
    if args.tokenizer == "bpe" and args.vocab_size and args.vocab_size < 300:
        parser.error(f"--vocab-size {args.vocab_size}: subwords are made of 256 bytes; give 300 or more")
    if args.epochs is args.max_steps is args.max_minutes is None:
        args.epochs = DEFAULT_EPOCHS
    if args.corpus is None:
        args.corpus = [HERE / "data" / "train.txt"]
        args.held_out = args.held_out or HERE / "data" / "held_out.txt"
    return args


def new_model(args: argparse.Namespace, tokenizer: Tokenizer) -> MaskedLanguageModel:
    """Random weights for the vocabulary of a tokenizer."""
    sizes = "d_model", "n_layers", "n_heads", "d_ff", "dropout", "max_length"
    config = EncoderConfig(
        vocab_size=tokenizer.get_vocab_size(),
        pad_id=tokenizer.token_to_id(PAD),
        **{name: getattr(args, name) for name in sizes},
    )
    torch.manual_seed(args.seed)
    return MaskedLanguageModel(config)


def prepare(args: argparse.Namespace, team: Team, clozes: Sequence[Cloze] = ()) -> tuple[Run, Tokenizer]:
    """A Run at its beginning or, with --resume, where its last state left it, and the tokenizer.

    The text is tokenized into tokens/ in the output directory, unless that was made from the same text in the
    same way. All that can be found wrong before that is: also cloze tests that the model cannot take.
    """
    path = args.output / "checkpoint.pt"
    last = checkpoint.load(path) if args.resume else None
    with team.leader_first():
        text = Text(args.corpus, args.held_out, args.seed)
        vocabulary = [args.tokenizer, args.vocab_size or VOCAB_SIZE[args.tokenizer]]
        max_length = args.max_length
        if args.init:
            model, tokenizer = pretrained.load(args.init, team.device)
            vocabulary = fingerprint(args.init / "tokenizer.json")["sha256"]
            max_length = min(max_length, model.config.max_length)
        recipe = text.recipe | {"vocabulary": vocabulary, "max_length": max_length}
        store = Store(args.output / "tokens", recipe)
        if last:
            checkpoint.check(path, last, {"seed": args.seed, **recipe})
        if notes := store.read():
            text.recall(notes)
        else:
            text.hold_out()
        if not args.init:
            if notes:
                tokenizer = Tokenizer.from_file(str(store.folder / "tokenizer.json"))
            else:
                tokenizer = train_tokenizer(text.sample("learning the vocabulary"), *vocabulary)
            model = new_model(args, tokenizer).to(team.device)
        evaluation.check(clozes, tokenizer, model.config.max_length)
        held_out = Corpus.of(text.held_out, tokenizer, max_length)
        if not notes:
            tokenize(text, tokenizer, max_length, store)
    corpus = Corpus.open(store, tokenizer)
    if text.held_out_file and text.left_out:
        warn(f"left {text.left_out} sentences out of training: they are in {text.held_out_file}")
    if not last and checkpoint.newer(path, args.output / "model" / "config.json"):
        warn(f"{path}: is of a run that did not end, and is written over; --resume would go on with it")
    args.precision = args.precision or best_precision(team.device)
    # on a CPU, in runs of some minutes, small batches taught more and were hardly slower
    large = team.device.type != "cpu" and corpus.tokens > 100 * LARGE_BATCH
    args.batch_tokens = args.batch_tokens or (LARGE_BATCH if large else SMALL_BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    fixed = {name: getattr(args, name) for name in FIXED}
    identity = {**fixed, **asdict(model.config), **recipe}
    run = Run(args, team, model, optimizer, text, corpus, held_out, identity)
    if last:
        run.restore(last)
    return run, tokenizer


def main() -> None:
    args = parse_args()
    team = Team.join(pick_device(args.device))
    with claimed(args.output) if team.leads else nullcontext():
        train(args, team)


def train(args: argparse.Namespace, team: Team) -> None:
    """The whole run: prepare, train, save the model, report."""
    recall_tests = [cloze for path in args.corpus for cloze in evaluation.read_clozes(path)]
    held_out_tests = evaluation.read_clozes(args.held_out) if args.held_out else []
    state, tokenizer = prepare(args, team, recall_tests + held_out_tests)
    n_parameters = sum(parameter.numel() for parameter in state.model.parameters())
    if team.leads:
        print(
            f"{state.text.sentences:,} sentences to train on, {len(state.text.held_out):,} held out; "
            f"vocabulary of {tokenizer.get_vocab_size():,}; {n_parameters:,} parameters on {team}"
        )
    interrupt = Interrupt()
    interrupted = state.train(interrupt)
    team.leave()
    if not team.leads:
        return
    if not state.progress.step:
        raise KeyboardInterrupt("interrupted before the first step; no model was written")
    model = args.output / "model"
    if interrupted and state.kept is None and model.exists():
        raise KeyboardInterrupt(f"interrupted before the first evaluation; {model} is as it was, --resume goes on")
    if state.kept is None or (interrupted and state.progress.nll_tokens):  # updates since the last one
        state.evaluate()
        state.save_curve()
    state.model.load_state_dict(state.kept)
    pretrained.save(model, state.model, tokenizer)
    for name in ("metrics.json", "loss_curve.png"):  # of a model that was here before
        (args.output / name).unlink(missing_ok=True)
    interrupt.release()
    if interrupted or interrupt.asked:
        raise KeyboardInterrupt(f"interrupted; the model so far is in {model}, --resume goes on")

    progress = state.progress
    figures = {
        "epochs": progress.epoch,
        "steps": progress.step,
        "seconds": round(progress.seconds, 1),
        "parameters": n_parameters,
        **{name: progress.curve[progress.kept][name] for name in ("train_loss", "held_out_loss", "held_out_accuracy")},
    }
    if len(progress.parts) > 1:  # a continuation had another budget, device or precision
        figures["parts"] = progress.parts
    aside = set(map(plain, state.text.held_out))
    recall_tests = [cloze for cloze in recall_tests if plain(cloze.sentence) not in aside]
    evaluation.draw_curve(progress.curve, args.output / "loss_curve.png")
    evaluation.report(state.model, tokenizer, state.text, recall_tests, held_out_tests, figures, args.output)
    unigram = evaluation.unigram_loss(state.corpus, state.held_out, state.model.config.vocab_size)
    if (held_out_loss := figures["held_out_loss"]) > 0.9 * unigram:
        warn(
            f"the model knows little more than how frequent each token is (loss {held_out_loss:.2f}, from "
            f"frequencies alone {unigram:.2f}): train longer, or try another --learning-rate"
        )


if __name__ == "__main__":
    run(main)
