"""Draw which words of a sentence attend to which.

    python3 visualize_attention.py
    python3 visualize_attention.py --layer 2 --head 1 "The capital of [MASK] is Paris"
    python3 visualize_attention.py --html "The capital of [MASK] is Paris"

Writes to --output (default: results/ beside this file): attention_heatmap.png, one map, of the layer and head
asked for or of the mean of all; attention_heads.png, every head of every layer with its entropy.
With --html, instead of the two: attention.html, a page that carries the model, to type into and to take apart; it
needs a browser and nothing else. If the model's run watched texts, it replays the training. A model too large for a
page is shown with this sentence alone.
"""

import argparse
from pathlib import Path

from mlm.common.command_line import run_script  # isort: skip (before PyTorch: a quiet Ctrl-C)

import torch
from torch import Tensor

from mlm import MaskFiller
from mlm.common.command_line import Parser, int_in
from mlm.common.errors import warn
from mlm.common.files import make_output_folder, write_text
from mlm.common.plots import (
    MAX_TITLE,
    check_map,
    check_room,
    draw_heads,
    draw_map,
    fonts_for,
    select_map,
    shorten,
)
from mlm.common.token_text import show_token, show_tokens
from mlm.common.unknown_words import collect_unknown
from mlm.explorer import page
from mlm.explorer.reading import attend
from mlm.filler import Sentence
from mlm.filling import ids_without_token, likeliest
from mlm.tokenizer import MASK, UNK

FOLDER = Path(__file__).parent
PICTURES = "attention_heatmap.png", "attention_heads.png"
PAGE = "attention.html"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add, example = parser.add_argument, f"Transformers use {MASK} attention"
    add("sentence", nargs="?", default=example, metavar="SENTENCE", help=f"the text to read (default: {example})")
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


def guess_masks(ids: list[int], words: list[str], hidden_states: Tensor, filler: MaskFiller) -> list[str]:
    """Return the words (S) with the likeliest one beside each [MASK]. hidden_states: (S, D)."""
    guessed, absent = list(words), ids_without_token(filler.tokenizer, filler.model)
    for position, token in enumerate(ids):
        if token == filler.special.mask:
            log_probs = filler.model.head(hidden_states[position]).log_softmax(dim=-1)
            (((guess, _),),) = likeliest(log_probs[None], 1, absent)
            guessed[position] = f"{MASK} → {show_token(filler.tokenizer, guess)}"
    return guessed


@torch.inference_mode()
def draw_pictures(ids: list[int], filler: MaskFiller, args: argparse.Namespace) -> None:
    """Draw the two pictures of a sentence with these ids. The guess for a [MASK] belongs to its row, which attends;
    what the others attend to is the [MASK]."""
    hidden_states, attention = attend(ids, filler.model)
    words = show_tokens(filler.tokenizer, ids, args.sentence, filler.special.unk)
    guessed = guess_masks(ids, words, hidden_states, filler)
    title = shorten(args.sentence, MAX_TITLE)
    weights, name = select_map(attention, args.layer, args.head)
    make_output_folder(args.output)
    heatmap, heads = (args.output / file for file in PICTURES)
    labels = guessed, words, "attending"
    with fonts_for([title, *words, *guessed]):
        draw_map(weights, *labels, f"{title}\n{name}", heatmap)
        heading = f"{title}\nentropy of each head, mean over the words"
        crowded = draw_heads(attention, *labels, heading, heads)
    if crowded:
        warn(f"{heads} has no room to name every word; --html makes a page that has")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    filler = MaskFiller.load(args.model, args.device)
    with collect_unknown(UNK) as unknown:
        ids = filler.encode(Sentence(args.sentence, "SENTENCE"), unknown).ids
    sizes = filler.model.config.n_layers, filler.model.config.n_heads
    check_map(*sizes, args.layer, args.head)
    if args.html:
        data = page.make_data(filler, args.sentence, ids, args.layer, args.head, args.model.absolute().parent)
        make_output_folder(args.output)
        write_text(args.output / PAGE, page.render(data))
    else:
        check_room(*sizes)
        draw_pictures(ids, filler, args)
    for file in [PAGE] if args.html else PICTURES:
        print(args.output / file)


if __name__ == "__main__":
    run_script(main)
