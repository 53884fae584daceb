"""A conversation: each question goes on from the cache that the one before it left.

in:  questions, each with new pictures and videos or none
out: Answer, or its events

The whole conversation is rendered again for each question. Only what differs from the cache is
computed (engine/prefix.py), so the answers are those of a fresh run over all turns. A second
picture may change how the first becomes tiles (--multi-image); then the first is encoded again.
Read engine/prefix.py first. Read next: command/console.py.
"""

import threading
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import prompt
from ..base.habits import accepting
from ..errors import ParameterError
from ..explain.explanation import Explanation
from ..generate import Token
from ..media.sources import Picture, Video
from ..options import Options
from ..request.prepare import (
    Pictures,
    Question,
    Videos,
    checked,
    default_question,
    one_or_many,
)
from .answers import Answer, Asking, Event, Finished
from .prefix import Prefix

if TYPE_CHECKING:
    from .handle import Model


class Chat(Asking):
    """A conversation with a model: `turns`, `images` and `videos` are what was said and shown.

    model.generate(chat.turns, images=chat.images, videos=chat.videos) computes it from scratch.

    ask and stream take a question (text, with <image> and <video> where new ones go), images,
    videos, and options for this answer only. A question that raises LlavaMinError leaves the
    conversation as it was. Of an interrupted answer, the text so far belongs to it. It answers one
    question at a time.
    """

    def __init__(self, model: "Model", prompt_cache: str | Path | None = None, **options: object):
        if Options.of(**options).raw:
            raise ParameterError("raw cannot be used in a chat, whose turns need a template.")
        self.model, self.prompt_cache, self.options = model, prompt_cache, options
        self.answering = threading.Lock()
        self.clear()

    @accepting("self", "question", "images", "videos")
    def ask(
        self,
        question: Question = None,
        *,
        images: Pictures = (),
        videos: Videos = (),
        **options: object,
    ) -> Answer:
        """The Answer to the next question."""
        return self.generate(question, images=images, videos=videos, **options)

    def explain(self, words: int = 64, occlusion: bool = False) -> Explanation:
        """What the newest answer looked at: see Model.explain. ParameterError before the first."""
        if self.newest is None:
            raise ParameterError("There is no answer yet that could be explained.")
        return self.model.explain(
            self.turns[:-1],
            self.newest,
            images=self.images,
            videos=self.videos,
            words=words,
            occlusion=occlusion,
            prefix=self.prefix,
            **self.asked,
        )

    def clear(self) -> None:
        """Forget all that was said and shown, and free the cache."""
        self.turns: list[prompt.Turn] = []
        self.images: list[Picture] = []
        self.videos: list[Video] = []
        self.prefix = Prefix(self.model.empty_cache(0))
        self.newest: Answer | None = None
        self.asked: dict[str, Any] = {}  # the options of the newest answer

    @accepting("self", "question", "images", "videos")
    def events(
        self,
        question: Question = None,
        *,
        images: Pictures = (),
        videos: Videos = (),
        **options: object,
    ) -> Generator[Event, None, None]:
        """What Model.events gives, for the next question of the conversation.

        ParameterError while another question is still being answered.
        """
        if not self.answering.acquire(blocking=False):
            raise ParameterError(
                "This chat is still giving an answer; ask again at its end, or use another chat."
            )
        try:
            yield from self.next_events(question, images, videos, options)
        finally:
            self.answering.release()

    def next_events(
        self, question: Question, images: Pictures, videos: Videos, options: dict[str, Any]
    ) -> Generator[Event, None, None]:
        """`events`, of one question at a time."""
        new_images: list[Picture] = one_or_many(images)
        new_videos: list[Video] = one_or_many(videos)
        if question is None:
            text = default_question(len(new_images), len(new_videos))
        else:
            text = checked(question)
        turn = prompt.user_turn(text, len(new_images), len(new_videos))
        turns = [*self.turns, renumbered(turn, len(self.images), len(self.videos))]
        shown = [*self.images, *new_images], [*self.videos, *new_videos]
        options, opened = {**self.options, **options}, dict(self.prefix.opened)
        said = [str(options.get("prefill", ""))]
        events = self.model.events(
            turns,
            images=shown[0],
            videos=shown[1],
            prefix=self.prefix,
            prompt_cache=self.prompt_cache,
            **options,
        )
        try:
            with closing(events):
                for event in events:
                    if isinstance(event, Token | Finished):
                        said.append(event.text)
                    elif isinstance(event, Answer):
                        self.newest, self.asked = event, options
                        self.asked.pop("interruptible", None)  # which is not about the answer
                    yield event
        finally:
            if len(said) > 1:  # stopped in the middle or not, it was said
                self.turns = [*turns, prompt.Turn("assistant", (("".join(said),),))]
                (self.images, self.videos), self.prompt_cache = shown, None
            else:
                self.prefix.opened = opened  # without the media of this question


def renumbered(turn: prompt.Turn, images: int, videos: int) -> prompt.Turn:
    """A turn whose visuals are numbered after those of earlier turns."""

    def moved(visual: prompt.Visual) -> prompt.Visual:
        earlier = images if visual.kind == "image" else videos
        return replace(visual, index=visual.index + earlier)

    def moved_in(text: prompt.Text) -> prompt.Text:
        return tuple(moved(run) if isinstance(run, prompt.Visual) else run for run in text)

    parts = (moved(p) if isinstance(p, prompt.Visual) else moved_in(p) for p in turn.parts)
    return replace(turn, parts=tuple(parts))
