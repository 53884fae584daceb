"""A conversation: each question goes on from the cache that the one before it left.

in:  questions, each with new pictures and videos or none      out: Answer, or its events
The whole conversation is rendered anew for each question, and only what differs from what the cache
holds is computed (prefix.py): the answers are those of a fresh run over all turns. A second picture
may change how the first becomes tiles (--multi-image); then the first is encoded again.
Read before: prefix.py.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import replace

from . import prompt
from .errors import LlavaMinError, MediaError, ParameterError, PromptError, shown
from .generate import Finished, Token
from .loaded import LoadedModel
from .options import Options
from .prefix import Prefix
from .prepare import checked, default_question, one_or_many

HELP = """\
/image SRC  a picture for the next question: a path or URL; repeatable
/video SRC  a video for the next question
/clear      forget the conversation and all it has shown
/exit       end, as Ctrl-D does; Ctrl-C stops an answer
Anything else is a question, about all that was shown so far."""


class Chat:
    """A conversation with a model. `turns`, `images` and `videos` are what was said and shown;
    model.generate(chat.turns, images=chat.images, videos=chat.videos) reads it all afresh.

    ask and stream take a question (text, with <image> and <video> where new ones go), images,
    videos, and options for this answer only. A question that raises LlavaMinError was never asked;
    an answer that is stopped in the middle was said so far.
    """

    ask, stream = LoadedModel.generate, LoadedModel.stream  # both follow `events`, below

    def __init__(self, model: LoadedModel, prompt_cache=None, **options):
        if Options.of(**options).raw:
            raise ParameterError("cannot chat", "raw", "turns in a template", "a complete prompt")
        self.model, self.prompt_cache, self.options = model, prompt_cache, options
        self.clear()

    def clear(self) -> None:
        """Forget all that was said and shown, and free its cache."""
        self.turns, self.images, self.videos = [], [], []
        self.prefix = Prefix(self.model.empty_cache(0))

    def events(self, question=None, *, images=(), videos=(), **options) -> Iterator:
        """What LoadedModel.events gives, for the next question of the conversation."""
        images, videos = one_or_many(images), one_or_many(videos)
        text = default_question(images, videos) if question is None else checked(question)
        turn = prompt.user_turn(text, len(images), len(videos))
        turns = [*self.turns, behind(turn, len(self.images), len(self.videos))]
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


def behind(turn: prompt.Turn, images: int, videos: int) -> prompt.Turn:
    """A turn with its visuals numbered behind those of earlier turns."""

    def moved(run):
        if isinstance(run, prompt.Visual):
            return replace(run, index=run.index + (images if run.kind == "image" else videos))
        return tuple(map(moved, run)) if isinstance(run, tuple) else run

    return replace(turn, parts=moved(turn.parts))


class Console:
    """--chat: questions and commands, a line each, from a terminal or a pipe."""

    def __init__(self, chat: Chat, reporter, images=(), videos=()):
        self.chat, self.reporter = chat, reporter
        self.shown = {"/image": list(images), "/video": list(videos)}  # with the next question

    def run(self, line: str | None = None) -> int:
        """Take lines until the input ends; the exit code: that of the newest error in a pipe."""
        mark, code = "> " if sys.stdin.isatty() and sys.stdout.isatty() else "", 0
        if mark:
            self.reporter.line("[ask, or /help]")
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 (input() then edits lines and remembers them)
        while True:
            try:
                self.take((input(mark) if line is None else line).strip())
            except EOFError:
                print(end="\n" if mark else "")
                return 0 if mark else code
            except (LlavaMinError, UnicodeError) as error:
                if isinstance(error, UnicodeError):
                    error = PromptError("cannot read the line", "stdin", "UTF-8", "other bytes")
                print(f"llava_min: error: {error}", file=sys.stderr, flush=True)
                code = error.exit_code
            except KeyboardInterrupt:
                if not mark:
                    raise
                self.reporter.line("\nllava_min: interrupted")
            line = None

    def take(self, line: str) -> None:
        """Ask, or do what a command says; EOFError is the end. A question that fails takes what was
        shown with it away.
        """
        line.encode()  # UnicodeError, where stdin held bytes that are none
        command, _, rest = line.partition(" ")
        source = os.path.expanduser(rest.strip(" '\""))
        if line == "/exit":
            raise EOFError
        elif command in self.shown and source:
            if ":" not in source and not os.path.exists(source):
                raise MediaError("cannot show", shown(source), "a file", "none")
            self.shown[command].append(source)
        elif line == "/clear":
            self.chat.clear()
            self.shown = {"/image": [], "/video": []}
        elif line == "/help":
            print(HELP, file=sys.stderr)
        elif command.startswith("/"):
            raise ParameterError("cannot do that", shown(line), "a command of /help", "another")
        elif line:
            (images, videos), self.shown = self.shown.values(), {"/image": [], "/video": []}
            self.reporter.follow(self.chat.events(line, images=images, videos=videos))
