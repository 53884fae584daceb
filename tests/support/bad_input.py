"""How a case of bad input is tried: in a child with limits, beside a harmless twin that answers.

A case makes its files in a folder of its own and gives the arguments of the command. The child is
forked, so that nothing is imported twice; its memory, processor time and native crashes are its
own, and what it prints is read back from files. Every case asserts the exit code, one line that
names the culprit, no traceback, no address, no path of the installation, bounded time and memory,
and inputs that stay as they were. The results become the table `bad_input.md`.
"""

import functools
import gc
import hashlib
import os
import re
import resource
import shutil
import signal
import stat
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llava_min.command.main import main
from llava_min.errors import ParameterError

SECONDS = 5  # of processor time; the clock on the wall may say more on a busy machine
WALL_SECONDS = 120
MEMORY = 100 << 20  # bytes above what a plain answer takes
ADDRESS_SPACE = 4 << 30  # a hard end for a child that runs away
PARTS = r"[^:]+: .+: expected .+, found .+\.( .+)?"  # of a file, tensor or medium
SENTENCE = r"(?!.*: expected )[A-Za-z'-].*[.?]"  # of an option
TABLE = Path(__file__).parents[1] / "bad_input.md"
CATALOGUE = """CK-MISS CK-NAN CK-DTYPE TX-SPECIAL IM-EXIF IM-TRNS VD-VFR VD-ROT NU-CHUNK NU-CACHE
    NU-BATCH CK-PICKLE CK-TRAV VD-PLAYLIST VD-URL CK-AUTOMAP CK-HDRLEN CK-TRUNC CK-OVERLAP CK-DUPKEY
    CK-JSON CK-SHAPE CK-CONFIG CK-SHRINK CK-FIFO IM-BOMB1 IM-BOMB2 VD-BOMB IM-TINY TX-COUNT TX-LONG
    PA-NONFINITE NU-MASKROW NU-NANLOGIT NU-ROPE NU-INT4 QZ-ENOSPC QZ-KILL QZ-SAME CLI-INT CLI-PIPE
    CLI-UTF8 CLI-EMPTY IM-GARBAGE IM-TRUNC IM-FLIP IM-MODES IM-ANIM VD-EMPTY VD-HALF VD-NOMETA
    VD-CORRUPT VD-AUDIO VD-CODEC CK-TIE CK-TOK TX-STREAM CLI-FLAGS CLI-DEP MEM-PRE MEM-RUN
    """.split()
RESULTS: dict[tuple[str, str], str] = {}
REGISTERED: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Outcome:
    """How a child ended: its exit code (negative: the signal), what it printed, what it took."""

    code: int
    out: str
    err: str
    seconds: float
    memory: int


@dataclass(frozen=True)
class Case:
    """`bad` makes files in a folder and returns the arguments; `good` is its harmless twin."""

    row: str
    name: str
    code: int
    named: str
    bad: Callable[[Path], list]
    good: Callable[[Path], list]
    before: Callable[[], None] = lambda: None  # run in the child, of the bad case only
    memory: int = MEMORY
    keeps: bool = True  # whether the case leaves its files alone while the command runs

    def __str__(self):
        return f"{self.row} {self.name}"


def rows(row: str, code: int, named: str, good: Callable, bad: dict, **more) -> list[Case]:
    """Cases of one row of the catalogue: {name: what makes it, or (what makes it, what is named)}.

    `named` is a regular expression that the message must hold.
    """
    made = []
    for name, how in bad.items():
        how, pattern = how if isinstance(how, tuple) else (how, named)
        made.append(Case(row, name, code, pattern, how, good, **more))
    REGISTERED.update((row, case.name) for case in made)
    return made


def forked(work: Callable[[], int], stdin: bytes = b"") -> Outcome:
    """Run `work` in a child with limits on time and memory; its result is the exit code."""
    base = status_of("RssAnon")
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with tempfile.TemporaryFile() as given:
            given.write(stdin)
            given.seek(0)
            child = os.fork()
            if child == 0:
                in_child(work, given, out, err)
            _, status, usage = os.wait4(child, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    seconds = usage.ru_utime + usage.ru_stime
    return Outcome(
        os.waitstatus_to_exitcode(status), *texts, seconds, usage.ru_maxrss * 1024 - base
    )


def in_child(work, given, out, err) -> None:
    """The child's side; it never returns."""
    code = 99
    gc.freeze()  # freeing what the parent left, a decoder say, would wait for the parent's threads
    try:
        for number, file in enumerate((given, out, err)):
            os.dup2(file.fileno(), number)
        sys.stdin = open(0, closefd=False)
        sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
        signal.alarm(WALL_SECONDS)
        resource.setrlimit(resource.RLIMIT_AS, (status_of("VmSize") + ADDRESS_SPACE,) * 2)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def status_of(field: str) -> int:
    """Bytes that the kernel counts for this process under a name."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1])


def fingerprint(folder: Path) -> dict:
    """{path: mode and contents} of everything in a folder, pipes and links unopened."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        small_file = stat.S_ISREG(mode) and path.stat().st_size < 1 << 28
        data = hashlib.sha256(path.read_bytes()).hexdigest() if small_file else None
        found[str(path.relative_to(folder))] = (mode, path.lstat().st_size, data)
    return found


def command(arguments: list, before=lambda: None) -> Outcome:
    """The command with these arguments, in a child; a last bytes argument is its stdin."""
    arguments = list(arguments)
    stdin = arguments.pop() if isinstance(arguments[-1], bytes) else b""

    def work() -> int:
        before()
        return main([str(argument) for argument in arguments])

    return forked(work, stdin)


def check(case: Case, folder: Path, model: Path) -> None:
    """Try a case and its twin, assert what every case must hold, and note the result."""
    for name in ("bad", "good"):
        (folder / name).mkdir()
        shutil.copytree(model, folder / name / "model")
    arguments = case.bad(folder / "bad")
    before = fingerprint(folder)
    ended = command(arguments, case.before)
    message = check_refusal(ended, case, folder / "bad")
    assert fingerprint(folder) == before or not case.keeps
    check_answer(case.good, folder / "good")
    RESULTS[case.row, case.name] = f"exit {ended.code}: {message}"


def check_refusal(ended: Outcome, case: Case, folder: Path) -> str:
    """The message of a refusal, after everything that the catalogue asks of it."""
    assert ended.code == case.code, ended
    lines = [line for line in ended.err.splitlines() if line.startswith("llava_min: error: ")]
    assert len(lines) == 1 and ended.err.endswith(lines[0] + "\n"), ended.err
    assert re.search(case.named, lines[0]), lines[0]
    form = SENTENCE if case.code == ParameterError.exit_code else PARTS
    assert re.fullmatch(f"llava_min: error: {form}", lines[0]), lines[0]
    for sign in ("Traceback", "site-packages", ".py", "object at 0x"):
        assert sign not in ended.err, ended.err
    assert not re.search(r"0x[0-9a-f]{8}", ended.err)
    assert len(lines[0]) < 1000 and lines[0].isprintable()
    assert ended.seconds < SECONDS, ended.seconds
    assert ended.memory - plain_memory() < case.memory, ended.memory
    message = lines[0].removeprefix("llava_min: error: ").replace(f"{folder}/", "")
    return re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1", message)


ANSWERED: set[tuple] = set()


def check_answer(good, folder: Path) -> None:
    """The twin answers; one that has answered before need not again."""
    arguments = good(folder)
    key = (good, *map(str, (a for a in arguments if str(folder) not in str(a))))
    if key in ANSWERED:
        return
    before = fingerprint(folder)
    ended = command(arguments)
    assert ended.code == 0 and "tokens/s" in ended.err and "rror" not in ended.err, ended
    assert fingerprint(folder) == before
    ANSWERED.add(key)


@functools.cache
def plain_memory() -> int:
    """What a child takes that answers a plain question with the embedded checkpoint."""
    ended = command(["How many shapes are there?", "--device", "cpu", "--max-tokens", "1"])
    assert ended.code == 0, ended
    return ended.memory


def ask(folder: Path, *more) -> list:
    """The arguments of a short question to the model of a case."""
    return ["What?", "-m", folder / "model", "--device", "cpu", "--max-tokens", "2", *more]


# The table ---------------------------------------------------------------------------------------


def stale_table() -> str | None:
    """The table as it should be, if every file of cases was run whole and it is another."""
    cases = re.compile("import bad_input|from bad_input|mark.catalogue")
    files = [path for path in TABLE.parent.glob("test_*.py") if cases.search(path.read_text())]
    whole = all(path.stem in sys.modules for path in files) and set(RESULTS) == REGISTERED
    return table() if whole and TABLE.read_text() != table() else None


def table() -> str:
    """The catalogue, row by row, each case with what it got."""
    found = {row for row, _ in REGISTERED}
    order = [*CATALOGUE, *sorted(found - set(CATALOGUE))]
    lines = [
        "# Bad input, case by case",
        "",
        "Compared by the tests, and written by `pytest --write-tables`: each case with the exit",
        "code and message that it got, or that it holds. The twin of each refused case, the same",
        "input unharmed, was answered.",
        "",
        "| row | case | result |",
        "|---|---|---|",
    ]
    for row in order:
        cases = sorted(case for case in RESULTS if case[0] == row)
        lines += [
            f"| {row} | {escaped(name)} | {escaped(RESULTS[row, name])} |" for _, name in cases
        ]
        lines += [] if cases else [f"| {row} | | not covered |"]
    return "\n".join([*lines, ""])


def escaped(text: str) -> str:
    """Text fit for a cell of a table."""
    text = text if len(text) <= 300 else text[:297] + "..."
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
