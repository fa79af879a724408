"""Draw what a generated text attends to: the prompt (cross-attention), and its own beginning.

    python3 visualize_attention.py
    python3 visualize_attention.py --layer 2 --head 1 "What is the capital of France?"
    python3 visualize_attention.py --html "What is the capital of France?"

Writes to --output (default: samples/ beside this file): attention_heatmap.png, the cross-attention of the layer and
head asked for or of the mean of all; decoder_self_attention.png, the causal triangle of the same;
attention_heads.png, the cross-attention of every head of every layer with its entropy.
With --html, instead of the three: attention.html, a page to explore every head in, step by step, which needs a
browser and nothing else.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from seq2seq.common.command_line import run_script  # isort: skip (before PyTorch: a quiet Ctrl-C)

import torch
from tokenizers import Tokenizer
from torch import Tensor

from decoding import generate
from seq2seq import marian
from seq2seq.common.command_line import Parser, int_in, pick_device
from seq2seq.common.errors import warn
from seq2seq.common.files import make_output_folder, write_text
from seq2seq.common.plots import (
    MAX_TITLE,
    check_room,
    draw_heads,
    draw_map,
    entropy,
    fonts_for,
    select_map,
    shorten,
    with_means,
)
from seq2seq.common.token_text import show_token
from seq2seq.explorer import page
from seq2seq.generation import encode_prompts, require_outputs
from transformer import Attentions, Transformer, causal_mask, padding_mask

FOLDER = Path(__file__).parent
PICTURES = "attention_heatmap.png", "decoder_self_attention.png", "attention_heads.png"
PAGE = "attention.html"
ATTENDING = "being generated"  # the label of a map's rows


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("prompt", nargs="?", default="The teacher explains the lesson", metavar="PROMPT")
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


@dataclass
class Attended:
    """What a generated text attends to. Words: source (S), those of the prompt; generated (T); and target (T), which
    the decoder reads, the start and the words before the last. Weights: cross (L, H, T, S), decoder (L, H, T, T) and
    encoder (L, H, S, S), or None if it was not asked for. probabilities (T, V) of the next token."""

    source: list[str]
    generated: list[str]
    target: list[str]
    cross: Tensor
    decoder: Tensor
    encoder: Tensor | None
    probabilities: Tensor


@torch.inference_mode()
def attend(model: Transformer, tokenizer: Tokenizer, prompt: str, for_page: bool) -> Attended:
    """Generate from a prompt, greedily, and look at all attention of doing so. for_page: also at the encoder's; refuse
    a prompt for which a page has no room, else a model for which the pictures have none."""
    config, device = model.config, model.output_bias.device
    source = torch.tensor(encode_prompts([prompt], ["the prompt"], model, tokenizer), device=device)
    output = require_outputs(generate(model, source, config.max_length))[0][0].ids
    output = [*output, config.eos_id][: config.max_length]
    target = torch.tensor([[config.pad_id, *output[:-1]]], device=device)
    if for_page:
        page.check_size(config, source.size(1), target.size(1))
    else:
        check_room(config.n_decoder_layers, config.n_heads)
    attentions = Attentions()
    memory, encoder = model.encode(source, need_weights=for_page)
    hidden = model.decode(target, memory, padding_mask(source, config.pad_id), attentions=attentions)
    generated = [show_token(tokenizer, token) for token in output]
    return Attended(
        source=[show_token(tokenizer, token) for token in source[0].tolist()],
        generated=generated,
        target=["start", *generated[:-1]],
        cross=torch.stack(attentions.cross)[:, 0].cpu(),
        decoder=torch.stack(attentions.decoder)[:, 0].cpu(),
        encoder=torch.stack(encoder)[:, 0].cpu() if for_page else None,
        probabilities=model.project(hidden)[0].float().softmax(dim=-1).cpu(),
    )


def write_page(found: Attended, args: argparse.Namespace, tokenizer: Tokenizer) -> None:
    """Write the page to explore every head in."""
    kinds = {
        "cross": (found.cross, found.generated, found.source),
        "decoder": (found.decoder, found.generated, found.target),
        "encoder": (found.encoder, found.source, found.source),
    }
    attentions = {
        kind: page.attention_data(maps := with_means(weights), entropy(maps), rows, columns, kind)
        for kind, (weights, rows, columns) in kinds.items()
    }
    steps = page.next_words(found.probabilities, tokenizer)
    write_text(args.output / PAGE, page.render(args.prompt, attentions, steps, args.layer, args.head))


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
    found = attend(model, tokenizer, args.prompt, for_page=args.html)
    select_map(found.cross, args.layer, args.head)  # refuses a wrong layer or head before anything is written
    make_output_folder(args.output)
    if args.html:
        write_page(found, args, tokenizer)
    else:
        draw_pictures(found, args)
    for file in [PAGE] if args.html else PICTURES:
        print(args.output / file)


if __name__ == "__main__":
    run_script(main)
