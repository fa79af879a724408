"""One self-contained web page from a template, its style, its scripts and its data. It asks nothing of a network,
and its Content-Security-Policy forbids it to: it runs these very scripts, known by their hashes, and nothing else.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

SCALE = 1000  # weights are whole thousandths, so that the three decimals shown are the model's


def pack_weights(weights: Tensor) -> str:
    """Encode weights from 0 to 1, rounded to thousandths: two bytes each, the lower first, in base64."""
    thousandths = (weights.double() * SCALE).round().numpy().astype("<u2")
    return base64.b64encode(thousandths.tobytes()).decode()


def fill_template(folder: Path, scripts: Iterable[str], data: dict) -> str:
    """Return the folder's page.html with its style, these scripts and the data in place."""
    style = (folder / "style.css").read_text(encoding="utf-8")
    script = "\n".join((folder / name).read_text(encoding="utf-8") for name in scripts)
    parts = {
        "style": style,
        "style_hash": csp_hash(style),
        "script": script,
        "script_hash": csp_hash(script),
        "data": json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),  # no text can end the element
    }
    template = (folder / "page.html").read_text(encoding="utf-8")
    # in one pass, so that the data is not searched for places to fill
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template)


def csp_hash(text: str) -> str:
    """Return the name of a script or style in a Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
