"""Draw what a generated text attends to: the prompt (cross-attention), and its own beginning.

    python3 visualize_attention.py
    python3 visualize_attention.py --layer 2 --head 1 "What is the capital of France?"
    python3 visualize_attention.py --html "What is the capital of France?"

Writes to --output (default: samples/ beside this file): attention_heatmap.png, the cross-attention of the layer and
head asked for or of the mean of all; decoder_self_attention.png, the causal triangle of the same;
attention_heads.png, the cross-attention of every head of every layer with its entropy.
With --html, instead of the three: attention.html, a page that carries the model, to type into and to take apart; it
needs a browser and nothing else. If the model's run watched texts, it replays the training. A model too large for a
page is shown with this prompt alone.
"""

import argparse
from pathlib import Path

from seq2seq.common.command_line import run_script  # isort: skip (before PyTorch: a quiet Ctrl-C)

import torch

from seq2seq import marian
from seq2seq.common.command_line import Parser, int_in, pick_device
from seq2seq.common.errors import warn
from seq2seq.common.files import make_output_folder, write_text
from seq2seq.common.plots import (
    MAX_TITLE,
    check_map,
    check_room,
    draw_heads,
    draw_map,
    fonts_for,
    select_map,
    shorten,
)
from seq2seq.explorer import page
from seq2seq.explorer.reading import Attended, attend
from seq2seq.generation import encode_prompts
from transformer import causal_mask

FOLDER = Path(__file__).parent
PICTURES = "attention_heatmap.png", "decoder_self_attention.png", "attention_heads.png"
PAGE = "attention.html"
ATTENDING = "being generated"  # the label of a map's rows


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add, example = parser.add_argument, "The teacher explains the lesson"
    add("prompt", nargs="?", default=example, metavar="PROMPT", help=f"the text to start from (default: {example})")
    add(
        "--model",
        type=Path,
        default=FOLDER / "samples" / "model",
        metavar="DIR",
        help="the model directory (default: samples/model)",
    )
    add(
        "--output",
        type=Path,
        default=FOLDER / "samples",
        metavar="DIR",
        help="the folder to write to (default: samples/)",
    )
    add("--layer", type=int_in(1), help="the decoder layer to show, from 1 (default: the mean of all)")
    add("--head", type=int_in(1), help="the head to show, from 1 (default: the mean of all)")
    add("--html", action="store_true", help="write one page to explore, attention.html, instead of the pictures")
    parser.add_device()
    return parser.parse_args(argv)


def draw_pictures(found: Attended, args: argparse.Namespace) -> None:
    """Draw the three pictures, of the layer and head asked for or of the mean."""
    title = shorten(args.prompt, MAX_TITLE)
    cross, name = select_map(found.cross, args.layer, args.head)
    decoder, _ = select_map(found.decoder, args.layer, args.head)
    decoder = decoder.masked_fill(~causal_mask(len(found.target))[0, 0], torch.nan)
    heatmap, triangle, heads = (args.output / file for file in PICTURES)
    labels = found.generated, found.source, ATTENDING
    heading = f"cross-attention: {title}\nentropy of each head, mean over the generated words"
    with fonts_for([title, *found.generated, *found.source]):
        draw_map(cross, *labels, f"cross-attention: {title}\n{name}", heatmap)
        own = f"decoder self-attention: {title}\n{name}"
        draw_map(decoder, found.generated, found.target, ATTENDING, own, triangle)
        crowded = draw_heads(found.cross, *labels, heading, heads)
    if crowded:
        warn(f"{heads} has no room to name every word; --html makes a page that has")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    model, tokenizer = marian.load(args.model, pick_device(args.device))
    config = model.config
    (ids,) = encode_prompts([args.prompt], ["the prompt"], model, tokenizer)
    check_map(config.n_decoder_layers, config.n_heads, args.layer, args.head)
    if args.html:
        data = page.make_data(model, tokenizer, args.prompt, ids, args.layer, args.head, args.model.absolute().parent)
        make_output_folder(args.output)
        write_text(args.output / PAGE, page.render(data))
    else:
        check_room(config.n_decoder_layers, config.n_heads)
        found = attend(args.prompt, ids, model, tokenizer, config.max_length)
        make_output_folder(args.output)
        draw_pictures(found, args)
    for file in [PAGE] if args.html else PICTURES:
        print(args.output / file)


if __name__ == "__main__":
    run_script(main)
