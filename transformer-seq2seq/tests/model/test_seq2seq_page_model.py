"""The model that runs in the page, JavaScript in a headless Chromium, is transformer.py's, whatever is switched off."""

import json
import random
from contextlib import ExitStack
from dataclasses import asdict

import pytest
import torch

import transformer
from seq2seq.common.web_page import pack_model
from transformer import Attentions, padding_mask

SHAPES = [  # vocabulary, sizes
    (300, {"d_model": 128, "n_heads": 4, "d_ff": 256}),
    (51, {"d_model": 35, "n_heads": 5, "n_encoder_layers": 3, "d_ff": 37}),  # numbers that do not go by fours or twos
    (50, {"d_model": 12, "n_heads": 1, "n_encoder_layers": 1, "n_decoder_layers": 3, "activation": "swish"}),
    (33, {"max_length": 100}),
]
SENTENCES = 50  # of each shape
TOLERANCE = 1e-4

RUN = """async ([config, packed, cases]) => {
    const model = new Transformer(config, unpackModel(packed));
    const job = { breathe: async () => {} };
    const flat = (arrays) => arrays.flatMap((array) => [...array]);
    const found = [];
    for (const { source, target, off } of cases) {
        const encoder = await model.encode(source, new Set(off), job);
        const { states, decoder, cross } = await model.decode(target, encoder.states.at(-1), new Set(off), job);
        const logits = model.project(states.at(-1)).filter((_, i) => i % config.vocab_size !== config.pad_id);
        found.push([encoder.states, encoder.weights, states, decoder, cross, [logits]].map(flat));
    }
    return JSON.stringify(found);
}"""

# the target in pieces, in a cache from which another branches off before each
CACHED = """async ([config, packed, cases]) => {
    const model = new Transformer(config, unpackModel(packed));
    const job = { breathe: async () => {} };
    const flat = (arrays) => arrays.flatMap((array) => [...array]);
    const found = [];
    for (const { source, target, off } of cases) {
        const memory = (await model.encode(source, new Set(off), job)).states.at(-1);
        const cache = new Cache();
        const pieces = [];
        for (let [start, size] = [0, 1]; start < target.length; start += size, size = (size % 3) + 1) {
            const branch = cache.branch();
            const piece = target.slice(start, start + size);
            const { states, decoder, cross } = await model.decode(piece, memory, new Set(off), job, cache);
            await model.decode([1, 2], memory, new Set(off), job, branch);
            pieces.push([start, ...[states, decoder, cross].map(flat)]);
        }
        found.push(pieces);
    }
    return JSON.stringify(found);
}"""


def switches(config):
    """Return the names of all switches."""
    names = ["positions", "causal"]
    layers = {"encoder": config.n_encoder_layers, "decoder": config.n_decoder_layers, "cross": config.n_decoder_layers}
    for kind in layers:
        for layer in range(1, layers[kind] + 1):
            names += [f"{kind}.{layer}", *(f"{kind}.{layer}.{head}" for head in range(1, config.n_heads + 1))]
            names += [f"{kind}-ff.{layer}"] if kind != "cross" else []
    return names


def zero(module, inputs, output):
    """A hook: 0 instead of a module's output, of attention not instead of the weights."""
    return (output[0] * 0, output[1]) if isinstance(output, tuple) else output * 0


def zero_head(head, width):
    """A hook before a module: 0 in the columns of a head."""

    def hook(module, inputs):
        x = inputs[0].clone()
        x[..., (head - 1) * width : head * width] = 0
        return (x,)

    return hook


def tokens_alone(embeddings, inputs, output):
    """A hook: embeddings without positions."""
    return embeddings.token.embedding_dim**0.5 * embeddings.token(inputs[0])


def switch_off(model, name):
    """Switch a part of the model off by a hook -> its handle."""
    kind, *numbers = name.split(".")
    if kind == "positions":
        return model.embeddings.register_forward_hook(tokens_alone)
    layer = (model.encoder if kind.startswith("encoder") else model.decoder)[int(numbers[0]) - 1]
    if kind.endswith("-ff"):
        return layer.feed_forward.register_forward_hook(zero)
    part = layer.cross_attention if kind == "cross" else layer.self_attention
    if len(numbers) == 1:
        return part.register_forward_hook(zero)
    return part.output.register_forward_pre_hook(zero_head(int(numbers[1]), part.d_k))


@torch.no_grad()
def pytorch(model, source, target, off):
    """Return the encoder's hidden states (L + 1, S, D) and weights (L, H, S, S), the decoder's hidden states
    (L + 1, T, D), its weights (L, H, T, T) and (L, H, T, S), and the logits (T, V - 1), <pad>'s left out."""
    states, attentions = [], Attentions()
    source, target = torch.tensor([source]), torch.tensor([target])
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        if "causal" in off:
            patch.setattr(transformer, "causal_mask", lambda length, device: torch.ones(1, 1, length, length).bool())
        for name in off:
            if name != "causal":
                stack.callback(switch_off(model, name).remove)
        for module in (model.embeddings, *model.encoder, *model.decoder):
            keep = module.register_forward_hook(lambda m, i, o: states.append(o[0] if isinstance(o, tuple) else o))
            stack.callback(keep.remove)
        memory, weights = model.encode(source, need_weights=True)
        read = torch.cat(states)
        states.clear()
        x = model.decode(target, memory, padding_mask(source, model.config.pad_id), attentions=attentions)
        parts = read, torch.cat(weights), torch.cat(states), torch.cat(attentions.decoder), torch.cat(attentions.cross)
        return *parts, model.project(x)[0, :, :-1]


def round_weights(model):
    """Round a model's weights to the half precision that they have in a page; the positions are computed there."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    return model


def make_cases(model, count, chance):
    """Return random sources and targets with random switches off: first each by itself, then several."""
    vocab_size, most, names = model.config.vocab_size, min(model.config.max_length, 20), switches(model.config)
    states = [[], *([name] for name in names)]
    while len(states) < count:
        states.append(chance.sample(names, chance.randint(0, len(names))))

    def ids():
        return [chance.randrange(vocab_size - 1) for _ in range(chance.randint(0, most - 1))]

    return [{"source": [*ids(), 0], "target": [vocab_size - 1, *ids()], "off": off} for off in states]


def check(ours, theirs, case):
    """Assert that two lists of arrays are equal."""
    for one, other in zip(ours, theirs, strict=True):
        difference = (torch.tensor(one).view(-1) - other.reshape(-1)).abs().max().item()
        assert difference < TOLERANCE, case


def test_page_computes_what_pytorch_does(scripted, make_model):
    """The hidden states, weights and logits of more than 200 random pairs, in all states of the switches."""
    page, chance = scripted("numbers.js", "model.js"), random.Random(0)
    for vocab_size, sizes in SHAPES:
        model = round_weights(make_model(vocab_size, **sizes))
        cases = make_cases(model, SENTENCES, chance)
        found = json.loads(page.evaluate(RUN, [asdict(model.config), pack_model(model.state_dict()), cases]))
        for case, figures in zip(cases, found, strict=True):
            check(figures, pytorch(model, **case), case)


def test_cache_changes_nothing(scripted, make_model):
    """A target read in pieces with a cache is what it is when read at once, whatever happens to the cache's other
    branches. What is still to be generated is never seen."""
    page, chance = scripted("numbers.js", "model.js"), random.Random(0)
    model = round_weights(make_model(40))
    cases = make_cases(model, SENTENCES, chance)
    found = json.loads(page.evaluate(CACHED, [asdict(model.config), pack_model(model.state_dict()), cases]))
    for case, pieces in zip(cases, found, strict=True):
        causal = case | {"off": [name for name in case["off"] if name != "causal"]}
        states, decoder, cross = pytorch(model, **causal)[2:5]
        ends = [start for start, *_ in pieces[1:]] + [len(case["target"])]
        for (start, *figures), end in zip(pieces, ends, strict=True):
            expected = states[:, start:end], decoder[:, :, start:end, :end], cross[:, :, start:end]
            check(figures, expected, case)
