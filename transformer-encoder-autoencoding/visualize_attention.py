"""Draw which words of a sentence attend to which.

    python3 visualize_attention.py
    python3 visualize_attention.py --layer 2 --head 1 "The capital of [MASK] is Paris"
    python3 visualize_attention.py --html "The capital of [MASK] is Paris"

Writes to --output (default: results/ beside this file): attention_heatmap.png, one map, of the layer and head
asked for or of the mean of all; attention_heads.png, every head of every layer with its entropy.
With --html, instead of the two: attention.html, a page to explore every head in, which needs a browser and
nothing else.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from mlm.common.command_line import run_script  # isort: skip (before PyTorch: a quiet Ctrl-C)

import torch
from torch import Tensor

from mlm import MaskFiller
from mlm.common.command_line import Parser, int_in
from mlm.common.errors import InputError, warn
from mlm.common.files import make_output_folder, write_text
from mlm.common.plots import (
    MAX_TITLE,
    check_room,
    draw_heads,
    draw_map,
    fonts_for,
    select_map,
    shorten,
)
from mlm.common.token_text import show_token
from mlm.explorer import page
from mlm.filler import Sentence, collect_unknown_words
from mlm.filling import ids_without_token, likeliest
from mlm.tokenizer import MASK

FOLDER = Path(__file__).parent
PICTURES = "attention_heatmap.png", "attention_heads.png"
PAGE = "attention.html"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("sentence", nargs="?", default=f"Transformers use {MASK} attention", metavar="SENTENCE")
    add(
        "--model",
        type=Path,
        default=FOLDER / "results" / "model",
        metavar="DIR",
        help="the model directory (default: results/model)",
    )
    add(
        "--output",
        type=Path,
        default=FOLDER / "results",
        metavar="DIR",
        help="the folder to write to (default: results/)",
    )
    add("--layer", type=int_in(1), help="the layer to show, from 1 (default: the mean of all)")
    add("--head", type=int_in(1), help="the head to show, from 1 (default: the mean of all)")
    add("--html", action="store_true", help="write one page to explore, attention.html, instead of the pictures")
    parser.add_device()
    return parser.parse_args(argv)


@dataclass
class Attended:
    """A sentence that the encoder has read: its ids (S), its words (S), the same with the likeliest word beside each
    [MASK] (S), and its attention weights (L, H, S, S)."""

    ids: list[int]
    words: list[str]
    guessed: list[str]
    weights: Tensor


@torch.inference_mode()
def attend(filler: MaskFiller, sentence: str, for_page: bool) -> Attended:
    """Let the encoder read a sentence, and look at all its attention. for_page: refuse a sentence for which a page
    has no room, else a model for which the pictures have none."""
    with collect_unknown_words() as unknown:
        ids = filler.encode(Sentence(sentence, "SENTENCE"), unknown).ids
    model, tokenizer = filler.model, filler.tokenizer
    if for_page:
        page.check_size(model.config.n_layers, model.config.n_heads, len(ids))
    else:
        check_room(model.config.n_layers, model.config.n_heads)
    hidden_states, layers = model.encoder(torch.tensor([ids], device=filler.device), need_weights=True)
    weights = torch.stack(layers)[:, 0].cpu()  # (L, H, S, S)
    if not weights.isfinite().all():
        raise InputError("the model's attention is NaN: its weights are damaged; download it again")
    words = [show_token(tokenizer, token) for token in ids]
    guessed, absent = list(words), ids_without_token(tokenizer, model)
    for position, token in enumerate(ids):
        if token == filler.special.mask:
            log_probs = model.head(hidden_states[0, position]).log_softmax(dim=-1)
            (((guess, _),),) = likeliest(log_probs[None], 1, absent)
            guessed[position] = f"{MASK} → {show_token(tokenizer, guess)}"
    return Attended(ids, words, guessed, weights)


def write_page(found: Attended, filler: MaskFiller, args: argparse.Namespace) -> None:
    """Write the page to explore every head in."""
    guesses = page.guess_each(found.ids, filler.model, filler.tokenizer, filler.device)
    text = page.render(args.sentence, found.words, found.weights, guesses, args.layer, args.head)
    write_text(args.output / PAGE, text)


def draw_pictures(found: Attended, args: argparse.Namespace) -> None:
    """Draw the two pictures. The guess for a [MASK] belongs to its row, which attends; what the others attend to is
    the [MASK]."""
    title = shorten(args.sentence, MAX_TITLE)
    weights, name = select_map(found.weights, args.layer, args.head)
    heatmap, heads = (args.output / file for file in PICTURES)
    labels = found.guessed, found.words, "attending"
    with fonts_for([title, *found.words, *found.guessed]):
        draw_map(weights, *labels, f"{title}\n{name}", heatmap)
        heading = f"{title}\nentropy of each head, mean over the words"
        crowded = draw_heads(found.weights, *labels, heading, heads)
    if crowded:
        warn(f"{heads} has no room to name every word; --html makes a page that has")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    filler = MaskFiller.load(args.model, args.device)
    found = attend(filler, args.sentence, for_page=args.html)
    select_map(found.weights, args.layer, args.head)  # refuses a wrong layer or head before anything is written
    make_output_folder(args.output)
    if args.html:
        write_page(found, filler, args)
    else:
        draw_pictures(found, args)
    for file in [PAGE] if args.html else PICTURES:
        print(args.output / file)


if __name__ == "__main__":
    run_script(main)
