"""--chat: a conversation on a terminal or through a pipe.

in:  lines, each a question or a command
out: answers on stdout, an exit code

Read engine/chat.py, command/report.py first.
"""

import contextlib
import os
import sys
from collections.abc import Sequence

from ..engine.chat import Chat
from ..errors import LlavaMinError, MediaError, ParameterError, PromptError, shown
from .habits import bare, notices, option_for
from .report import Reporter, print_error

HELP = """\
/image SRC  a picture for the next question: a path or URL; repeatable
/video SRC  a video for the next question
/explain FILE.html  write what the words of the newest answer looked at
/clear      forget the conversation and all it has shown
/exit       end, as exit, quit, /bye and Ctrl-D do; Ctrl-C stops an answer
A line that is the name of a picture or video shows it, as /image and /video do. Anything else is
a question, about all that was shown so far."""
ENDS = ("/exit", "/quit", "/bye", "exit", "quit")


class Console:
    """--chat: questions and commands, a line each, from a terminal or a pipe."""

    def __init__(
        self,
        chat: Chat,
        reporter: Reporter,
        images: Sequence[str] = (),
        videos: Sequence[str] = (),
    ) -> None:
        self.chat, self.reporter = chat, reporter
        self.shown = {"/image": list(images), "/video": list(videos)}  # with the next question

    def loop(self, line: str | None = None) -> int:
        """Take lines until the input ends; the exit code is that of the newest error in a pipe."""
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
                print_error(error, self.reporter.settings.output)
                print(f"llava_min: error: {error}", file=sys.stderr, flush=True)
                code = error.exit_code
            except KeyboardInterrupt:
                if not mark:
                    raise
                self.reporter.line("\nllava_min: interrupted")
            line = None

    def take(self, line: str) -> None:
        """Ask, or do what a command says; EOFError is the end.

        If a question fails, the media that were shown for it are dropped.
        """
        line.encode()  # UnicodeError, where stdin held bytes that are none
        if (option := option_for(bare(line))) and os.path.isfile(bare(line)):
            line = f"{option.replace('--', '/')} {bare(line)}"
            self.reporter.line(f"[{line}: shown with the next question]")
        command, _, rest = line.partition(" ")
        source = os.path.expanduser(rest.strip(" '\""))
        if line.lower() in ENDS:
            raise EOFError
        elif command in self.shown:
            if not source:
                raise ParameterError(f"{command} needs a path or URL.")
            if ":" not in source and not os.path.exists(source):
                raise MediaError("cannot show", shown(source), "a file", "none")
            self.shown[command].append(source)
        elif command == "/explain":
            self.reporter.save(
                self.chat.explain(occlusion=self.reporter.settings.occlusion), source
            )
        elif line == "/clear":
            self.chat.clear()
            self.shown = {"/image": [], "/video": []}
        elif line == "/help":
            print(HELP, file=sys.stderr)
        elif command.startswith("/"):
            raise ParameterError(f"{shown(line)} is no command of the chat; /help lists them.")
        elif line:
            for notice in notices(line, self.shown["/image"] + self.shown["/video"]):
                self.reporter.line(f"llava_min: {notice}")
            (images, videos), self.shown = self.shown.values(), {"/image": [], "/video": []}
            media = {"images": images, "videos": videos}
            self.reporter.follow(self.chat.events(line, **media, interruptible=True), line)
