"""Record explorer.webp, the README's moving picture, from the page of the default model, and time its answers.

    python3 results/record_explorer.py

It needs the packages of requirements-dev.txt and Chromium, and makes the page, attention.html, anew.
"""

import sys
from pathlib import Path

RESULTS = Path(__file__).parent
sys.path.insert(0, str(RESULTS.parent))

import visualize_attention  # noqa: E402
from mlm.common.recording import record  # noqa: E402


def play(page, recorder) -> None:
    """Replay the training, type a sentence, hide a word, look at the head that finds it, and ask what matters."""
    recorder.hold(1.0)
    slider = page.locator("#replay input[type=range]")
    for moment in range(0, int(slider.get_attribute("max")) + 1, 2):
        slider.fill(str(moment))
        recorder.hold(0.15)
    recorder.hold(0.8)
    recorder.type(page.locator("#text"), "Paris is the capital of France")
    recorder.click(page.locator("#chips button", has_text="France"), 1.8)
    recorder.click(page.locator("#heads-part [role=gridcell]").nth(8), 1.8)  # layer 2, head 4
    recorder.click(page.get_by_role("button", name="What matters?"), 1.0)
    page.wait_for_timeout(1500)
    for part in ("#matters", "#lens"):
        recorder.point(page.locator(part))
        recorder.hold(2.5)


if __name__ == "__main__":
    visualize_attention.main(["--html"])
    edits = [f"Transformers use [MASK] attention{end}" for end in ("", " s", " se", " sel", " self")] * 8
    record(RESULTS / "attention.html", RESULTS / "explorer.webp", play, edits)
