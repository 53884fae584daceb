"""The messages of a request become messages with the bytes of their media in them.

in:  messages as OpenAI's clients send them, where pictures and videos may be
out: messages for request/messages.py; Refusal or MediaError names the part that is wrong

Whether a medium is a picture or a video is seen in its bytes, because clients put videos into
image_url. URLs lead to public addresses only, file:// to one folder or nowhere, and a path without
a scheme is refused.
Read serve/public.py first. Read next: serve/protocol.py.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import MediaError
from ..media import limits
from ..media.data_uri import decode_data_uri, is_data_uri
from ..media.sources import NamedBytes, NamedPath, is_url, local_path
from .errors import Refusal, wrong
from .public import fetch_public

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MESSAGE_KEYS = ("role", "content", "name", "refusal", "annotations", "cache_control", "reasoning")
EMPTY: tuple[object, ...] = (None, [], {}, "")  # say nothing: clients send back what they got
MEDIA = ("image", "image_url", "input_image", "video", "video_url", "input_video")
MOST_PARTS, MOST_MEDIA = 10_000, 64
MEDIA_BYTES = 256 << 20  # of the media of a request from the web; a file may be longer
VIDEO_SIGNS = (
    # (where, bytes) at the beginning of files of videos
    (0, b"\x1aE\xdf\xa3"),  # Matroska, WebM
    (8, b"AVI "),
    (0, b"\x00\x00\x01\xba"),  # MPEG program stream
    (0, b"FLV"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),  # ASF, WMV
    (0, b"OggS"),
)
PICTURE_SIGNS = ((0, b"\x89PNG"), (0, b"\xff\xd8\xff"), (8, b"WEBP"), (0, b"BM"), (0, b"II*\x00"))
STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")


@dataclass(frozen=True)
class Borders:
    """What of the world a request may reach.

    folder: of files for file:// URLs; None: none. fetching: whether URLs are fetched. hosts: that
    may have addresses of a private network, with * for any letters.
    """

    folder: Path | None = None
    fetching: bool = True
    hosts: tuple[str, ...] = ()


@dataclass
class Tally:
    """What the messages of a request have had so far, and until when media may be fetched."""

    parts: int = 0
    media: int = 0
    letters: int = 0
    fetched: int = 0  # bytes
    deadline: float = field(default_factory=lambda: time.monotonic() + limits.FETCH_SECONDS)

    def add(self, where: str, parts: int = 0, media: int = 0, letters: int = 0) -> None:
        """Count some more. Raises Refusal where there are too many."""
        self.parts += parts
        self.media += media
        self.letters += letters
        for count, most, name in (
            (self.parts, MOST_PARTS, "parts"),
            (self.media, MOST_MEDIA, "media"),
            (self.letters, limits.PROMPT_BYTES, "letters"),
        ):
            if count > most:
                text = f"A request may have {most:,} {name} at most."
                raise Refusal(400, text, where, "too_many")


def messages_of(given: Sequence[Any], borders: Borders) -> list[dict[str, Any]]:
    """The messages with their media as bytes."""
    tally = Tally()
    return [message_of(f"messages[{i}]", one, borders, tally) for i, one in enumerate(given)]


def message_of(where: str, given: Any, borders: Borders, tally: Tally) -> dict[str, Any]:
    """One message."""
    if not isinstance(given, Mapping):
        raise wrong(where, "an object")
    role = given.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise wrong(f"{where}.role", f"one of {', '.join(ROLES)}", "unsupported_value")
    for key, value in given.items():
        if key not in MESSAGE_KEYS and value not in EMPTY:
            raise Refusal(400, f"{where}.{key} is not supported.", where, "unsupported_parameter")
    content = given.get("content")
    if content is None:
        content = ""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise wrong(f"{where}.content", "a text or a list of parts")
    tally.add(where, parts=len(content))
    parts = [part_of(f"{where}.content[{j}]", p, borders, tally) for j, p in enumerate(content)]
    return {"role": ROLES[role], "content": media_first(parts)}


def media_first(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parts in order, but the media first of a message that is a text with media after it.

    Clients write them in this order, and the checkpoints were trained with the media first: so
    their published templates write them, whatever the order. Texts between media stay there.
    """
    texts = [index for index, part in enumerate(parts) if part["type"] == "text"]
    media = [index for index, part in enumerate(parts) if part["type"] != "text"]
    if texts and media and max(texts) < min(media):
        return [parts[index] for index in (*media, *texts)]
    return parts


def part_of(where: str, given: Any, borders: Borders, tally: Tally) -> dict[str, Any]:
    """One part: a text, or a medium with its bytes."""
    if not isinstance(given, Mapping):
        raise wrong(where, "an object")
    kind, text = given.get("type"), given.get("text")
    if kind in ("text", "input_text", "refusal", "output_text"):
        text = given.get("refusal") if kind == "refusal" else text
        if not isinstance(text, str):
            raise wrong(f"{where}.text", "a text")
        tally.add(where, letters=len(text))
        return {"type": "text", "text": text}
    if kind not in MEDIA:
        raise Refusal(
            400, f"{where}.type must be text, image_url or video_url.", where, "unsupported_value"
        )
    tally.add(where, media=1)
    told = "video" if "video" in kind else "image"
    source = source_of(where, given, told)
    if source[:16].lower().startswith("file:"):
        path, first = in_folder(where, source, borders.folder)
        kind = kind_of(first, told)
        return {"type": kind, kind: NamedPath(path, where)}
    data = NamedBytes(bytes_of(where, source, borders, tally))
    data.name = where
    kind = kind_of(data, told)
    return {"type": kind, kind: data}


def source_of(where: str, given: Mapping[str, Any], told: str) -> str:
    """Where a part says its medium is: a URL, a data: URI, or base64 alone made into one."""
    for key in (told, f"{told}_url", f"input_{told}", "url", "image_url", "video_url", "data"):
        value = given.get(key)
        if isinstance(value, Mapping):
            value = value.get("url") or as_data_uri(value.get("data"))
        if key == "data":
            value = as_data_uri(value)
        if isinstance(value, str):
            return value
        if value is not None:
            raise wrong(f"{where}.{key}", "an object with a url")
    value = as_data_uri(given.get("base64"))
    if value is None:
        raise wrong(f"{where}.{told}_url", "an object with a url", "missing")
    return value


def as_data_uri(base64: Any) -> str | None:
    """Base64 as a data: URI; None for what is no text."""
    if not isinstance(base64, str):
        return None
    return base64 if is_data_uri(base64) else f"data:;base64,{base64}"


def bytes_of(where: str, source: str, borders: Borders, tally: Tally) -> bytes:
    """The bytes of a medium, from the request itself or from the web."""
    if is_data_uri(source):
        try:
            data = decode_data_uri(source, MEDIA_BYTES)
        except MediaError as error:
            raise Refusal(400, f"{where}: {error}", where, "invalid_image") from None
    elif is_url(source):
        data = fetched(where, source, borders, tally)
    else:
        expected = "a data: URI, or begin with http:// or https://"
        raise Refusal(400, f"{where}: the url must be {expected}.", where, "invalid_value")
    if not data:
        raise Refusal(400, f"{where} is empty.", where, "invalid_image")
    return data


def fetched(where: str, source: str, borders: Borders, tally: Tally) -> bytes:
    """The bytes of a medium from the web. All of a request share their time and their length."""
    if not borders.fetching:
        raise Refusal(400, f"{where}: URLs are not fetched here; send a data: URI.", where)
    left, seconds = MEDIA_BYTES - tally.fetched, tally.deadline - time.monotonic()
    if seconds <= 0:
        text = f"{where}: the media before it took all the time that a request has."
        raise Refusal(400, text, where, "media_unavailable")
    try:
        data = fetch_public(source, left, borders.hosts, seconds)
    except MediaError as error:
        raise Refusal(400, f"{where}: {error}", where, "media_unavailable") from None
    tally.fetched += len(data)
    return data


def in_folder(where: str, source: str, folder: Path | None) -> tuple[Path, bytes]:
    """(path, first bytes) of a file:// URL that lies in the folder for such files, links followed.

    Whether a file outside it exists is not told.
    """
    outside = Refusal(400, f"{where}: this file is not offered here.", where, "media_unavailable")
    if folder is None:
        raise outside
    try:
        path = local_path("file:" + source.partition(":")[2]).resolve()
        if path.is_relative_to(folder.resolve()):
            with open(path, "rb") as file:
                return path, file.read(16)
    except (MediaError, OSError, ValueError):
        raise outside from None
    raise outside


def kind_of(data: bytes, told: str) -> str:
    """ "image" or "video", as the first bytes say, or else as the part does.

    >>> kind_of(b"\\x89PNG....", "video"), kind_of(b"....ftypisom", "image"), kind_of(b"?", "video")
    ('image', 'video', 'video')
    """
    if data[4:8] == b"ftyp":
        return "image" if data[8:12] in STILL_BRANDS else "video"
    if any(data[at : at + len(sign)] == sign for at, sign in VIDEO_SIGNS):
        return "video"
    if any(data[at : at + len(sign)] == sign for at, sign in PICTURE_SIGNS):
        return "image"
    return told
