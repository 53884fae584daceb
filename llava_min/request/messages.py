"""Messages in OpenAI's style become turns and the sources of their media.

in:  a list of {"role", "content"}
out: turns, sources of pictures, sources of videos

Read prompt.py first. Read next: request/visuals.py.
"""

from collections.abc import Mapping, Sequence

from ..errors import PromptError, shown
from ..media.data_uri import is_data_uri
from ..media.sources import Picture, Video
from ..prompt import Text, Turn, Visual

ROLES = ("system", "user", "assistant")
Message = Mapping[str, object]  # {"role": ..., "content": a text, or a list of parts}
Question = str | Sequence[Message] | Sequence[int]  # a text, messages, or token ids
# the keys that may have a value, of a message and of a part by its type
MESSAGE_KEYS = ("role", "content", "name")
MEDIUM_KEYS = ("url", "path", "base64", "detail", "cache_control")
PART_KEYS = {
    "text": ("type", "text", "cache_control"),
    "image": ("type", "image", "image_url", *MEDIUM_KEYS),
    "video": ("type", "video", "video_url", *MEDIUM_KEYS),
}


def unreadable(where: str, expected: str, found: object) -> PromptError:
    """The error for messages that are not as OpenAI's clients write them."""
    return PromptError("cannot read the messages", where, expected, shown(found))


def from_messages(
    messages: Sequence[Message],
) -> tuple[list[Turn], list[Picture | None], list[Video | None]]:
    """OpenAI-style messages -> (turns, image sources, video sources).

    The parts of a message keep their order. A source of None means a medium that is passed next to
    the messages.
    """
    turns: list[Turn] = []
    images: list[Picture | None] = []
    videos: list[Video | None] = []
    for message in messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or role not in ROLES:
            raise unreadable("role", "'system', 'user' or 'assistant'", message)
        check_keys("a message", message, MESSAGE_KEYS)
        content = message.get("content", "")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
            raise unreadable("content", "a text or a list of parts", content)
        parts: list[Visual | Text] = []
        for part in content:
            kind, text = str(part.get("type", "")).removesuffix("_url"), part.get("text")
            if kind in PART_KEYS:
                check_keys(f"a part of type {kind}", part, PART_KEYS[kind])
            if kind == "text" and isinstance(text, str):
                parts.append((text,))
            elif kind == "image":
                parts.append(Visual(kind, len(images)))
                images.append(picture_of(part))
            elif kind == "video":
                parts.append(Visual(kind, len(videos)))
                videos.append(video_of(part))
            else:
                known = "'text' with a text, 'image', 'image_url', 'video' or 'video_url'"
                raise unreadable("type", known, part)
        turns.append(Turn(role, tuple(parts)))
    if not any(turn.role == "user" for turn in turns):
        raise PromptError("cannot ask", "messages", "a turn of the user", "none")
    return turns, images, videos


def check_keys(what: str, found: Mapping[str, object], known: tuple[str, ...]) -> None:
    """PromptError for a key with a value that nothing reads; it might name a picture."""
    for key, value in found.items():
        if key not in known and value is not None:
            raise unreadable(what, f"the keys {', '.join(known)}", key)


def picture_of(part: Mapping[str, object]) -> Picture | None:
    """The picture that a message part names, or None if it names none."""
    source = source_of(part, "image")
    if source is None or isinstance(source, Picture):
        return source
    raise unreadable("image", "a path, URL, bytes, picture or array", source)


def video_of(part: Mapping[str, object]) -> Video | None:
    """The video that a message part names, or None if it names none."""
    source = source_of(part, "video")
    if source is None or isinstance(source, Video):
        return source
    raise unreadable("video", "a path, URL, bytes or array", source)


def source_of(part: Mapping[str, object], kind: str) -> object:
    """Where a message part says its medium is, or None if it does not say.

    The key is image (or video), image_url, url or path, in each of which {"url": ...} may stand; or
    base64, which is the body of a data: URI, or the whole of one.
    """
    for key in (kind, f"{kind}_url", "url", "path"):
        value = part.get(key)
        if value is not None:
            return value.get("url") if isinstance(value, Mapping) else value
    text = part.get("base64")
    if isinstance(text, str):
        return text if is_data_uri(text) else f"data:;base64,{text}"
    return text
