"""The words of a command line as people write them become those that the table of options has.

in:  words, with options and habits of transformers, llama.cpp, ollama, mlx-vlm, vLLM, LLaVA
out: Words: options for argparse, and the words that are left, which are the prompt

A word that ends as a picture or video does is one, wherever it is: after --image, after another
picture, or on its own. The option that it lacks is put before it.
No torch here: --help costs milliseconds.
Read base/habits.py, command/flags.py first. Read next: command/arguments.py.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Collection

from ..base import habits
from ..errors import ParameterError, shown
from .flags import DAILY, DETAILS, names, takes_a_value

ENDINGS = {
    # the option for a file -> how its name ends
    "--image": ".png .jpg .jpeg .webp .gif .bmp .tif .tiff .avif .heic".split(),
    "--video": ".mp4 .mov .mkv .webm .avi .m4v .mpg .mpeg .wmv .flv .3gp .ogv".split(),
}
PROMPT = "PROMPT"  # what becomes of an option for the question
SPELT = {
    # names of base/habits.py that are not spelt alike on the command line
    "question": PROMPT,
    "images": "--image",
    "videos": "--video",
    "folder": "--model",
    "bits": "--int4 or --int8",
    "adapter": "--lora",
    "use_kernels": "--kernels",
}
IN_PYTHON = ("messages", "hf_overrides")  # whose values a command line does not take
FLAGS = {
    # the option elsewhere: (where, what it is here: options, PROMPT, or nothing)
    "-p": ("llama.cpp", PROMPT),
    "--query": ("LLaVA", PROMPT),
    "--question": ("several", PROMPT),
    "--images": ("several", "--image"),
    "--image-file": ("LLaVA", "--image"),
    "--image-path": ("several", "--image"),
    "--videos": ("several", "--video"),
    "--video-path": ("several", "--video"),
    "-n": ("llama.cpp", "--max-tokens"),
    "--predict": ("llama.cpp", "--max-tokens"),
    "-c": ("llama.cpp", "--context"),
    "-t": ("llama.cpp", "--threads"),
    "-s": ("llama.cpp", "--seed"),
    "-hf": ("llama.cpp", "--model"),
    "--hf-repo": ("llama.cpp", "--model"),
    "-sys": ("llama.cpp", "--system"),
    "-cnv": ("llama.cpp", "--chat"),
    "--conversation": ("llama.cpp", "--chat"),
    "--interactive": ("several", "--chat"),
    "--verbose-prompt": ("llama.cpp", "--show-prompt"),
    "--stream": ("several", ""),
    "--bf16": ("transformers", "--dtype bfloat16"),
    "--fp16": ("transformers", "--dtype float16"),
    "--half": ("several", "--dtype float16"),
    "-V": ("several", "--version"),
}
ABSENT = {
    # the option elsewhere: (where, the sentence that names the option that does it here)
    "--do-sample": ("transformers", "--temperature above 0 samples, and 0 is greedy."),
    "--quantize": ("mlx-vlm", "--int4 and --int8 quantise while loading."),
    "-i": ("llama.cpp", "--image shows a picture, and --chat is a conversation."),
    "-f": ("llama.cpp", "@FILE in place of PROMPT reads it from a file."),
    "--file": ("llama.cpp", "@FILE in place of PROMPT reads it from a file."),
    "--format": ("ollama", "--json prints one JSON object, --jsonl one a line."),
    "-ngl": ("llama.cpp", "--device cuda puts the whole model on a GPU."),
    "--mmproj": ("llama.cpp", "The vision tower is part of what -m names."),
    "-ctk": ("llama.cpp", "--kv-dtype is that of the cache."),
    "--cache-type-k": ("llama.cpp", "--kv-dtype is that of the cache."),
}
TRUTHS = ("true", "false")


def spelt(name: str) -> str:
    """An argument of load() or generate() as an option.

    >>> spelt("max_tokens"), spelt("images")
    ('--max-tokens', '--image')
    """
    return SPELT.get(name, "--" + name.replace("_", "-"))


def table() -> dict[str, tuple[str, str]]:
    """{option elsewhere: (where, what it is here)} of all that mean the same."""
    found = dict(FLAGS)
    for name, (where, ours) in habits.NAMES.items():
        if name not in IN_PYTHON:
            found.setdefault(spelt(name), (where, spelt(ours)))
    for name, (where, bits) in habits.SWITCHES.items():
        found.setdefault(spelt(name), (where, f"--int{bits}"))
    return {flag: row for flag, row in found.items() if flag not in known()}


def absent() -> dict[str, tuple[str, str]]:
    """{option elsewhere: (where, the sentence about it)} of all that do not exist here."""
    found = dict(ABSENT)
    for name, (where, _, _) in habits.MISSING.items():
        found[spelt(name)] = where, habits.instead(name, spelt)
    return {flag: row for flag, row in found.items() if flag not in known()}


def known() -> dict[str, bool]:
    """{option: whether it takes a value} of the table of options."""
    found = {"-h": False, "--help": False}
    for flags, _, how in (*DAILY, *DETAILS):
        found |= dict.fromkeys(names(flags, how), takes_a_value(how))
    return found


class Words:
    """A command line in the terms of the table of options.

    options: those of the table with their values, and words that begin as an option does. prompts:
    the other words. ParameterError names an option of elsewhere that does not exist here.
    """

    def __init__(self, given: list[str]) -> None:
        self.options: list[str] = []
        self.prompts: list[str] = []
        self.takes, self.same, self.absent = known(), table(), absent()
        self.optional = {flags for flags, _, how in DETAILS if "nargs" in how}
        self.left = deque(given)
        while self.left:
            self.take(self.left.popleft())

    def take(self, word: str) -> None:
        """One word, and its value where it is an option that has one."""
        if word == "--":
            self.prompts += self.left
            self.left.clear()
        elif is_option(word):
            self.take_option(*self.named(word))
        elif option := option_for(word):
            self.options += [option, word]
        else:
            self.prompts.append(word)

    def named(self, word: str) -> tuple[str, str | None]:
        """(name, value after =) of an option, with dashes where dashes belong."""
        name, equals, value = word.partition("=")
        dashed = name.replace("_", "-")
        if dashed in self.takes or dashed in self.same or dashed in self.absent:
            name = dashed
        return name, value if equals else None

    def take_option(self, name: str, value: str | None) -> None:
        """An option by the name that it has here, with its value if it takes one."""
        if name in self.absent:
            raise ParameterError(f"No option is called {name}. {self.absent[name][1]}")
        here = self.same[name][1] if name in self.same else name
        wants = here == PROMPT or self.takes_next(here)
        after = self.left[0] if self.left and not is_option(self.left[0]) else None
        if not wants:
            meant = after is not None and after.lower() in TRUTHS
            if meant or (value is not None and name in self.same):
                raise ParameterError(f"{name} takes no value.")
            if here in self.optional and value is None and (after or "").isdecimal():
                value = self.left.popleft()
            self.options += here.split() if value is None else [f"{here}={value}"]
        elif here == PROMPT:
            if value is None and after is None:
                raise ParameterError(f"{name} needs a value.")
            self.prompts.append(self.left.popleft() if value is None else value)
        elif value is not None:
            self.options.append(f"{here}={value}")
        else:
            self.options += [here] if after is None else [here, self.left.popleft()]

    def takes_next(self, name: str) -> bool:
        """Whether an option takes the next word; of short ones in one word, the last may do so."""
        if name.startswith("--") or name in self.takes:
            return self.takes.get(name, False)
        letters = [self.takes.get(f"-{letter}", False) for letter in name[1:]]
        return letters.count(True) == 1 and letters[-1]


def is_option(word: str) -> bool:
    """Whether argparse would take a word for an option, and not for a value.

    >>> [is_option(word) for word in ("--json", "-q", "-", "-0.5", "- a list")]
    [True, True, False, False, False]
    """
    name = word.partition("=")[0]
    return bool(re.match(r"-[^\d.]", word)) and not re.search(r"\s", name)


def option_for(word: str) -> str | None:
    """The option that a word lacks: --image for a picture, --video for a video, else None.

    A path may not exist: the error about that is clearer than an answer to it as a question.

    >>> option_for("a.PNG"), option_for("http://x.org/b.mp4?c=1"), option_for("What is in a.png")
    ('--image', '--video', None)
    """
    if data := re.match(r"data:(image|video)/", word):
        return f"--{data[1]}"
    url = re.fullmatch(r"(https?|file)://\S+", word)
    ending = os.path.splitext(word.partition("?")[0] if url else word)[1].lower()
    kinds = [option for option, known in ENDINGS.items() if ending in known]
    if not kinds or word.startswith("@"):
        return None
    return kinds[0] if not re.search(r"\s", word) or os.path.isfile(word) else None


def notices(prompt: str | None, sources: Collection[str]) -> list[str]:
    """A line about each file that a prompt names and that is not among the sources.

    A model sees what --image and --video name; in a prompt, the name of a file is text.
    """
    if prompt is None or prompt == "-" or prompt.startswith("@"):
        return []
    if os.path.isfile(prompt):
        return [f"{shown(prompt)} is a file, and the name is the question: @{prompt} reads it."]
    if os.path.isdir(prompt) and os.sep in prompt:
        return [f"{shown(prompt)} is a folder, and the name is the question: --video shows it."]
    found = []
    for word in dict.fromkeys(bare(word) for word in prompt.split()):
        option = option_for(word)
        if option and word not in sources and os.path.isfile(word):
            found.append(f"{shown(word)} in the prompt is not opened: {option} {word} shows it.")
    return found


def bare(word: str) -> str:
    """A word of a text without quotes and punctuation around it.

    >>> bare("'./a.png'?")
    './a.png'
    """
    return re.sub(r"^[\"'`(\[{<]+|[\"'`)\]}>,;:.!?]+$", "", word)
