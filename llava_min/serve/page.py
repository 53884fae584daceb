"""The chat page: one file, and the headers under which it can talk to its own server alone.

in:  nothing
out: responses for a browser: the page, its example, an explanation

The page's script and style run by their hashes; nothing else runs, nothing is loaded from
elsewhere, and no text can become markup: the browser refuses it (require-trusted-types-for).
Read next: serve/explanations.py.
Agrees with: Content Security Policy Level 3.
"""

import base64
import hashlib
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response

from ..families.folder import EXAMPLE_PICTURE

FILE = Path(__file__).with_name("page.html")
ALWAYS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}


def wants_page(request: Request) -> bool:
    """Whether a browser asks, which wants something to look at."""
    return "text/html" in request.headers.get("accept", "")


def chat_page() -> Response:
    """The page."""
    text = FILE.read_text(encoding="utf-8")
    return HTMLResponse(text, headers=ALWAYS | {"content-security-policy": policy(text)})


def policy(text: str) -> str:
    """What the page may do: run its own script and style, ask its own server, show what is given.

    >>> policy("<style>a{}</style><script>1</script>").split("; ")[1]
    "connect-src 'self'"
    """
    hashes = {}
    for name in ("script", "style"):
        (held,) = re.findall(rf"<{name}>(.*?)</{name}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(held.encode()).digest()).decode()
        hashes[name] = f"'sha256-{digest}'"
    rules = {
        "default-src": "'none'",
        "connect-src": "'self'",
        "frame-src": "'self'",
        "img-src": "blob: data:",
        "media-src": "blob:",
        "style-src": hashes["style"],
        "script-src": hashes["script"],
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def example() -> Response:
    """The picture that the page asks about in one click."""
    return FileResponse(EXAMPLE_PICTURE, headers=ALWAYS)


def explanation(text: str) -> Response:
    """The page of an explanation, which holds a policy of its own; only the chat page frames it."""
    return HTMLResponse(
        text, headers=ALWAYS | {"content-security-policy": "frame-ancestors 'self'"}
    )
