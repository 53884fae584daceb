"""Shell completion from the table of options: llava-min completion bash | zsh | fish.

in:  the name of a shell
out: a script for it, which completes options, their choices, aliases of checkpoints and files

    source <(llava-min completion bash)       in ~/.bashrc
    source <(llava-min completion zsh)        in ~/.zshrc, after compinit
    llava-min completion fish | source        in ~/.config/fish/config.fish

Read command/flags.py first.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ParameterError
from ..families.aliases import ALIASES
from ..families.templates import TEMPLATES
from .flags import DAILY, DETAILS, names, takes_a_value

FILES = ("SRC", "FILE", "MODEL", "IN.JSONL", "OUT.JSONL")  # values that may be paths
WORDS = {"--model": list(ALIASES), "--template": ["auto", *TEMPLATES]}  # which --help leaves out


@dataclass(frozen=True)
class Option:
    """An option as shells complete it: whether it takes a value, and which come to mind."""

    flags: list[str]
    about: str
    takes_value: bool
    takes_file: bool
    words: list[str]


def completion(arguments: Sequence[str], commands: Sequence[str]) -> str:
    """The script for the shell that is named; `commands` are what may be the first word."""
    scripts = {"bash": bash, "zsh": zsh, "fish": fish}
    if len(arguments) != 1 or arguments[0] not in scripts:
        raise ParameterError("completion needs the name of a shell: bash, zsh or fish.")
    return scripts[arguments[0]](options(), commands)


def options() -> list[Option]:
    """Every option of the table."""
    found = [Option(["-h", "--help"], "show the daily options", False, False, [])]
    for flags, text, how in (*DAILY, *DETAILS):
        written, metavar = names(flags, how), how.get("metavar", "")
        about = re.split(r"[:;(]", text)[0].strip()
        words = WORDS.get(written[-1], metavar[1:-1].split(",") if "{" in metavar else [])
        found.append(Option(written, about, takes_a_value(how), metavar in FILES, words))
    return found


def bash(options: list[Option], commands: Sequence[str]) -> str:
    """A function that looks at the word before the one that is completed."""
    cases = []
    for option in options:
        if option.takes_value:
            ways = ["compgen -f"] * option.takes_file
            ways += [f"compgen -W '{lines(option.words)}'"] * bool(option.words)
            reply = "; ".join(f'{way} -- "$word"' for way in ways)
            cases.append(f"    {'|'.join(option.flags)}) COMPREPLY=($({reply})); return ;;")
    flags = [flag for option in options for flag in option.flags]
    return f"""\
_llava_min() {{
  local IFS=$'\\n' word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}}
  case $before in
{lines(cases)}
  esac
  COMPREPLY=($(compgen -f -- "$word"))
  if [[ $word == -* ]]; then
    COMPREPLY=($(compgen -W '{lines(flags)}' -- "$word"))
  elif [[ $COMP_CWORD == 1 ]]; then
    COMPREPLY+=($(compgen -W '{lines(commands)}' -- "$word"))
  fi
}}
complete -o filenames -F _llava_min llava-min"""


def zsh(options: list[Option], commands: Sequence[str]) -> str:
    """A specification of each option for _arguments."""
    rows = []
    for option in options:
        value = "_files" if option.takes_file else f"({' '.join(option.words)})"
        value = f":value:{value}" if option.takes_value else ""
        about = option.about.replace("'", "'\\''")
        rows += [f"    '*{flag}[{about}]{value}' \\" for flag in option.flags]
    return f"""\
#compdef llava-min
_llava_min() {{
  _arguments \\
{lines(rows)}
    '1:command:({" ".join(commands)})' '*:file:_files'
}}
compdef _llava_min llava-min"""


def fish(options: list[Option], commands: Sequence[str]) -> str:
    """A call of `complete` for each option."""
    first = "test (count (commandline -opc)) -eq 1"
    rows = [f"complete -c llava-min -n '{first}' -a '{' '.join(commands)}'"]
    for option in options:
        flags = [
            f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags
        ]
        value = "" if not option.takes_value else " -r -F" if option.takes_file else " -x"
        words = f" -a '{' '.join(option.words)}'" if option.words else ""
        about = option.about.replace("'", "\\'")
        rows.append(f"complete -c llava-min {' '.join(flags)}{value}{words} -d '{about}'")
    return lines(rows)


def lines(words: Sequence[str]) -> str:
    """Words, one a line."""
    return "\n".join(words)
