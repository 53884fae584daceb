"""Write docs/cli.md from the tables of the command line: python tests/cli.py."""

import argparse
from pathlib import Path

from llava_min import errors
from llava_min.base import habits as names
from llava_min.check import compare, verify
from llava_min.command import habits
from llava_min.command.flags import DAILY, DETAILS, Flag
from llava_min.command.serve import SERVING, known
from llava_min.families.templates import TEMPLATES
from llava_min.weights import __main__ as checkpoints

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
HEAD = """\
# The command line

Every option, every exit code, and the names from elsewhere that are taken too.
`python tests/cli.py` writes this page from the tables in
[flags.py](../llava_min/command/flags.py), [habits.py](../llava_min/command/habits.py) and
[errors.py](../llava_min/errors.py), and from the parsers of the other commands.

    llava-min [PROMPT] [options]
    llava-min serve | check | verify | inspect | quantize | completion ...

PROMPT is the question. `@FILE` reads it from a file and `-` from stdin. `<image>` and `<video>` in
it place the visuals, otherwise they come first in the order given. A word that ends as a picture or
video does, such as `a.png` or `http://host/b.mp4`, is one, also without `--image` or `--video`.
After `--`, every word is a PROMPT. Inside a longer prompt the name of a file is text, and a line on
stderr says so.
"""
SHARED = ", ".join(f"`{flag[0].split()[-1]}`" for flag in (*DAILY, *DETAILS) if known(flag))
SERVE = f"""\
`llava-min serve` has these options and, of those above, {SHARED}.
[serving.md](serving.md) says more.

"""
ABOUT = {
    # another command -> what it is, above its options
    "check": "`llava-min check` compares each stage of a checkpoint with transformers, in float32: "
    "[verified.md](verified.md).",
    "verify": "`llava-min verify` asks a checkpoint what others have published about it: "
    "[verified.md](verified.md).",
    "inspect": "`llava-min inspect FOLDER` lists the tensors of a checkpoint without loading them: "
    "what becomes of each, and what is missing.",
    "quantize": "`llava-min quantize IN OUT` writes a copy of a checkpoint in codes of four or "
    "eight bits: [using.md](using.md#less-memory).",
}
COMPLETION = """\
`llava-min completion` takes the name of a shell, bash, zsh or fish, and prints a script for it:

    source <(llava-min completion bash)       # in ~/.bashrc
    source <(llava-min completion zsh)        # in ~/.zshrc, after compinit
    llava-min completion fish | source        # in ~/.config/fish/config.fish
"""


def row(*cells: str) -> str:
    """A row of a table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def options(flags: tuple[Flag, ...]) -> str:
    """A table of options: how each is written, and what --help says of it."""
    rows = [row("option", "what it does"), row("---", "---")]
    for written, text, how in flags:
        metavar = f" {how['metavar']}" if "metavar" in how else ""
        text = text.replace("TEMPLATES", ", ".join(TEMPLATES))
        text = text.replace("%(default)s", str(how.get("default")))
        text = text.replace("%(default)g", f"{how.get('default')}")
        rows.append(row(f"`{written.replace(' ', ', ')}{metavar}`", text))
    return "\n".join(rows)


def tool(name: str) -> str:
    """What another command is, and a table of its options, as its own parser has them."""
    parsers = {"check": compare.parser, "verify": verify.parser}
    root = parsers.get(name, checkpoints.parser)()
    for action in root._actions:
        if isinstance(action, argparse._SubParsersAction):
            root = action.choices[name]
    rows = [row("option", "what it does"), row("---", "---")]
    for action in root._actions:
        if "--help" not in action.option_strings:
            value = action.metavar or ("" if action.nargs == 0 else action.dest.upper())
            if action.choices:
                value = f"{{{','.join(map(str, action.choices))}}}"
            written = " ".join(filter(None, [", ".join(action.option_strings), value]))
            rows.append(row(f"`{written}`", action.help % vars(action)))
    return f"{ABOUT[name]}\n\n" + "\n".join(rows)


def exit_codes() -> str:
    """A table of exit codes with the errors that have them, and what each error is."""
    rows = [row("code", "error", "when"), row("---:", "---", "---"), row("0", "", "An answer.")]
    for kind in vars(errors).values():
        if not (isinstance(kind, type) and issubclass(kind, errors.LlavaMinError)):
            continue
        general = kind is errors.LlavaMinError
        name = "" if general else f"`{kind.__name__}`"
        when = "Anything unexpected, with a traceback." if general else kind.__doc__.split("\n")[0]
        rows.append(row(str(kind.exit_code), name, when))
    rows.append(row("130", "", "Ctrl-C; the text so far stays printed."))
    return "\n".join(rows)


def elsewhere() -> str:
    """A table of other libraries' options, and what each of them is here."""
    rows = [row("option", "from", "here"), row("---", "---", "---")]
    for flag, (where, ours) in sorted(habits.table().items()):
        rows.append(row(f"`{flag}`", where, f"`{ours}`" if ours else "nothing: it is so already"))
    for flag, (where, sentence) in sorted(habits.absent().items()):
        rows.append(row(f"`{flag}`", where, f"an error: {sentence}"))
    return "\n".join(rows)


def in_python() -> str:
    """A table of other libraries' names of arguments, and what each of them is here."""
    rows = [row("argument", "from", "here"), row("---", "---", "---")]
    for name, (where, ours) in sorted(names.NAMES.items()):
        rows.append(row(f"`{name}=`", where, f"`{ours}=`"))
    for name, (where, bits) in sorted(names.SWITCHES.items()):
        rows.append(row(f"`{name}=True`", where, f"`bits={bits}`"))
    return "\n".join(rows)


def page() -> str:
    """The whole page."""
    parts = {
        "Every day": options(DAILY),
        "In detail": options(DETAILS),
        "serve": SERVE + options(SERVING),
        **{name: tool(name) for name in ABOUT},
        "Exit codes": exit_codes(),
        "Completion in a shell": COMPLETION.rstrip(),
        "Options of other programs": elsewhere(),
        "Arguments of other libraries": in_python(),
    }
    return HEAD + "".join(f"\n## {title}\n\n{part}\n" for title, part in parts.items())


if __name__ == "__main__":
    PAGE.write_text(page())
