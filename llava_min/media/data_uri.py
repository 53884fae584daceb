"""The bytes of a data: URI, as browsers write and read them.

in:  a text that begins with data:
out: bytes, or MediaError

The scheme and ";base64" may be in any case, both forms may be percent-encoded, base64 may hold
blanks and line breaks and lack its padding, and what follows a # is left out. Other parameters are
ignored: what the bytes are is seen in the bytes.
Read media/limits.py first. Read next: media/sources.py.
Agrees with: RFC 2397; "data: URL processor" of the Fetch standard and "forgiving-base64 decode" of
the Infra standard.
"""

import base64
import binascii
import re
import urllib.parse

from ..errors import MediaError

NAME = "the data: URI"
BLANKS = b"\t\n\f\r "
PIECE = 1 << 16  # bytes of which the escapes are undone at a time
BASE64 = re.compile(r"; *base64\s*$", re.IGNORECASE)


def is_data_uri(text: str) -> bool:
    """Whether a text is a data: URI.

    >>> is_data_uri("DATA:,a"), is_data_uri("data.png")
    (True, False)
    """
    return text[:64].lstrip().lower().startswith("data:")


def decode_data_uri(uri: str, limit: int) -> bytes:
    """The bytes of a data: URI; MediaError where there are none or more than `limit`.

    >>> decode_data_uri("Data:text/plain;charset=utf-8;BASE64,aGVs%0Abg", limit=9)
    b'heln'
    >>> decode_data_uri("data:,a%20b", limit=9)
    b'a b'
    """
    header, comma, body = uri.partition(",")
    if not comma:
        raise unreadable("a comma before the data", "none")
    if len(body) > 5 * limit + 64:  # base64 of which each character may be percent-encoded
        raise unreadable(f"at most {limit} bytes", "more")
    data = unquoted(body.partition("#")[0])
    data = forgiving_base64(data) if BASE64.search(header) else data
    if len(data) > limit:
        raise unreadable(f"at most {limit} bytes", "more")
    return data


def unquoted(text: str) -> bytes:
    """The bytes of a text with escapes such as %20.

    urllib makes several objects of each escape, eighty times as many bytes: so it gets pieces.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise unreadable("valid UTF-8", "something else") from None
    found, start = bytearray(), 0
    while start < len(data):
        stop = start + PIECE
        escape = data.find(b"%", stop - 2, stop)
        stop = stop if escape < 0 else escape
        found += urllib.parse.unquote_to_bytes(data[start:stop])
        start = stop
    return bytes(found)


def forgiving_base64(text: bytes) -> bytes:
    """The bytes that base64 stands for, blanks and missing padding forgiven, and nothing else."""
    text = text.translate(None, BLANKS)
    if len(text) % 4 == 0:
        text = text[:-2] + text[-2:].replace(b"=", b"") if text.endswith(b"=") else text
    try:
        if b"=" in text:
            raise binascii.Error
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise unreadable("base64", "something else") from None


def unreadable(expected: str, found: str) -> MediaError:
    return MediaError("cannot read the file", NAME, expected, found)
