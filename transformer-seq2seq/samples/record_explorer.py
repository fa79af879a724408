"""Record explorer.webp, the README's moving picture, from the page of the default model, and time its answers.

    python3 samples/record_explorer.py

It needs the packages of requirements-dev.txt and Chromium, and makes the page, attention.html, anew.
"""

import sys
from pathlib import Path

SAMPLES = Path(__file__).parent
sys.path.insert(0, str(SAMPLES.parent))

import visualize_attention  # noqa: E402
from seq2seq.common.recording import record  # noqa: E402


def play(page, recorder) -> None:
    """Type a prompt, go through its output, see the beams, and switch cross-attention off."""
    recorder.hold(1.5)
    recorder.type(page.locator("#text"), "The nurse visits the museum")
    step = page.locator("#step")
    for number in range(1, int(step.get_attribute("max")) + 1):
        step.fill(str(number))
        recorder.hold(0.5)
    recorder.click(page.get_by_text("Beam search"), 1.8)
    recorder.point(page.locator("#beams"))
    recorder.hold(2.0)
    recorder.click(page.get_by_text("Greedy"), 0.6)
    recorder.click(page.locator("#grid [role=gridcell]").nth(5), 1.5)
    recorder.click(page.get_by_role("switch", name="cross-attention 2"), 1.0)
    recorder.point(page.locator("#answers"))
    recorder.hold(3.0)


if __name__ == "__main__":
    visualize_attention.main(["--html"])
    edits = [f"The teacher explains the lesson{end}" for end in ("", " t", " to", " tod", " today")] * 8
    record(SAMPLES / "attention.html", SAMPLES / "explorer.webp", play, edits)
