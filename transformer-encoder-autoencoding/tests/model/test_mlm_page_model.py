"""The model that runs in the page, JavaScript in a headless Chromium, is encoder.py's, whatever is switched off."""

import base64
import json
import math
import random
from contextlib import ExitStack
from dataclasses import asdict

import numpy as np
import pytest
import torch

from mlm.common.errors import InputError
from mlm.common.web_page import model_bytes, pack_model

SHAPES = [  # vocabulary, sizes
    (300, {"d_model": 128, "n_heads": 4, "d_ff": 256}),
    (51, {"d_model": 30, "n_heads": 5, "n_layers": 4, "d_ff": 37}),  # numbers that do not go by fours or twos
    (50, {"d_model": 12, "n_heads": 1, "n_layers": 1, "layer_norm_eps": 0.1}),
    (33, {"tied_embeddings": False, "n_layers": 3}),
]
SENTENCES = 50  # of each shape
TOLERANCE = 1e-4

RUN = """async ([config, packed, cases]) => {
    const model = new MaskedLanguageModel(config, unpackModel(packed));
    const job = { breathe: async () => {} };
    const flat = (arrays) => arrays.flatMap((array) => [...array]);
    const found = [];
    for (const { ids, off } of cases) {
        const { states, weights } = await model.encode(ids, new Set(off), job);
        const last = states.at(-1).subarray(-config.d_model); // the last position alone
        found.push([states, weights, [model.logits(states.at(-1))], [model.logits(last)]].map(flat));
    }
    return JSON.stringify(found);
}"""


def switches(config):
    """Return the names of all switches."""
    names = ["positions"]
    for layer in range(1, config.n_layers + 1):
        names += [f"encoder.{layer}", f"encoder-ff.{layer}"]
        names += [f"encoder.{layer}.{head}" for head in range(1, config.n_heads + 1)]
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


def switch_off(model, name):
    """Switch a part of the model off by a hook -> its handle."""
    kind, *numbers = name.split(".")
    if kind == "positions":
        return model.encoder.embeddings.position.register_forward_hook(zero)
    layer = model.encoder.layers[int(numbers[0]) - 1]
    if kind == "encoder-ff":
        return layer.feed_forward.register_forward_hook(zero)
    if len(numbers) == 1:
        return layer.attention.register_forward_hook(zero)
    return layer.attention.output.register_forward_pre_hook(zero_head(int(numbers[1]), layer.attention.d_k))


@torch.no_grad()
def pytorch(model, ids, off):
    """Return the hidden states (L + 1, S, D), the attention weights (L, H, S, S) and the logits (S, V)."""
    states = []
    with ExitStack() as stack:
        for name in off:
            stack.callback(switch_off(model, name).remove)
        for module in (model.encoder.embeddings, *model.encoder.layers):
            keep = module.register_forward_hook(lambda m, i, o: states.append(o[0] if isinstance(o, tuple) else o))
            stack.callback(keep.remove)
        x, weights = model.encoder(torch.tensor([ids]), need_weights=True)
        return torch.cat(states), torch.cat(weights), model.head(x)[0]


def test_page_computes_what_pytorch_does(scripted, make_model):
    """The hidden states, weights and logits of 200 random sentences, in all states of the switches: each by itself,
    and several at once."""
    page, chance = scripted("numbers.js", "model.js"), random.Random(0)
    for vocab_size, sizes in SHAPES:
        model = make_model(vocab_size, **sizes).half().float()
        names = switches(model.config)
        states = [[], *([name] for name in names)]
        while len(states) < SENTENCES:
            states.append(chance.sample(names, chance.randint(0, len(names))))
        lengths = [chance.randint(1, model.config.max_length) for _ in states]
        sentences = [[chance.randrange(1, vocab_size) for _ in range(length)] for length in lengths]
        cases = [{"ids": ids, "off": off} for ids, off in zip(sentences, states, strict=True)]
        found = json.loads(page.evaluate(RUN, [asdict(model.config), pack_model(model.state_dict()), cases]))
        for case, figures in zip(cases, found, strict=True):
            hidden, weights, logits = pytorch(model, **case)
            for ours, theirs in zip(figures, (hidden, weights, logits, logits[-1]), strict=True):
                difference = (torch.tensor(ours).view(-1) - theirs.reshape(-1)).abs().max().item()
                assert difference < TOLERANCE, case


def test_functions_are_pytorchs(scripted):
    """softmax, log-softmax, top-k and GELU; -inf and equal numbers among them."""
    page = scripted("numbers.js")
    torch.manual_seed(0)
    x = (10 * torch.randn(301)).round(decimals=1)
    x[7], x[8] = x.max(), -40
    found = page.evaluate(
        """(numbers) => {
            const x = Float32Array.from(numbers).fill(-Infinity, 3, 4);
            const best = [1, 5, 301].map((k) => topK(x, k));
            return [softmax(x), logSoftmax(x), gelu(x.fill(-3.5, 3, 4))]
                .map((array) => [...array].map(String)).concat(best);
        }""",
        x.tolist(),
    )
    x[3] = -math.inf
    probabilities, log_probabilities, activated = ([float(v) for v in part] for part in found[:3])
    torch.testing.assert_close(torch.tensor(probabilities), x.softmax(0), atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(torch.tensor(log_probabilities), x.log_softmax(0), atol=1e-5, rtol=1e-6)
    order = x.sort(descending=True, stable=True).indices.tolist()
    assert found[3:] == [order[:1], order[:5], order]
    x[3] = -3.5
    torch.testing.assert_close(torch.tensor(activated), torch.nn.functional.gelu(x), atol=1e-6, rtol=1e-6)


def test_erf_is_good_to_ten_millionths(scripted):
    found = scripted("numbers.js").evaluate("() => Array.from({ length: 2001 }, (_, i) => erf((i - 1000) / 150))")
    assert max(abs(value - math.erf((i - 1000) / 150)) for i, value in enumerate(found)) < 1e-7


def test_every_number_in_half_precision_is_read(scripted):
    """Normal and subnormal ones, both zeros."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    data = base64.b64encode(halves.astype("<f2").tobytes()).decode()
    unpack = "(packed) => [...unpackModel(packed).get('all')].map((x) => (Object.is(x, -0) ? '-0' : String(x)))"
    found = scripted("numbers.js").evaluate(unpack, {"names": [["all", [len(halves)]]], "data": data})
    assert [float(number).hex() for number in found] == [float(number).hex() for number in halves]


def test_packed_weights_are_the_models(make_model):
    """Tied weights lie in a page once; the size that is expected is the size that comes."""
    for tied in (True, False):
        model = make_model(20, tied_embeddings=tied)
        packed = pack_model(model.state_dict())
        names = [name for name in model.state_dict() if not (tied and name == "head.decoder.weight")]
        assert [name for name, _ in packed["names"]] == names
        assert len(packed["data"]) == model_bytes(model.state_dict())


@pytest.mark.parametrize("number", [65520.0, -1e6, math.inf, math.nan])
def test_numbers_beyond_half_precision_are_refused(make_model, number):
    model = make_model(20)
    with torch.no_grad():
        model.head.transform.bias[3] = 65504
        pack_model(model.state_dict())
        model.head.transform.bias[3] = number
    with pytest.raises(InputError, match=r"head\.transform\.bias"):
        pack_model(model.state_dict())
