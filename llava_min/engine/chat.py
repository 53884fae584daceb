"""A conversation: each question goes on from the cache that the one before it left.

in:  questions, each with new pictures and videos or none
out: Answer, or its events

The whole conversation is rendered again for each question. Only what differs from the cache is
computed (engine/prefix.py), so the answers are those of a fresh run over all turns. A second
picture may change how the first becomes tiles (--multi-image); then the first is encoded again.
Read engine/prefix.py first. Read next: command/console.py.
"""

from collections.abc import Iterator
from dataclasses import replace

from .. import prompt
from ..errors import ParameterError
from ..generate import Finished, Token
from ..options import Options
from ..request.prepare import checked, default_question, one_or_many
from .answers import Answer, Asking
from .prefix import Prefix


class Chat(Asking):
    """A conversation with a model: `turns`, `images` and `videos` are what was said and shown.

    model.generate(chat.turns, images=chat.images, videos=chat.videos) computes it from scratch.

    ask and stream take a question (text, with <image> and <video> where new ones go), images,
    videos, and options for this answer only. A question that raises LlavaMinError leaves the
    conversation as it was. Of an interrupted answer, the text so far belongs to it.
    """

    def __init__(self, model, prompt_cache=None, **options):
        if Options.of(**options).raw:
            raise ParameterError("cannot chat", "raw", "turns in a template", "a complete prompt")
        self.model, self.prompt_cache, self.options = model, prompt_cache, options
        self.clear()

    def ask(self, question=None, *, images=(), videos=(), **options) -> Answer:
        """The Answer to the next question."""
        return self.generate(question, images=images, videos=videos, **options)

    def clear(self) -> None:
        """Forget all that was said and shown, and free the cache."""
        self.turns, self.images, self.videos = [], [], []
        self.prefix = Prefix(self.model.empty_cache(0))

    def events(self, question=None, *, images=(), videos=(), **options) -> Iterator:
        """What Model.events gives, for the next question of the conversation."""
        images, videos = one_or_many(images), one_or_many(videos)
        text = default_question(images, videos) if question is None else checked(question)
        turn = prompt.user_turn(text, len(images), len(videos))
        turns = [*self.turns, renumbered(turn, len(self.images), len(self.videos))]
        images, videos = [*self.images, *images], [*self.videos, *videos]
        options, opened = {**self.options, **options}, dict(self.prefix.opened)
        said = [options.get("prefill", "")]
        try:
            for event in self.model.events(turns, images=images, videos=videos, prefix=self.prefix,
                                           prompt_cache=self.prompt_cache, **options):  # fmt: skip
                if isinstance(event, Token | Finished):
                    said.append(event.text)
                yield event
        finally:
            if len(said) > 1:  # stopped in the middle or not, it was said
                self.turns = [*turns, prompt.Turn("assistant", (("".join(said),),))]
                self.images, self.videos, self.prompt_cache = images, videos, None
            else:
                self.prefix.opened = opened  # without the media of this question


def renumbered(turn: prompt.Turn, images: int, videos: int) -> prompt.Turn:
    """A turn whose visuals are numbered after those of earlier turns."""

    def moved(run):
        if isinstance(run, prompt.Visual):
            return replace(run, index=run.index + (images if run.kind == "image" else videos))
        return tuple(map(moved, run)) if isinstance(run, tuple) else run

    return replace(turn, parts=moved(turn.parts))
