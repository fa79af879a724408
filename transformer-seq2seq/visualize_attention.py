"""Draw what a generated text attends to: the prompt (cross-attention), and its own beginning.

    python3 visualize_attention.py
    python3 visualize_attention.py --layer 2 --head 1 "What is the capital of France?"
    python3 visualize_attention.py --html "What is the capital of France?"

Writes to --output (default: samples/ beside this file): attention_heatmap.png, the cross-attention of the
layer and head asked for or of the mean of all; decoder_self_attention.png, the causal triangle of the same;
attention_heads.png, the cross-attention of every head of every layer with its entropy.
With --html, instead of the three: attention.html, a page to explore every head in, step by step, which needs
a browser and nothing else.
"""

import argparse
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from tokenizers import Tokenizer
from torch import Tensor

from decoding import generate
from seq2seq import marian as pretrained
from seq2seq.common.command_line import Parser, pick_device, run, whole
from seq2seq.common.errors import InputError, warn
from seq2seq.common.files import output_folder, replacing, write_text
from seq2seq.explorer import page as explorer
from seq2seq.generation import encode, sound
from transformer import Attentions, Transformer, causal_mask

plt.switch_backend("Agg")  # pictures become files; no screen is needed
plt.rcParams["text.parse_math"] = False  # a "$" in a prompt is a "$"

HERE = Path(__file__).parent
PICTURES = "attention_heatmap.png", "decoder_self_attention.png", "attention_heads.png"
PAGE = "attention.html"
COLOURS = "cividis"  # even in lightness, and the same to a colour-blind reader
MOST_MAPS = 48  # a side


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("prompt", nargs="?", default="The teacher explains the lesson", metavar="PROMPT")
    add("--model", type=Path, default=HERE / "model", metavar="DIR", help="default: model/ beside this file")
    add(
        "--output",
        type=Path,
        default=HERE / "samples",
        metavar="DIR",
        help="where to write (default: samples/)",
    )
    add("--layer", type=whole(1), help="the decoder layer shown, from 1 (default: the mean of all)")
    add("--head", type=whole(1), help="the head shown, from 1 (default: the mean of all)")
    add("--html", action="store_true", help="instead of the pictures one page to explore, attention.html")
    return parser.parse_args()


def entropy(weights: Tensor) -> Tensor:
    """How widely attention is spread, in bits: weights (..., T, S) -> (...), the mean over the T rows of
    -sum_s w_s log2 w_s; 0 where each word attends to one alone, log2 S where it attends to all alike."""
    return -(weights * weights.clamp(min=1e-30).log2()).sum(dim=-1).mean(dim=-1)


def choose(weights: Tensor, layer: int | None, head: int | None) -> tuple[Tensor, str]:
    """weights (L, H, T, S) -> the map (T, S) of a layer and head, both from 1, and its name; where one is
    None the mean is taken over it. Raises InputError where the model has no such layer or head."""
    for flag, number, there in (("--layer", layer, weights.size(0)), ("--head", head, weights.size(1))):
        if number is not None and number > there:
            raise InputError(f"{flag} {number}: the model has {there}; give a number from 1 to {there}")
    chosen = explorer.with_means(weights)[(layer or 0) - 1, (head or 0) - 1]  # the means stand last
    which_layer = "mean of all layers" if layer is None else f"layer {layer}"
    which_head = "mean of all heads" if head is None else f"head {head}"
    return chosen, f"{which_layer}, {which_head}"


def shortened(words: list[str]) -> list[str]:
    """Words as they have room beside a map."""
    return [word if len(word) <= 30 else f"{word[:29]}…" for word in words]


def check_room(n_layers: int, n_heads: int) -> None:
    """Raises InputError where a picture has no room for so many maps."""
    if max(n_layers, n_heads) > MOST_MAPS:
        raise InputError(
            f"the model has {n_layers} layers with {n_heads} heads, and a picture has room for {MOST_MAPS} a "
            "side; give --html"
        )


def draw_map(weights: Tensor, rows: list[str], columns: list[str], title: str, path: Path) -> None:
    """One attention map (T, S): a row for every word being generated, a column for every word attended to.
    What may not be attended to is NaN and left white."""
    highest = float(weights.nan_to_num().max())
    size = max(4.5, min(40, 2.8 + 0.42 * len(columns))), max(3.6, min(40, 1.8 + 0.36 * len(rows)))  # inches
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    image = axes.imshow(weights.numpy(), cmap=COLOURS, vmin=0, vmax=highest)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel="attended to", ylabel="being generated")
    axes.set_title(title, fontsize=10)
    if max(weights.shape) <= 16:
        for row, column in (~weights.isnan()).nonzero().tolist():
            weight = float(weights[row, column])
            shade = "black" if weight > 0.5 * highest else "white"
            axes.text(column, row, f"{weight:.2f}", color=shade, ha="center", va="center", fontsize=7)
    figure.colorbar(image, label="attention weight (each row adds up to 1)", shrink=0.85)
    with replacing(path) as part:
        figure.savefig(part, dpi=150, bbox_inches="tight")
    plt.close(figure)


def draw_heads(weights: Tensor, rows: list[str], columns: list[str], title: str, path: Path) -> None:
    """Every head's map, weights (L, H, T, S), a row of maps for each layer, on one scale from 0 to 1."""
    n_layers, n_heads = weights.shape[:2]
    side = max(1.5, min(2.6, 0.24 * len(columns)))
    figure, grid = plt.subplots(
        n_layers,
        n_heads,
        figsize=(1.6 + side * n_heads, 1.2 + (side + 0.35) * n_layers),
        layout="constrained",
        squeeze=False,
    )
    for axes, head_weights, spread, (layer, head) in zip(
        grid.flat,
        weights.flatten(0, 1),
        entropy(weights).flatten().tolist(),
        torch.cartesian_prod(torch.arange(n_layers), torch.arange(n_heads)).tolist(),
        strict=True,
    ):
        image = axes.imshow(head_weights.numpy(), cmap=COLOURS, vmin=0, vmax=1)
        axes.set_title(f"layer {layer + 1}, head {head + 1}\n{spread:.2f} bits", fontsize=8)
        axes.set(xticks=[], yticks=[])
    for axes in grid[-1]:
        axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=6)
    for axes in grid[:, 0]:
        axes.set_yticks(range(len(rows)), rows, fontsize=6)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel("attended to", fontsize=9)
    figure.supylabel("being generated", fontsize=9)
    figure.colorbar(image, ax=grid, label="attention weight", shrink=0.8)
    with replacing(path) as part:
        figure.savefig(part, dpi=150, bbox_inches="tight")
    plt.close(figure)


@contextmanager
def boxes_counted() -> Iterator[None]:
    """Within it, one warning counts the characters that the font lacks, instead of a warning for each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    messages = {str(warning.message) for warning in caught}
    missing = {message.split(" (")[0] for message in messages if "missing from" in message}
    if missing:
        warn(f"the font lacks {len(missing)} of the characters; they are drawn as boxes")


@dataclass
class Attended:
    """What a generated text attends to. Words: asked (S), those of the prompt, generated (T), and read (T),
    the start and the words before the last. Weights: cross (L, H, T, S), decoder (L, H, T, T) and encoder
    (L, H, S, S), or None where it was not asked for. probabilities (T, V) of the next token."""

    asked: list[str]
    generated: list[str]
    read: list[str]
    cross: Tensor
    decoder: Tensor
    encoder: Tensor | None
    probabilities: Tensor


@torch.inference_mode()
def attend(model: Transformer, tokenizer: Tokenizer, prompt: str, encoder: bool) -> Attended:
    """Generate from a prompt, greedily, and look at all attention of doing so; at the encoder's too where
    that is asked for. Raises InputError where all three have more weights than a page can hold."""
    device = model.output_bias.device
    source = torch.tensor(encode([prompt], ["the prompt"], model, tokenizer), device=device)
    output = sound(generate(model, source, model.config.max_length))[0][0].ids
    output = [*output, model.config.eos_id][: model.config.max_length]
    target = torch.tensor([[model.config.pad_id, *output[:-1]]], device=device)  # what the decoder reads
    if encoder:
        explorer.check_size(model.config, source.size(1), target.size(1))
    attentions = Attentions()
    memory, weights = model.encode(source, need_weights=encoder)
    logits = model.decode(target, model.cache(source, memory), attentions)[0].float()  # (T, V)
    logits[:, model.config.pad_id] = -torch.inf  # never generated
    generated = [explorer.label(tokenizer, token) for token in output]
    return Attended(
        asked=[explorer.label(tokenizer, token) for token in source[0].tolist()],
        generated=generated,
        read=["start", *generated[:-1]],
        cross=torch.stack(attentions.cross)[:, 0].cpu(),
        decoder=torch.stack(attentions.decoder)[:, 0].cpu(),
        encoder=torch.stack(weights)[:, 0].cpu() if encoder else None,
        probabilities=logits.softmax(dim=-1).cpu(),
    )


def write_page(found: Attended, args: argparse.Namespace, tokenizer: Tokenizer) -> None:
    """The page to explore every head in."""
    kinds = {
        "cross": (found.cross, found.generated, found.asked),
        "decoder": (found.decoder, found.generated, found.read),
        "encoder": (found.encoder, found.asked, found.asked),
    }
    shown = {
        kind: explorer.attention(maps := explorer.with_means(layers), entropy(maps), rows, columns, kind)
        for kind, (layers, rows, columns) in kinds.items()
    }
    next_words = explorer.likeliest(found.probabilities, tokenizer)
    page = explorer.page(args.prompt, shown, next_words, args.layer, args.head)
    write_text(args.output / PAGE, page)


def draw_pictures(found: Attended, args: argparse.Namespace) -> None:
    """The three pictures, of the layer and head asked for or of the mean."""
    title = args.prompt if len(args.prompt) <= 70 else args.prompt[:69] + "…"
    asked, generated, read = map(shortened, (found.asked, found.generated, found.read))
    cross, name = choose(found.cross, args.layer, args.head)
    decoder, _ = choose(found.decoder, args.layer, args.head)
    decoder = decoder.masked_fill(~causal_mask(len(read))[0, 0], torch.nan)
    paths = [args.output / file for file in PICTURES]
    with boxes_counted():
        draw_map(cross, generated, asked, f"cross-attention: {title}\n{name}", paths[0])
        draw_map(decoder, generated, read, f"decoder self-attention: {title}\n{name}", paths[1])
        heading = f"cross-attention: {title}\nentropy of each head, mean over the generated words"
        draw_heads(found.cross, generated, asked, heading, paths[2])


def main() -> None:
    args = parse_args()
    model, tokenizer = pretrained.load(args.model, pick_device(args.device))
    found = attend(model, tokenizer, args.prompt, encoder=args.html)
    choose(found.cross, args.layer, args.head)  # refuses a wrong --layer or --head before anything is written
    if not args.html:
        check_room(*found.cross.shape[:2])
    output_folder(args.output)
    if args.html:
        write_page(found, args, tokenizer)
    else:
        draw_pictures(found, args)
    for file in [PAGE] if args.html else PICTURES:
        print(args.output / file)


if __name__ == "__main__":
    run(main)
