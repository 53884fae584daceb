"""Events -> what a person or a program reads: streamed text, a line of statistics, JSON.

in:  the events of an answer
out: lines on stdout and stderr

The answer goes to stdout and nothing else does. Everything about the answer goes to stderr.
Read command/main.py first.
"""

import contextlib
import json
import logging
import sys
from collections.abc import Generator, Mapping
from dataclasses import asdict

from ..base.progress import Progress
from ..errors import LlavaMinError
from .arguments import Settings

TYPE_CHECKING = False  # typing takes a twentieth of --help to import
if TYPE_CHECKING:
    from ..engine.answers import Answer, Event
    from ..explain.explanation import Explanation


def log_to_stderr(quiet: bool, verbose: bool) -> None:
    """Show what the package logs: errors alone, notices too, or everything."""
    logging.basicConfig(format="llava_min: %(message)s", stream=sys.stderr)
    loud = logging.DEBUG if verbose else logging.INFO
    logging.getLogger("llava_min").setLevel(logging.ERROR if quiet else loud)


class Reporter:
    """Takes the events of one answer as they come."""

    def __init__(self, settings: Settings, name: str, embedded: bool) -> None:
        self.settings, self.name, self.embedded = settings, name, embedded

    def line(self, text: str) -> None:
        """One line on stderr, unless --quiet."""
        if not self.settings.quiet:
            print(text, file=sys.stderr, flush=True)

    def piece(self, text: str) -> None:
        """Text of the answer, as soon as it is whole."""
        if self.settings.output == "text" and self.settings.stream:
            print(text, end="", flush=True)

    def event(self, name: str, **values: object) -> None:
        """One line of --jsonl."""
        if self.settings.output == "jsonl":
            print(json.dumps({"event": name, **values}, ensure_ascii=False), flush=True)

    def follow(self, events: "Generator[Event, None, None]", question: object) -> "Answer":
        """Show the events of an answer as they come, and return the Answer that ends them.

        question: as it was asked, for --json.
        """
        from ..engine.answers import Answer, Portion, Prepared

        answer, progress = None, Progress("reading", self.settings.quiet)
        with contextlib.closing(events):
            for event in events:
                if isinstance(event, Prepared):
                    if self.settings.show_prompt:
                        print(event.text(), file=sys.stderr)
                    self.event("prepared", tokens=event.plan.tokens, media=event.media)
                elif isinstance(event, Portion):
                    progress(event.done, event.total)
                elif isinstance(event, Answer):
                    answer = event
                    self.finish(answer, question)
                elif event.text:
                    self.piece(event.text)
                    self.event("text", text=event.text)
        assert answer is not None, "the last event is the Answer"
        return answer

    def save(self, explanation: "Explanation", path: str) -> None:
        """Write an explanation, and say where it is and what was left out."""
        explanation.save(path)
        self.line(f"[explained in {path}]")
        for sentence in explanation.left_out:
            self.line(f"llava_min: {sentence}")

    def finish(self, answer: "Answer", question: object) -> None:
        """Print the whole answer and what it took."""
        if self.settings.output == "text":
            print("" if self.settings.stream else answer.text, flush=True)
        else:
            self.print_json(answer, question)
        if answer.finish_reason == "length":
            self.line(
                f"llava_min: the answer was cut after {len(answer.token_ids)} tokens (--max-tokens)"
            )
        if answer.finish_reason == "interrupted":
            self.line("llava_min: interrupted")
        usage, timings = answer.usage, answer.timings
        counts = (("image_tokens", "visual"), ("cached_tokens", "from the cache"))
        of_these = ", ".join(f"{usage[key]} {what}" for key, what in counts if usage.get(key))
        taken = ""
        if "drafted_tokens" in usage:
            taken = f" ({usage['accepted_tokens']} of {usage['drafted_tokens']} drafted ones taken)"
        loading = 0 if self.settings.chat else timings["load_s"]
        self.line(
            f"[{usage['prompt_tokens']} prompt tokens{f' ({of_these})' if of_these else ''}, "
            f"{usage['completion_tokens']} generated{taken}, "
            f"first after {timings['ttft_s'] + loading:.2f} s{' with loading' if loading else ''}, "
            f"{timings['tokens_per_s']:.0f} tokens/s, {answer.memory['peak_bytes'] / 2**20:.0f} "
            "MiB]"
        )
        if self.embedded:
            self.line(
                "[the embedded checkpoint is a toy that knows drawn shapes only; for photos use "
                "-m FOLDER]"
            )
            self.embedded = False  # once is enough

    def print_json(self, answer: "Answer", question: object) -> None:
        """Print everything about the answer as one object, in the form of --json or --jsonl."""
        options = {**self.settings.options, **self.settings.load}
        entry = whole(answer, self.name, question, options)
        if self.settings.output == "jsonl":
            self.event("answer", **entry)
        else:
            print(json.dumps(entry, ensure_ascii=False, indent=2), flush=True)


def whole(
    answer: "Answer", model: str, question: object, options: Mapping[str, object]
) -> dict[str, object]:
    """Everything about an answer, as --json prints it."""
    from .. import __version__

    asked = {"model": model, "question": text_of(question)}
    return {**asked, **asdict(answer), "settings": options, "version": __version__}


def text_of(question: object) -> object:
    """A question as it was asked; of messages, the text of the newest turn of the user.

    >>> text_of([{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "It is."}])
    'Why?'
    """
    from ..request.messages import from_messages
    from ..request.prepare import is_messages

    if question is None or isinstance(question, str) or not is_messages(question):
        return question
    turn = [turn for turn in from_messages(list(question))[0] if turn.role == "user"][-1]
    return "".join(str(run) for part in turn.parts if isinstance(part, tuple) for run in part)


def print_error(error: LlavaMinError, output: str) -> None:
    """Print what went wrong as an object on stdout, where --json or --jsonl asks for objects."""
    entry = {"error": str(error), "exit_code": error.exit_code}
    if output == "jsonl":
        print(json.dumps({"event": "error", **entry}, ensure_ascii=False), flush=True)
    elif output == "json":
        print(json.dumps(entry, ensure_ascii=False, indent=2), flush=True)
