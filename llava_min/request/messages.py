"""Messages in OpenAI's style become turns and the sources of their media.

in:  a list of {"role", "content"}
out: turns, sources of pictures, sources of videos

Read prompt.py first. Read next: request/visuals.py.
"""

from ..errors import PromptError, shown
from ..prompt import Text, Turn, Visual

ROLES = ("system", "user", "assistant")


def unreadable(where: str, expected: str, found) -> PromptError:
    return PromptError("cannot read the messages", where, expected, shown(found))


def from_messages(messages: list[dict]) -> tuple[list[Turn], list, list]:
    """OpenAI-style messages -> (turns, image sources, video sources).

    A source of None means a medium that is passed next to the messages.
    """
    turns, images, videos = [], [], []
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise unreadable("role", "'system', 'user' or 'assistant'", message)
        content = message.get("content", "")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
            raise unreadable("content", "a text or a list of parts", content)
        parts: list[Visual | Text] = []
        for part in content:
            kind = str(part.get("type", "")).removesuffix("_url")
            if kind == "text" and isinstance(part.get("text"), str):
                parts.append((part["text"],))
            elif kind in ("image", "video"):
                sources = images if kind == "image" else videos
                parts.append(Visual(kind, len(sources)))
                sources.append(source_of(part, kind))
            else:
                known = "'text' with a text, 'image', 'image_url', 'video' or 'video_url'"
                raise unreadable("type", known, part)
        turns.append(Turn(message["role"], tuple(parts)))
    return turns, images, videos


def source_of(part: dict, kind: str):
    """Where a message part says its medium is, or None if it does not say.

    The key is image (or video), image_url, url or path.
    """
    for key in (kind, f"{kind}_url", "url", "path"):
        if part.get(key) is not None:
            return part[key].get("url") if isinstance(part[key], dict) else part[key]
    return None
