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

from .errors import InputError

SHARED = Path(__file__).parent / "explorer"  # the scripts and the style that the pages of both folders have
SCALE = 1000  # weights are whole thousandths, so that the three decimals shown are the model's
MAX_PAGE_BYTES = 8_000_000  # of a page that carries its model: what a browser opens at once, and an e-mail can carry


def unique_tensors(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out every tensor that shares its memory with an earlier one: tied weights stay under their first name."""
    names = {}
    for name, tensor in state_dict.items():
        names.setdefault((tensor.data_ptr(), tensor.shape), name)
    return {name: state_dict[name] for name in names.values()}


def model_bytes(state_dict: dict[str, Tensor]) -> int:
    """Return how many bytes of a page `pack_model` takes, but for the names."""
    n_bytes = 2 * sum(tensor.numel() for tensor in unique_tensors(state_dict).values())
    return 4 * -(-n_bytes // 3)  # base64 makes four bytes of three


def pack_model(state_dict: dict[str, Tensor]) -> dict:
    """Encode a model's weights: {"names": [[name, shape], ...], "data": base64}, tied ones once.

    The data is one tensor behind the other in half precision, the lower byte first. A model with a number too large
    for it, from 65,520 on, or with one that is none, is refused.
    """
    halves = {name: tensor.half().cpu() for name, tensor in unique_tensors(state_dict).items()}
    for name, tensor in halves.items():
        if not tensor.isfinite().all():
            raise InputError(f"the weights {name} have numbers that do not fit the half precision of a page")
    data = b"".join(tensor.numpy().astype("<f2").tobytes() for tensor in halves.values())
    names = [[name, list(tensor.shape)] for name, tensor in halves.items()]
    return {"names": names, "data": base64.b64encode(data).decode()}


def pack_weights(weights: Tensor) -> str:
    """Encode weights from 0 to 1, rounded to thousandths: two bytes each, the lower first, in base64."""
    thousandths = (weights.double() * SCALE).round().numpy().astype("<u2")
    return base64.b64encode(thousandths.tobytes()).decode()


def fill_template(template: Path, styles: Iterable[Path], scripts: Iterable[Path], data: dict) -> str:
    """Return a template's text with these styles, these scripts and the data in place. The scripts become one, in
    which all see each other's names."""
    style = "\n".join(path.read_text(encoding="utf-8") for path in styles)
    script = "\n".join(['"use strict";', *(path.read_text(encoding="utf-8") for path in scripts)])
    parts = {
        "style": style,
        "style_hash": csp_hash(style),
        "script": script,
        "script_hash": csp_hash(script),
        "data": json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),  # no text can end the element
    }
    # in one pass, so that the data is not searched for places to fill
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template.read_text(encoding="utf-8"))


def csp_hash(text: str) -> str:
    """Return the name of a script or style in a Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
