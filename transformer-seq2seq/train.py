"""Train the encoder-decoder Transformer on pairs: a prompt, and the text that should come of it.

    python3 train.py                                   the bundled pairs, about a minute
    python3 train.py --pairs my.tsv --tokenizer bpe --max-minutes 30 --output my-run
    python3 train.py --resume                          go on after an interruption

Writes to --output (default: this folder): model/ (a Hugging Face MarianMT directory), samples/metrics.jsonl
(a line for every evaluation), samples/metrics.json (the final figures), samples/loss_curve.png,
samples/outputs.tsv (held-out prompts, references, outputs), tokens/ (the pairs as token ids, used again while
they are the same), checkpoint.pt and checkpoint.before.pt (for --resume). The model directory is replaced
only when a run ends or is interrupted.

Memory does not grow with the corpus. Of more than 30 MB of pairs, the vocabulary is learnt from an evenly
spread part of about that size.
"""

import argparse
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path

import torch
from tokenizers import Tokenizer

from seq2seq import marian as pretrained
from seq2seq import metrics as evaluation
from seq2seq.common import checkpoint
from seq2seq.common.command_line import Interrupt, Parser, pick_device, real, run, whole
from seq2seq.common.distributed import Team
from seq2seq.common.errors import InputError, warn
from seq2seq.common.fast_cpu import best_precision
from seq2seq.common.files import claimed, fingerprint
from seq2seq.common.token_store import Store
from seq2seq.dataset import PairCorpus, tokenize
from seq2seq.marian_tokenizer import FILES, MarianTokenizer
from seq2seq.muon import Muon
from seq2seq.pairs import Pairs
from seq2seq.tokenizer import PAD, load_tokenizer, train_tokenizer
from seq2seq.training import Run
from transformer import Transformer, TransformerConfig

HERE = Path(__file__).parent
DEFAULT_EPOCHS = 60
VOCAB_SIZE = {"word": 30_000, "bpe": 8_000}
SMALL_BATCH, LARGE_BATCH = 1024, 4096
OF_INIT = "tokenizer", "vocab_size", "d_model", "n_layers", "n_heads", "d_ff", "dropout"  # not with --init
# what is fixed when a run is resumed
FIXED = "seed", "batch_tokens", "optimizer", "learning_rate", "warmup_steps", "label_smoothing"


def parse_args(flags: list[str] | None = None) -> argparse.Namespace:
    size = {f.name: f.default for f in fields(TransformerConfig)}
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--pairs", type=Path, nargs="+", metavar="TSV", help="UTF-8, a pair a line (default: data/train.tsv)")
    add("--held-out", type=Path, metavar="TSV", help="pairs to evaluate on (default: one source in 20)")
    add("--source-column", metavar="NAME", help="header or number (default: source, or the first)")
    add("--target-column", metavar="NAME", help="header or number (default: target, or the second)")
    add("--init", type=Path, metavar="DIR", help="go on with this MarianMT's weights, sizes and tokenizer")
    add("--tokenizer", choices=list(VOCAB_SIZE), default="word", help="what a token is")
    add(
        "--vocab-size",
        type=whole(10, 1_000_000),
        help="at most so many tokens (default: 30,000 words, 8,000 subwords; of these at least 300)",
    )
    add("--d-model", type=whole(1, 65_536), default=size["d_model"], help="width")
    add("--n-layers", type=whole(1, 1_000), default=size["n_encoder_layers"], help="layers of each stack")
    add("--n-heads", type=whole(1, 65_536), default=size["n_heads"], help="attention heads a layer")
    add("--d-ff", type=whole(1, 1_000_000), default=size["d_ff"], help="inner width of the feed-forward part")
    add("--dropout", type=real(0, 0.99), default=size["dropout"], help="dropout rate")
    add("--max-length", type=whole(2, 100_000), default=size["max_length"], help="most tokens on a side")
    add(
        "--epochs",
        type=whole(1),
        help=f"passes over the pairs (default: {DEFAULT_EPOCHS} if no limit is set)",
    )
    add("--max-steps", type=whole(1), help="stop after so many updates")
    add("--max-minutes", type=real(0.001), help="stop after so many minutes")
    add(
        "--batch-tokens",
        type=whole(2),
        help=f"a batch's tokens on a side, with padding (default: {SMALL_BATCH:,}, or on a GPU "
        f"{LARGE_BATCH:,} for pairs with more than {100 * LARGE_BATCH:,} target tokens)",
    )
    add("--optimizer", choices=["adam", "muon"], default="adam", help="of the layers' matrices; else Adam")
    add("--learning-rate", type=real(1e-9, 10), default=2e-3, help="the highest, before the cosine")
    add("--warmup-steps", type=whole(0), default=100, help="updates until it is reached")
    add("--label-smoothing", type=real(0, 0.99), default=0.1, help="probability spread over all tokens")
    add("--precision", choices=["fp32", "bf16"], help="of the matrix products (default: fastest)")
    add("--seed", type=whole(0), default=0, help="of weights, order, dropout, and what is held out")
    add("--resume", action="store_true", help="go on from the checkpoint in --output")
    add("--output", type=Path, default=HERE, metavar="DIR", help="default: this folder")
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
    if args.pairs is None:
        args.pairs = [HERE / "data" / "train.tsv"]
        args.held_out = args.held_out or HERE / "data" / "held_out.tsv"
    return args


def new_model(args: argparse.Namespace, tokenizer: Tokenizer) -> Transformer:
    """Random weights for the vocabulary of a tokenizer."""
    config = TransformerConfig(
        vocab_size=tokenizer.get_vocab_size(),
        pad_id=tokenizer.token_to_id(PAD),
        n_encoder_layers=args.n_layers,
        n_decoder_layers=args.n_layers,
        **{name: getattr(args, name) for name in ("d_model", "n_heads", "d_ff", "dropout", "max_length")},
    )
    torch.manual_seed(args.seed)
    return Transformer(config)


def new_optimizers(args: argparse.Namespace, model: Transformer) -> list[torch.optim.Optimizer]:
    """Adam with the paper's constants (section 5.3) for all weights; with Muon, which is for the matrices of
    the layers, for the others: vectors, and the embedding, whose rows are each a token's."""
    matrices = []
    if args.optimizer == "muon":
        layers = [*model.encoder.parameters(), *model.decoder.parameters()]
        matrices = [weight for weight in layers if weight.ndim == 2]
    others = [weight for weight in model.parameters() if not any(weight is taken for taken in matrices)]
    adam = torch.optim.Adam(others, betas=(0.9, 0.98), eps=1e-9, fused=True)
    if not matrices:
        return [adam]
    return [adam, Muon(matrices, dtype=torch.bfloat16 if args.precision == "bf16" else torch.float32)]


def prepare(args: argparse.Namespace, team: Team) -> tuple[Run, Tokenizer | MarianTokenizer]:
    """A Run at its beginning or, with --resume, where its last state left it, and the tokenizer.

    The pairs are tokenized into tokens/ in the output directory, unless that was made from the same pairs in
    the same way.
    """
    path = args.output / "checkpoint.pt"
    last = checkpoint.load(path) if args.resume else None
    with team.leader_first():
        pairs = Pairs(args.pairs, args.held_out, (args.source_column, args.target_column), args.seed)
        vocabulary = [args.tokenizer, args.vocab_size or VOCAB_SIZE[args.tokenizer]]
        max_length = args.max_length
        if args.init:
            model, tokenizer = pretrained.load(args.init, team.device)
            if model.config.pad_id != model.config.vocab_size - 1:
                raise InputError(
                    f"{args.init}: <pad> is not the last id; such a model can be used, but not trained here"
                )
            files = FILES if isinstance(tokenizer, MarianTokenizer) else ["tokenizer.json"]
            vocabulary = [fingerprint(args.init / file)["sha256"] for file in files]
            max_length = min(max_length, model.config.max_length)
        recipe = pairs.recipe | {"vocabulary": vocabulary, "max_length": max_length}
        store = Store(args.output / "tokens", recipe)
        if last:
            checkpoint.check(path, last, {"seed": args.seed, **recipe})
        if notes := store.read():
            pairs.recall(notes)
        else:
            pairs.hold_out()
        if not args.init:
            if notes:
                tokenizer = load_tokenizer(store.folder / "tokenizer.json")
            else:
                tokenizer = train_tokenizer(pairs.sample("learning the vocabulary"), *vocabulary)
            model = new_model(args, tokenizer).to(team.device)
        held_out = PairCorpus.of(pairs.held_out, tokenizer, max_length)
        if not notes:
            tokenize(pairs, tokenizer, max_length, store)
    corpus = PairCorpus.open(store, tokenizer)
    pairs.warn()
    if len(corpus) < pairs.kept or len(held_out) < len(pairs.held_out):
        warn(
            f"left out {pairs.kept - len(corpus)} training and {len(pairs.held_out) - len(held_out)} "
            f"held-out pairs of more than {max_length} tokens on a side; raise --max-length to keep them"
        )
    if not last and checkpoint.newer(path, args.output / "model" / "config.json"):
        warn(f"{path}: is of a run that did not end, and is written over; --resume would go on with it")
    args.precision = args.precision or best_precision(team.device)
    # on a CPU, in runs of some minutes, small batches taught more and were hardly slower
    large = team.device.type != "cpu" and len(corpus.target.ids) > 100 * LARGE_BATCH
    args.batch_tokens = args.batch_tokens or (LARGE_BATCH if large else SMALL_BATCH)
    fixed = {name: getattr(args, name) for name in FIXED}
    identity = {**fixed, **asdict(model.config), **recipe}
    run = Run(args, team, model, new_optimizers(args, model), pairs, corpus, held_out, identity)
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
    state, tokenizer = prepare(args, team)
    n_parameters = sum(parameter.numel() for parameter in state.model.parameters())
    if team.leads:
        print(
            f"{len(state.corpus):,} pairs to train on, {len(state.held_out):,} held out; "
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
    for name in ("metrics.json", "loss_curve.png", "outputs.tsv"):  # of a model that was here before
        (args.output / "samples" / name).unlink(missing_ok=True)
    interrupt.release()
    if interrupted or interrupt.asked:
        raise KeyboardInterrupt(f"interrupted; the model so far is in {model}, --resume goes on")

    progress = state.progress
    figures = {
        "epochs": progress.epoch,
        "steps": progress.step,
        "seconds": round(progress.seconds, 1),
        "parameters": n_parameters,
        **{name: progress.curve[progress.kept][name] for name in ("train_loss", "held_out_loss")},
    }
    if len(progress.parts) > 1:  # a continuation had another budget, device or precision
        figures["parts"] = progress.parts
    pairs = state.pairs
    evaluation.draw_curve(progress.curve, args.output / "samples" / "loss_curve.png")
    evaluation.report(state.model, tokenizer, pairs, pairs.held_out, figures, args.output / "samples")


if __name__ == "__main__":
    run(main)
