"""The page that visualize_attention.py --html writes, in a headless Chromium: it follows what is typed, put and
switched off, what it shows are the model's figures, it runs without a network and by the keyboard alone, and
whatever stands in a prompt stays text."""

import json
import re
from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace
from urllib.parse import quote_plus

import pytest
import torch
from playwright.sync_api import expect

from decoding import generate
from seq2seq import marian
from seq2seq.common import page_data
from seq2seq.common.token_text import show_tokens
from seq2seq.explorer import page as explorer
from seq2seq.tokenizer import to_text, train_tokenizer
from transformer import Attentions, padding_mask

PROMPT = "The zebra bakes the bread"  # with an unknown word
OTHER = "What is the capital of France?"
HOSTILE = [
    "<script>window.hit=1</script>",
    "</script>",
    '<img src=x onerror="window.hit=1">',
    "<!--",
    "&amp;",
    "\"quoted\" 'words'",
    "{{script}}",
    "\\u003c",
    "🦊",
    "שלום",
    "\u202eright to left",
    "a" * 300,
]


@pytest.fixture(scope="module")
def opened(browser):
    """with opened(file, width, fragment) as page: the page in a window of that width. At the end it must have asked
    for nothing but its own file, and have reported nothing."""

    @contextmanager
    def at(file, width=1280, fragment="", **options):
        page = browser.new_page(viewport={"width": width, "height": 800}, **options)
        asked, said = [], []
        page.on("request", lambda request: asked.append(request.url.partition("#")[0]))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(file.as_uri() + fragment)
        page.locator("#written bdi").first.wait_for()
        yield page
        page.close()
        assert (asked, said) == ([file.as_uri()], [])

    return at


@pytest.fixture(scope="module")
def written(trained, command, tmp_path_factory):
    """The page of a prompt with an unknown word."""
    place = tmp_path_factory.mktemp("page")
    flags = "--html", "--model", trained / "model", "--output", place
    done = command("visualize_attention.py", *flags, PROMPT, cwd=place)
    assert (done.returncode, done.stdout) == (0, f"{place / 'attention.html'}\n"), done.stderr
    assert [path.name for path in place.iterdir()] == ["attention.html"]
    return place / "attention.html"


@pytest.fixture(scope="module")
def model_of_page(trained):
    """The trained model as it is in its page, in half precision, and its tokenizer."""
    model, tokenizer = marian.load(trained / "model", torch.device("cpu"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    return model, tokenizer


def show(tokenizer, token):
    return tokenizer.id_to_token(token).removeprefix("▁")


@torch.no_grad()
def read(model, tokenizer, prompt, output=None):
    """Return what a model computes for a prompt and an output, ids, or else the greedy one: the words, the weights of
    the three attentions and the probabilities of the next word."""
    source = torch.tensor([tokenizer.encode(prompt).ids])
    output = output or [*generate(model, source, model.config.max_length)[0][0].ids, model.config.eos_id]
    memory, encoder = model.encode(source, need_weights=True)
    attentions, target = Attentions(), torch.tensor([[model.config.pad_id, *output[:-1]]])
    logits = model.project(
        model.decode(target, memory, padding_mask(source, model.config.pad_id), attentions=attentions)
    )[0]
    return SimpleNamespace(
        ids=output,
        words=[show(tokenizer, token) for token in output],
        cross=torch.stack(attentions.cross)[:, 0],
        decoder=torch.stack(attentions.decoder)[:, 0],
        encoder=torch.stack(encoder)[:, 0],
        probabilities=logits.softmax(dim=-1),
        log_probability=logits.log_softmax(dim=-1).gather(1, torch.tensor(output)[:, None]).sum().item(),
    )


@pytest.fixture(scope="module")
def exact(model_of_page):
    """What the model computes for PROMPT."""
    return read(*model_of_page, PROMPT)


@pytest.fixture(scope="module")
def make_page(make_model, tmp_path_factory):
    """make_page(words, **sizes) -> the page of a random model that knows these words and is asked for them; its outputs
    have no end."""

    def make(words, **sizes):
        tokenizer = train_tokenizer(words, "word", 1000)
        model = make_model(tokenizer.get_vocab_size(), **sizes)
        with torch.no_grad():
            model.output_bias[0] = -100  # </s> never comes
        text, place = " ".join(words), tmp_path_factory.mktemp("made")
        data = explorer.make_data(model, tokenizer, text, tokenizer.encode(text).ids, None, None, place)
        (place / "attention.html").write_text(explorer.render(data), encoding="utf-8")
        return place / "attention.html"

    return make


@pytest.fixture(scope="module")
def long(make_page):
    """The page of a prompt of 40 words and an output of 48, of a model of 4 layers with 8 heads."""
    words = [f"{'long' * (i % 4)}word{i}" for i in range(40)]
    sizes = {"d_model": 16, "n_heads": 8, "n_encoder_layers": 4, "n_decoder_layers": 4, "max_length": 48}
    return make_page(words, **sizes)


@pytest.fixture(scope="module")
def still(written, model_of_page, tmp_path_factory):
    """The page of the same prompt that shows this reading alone, as of a model too large for a page."""
    model, tokenizer = model_of_page
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_data, "MAX_PAGE_BYTES", 1000)
        place = tmp_path_factory.mktemp("still")
        ids = tokenizer.encode(PROMPT).ids
        data = explorer.make_data(model, tokenizer, PROMPT, ids, None, None, place)
    (place / "attention.html").write_text(explorer.render(data), encoding="utf-8")
    return place / "attention.html"


def texts(page, selector):
    return page.locator(selector).all_text_contents()


def choose_kind(page, kind):
    page.locator(f"#kind label:has([value={kind}])").click()


def expect_words(page, words):
    expect(page.locator("#written bdi")).to_have_text(words)


def amount(text):
    """The number that a text begins with or ends in; the page writes a true minus."""
    return float(re.search(r"[-+]?\d+(\.\d+)?", text.replace("−", "-"))[0])


# ---- typing


def test_everything_follows_what_is_typed(opened, written, model_of_page):
    with opened(written) as page:
        page.locator("#text").fill("")
        for end in range(1, len(OTHER) + 1):  # as one types
            page.keyboard.insert_text(OTHER[end - 1])
        expected = read(*model_of_page, OTHER)
        expect_words(page, expected.words)
        assert texts(page, "#to bdi")[-7:] == [*re.findall(r"\w+|\?", OTHER), "</s>"][-7:]
        assert texts(page, "#from bdi") == expected.words
        best = expected.probabilities[-1].max().item()
        assert amount(page.locator("#next .figure").first.inner_text()) == pytest.approx(100 * best, abs=0.06)
        assert page.title().startswith(OTHER)


def test_an_unknown_word_is_named_without_the_signs_around_it(model_of_page):
    tokenizer = model_of_page[1]
    ids = tokenizer.encode("The (zebra) bakes").ids
    shown = show_tokens(tokenizer, ids, "The (zebra) bakes", 1)
    assert shown[1:5] == ["<unk>", "<unk: (>", "<unk: zebra>", "<unk: )>"]  # the first is the space


def test_unknown_words_are_marked(opened, written):
    with opened(written) as page:
        assert texts(page, "#pieces bdi") == ["The", "<unk: zebra>", "bakes", "the", "bread", "</s>"]
        assert texts(page, "#pieces .unknown") == ["<unk: zebra>"]
        page.locator("#text").fill(OTHER)
        expect(page.locator("#pieces .unknown")).to_have_count(0)


def test_a_prompt_that_cannot_be_answered_says_so_in_place(opened, written, exact):
    with opened(written) as page:
        for text, problem in (
            ("", "is empty"),
            ("  ", "is empty"),
            ("the " * 20, "has 21 tokens; the model takes at most 16"),
        ):
            page.locator("#text").fill(text)
            expect(page.locator("#problem")).to_contain_text(problem)
            assert page.locator("#text").get_attribute("aria-invalid") == "true"
            assert texts(page, "#written bdi") == exact.words  # the last answer stays, pale
        page.locator("#text").fill(PROMPT)
        expect(page.locator("#problem")).to_be_empty()
        expect_words(page, exact.words)


def test_of_two_questions_the_newer_is_answered(opened, long):
    """Each is asked before the one before it is answered."""
    ask = """(texts) => {
        for (const text of texts) {
            document.getElementById("text").value = text;
            document.getElementById("text").dispatchEvent(new Event("input"));
        }
        return [...document.querySelectorAll("#to bdi")].map((word) => word.textContent);
    }"""
    prompts = ["word0 longword1", "word4", "longlongword2 word8 word12"]
    with opened(long) as page:
        before = page.evaluate(ask, prompts)
        assert len(before) == 41  # nothing of it has been computed yet
        expect(page.locator("#to bdi")).to_have_text(["longlongword2", "word8", "word12", "</s>"])
        page.wait_for_timeout(300)
        assert texts(page, "#to bdi")[0] == "longlongword2"


def test_the_page_shows_that_it_is_still_computing(opened, written):
    """The newest job alone decides: the end of one that it superseded says nothing."""
    run = "() => { jobs.run(() => new Promise((end) => { (window.ends ??= []).push(end); })); }"
    with opened(written) as page:
        expect(page.locator("body")).to_have_attribute("aria-busy", "false")
        page.evaluate(run)
        expect(page.locator("body")).to_have_attribute("aria-busy", "true")
        page.evaluate(run)
        page.evaluate("ends[0]()")
        page.wait_for_timeout(50)
        expect(page.locator("body")).to_have_attribute("aria-busy", "true")
        page.evaluate("ends[1]()")
        expect(page.locator("body")).to_have_attribute("aria-busy", "false")


def test_an_output_without_an_end_says_so(opened, long):
    with opened(long) as page:
        assert page.locator("#step-name").inner_text() == "word 48 of 48"
        expect(page.locator("#cut")).to_contain_text("Stopped at 48 tokens")


# ---- the output


def test_a_likely_word_put_is_gone_on_from(opened, written, model_of_page, exact):
    model, tokenizer = model_of_page
    with opened(written) as page:
        page.locator("#written button").nth(1).click()
        second = texts(page, "#next bdi")[1]
        page.locator("#next button").nth(1).click()
        expect(page.locator("#written bdi").nth(1)).to_have_text(second)
        ids = [exact.ids[0], *exact.probabilities[1].topk(2).indices[1:].tolist()]
        source = torch.tensor([tokenizer.encode(PROMPT).ids])
        while ids[-1] != model.config.eos_id and len(ids) < 16:
            with torch.no_grad():
                ids.append(int(model(source, torch.tensor([[model.config.pad_id, *ids]]))[0, -1].argmax()))
        expect_words(page, [show(tokenizer, token) for token in ids])
        assert texts(page, ".own bdi") == [second]
        page.locator("#mine button").click()
        expect_words(page, exact.words)


def test_a_typed_word_is_put_if_it_is_known(opened, written, model_of_page):
    model, tokenizer = model_of_page
    with opened(written) as page:
        page.locator("#written button").first.click()
        for word in "zebra", "<pad>":
            page.locator("#other").fill(word)
            page.keyboard.press("Enter")
            expect(page.locator("#refused")).to_contain_text("does not know")
        page.locator("#other").fill("Rome")
        page.keyboard.press("Enter")
        expect(page.locator("#written bdi").first).to_have_text("Rome")
        page.locator("#text").fill(OTHER)  # another prompt: the model writes by itself again
        expect_words(page, read(model, tokenizer, OTHER).words)
        assert page.locator(".own").count() == 0


def test_a_typed_word_is_what_the_tokenizer_makes_of_it(opened, tmp_path, make_model):
    """Not the token that looks like it: of subwords, one that begins a word and one that goes on may look alike."""
    text = "er and dinner and er and inner and dinner and er"
    tokenizer = train_tokenizer([text, text], "bpe", 300)
    model = make_model(tokenizer.get_vocab_size(), max_length=48)
    data = explorer.make_data(model, tokenizer, text, tokenizer.encode(text).ids, None, None, tmp_path)
    alike = [id for id, token in enumerate(data["tokens"]) if token == "er"]
    begins = tokenizer.encode("er").ids[0]
    assert len(alike) == 2 and begins == alike[1], alike  # or this test proves nothing
    (tmp_path / "attention.html").write_text(explorer.render(data), encoding="utf-8")
    with opened(tmp_path / "attention.html") as page:
        page.locator("#written button").first.click()
        page.locator("#other").fill("er")
        page.keyboard.press("Enter")
        expect(page.locator(".own")).to_have_count(1)
        assert page.evaluate("state.put.at(-1).id") == begins
        page.locator("#other").fill("</s>")
        page.keyboard.press("Enter")
        assert page.evaluate("state.put.at(-1).id") == data["special"]["eos"]


@pytest.mark.parametrize("beam", [3, 5])
def test_beams_are_those_of_inference(opened, written, model_of_page, beam):
    model, tokenizer = model_of_page
    with opened(written) as page:
        page.get_by_text("Beam search").click()
        page.locator("#beam").fill(str(beam))
        page.locator("#penalty").fill("0.6")
        page.locator("#text").fill(OTHER)
        source = torch.tensor([tokenizer.encode(OTHER).ids])
        (expected,) = generate(model, source, 16, beam, 0.6)
        expect(page.locator(".ranking bdi")).to_have_text([to_text(tokenizer, one.ids) for one in expected])
        figures = [[amount(part) for part in text.split(",")] for text in texts(page, ".ranking .figure")]
        for (total, score), one in zip(figures, expected, strict=True):
            assert total == pytest.approx(one.log_probability, abs=0.006)
            assert score == pytest.approx(one.score, abs=0.0006)
        assert page.locator(".beam.won").count() == len(expected[0].ids) + 1
        drawn = [cell.get_attribute("title") for cell in page.locator(".beam.ended").all()]
        assert set(texts(page, ".ranking bdi")) <= set(drawn)  # those, too, that are longer than the winner
        page.locator("#step").fill("2")
        assert page.locator(".beam.open").count() == 2 * beam or page.locator(".beam.open").count() > beam


def test_sampling_draws_again_what_the_seed_says(opened, written):
    with opened(written) as page:
        page.get_by_text("Sampling").click()
        page.locator("#temperature").fill("3")
        drawn = {}
        for seed in (1, 2, 3, 1):
            page.locator("#seed").fill(str(seed))
            page.wait_for_timeout(60)
            words = texts(page, "#written bdi")
            assert drawn.setdefault(seed, words) == words
        assert len({tuple(words) for words in drawn.values()}) == 3
        page.locator("#seed").fill("1")
        page.locator("#again").click()
        expect_words(page, drawn[2])
        page.locator("#kept").fill("1")
        greedy = page.locator("#written bdi").all_text_contents()
        page.get_by_text("Greedy").click()
        expect_words(page, greedy)


def test_each_step_shows_what_is_written_and_the_likeliest_next_words(opened, written, exact):
    with opened(written) as page:
        choose_kind(page, "decoder")
        shown = [amount(text) for text in texts(page, "#written .figure")]
        taken = exact.probabilities.gather(1, torch.tensor(exact.ids)[:, None])[:, 0]
        assert shown == pytest.approx((100 * taken).tolist(), abs=0.06)
        for step in range(1, len(exact.words) + 1):
            page.locator("#step").fill(str(step))
            assert texts(page, "#written button:not(.ahead) bdi") == exact.words[:step]
            best = exact.probabilities[step - 1].topk(5).values
            figures = [amount(text) for text in texts(page, "#next .figure")]
            assert figures == pytest.approx((100 * best).clamp(min=0.1).tolist(), abs=0.06)
            assert texts(page, "#next .taken bdi") == [exact.words[step - 1]]
            assert texts(page, "#from .word:not(.later) bdi") == exact.words[:step]
            assert texts(page, "#to .word:not(.later) bdi") == ["start", *exact.words][:step]
            if step < len(exact.words):  # the newest word is chosen
                figures = [float(figure) for figure in texts(page, "#to .word:not(.later) .figure")]
                assert figures == pytest.approx(exact.decoder.mean((0, 1))[step - 1, :step].tolist(), abs=6e-4)


def test_it_plays_word_by_word(opened, written, exact):
    with opened(written) as page:
        page.clock.install()
        page.locator("#play").click()
        steps = []
        for step in range(1, len(exact.words) + 1):
            steps.append(page.locator("#step-name").inner_text())
            visible = page.locator("#written button:visible").count()
            assert visible == step  # what comes is not given away
            page.clock.run_for(1000)
        assert steps == [f"word {i} of {len(exact.words)}" for i in range(1, len(exact.words) + 1)]
        assert page.locator("#play").inner_text() == "Play"


# ---- attention


@pytest.mark.parametrize("page_name", ["written", "still"])
@pytest.mark.parametrize("kind", ["cross", "decoder", "encoder"])
def test_every_weight_shown_is_the_models(opened, request, exact, kind, page_name):
    weights = getattr(exact, kind)
    with opened(request.getfixturevalue(page_name)) as page:
        choose_kind(page, kind)
        shown = page.evaluate("""() => [...document.querySelectorAll(".head")].map((head) => {
            head.click();
            return [...document.querySelectorAll("#from .word")].map((word) => {
                word.focus();
                return [...document.querySelectorAll("#to .figure")].map((figure) => figure.textContent);
            });
        })""")
        columns = page.evaluate("""() => [...document.querySelectorAll("#to .word")].map((word) => {
            word.focus();
            return [...document.querySelectorAll("#from .figure")].map((figure) => figure.textContent);
        })""")
        words = texts(page, "#from bdi"), texts(page, "#to bdi")
        bits = [float(text) for text in texts(page, ".head span")]
    asked = ["The", "<unk: zebra>", *PROMPT.split()[2:], "</s>"]
    written_before = ["start", *exact.words[:-1]]
    sides = {"cross": (exact.words, asked), "decoder": (exact.words, written_before), "encoder": (asked, asked)}
    assert words == sides[kind]
    n_layers, n_heads = weights.shape[:2]
    for i, figures in enumerate(shown):
        layer, head = divmod(i, n_heads + 1)
        layers = weights.mean(0) if layer == n_layers else weights[layer]
        chosen = layers.mean(0) if head == n_heads else layers[head]
        for t, row in enumerate(figures):
            seen = row[: t + 1] if kind == "decoder" else row
            assert set(row[len(seen) :]) <= {""}  # what is forbidden has no figure
            assert all(re.fullmatch(r"[01]\.\d{3}", figure) for figure in seen)
            off = (torch.tensor([float(figure) for figure in seen]) - chosen[t, : len(seen)]).abs().max()
            assert off <= 0.0015 if page_name == "still" else off <= 0.0006
    assert columns == [list(column) for column in zip(*shown[-1], strict=True)]
    entropy = -(weights * weights.clamp(min=1e-30).log2()).sum(-1).mean(-1).flatten()
    own = [bits[layer * (n_heads + 1) + head] for layer in range(n_layers) for head in range(n_heads)]
    assert own == pytest.approx(entropy.abs().tolist(), abs=0.012)


# the greens of the big map's third row: where its cells begin (in the table) or where its lines end
DRAWN = """() => {
    const canvas = document.querySelector("#canvas");
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
    copy.drawImage(canvas, 0, 0);
    const dots = copy.getImageData(0, 0, canvas.width, canvas.height).data;
    const green = (x, y) => dots[4 * (Math.floor(y) * canvas.width + Math.floor(x)) + 1];
    const [rows, columns] = ["from", "to"].map((side) => document.querySelectorAll(`#${side} .word`).length);
    const inTable = document.querySelector("#figure").dataset.form === "table";
    return [...Array(columns).keys()].map((column) => inTable
        ? green((column + 0.1) * canvas.width / columns, 2.2 * canvas.height / rows)
        : green(canvas.width - 1, (column + 0.5) * canvas.height / Math.max(rows, columns)));
}"""


def test_what_is_drawn_large_is_what_is_said(opened, written):
    """The heavier a weight, the darker its cell and its line."""
    with opened(written) as page:
        page.locator(".head").nth(0).click()
        page.locator("#from .word").nth(2).focus()
        weights = torch.tensor([float(figure) for figure in texts(page, "#to .figure")])
        for form in ("Lines", "Table"):
            page.get_by_text(form, exact=True).click()
            order = weights.argsort()
            greens = torch.tensor(page.evaluate(DRAWN))[order][weights[order] > 0]  # of nothing no line is drawn
            # a thin line is partly transparent, and its colour read back with a small error
            assert bool((greens[1:] <= greens[:-1] + 3).all()) and greens[-1] < greens[0] - 50


def test_the_triangle_grows(opened, written, exact):
    """In small pictures: a row and a column with every word, the half above the diagonal without colour."""
    dots = """() => {
        const canvas = document.querySelector(".head canvas");
        const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
        copy.drawImage(canvas, 0, 0);
        const all = copy.getImageData(0, 0, canvas.width, canvas.height).data;
        return [...all].filter((_, i) => i % 4 === 3).map((alpha) => alpha > 0);
    }"""
    size = len(exact.words)
    with opened(written) as page:
        choose_kind(page, "decoder")
        for step in (1, 3, size):
            page.locator("#step").fill(str(step))
            there = torch.tensor(page.evaluate(dots)).view(size, size)
            expected = torch.ones(size, size).tril().bool()
            expected[step:] = False
            assert torch.equal(there, expected)
        choose_kind(page, "encoder")
        page.locator("#step").fill("1")
        assert all(page.evaluate(dots))  # it was computed before the first step


def test_pointing_at_a_word_or_a_cell_says_its_figures(opened, written, exact):
    with opened(written) as page:
        page.locator("#from .word").nth(2).hover()
        figures = texts(page, "#to .figure")
        reading = page.locator("#reading").inner_text()
        assert reading.startswith(f"{exact.words[2]} attends to ") and max(figures) in reading
        page.mouse.move(0, 0)
        assert set(texts(page, ".word .figure")) == {""}
        page.get_by_text("Table", exact=True).click()
        box = page.locator("#canvas").bounding_box()
        columns, rows = len(PROMPT.split()) + 1, len(exact.words)
        page.mouse.move(box["x"] + 1.5 * box["width"] / columns, box["y"] + 2.5 * box["height"] / rows)
        assert page.locator("#reading").inner_text() == f"{exact.words[2]} attends to <unk: zebra> {figures[1]}"


def test_the_head_asked_for_is_shown_at_first(opened, script, trained, tmp_path):
    flags = "--html", "--model", trained / "model", "--output", tmp_path, "--layer", 1, "--head", 2, "Rome?"
    assert script("visualize_attention", *flags)[0] == 0
    with opened(tmp_path / "attention.html") as page:
        assert page.locator("#map-title").inner_text() == "Layer 1, head 2"
        assert page.locator(".cell[aria-selected=true]").count() == 1
        choose_kind(page, "encoder")
        assert page.locator("#map-title").inner_text() == "Layer 1, head 2"


# ---- taken apart


@contextmanager
def without(module, kind="forward"):
    """Within this, a module computes 0; a kind of "head.N" clears the columns of its head N, of 2, before it."""

    def clear(module, inputs):
        x = inputs[0].clone()
        half = x.size(-1) // 2
        x[..., half * (int(kind[-1]) - 1) :][..., :half] = 0
        return (x,)

    if kind == "forward":
        hook = module.register_forward_hook(lambda m, i, output: (output[0] * 0, output[1]))
    else:
        hook = module.register_forward_pre_hook(clear)
    yield
    hook.remove()


def test_what_cross_attention_is_worth_is_what_pytorch_says(opened, written, model_of_page, exact):
    model, tokenizer = model_of_page
    with opened(written) as page:
        page.get_by_role("switch", name="cross-attention 1", exact=True).click()
        with without(model.decoder[0].cross_attention):
            now, old = read(model, tokenizer, PROMPT), read(model, tokenizer, PROMPT, exact.ids)
        expect_words(page, now.words)
        change = old.log_probability - exact.log_probability
        assert change < -1
        verdict = page.locator("#answers .verdict")
        expect(verdict).to_contain_text("Log-probability of")
        shown = [amount(part) for part in re.findall(r"[−+]?\d+\.\d+", verdict.inner_text())[:3]]
        assert shown == pytest.approx([change, exact.log_probability, old.log_probability], abs=0.011)
        assert texts(page, "#answers .both bdi") == [
            to_text(tokenizer, [token for token in ids if token != model.config.eos_id]) for ids in (exact.ids, now.ids)
        ]
        expect(page.locator("#changed")).to_be_visible()
        page.locator("#changed button").click()
        expect_words(page, exact.words)
        expect(page.locator("#changed")).to_be_hidden()
        expect(verdict).to_have_text("Nothing is switched off yet.")


def test_without_the_causal_mask_the_score_changes_and_not_the_output(opened, written, exact):
    with opened(written) as page:
        page.get_by_role("switch", name="causal mask").click()
        expect(page.locator("#answers .verdict")).to_contain_text("Log-probability of")
        assert abs(amount(page.locator("#answers .verdict b").inner_text())) > 0.01
        expect_words(page, exact.words)


def test_what_matters_is_what_pytorch_says(opened, written, model_of_page, exact):
    model, tokenizer = model_of_page
    attentions = {
        "encoder": model.encoder[0].self_attention,
        "decoder": model.decoder[0].self_attention,
        "cross": model.decoder[0].cross_attention,
    }
    changes = {}
    for kind, attention in attentions.items():
        for head in (1, 2):
            with without(attention.output, f"head.{head}"):
                changes[kind, head] = read(model, tokenizer, PROMPT, exact.ids).log_probability - exact.log_probability
    with opened(written) as page:
        page.locator("#what-matters").click()
        expect(page.locator("#strongest")).to_contain_text("head")
        rows = page.locator(".matters").first.locator("tbody tr").all()
        assert len(rows) == 3
        for row, kind in zip(rows, attentions, strict=True):
            shown = [amount(text) for text in row.locator("button").all_text_contents()[:2]]
            assert shown == pytest.approx([changes[kind, 1], changes[kind, 2]], abs=0.011)
        kind, head = min(changes, key=changes.get)
        named = f"{'cross-attention' if kind == 'cross' else kind} layer 1, head {head}"
        expect(page.locator("#strongest b").first).to_have_text(named)


def test_the_last_layer_predicts_what_is_written(opened, written, exact):
    with opened(written) as page:
        for step in (1, len(exact.words)):
            page.locator("#step").fill(str(step))
            rows = page.locator(".lens tbody tr")
            assert texts(page, ".lens tbody th") == ["embeddings", "layer 1"]
            figures = [amount(text) for text in rows.last.locator(".figure").all_text_contents()]
            best = 100 * exact.probabilities[step - 1].topk(5).values
            assert figures == pytest.approx(best.clamp(min=0.1).tolist(), abs=0.06)
            assert rows.first.locator(".figure").all_text_contents() != rows.last.locator(".figure").all_text_contents()


def test_every_experiment_sets_the_page_and_asks(opened, written):
    with opened(written) as page:
        buttons = page.locator("#try .choices button")
        assert buttons.count() == 5
        seen = set()
        for button in buttons.all():
            button.click()
            expect(button).to_have_attribute("aria-pressed", "true")
            assert page.locator("#try .question").inner_text().endswith("?")
            page.wait_for_timeout(400)  # the link waits, too
            seen.add(page.url.partition("#")[2])
        assert len(seen) == 5


def test_the_outcome_of_an_experiment_is_shown(opened, written):
    """It may stand below what the window has room for."""
    with opened(written) as page:
        page.get_by_text("Watch the beams").click()
        page.get_by_text("Show the outcome").click()
        expect(page.locator("#beams-part")).to_be_in_viewport()
        page.get_by_text("Without the prompt").click()
        expect(page.get_by_text("Show the outcome")).to_be_hidden()


def test_an_experiment_asks_the_page_s_prompt_of_the_whole_model(opened, replayed, exact, model_of_page):
    """Whatever was typed, switched off or replayed before: here the second likeliest first word."""
    model, tokenizer = model_of_page
    second = exact.probabilities[0].topk(2).indices[1].item()
    with opened(replayed) as page:

        def expect_second():
            page.get_by_text("Another first word").click()
            expect(page.locator(".own bdi")).to_have_text(show(tokenizer, second))
            assert page.locator("#text").input_value() == PROMPT
            expect(page).to_have_url(re.compile(f"&put=%7E{second}$"))

        page.locator("#replay input[type=range]").fill("0")
        expect(page.locator("#moment")).to_be_visible()
        expect_second()
        expect(page.locator("#moment")).to_be_hidden()
        page.locator("#text").fill(OTHER)
        page.get_by_role("switch", name="cross-attention 1", exact=True).click()
        with without(model.decoder[0].cross_attention):
            switched = read(model, tokenizer, OTHER)
        assert switched.probabilities[0].topk(2).indices[1] != second  # or this test proves nothing
        expect_words(page, switched.words)
        expect_second()
        expect(page.locator("#changed")).to_be_hidden()


@pytest.fixture(scope="module")
def replayed(written, still, tmp_path_factory):
    """The page with one moment of its training, at which the output began with "before"."""
    find = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)
    data, reading = (json.loads(find.search(file.read_text(encoding="utf-8"))[1]) for file in (written, still))
    moment = reading["reading"] | {"step": 7, "epoch": 1, "text": "an older text"}
    moment["output"] = ["before", *moment["output"][1:]]
    curve = [{"step": step, "train_loss": 3.0 / step, "held_out_loss": 4.0 / step} for step in (1, 7)]
    file = tmp_path_factory.mktemp("replayed") / "attention.html"
    file.write_text(explorer.render(data | {"curve": curve, "watched": [moment]}), encoding="utf-8")
    return file


def test_a_moment_of_training_is_shown_and_left(opened, replayed, exact, model_of_page):
    other_words = read(*model_of_page, OTHER).words
    with opened(replayed) as page:
        slider = page.locator("#replay input[type=range]")
        slider.fill("0")
        expect_words(page, ["before", *exact.words[1:]])
        expect(page.locator("#moment")).to_contain_text("step 7")
        assert page.locator("#next button").count() == 0
        assert page.locator("section[inert]").count() == 3  # what asks the trained model
        assert page.locator("#text").input_value() == "an older text"
        page.locator("#moment button").click()
        expect_words(page, exact.words)
        assert page.locator("#text").input_value() == PROMPT
        assert slider.input_value() == "1"
        slider.fill("0")
        expect(page.locator("#moment")).to_be_visible()
        page.locator("#text").fill(OTHER)  # an edit leaves it, too
        expect(page.locator("#moment")).to_be_hidden()
        assert slider.input_value() == "1"
        slider.fill("0")
        page.locator("#text").fill("")  # is refused, and stays as typed
        expect(page.locator("#problem")).to_contain_text("is empty")
        assert page.locator("#text").input_value() == ""
        slider.fill("0")
        expect(page.locator("#problem")).to_be_empty()  # the moment's prompt is another one
        page.locator("#moment button").click()
        expect_words(page, other_words)  # of the trained model, the last that it answered


def test_a_page_opened_with_a_refused_prompt_comes_back_from_a_moment(opened, replayed, exact):
    """To what the trained model makes of the page's own prompt."""
    with opened(replayed, fragment="#text=") as page:
        expect_words(page, exact.words)
        page.locator("#replay input[type=range]").fill("0")
        expect_words(page, ["before", *exact.words[1:]])
        page.locator("#moment button").click()
        expect_words(page, exact.words)
        expect(page.locator("#moment")).to_be_hidden()
        expect(page.locator("#problem")).to_contain_text("is empty")
        assert page.locator("section[inert], .answer[inert]").count() >= 4


def test_at_a_moment_a_switch_switches_off_what_is_shown_as_on(opened, replayed):
    with opened(replayed) as page:
        switch = page.locator("#grid [role=switch]").first
        switch.click()
        expect(switch).to_have_attribute("aria-checked", "false")
        page.locator("#replay input[type=range]").fill("0")
        expect(switch).to_have_attribute("aria-checked", "true")
        switch.click()
        expect(page.locator("#moment")).to_be_hidden()
        expect(switch).to_have_attribute("aria-checked", "false")


def test_all_on_ends_what_an_experiment_says(opened, written):
    with opened(written) as page:
        for all_on in ("#changed button", "#all-on"):
            page.get_by_text("Without positions").click()
            expect(page.locator("#try .question")).to_be_visible()
            page.locator(all_on).click()
            expect(page.locator("#try .question")).to_be_hidden()
            assert page.locator("#try [aria-pressed=true]").count() == 0


# ---- the link


def test_a_link_restores_the_state(opened, written):
    parts = "#written, #next, #map-title, #answers, #reading, #beams, #step-name"
    look = f"() => [...document.querySelectorAll('{parts}')].map((element) => element.textContent)"
    with opened(written) as page:
        page.locator("#text").fill(OTHER)
        page.get_by_text("Beam search").click()
        page.locator("#beam").fill("3")
        page.get_by_role("switch", name="feed-forward 1").first.click()
        choose_kind(page, "decoder")
        page.locator(".head").nth(1).click()
        page.locator("#written button").nth(1).click()
        page.locator("#next button").nth(2).click()
        expect(page.locator(".own")).to_have_count(1)
        expect(page.locator("#answers .verdict")).to_contain_text("Log-probability of")
        page.wait_for_timeout(400)
        fragment, shown = "#" + page.url.partition("#")[2], page.evaluate(look)
    with opened(written, fragment=fragment) as page:
        expect(page.locator("#answers .verdict")).to_contain_text("Log-probability of")
        assert page.evaluate(look) == shown
        assert page.locator("#beam").input_value() == "3"


def test_a_link_holds_what_a_page_was_made_for(opened, written, long):
    """Opened in a page made for another prompt, it shows the same; so does that of an empty prompt."""
    with opened(written, fragment="#layer=1") as page:
        for text in (PROMPT, ""):
            page.locator("#text").fill(OTHER)
            page.locator("#text").fill(text)
            expect(page).to_have_url(re.compile(f"#text={re.escape(quote_plus(text))}&"))
            fragment = "#" + page.url.partition("#")[2]
            with opened(long, fragment="#text=word1") as other:
                other.evaluate(
                    """(fragment) => {
                    location.hash = fragment;
                    link.writeNow({ text: "word1" }); // of an edit just before
                }""",
                    fragment,
                )
                expect(other.locator("#text")).to_have_value(text)
                if text:
                    expect(other.locator("#map-title")).to_have_text("Layer 1, mean of all heads")


@pytest.mark.parametrize(
    "fragment",
    [
        "#text=&off=nothing,cross.9,__proto__&layer=-3&head=1e9&step=0&put=~99999.x&method=constructor&kind=toString",
        "#%E0%A4%A&beam=NaN&temperature=&seed=-1&mass=7&put=~0~&step=999999&form=<b>",
    ],
)
def test_a_link_that_makes_no_sense_does_no_harm(opened, written, exact, fragment):
    with opened(written, fragment="#" if "text=&" in fragment else fragment) as page:
        page.evaluate("(fragment) => { location.hash = fragment; }", fragment)
        if "text=&" in fragment:
            expect(page.locator("#problem")).to_contain_text("is empty")
        page.locator("#text").fill(PROMPT)
        expect_words(page, exact.words)


# ---- the page of a model that is too large


def test_a_still_page_shows_its_reading_and_says_why(opened, still, exact):
    with opened(still, fragment="#off=cross.1&text=hello&step=3") as page:  # it has one text, and all parts on
        assert page.locator("#changed").is_hidden() and page.locator(".off").count() == 0
        assert page.locator("#step-name").inner_text() == f"word 3 of {len(exact.words)}"
        assert texts(page, "#written bdi") == exact.words
        assert page.locator("#text").input_value() == PROMPT
        assert page.locator("#text").get_attribute("readonly") is not None
        expect(page.locator("#problem")).to_contain_text("so it shows this text only")
        page.locator("#step").fill("2")
        assert texts(page, "#from .word:not(.later) bdi") == exact.words[:2]
        assert texts(page, "#next .taken bdi") == [exact.words[1]]
        for part in ("#switches", "#matters", "#lens", "#try", "#method", "#put-own", "#next button", ".switch"):
            assert page.locator(part).locator("visible=true").count() == 0, part


def test_a_still_page_that_would_be_too_large_is_refused(script, trained, tmp_path, monkeypatch):
    flags = "--html", "--model", trained / "model", "--output", tmp_path / "out", PROMPT
    assert script("visualize_attention", *flags)[0] == 0
    (tmp_path / "out" / "attention.html").write_text("before")
    monkeypatch.setattr(page_data, "MAX_PAGE_BYTES", 1000)
    monkeypatch.setattr(explorer, "MAX_BYTES", 100)
    status, out, err = script("visualize_attention", *flags)
    assert (status, out) == (2, "")
    line = err.splitlines()[-1]
    assert "a prompt of 6 tokens" in line and "shorten the prompt" in line and line.endswith("(--html)")
    assert (tmp_path / "out" / "attention.html").read_text() == "before"


# ---- the keyboard, colours and widths


def test_everything_is_reached_by_the_keyboard(opened, written, exact):
    with opened(written) as page:

        def focused():
            return page.evaluate("""() => {
                const { activeElement } = document;
                const radio = activeElement.type === "radio";
                const seen = radio ? activeElement.nextElementSibling : activeElement;
                const { outlineStyle, outlineWidth } = getComputedStyle(seen);
                return [activeElement.closest("[id]").id, outlineStyle, parseFloat(outlineWidth)];
            }""")

        def press(*keys):
            for key in keys:
                page.keyboard.press(key)

        stops = []
        while not stops or stops[-1] != "to":
            press("Tab")
            name, style, width = focused()
            assert style == "solid" and width >= 2, name
            stops.append(name)
            assert len(stops) < 40
        once = [name for name, after in pairwise([*stops, None]) if name != after]
        expected = ["theme", "text", "written", "play", "step", "methods", "next", "other", "put", "try", "kind"]
        assert once == [*expected, "heads", "form", "from", "to"]

        page.locator("#step").focus()
        press("Home", "ArrowRight")
        assert page.locator("#step-name").inner_text() == f"word 2 of {len(exact.words)}"
        page.locator("#kind input").first.focus()
        press("ArrowRight")
        assert page.locator("#to-title").inner_text().startswith("written before")
        page.locator(".head").first.focus()
        titles = []
        for key in ("ArrowRight", "ArrowDown", "End", "Home"):
            press(key)
            titles.append(page.locator("#map-title").inner_text())
        last = "Mean of all layers, mean of all heads"
        assert titles == ["Layer 1, head 2", "Mean of all layers, head 2", last, "Layer 1, head 1"]
        page.locator("#from .word").first.focus()
        press("ArrowDown", "ArrowDown", "End")  # the third is not yet written
        assert page.locator("#reading").inner_text().startswith(f"{exact.words[1]} attends to ")
        press("Tab", "End")
        assert page.locator("#reading").inner_text().startswith(f"{exact.words[0]} is attended to by ")
        press("Escape")
        assert page.locator(".word[aria-selected=true]").count() == 0
        page.locator("#form input").first.focus()
        press("ArrowRight")
        assert page.locator("#figure").get_attribute("data-form") == "table"
        page.locator("#written button").nth(1).focus()
        press("ArrowRight", "Enter")
        assert page.locator("#step-name").inner_text() == f"word 3 of {len(exact.words)}"
        assert page.evaluate("document.activeElement.closest('[id]').id") == "written"
        page.locator("#next button").first.focus()
        press("ArrowDown", "Enter")  # puts a word, and stays there
        expect(page.locator(".own")).to_have_count(1)
        assert page.evaluate("document.activeElement.closest('[id]').id") == "next"


def test_a_list_stays_reachable_when_its_chosen_word_is_unwritten(opened, written):
    with opened(written) as page:
        page.locator("#step").focus()
        page.keyboard.press("End")
        page.locator("#from .word").last.focus()
        page.locator("#step").focus()
        page.keyboard.press("Home")
        assert page.locator("#from .word[tabindex='0']:visible").count() == 1


def test_a_word_left_by_escape_is_chosen_again_by_a_click(opened, written):
    with opened(written) as page:
        word = page.locator("#from .word").first
        word.click()
        page.keyboard.press("Escape")
        assert page.locator(".word[aria-selected=true]").count() == 0
        word.click()
        page.mouse.move(0, 0)
        assert page.locator(".word[aria-selected=true]").count() == 1


def test_everything_that_is_operated_has_a_name(opened, written):
    with opened(written, fragment="#method=sample&off=cross.1") as page:
        tree = page.locator("body").aria_snapshot()
    for role in ("button", "option", "radio", "listbox", "grid", "slider", "switch", "textbox", "spinbutton"):
        lines = re.findall(rf"^\s*- {role}\b.*", tree, re.M)
        assert lines and all('"' in line for line in lines), role
    assert 'button "layer 1, head 2, entropy' in tree


CONTRASTS = """() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => {
    const linear = (c) => c <= 10 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4;
    return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  };
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode()); ) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility({ visibilityProperty: true })) continue;
    const [a, b] = [luminance(parse(getComputedStyle(element).color)), luminance(ground(element))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.data]);
  }
  return found;
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_is_legible_in_both_themes_and_at_any_width(opened, written, long, theme):
    for file, fragment in ((written, "#method=beam&off=cross.1&matters=1"), (long, "#method=sample&step=9")):
        with opened(file, color_scheme=theme, fragment=fragment) as page:
            assert page.locator("html").get_attribute("data-theme") == theme
            if "matters" in fragment:
                expect(page.locator("#strongest")).to_contain_text("head")
            for width, form in ((2000, "Lines"), (1000, "Table"), (360, "Table"), (360, "Lines")):
                page.set_viewport_size({"width": width, "height": 800})
                page.get_by_text(form, exact=True).click()
                choose_kind(page, "decoder" if form == "Table" else "cross")
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
                contrasts = page.evaluate(CONTRASTS)
                assert len(contrasts) > 60 and min(contrasts)[0] >= 4.5, min(contrasts)


def test_nothing_overlaps(opened, long):
    """Neither the words of the output, nor the beams, nor the sections."""
    overlaps = """(selector) => {
        const boxes = [...document.querySelectorAll(selector)].map((element) => element.getBoundingClientRect());
        const there = boxes.filter(({ width }) => width);
        const cross = (a, b, low, high) => a[low] < b[high] - 1 && b[low] < a[high] - 1;
        const meet = (a, b) => cross(a, b, "left", "right") && cross(a, b, "top", "bottom");
        return there.flatMap((a, i) => there.slice(i + 1).filter((b) => meet(a, b))).length;
    }"""
    with opened(long, fragment="#method=beam&step=40") as page:
        for width in (2000, 1000, 360):
            page.set_viewport_size({"width": width, "height": 800})
            for selector in ("#written button", ".beam", "section", ".asking > *", "#figure .word", ".settings label"):
                assert page.evaluate(overlaps, selector) == 0, (selector, width)


def test_the_theme_is_changed_by_its_button(opened, written):
    with opened(written) as page:
        colours = []
        for _ in range(3):
            colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            page.locator("#theme").click()
        assert colours[0] == colours[2] != colours[1]


# ---- what must not happen


def test_words_stay_text(opened, make_page):
    file = make_page(HOSTILE, max_length=90)
    with opened(file, color_scheme="dark", fragment="#off=cross.1&matters=1") as page:
        for text, method in ((HOSTILE, "Greedy"), (HOSTILE[::-1], "Beam search")):
            page.get_by_text(method).click()
            page.locator("#text").fill(text := " ".join(text))
            expect(page.locator("#strongest")).to_contain_text("head", timeout=20_000)
            assert page.locator("#text").input_value() == text
            assert "script" in "".join(texts(page, "#to bdi") + texts(page, "#pieces bdi"))
        assert page.evaluate("[window.hit, document.scripts.length, document.images.length]") == [None, 2, 0]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_hostile_prompts_of_the_user_too(opened, script, trained, tmp_path):
    prompt = "</script><script>hit=1 שלום"
    flags = "--html", "--model", trained / "model", "--output", tmp_path, prompt
    assert script("visualize_attention", *flags)[0] == 0
    with opened(tmp_path / "attention.html") as page:
        assert page.locator("#text").input_value() == prompt
        assert page.evaluate("[window.hit, document.scripts.length]") == [None, 2]


def test_the_page_may_not_reach_a_network(browser, written):
    page = browser.new_page()
    page.goto(written.as_uri())
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    refused = page.evaluate("""async () => {
        const seen = [];
        document.addEventListener("securitypolicyviolation", (event) => seen.push(event.violatedDirective));
        await fetch("http://127.0.0.1:9/").catch(() => {});
        const add = (tag, name, value) => {
            const element = document.createElement(tag);
            element[name] = value;
            document.body.append(element);
        };
        add("img", "src", "http://127.0.0.1:9/");
        add("script", "textContent", "window.hit = 1");
        await new Promise((done) => setTimeout(done, 50));
        return [seen.sort(), window.hit ?? null];
    }""")
    page.close()
    assert refused == [["connect-src", "img-src", "script-src-elem"], None]


def test_it_is_printed_in_the_light_theme(opened, written):
    """Its figures' colours, too, at once; then it is dark again."""
    with opened(written, color_scheme="dark") as page:
        page.locator("#what-matters").click()
        expect(page.locator("#strongest")).to_contain_text("without")
        look = """() => [document.documentElement.dataset.theme,
            ...[...document.querySelectorAll(".lens td, .matters button")].map((cell) => cell.style.cssText)]"""
        dark = page.evaluate(look)
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        light = page.evaluate(look)
        assert (dark[0], light[0]) == ("dark", "light") and len(light) == len(dark) > 10
        assert sum(one != other for one, other in zip(dark, light, strict=True)) > len(dark) / 2
        page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert page.evaluate(look) == dark
