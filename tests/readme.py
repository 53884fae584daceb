"""Write the generated parts of the README and of docs/.

python tests/readme.py                     every part but the trace, whose times are a machine's
python tests/readme.py reading rooms       these parts alone
"""

import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterable
from pathlib import Path

from test_house import ROOT, chain

from llava_min.check.published import published

RESULTS = ROOT / "bench" / "results"
TRACED = [
    "python",
    "-m",
    "llava_min.generate",
    "Where is the star?",
    "--image",
    "weights/tiny/samples/shapes.png",
    "--trace",
    "--quiet",
]
CONDUCTOR = (  # in the order in which load() and then generate() come through them
    "engine/load.py",
    "families/layouts.py",
    "engine/handle.py",
    "request/messages.py",
    "request/visuals.py",
    "request/prepare.py",
    "planning/forecast.py",
    "engine/admission.py",
    "engine/step.py",
    "engine/answers.py",
)


def code_lines(path: Path) -> int:
    """Lines that hold code: no blanks, comments, docstrings, or closing brackets on their own."""
    source = path.read_text()
    ignored = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in ignored and token.string.strip(")]},:"):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node):
            lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def first_sentence(path: Path) -> str:
    """The sentence that a file opens with."""
    first = ast.get_docstring(ast.parse(path.read_text())).split("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=\.)\s", first)[0]


def file_table(names: Iterable[str], up: str = "") -> str:
    """Files of llava_min/, their lines of code, and the first sentence of each.

    up: the way from the document to the root.
    """
    rows = ["| file | lines | what it is |", "|---|---:|---|"]
    for name in names:
        path = ROOT / "llava_min" / name
        link = f"[`{name}`]({up}llava_min/{name})"
        rows.append(f"| {link} | {code_lines(path)} | {first_sentence(path)} |")
    return "\n".join(rows)


def reading() -> str:
    """The files of the walk, each with the picture that tests/pictures.py draws of its stage."""
    heads, rule, *rows = file_table(f"{name}.py" for name in chain()).splitlines()
    lines = [f"{heads} picture |", f"{rule}---|"]
    for name, row in zip(chain(), rows):
        drawn = f"docs/walk/{name}.png"
        lines.append(f"{row} {f'[drawn]({drawn})' if (ROOT / drawn).exists() else ''} |")
    return "\n".join(lines)


def conductor() -> str:
    """The files that lead a question through the walk."""
    return file_table(CONDUCTOR, "../")


def rooms() -> str:
    """The folders of the package, and the sentence of each."""
    rows = ["| room | what it is |", "|---|---|"]
    for path in sorted((ROOT / "llava_min").glob("*/__init__.py")):
        name = path.parent.name
        rows.append(f"| [`{name}/`](../llava_min/{name}) | {first_sentence(path)} |")
    return "\n".join(rows)


def trace() -> str:
    """The command and what it prints, as a console block."""
    run = subprocess.run([sys.executable, *TRACED[1:]], cwd=ROOT, capture_output=True, text=True)
    command = " ".join(f'"{word}"' if " " in word else word for word in TRACED)
    return f"```console\n$ {command} 2>&1\n{run.stderr}{run.stdout}```"


def results(file: str, **wanted) -> list[dict]:
    """The rows of a file of results that hold these values."""
    lines = (RESULTS / f"{file}.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if wanted.items() <= row.items()]


def table(heads: list[str], rows: list[list]) -> str:
    """A table, its first column to the left, the others to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def exam() -> str:
    """The committed exam of the embedded checkpoint."""
    heads, *rows = results("tiny_exam")
    table = [heads["columns"], heads["rule"], *(row["row"] for row in rows)]
    return "\n".join(table) + f"\n\n{heads['note']}"


def families() -> str:
    """The committed agreement of each family with its reference (tests/agreement.py)."""
    rows = [
        "| family | layouts | rows of 640 x 480 | rows a frame | context | against | cases | "
        "largest difference of a logit |",
        "|---|---|---:|---:|---:|---|---:|---:|",
    ]
    for row in results("agreement"):
        rows.append(
            f"| {row['family']} | {row['layouts']} | {row['picture']:,} | {row['frame']} | "
            f"{row['context']:,} | {row['against']} | {row['cases']} | {row['worst']:.1e} |"
        )
    return "\n".join(rows)


def cache() -> str:
    """What a cache of 8 bits costs the embedded checkpoint."""
    rows = [
        [
            row["format"],
            f"{row['token_bytes']:,} of {row['token_bytes_bf16']:,}",
            f"{100 * row['same']:.2f}% of {row['n']:,}",
            f"{row['kl']:.1e}",
        ]
        for row in results("quality", section="cache", name="all")
    ]
    heads = ["cache", "bytes a token, of bfloat16's", "same greedy answer", "KL per token"]
    return table(heads, rows)


def machine(row: dict) -> str:
    """Where and when a row was measured."""
    threads = f", {row['threads']} threads" if "threads" in row else ""
    return f"{row.get('cpu') or row['device']}{threads}, torch {row['torch']}, {row['date']}"


WAYS = ("llava_min", "llava_min-compiled", "llama.cpp")  # of decoding, next to transformers


def drafted() -> str:
    """The two ends of prompt lookup: every drafted token taken, and none."""
    rows = []
    ends = ("llava_min", "llava_min-all-drafts-taken", "llava_min-no-draft-taken")
    wanted = {"section": "decode", "shape": "0.5B", "context": 1500, "capability": "AVX512"}
    for form in ("bf16", "int8", "int4"):
        found = [results("generate-cpu", name=name, format=form, **wanted) for name in ends]
        if all(found):
            rows.append([form, *(f"{one[0]['per_second']:.1f}" for one in found)])
    return table(["tokens/s after 1,500", "without", "all drafts taken", "none taken"], rows)


def speed() -> str:
    """Rates of the 0.5B shape on a CPU, and how many times those of transformers in bfloat16."""
    return speed_in("generate-cpu")


def speed_before() -> str:
    """The same on a CPU of the generation before."""
    return speed_in("zen4/generate-cpu")


def speed_in(file: str) -> str:
    """Rates as a file of results has them: a table for each instruction set."""
    parts = []
    what = {
        "vision": "vision, tiles/s",
        "picture": "a picture to its first token, pictures/s",
        "prefill": "prefill of {:,}, tokens/s",
        "decode": "decode after {:,}, tokens/s",
        "batch": "four answers at once after {:,}, tokens/s",
    }
    every = [row for row in results(file, shape="0.5B") if row["section"] in what]
    every.sort(key=lambda row: (list(what).index(row["section"]), row["context"] or 0))
    order = [
        "transformers float32",
        "transformers bf16",
        "llava_min float32",
        *(f"{name} {form}" for form in ("bf16", "int8", "int4") for name in WAYS),
    ]
    for capability in sorted({row["capability"] for row in every}, reverse=True):
        rows = [row for row in every if row["capability"] == capability]
        newest = max(row["date"] for row in rows)  # no table of two machines
        rows = [row for row in rows if row["date"] == newest]
        lines = {}
        for row in rows:
            cells = lines.setdefault(what[row["section"]].format(row["context"] or 0), {})
            rate = f"{row['per_second']:#.3g}".rstrip(".")
            cells[f"{row['name']} {row['format']}"] = f"{rate} ({row['ratio']:.2f}x)"
        names = [name for name in order if any(name in cells for cells in lines.values())]
        cells = [[line, *(found.get(name, "") for name in names)] for line, found in lines.items()]
        parts.append(f"{capability}, {machine(rows[0])}:\n\n{table(['', *names], cells)}")
    return "\n\n".join(parts)


def profile() -> str:
    """Where the time of a tile, a prompt and a token goes."""
    rows = []
    for what in ("vision", "prefill", "decode"):
        for row in results("generate-cpu", section=f"profile {what}"):
            times = [f"{1e3 * row[part]:,.1f}" for part in ("linears", "attention", "rest")]
            rows.append([f"{what}, {row['name']} {row['format']}", *times])
    return table(["milliseconds of", "linears", "attention", "the rest"], rows)


def operators() -> str:
    """Each operator of a token, of a step of four rows and of a prompt, beside its limit."""
    lines: dict[str, dict[str, str]] = {}
    for row in results("generate-cpu", section="operators"):
        if "operator" in row:
            what = f"{row['operator']}, {row['rows']:,} row" + "s" * (row["rows"] > 1)
            part = row["least"] / row["seconds"]
            cells = lines.setdefault(what, {})
            cells[row["format"]] = f"{1e3 * row['seconds']:,.1f} ({part:.0%})"
    forms = [
        form for form in ("bf16", "int8", "int4") if any(form in each for each in lines.values())
    ]
    rows = [[what, *(cells.get(form, "") for form in forms)] for what, cells in lines.items()]
    memory, bf16, int8 = (
        results("generate-cpu", section="operators", name=f"limit {name}")[0]["per_second"] / 1e9
        for name in ("memory", "bf16", "int8")
    )
    limits = f"Here memory is read at {memory:.0f} GB/s, and products make {bf16:,.0f} GFLOP/s in "
    limits += f"bfloat16 and {int8:,.0f} in bytes.\n\n"
    return limits + table(["milliseconds of all blocks", *forms], rows)


def photo() -> str:
    """What it takes to load a model in int4 and ask it about a picture of two tiles."""
    rows = []
    for shape in ("0.5B", "7B"):
        row = results("load-cpu", section="quantise", shape=shape, name="answer")[0]
        times = [row["timings"][f"{name}_s"] for name in ("load", "vision", "prefill", "ttft")]
        size = f"{row['file_bytes'] / 1e9:.1f} GB"
        speed = f"{row['timings']['tokens_per_s']:.1f}"
        memory = f"{row['peak_bytes'] / 1e9:.1f} GB"
        rows.append([shape, size, memory, *(f"{time:.0f} s" for time in times), speed])
    heads = ["shape in int4", "file", "peak memory", "loading", "looking", "reading"]
    return f"{table([*heads, 'first token', 'tokens/s'], rows)}\n\n{machine(row)}."


def loading() -> str:
    """Seconds and memory of loading, and of the whole command to its first token."""
    rows = []
    for row in results("load-cpu", section="load"):
        over = f"{row['peak_bytes'] / 1e9:.2f} GB", f"{row['over_file']:.2f}"
        rows.append([f"{row['name']} {row['format']}", f"{row['seconds']:.1f} s", *over])
    heads = [
        "0.5B shape loaded by",
        "whole process",
        "peak memory",
        "memory above torch's, over the file's size",
    ]
    ours, theirs = (
        results("load-cpu", section="cold", name=name)[0] for name in ("llava_min", "transformers")
    )
    written = results("load-cpu", section="quantise", shape="7B", name="quantise")[0]
    return (
        f"{table(heads, rows)}\n\nThe whole command on the embedded checkpoint to its first token: "
        f"{ours['seconds']:.2f} s; the same work with transformers: {theirs['seconds']:.2f} s, "
        f"{ours['ratio']:.2f}x by the median over the pairs.\n\n"
        f"The 7B shape, {written['file_bytes'] / 1e9:.1f} GB of random weights: `quantize "
        f"--method mse` writes it in int4 in {written['seconds']:.0f} s with "
        f"{written['peak_bytes'] / 1e9:.1f} GB of memory.\n\n{machine(ours)}."
    )


def quality() -> str:
    """What int4 costs the embedded checkpoint, all tasks together, and the error of weights."""
    rows = []
    q4_0 = {row["name"]: row["relative"] for row in results("quality", format="q4_0 32")}
    for row in results("quality", section="answers", name="all"):
        same = {"format": row["format"]}
        lost = [each["lost_points"] for each in results("quality", section="answers", **same)]
        errors = [
            each["relative"] / q4_0[each["name"]]
            for each in results("quality", section="errors", **same)
        ]
        rows.append(
            [
                row["format"],
                f"{row['lost_points']:.2f}",
                f"{max(lost):.2f}",
                f"{row['kl']:.5f}",
                f"{max(errors):.2f}",
            ]
        )
    heads = [
        "method, group",
        "points lost",
        "in the worst task",
        "KL per token",
        "error of a weight over that of Q4_0",
    ]
    return table(heads, rows)


def paired() -> str:
    """What eight bits and four cost on the same questions, all tasks together and in the worst."""
    rows = []
    for whole in results("quality", section="paired", name="all"):
        each = results("quality", section="paired", format=whole["format"])
        worst = max(each, key=lambda row: row["lost_points"])
        lost = f"{worst['lost_points']:.2f} ({worst['name'].replace('_', ' ')})"
        points = f"{whole['lost_points']:.2f}"
        rows.append([whole["format"], f"{whole['n']:,}", points, lost, f"{whole['kl']:.5f}"])
    return table(["", "questions", "points lost", "in the worst task", "KL per token"], rows)


def frames() -> str:
    """The memory of a clip's prompt, and the speed of its prefill."""
    rows = []
    for row in results("frames-cpu", section="memory", name="chunked"):
        ways = [{"context": row["context"], "name": name} for name in ("chunked", "naive")]
        memory = [results("frames-cpu", section="memory", **way)[0] for way in ways]
        speed = [results("frames-cpu", section="prefill", **way)[0] for way in ways]
        rows.append(
            [
                row["context"],
                f"{row['tokens']:,}",
                *(f"{way['above_bytes'] / 2**20:,.0f} MiB" for way in memory),
                *(f"{way['per_second']:.0f}" for way in speed),
            ]
        )
    heads = [
        "frames",
        "tokens",
        "memory, in chunks",
        "all at once",
        "prefill in chunks, tokens/s",
        "all at once",
    ]
    return f"{table(heads, rows)}\n\n{machine(row)}."


def clips() -> str:
    """Sampling an hour of video: seeking to the frames, and decoding everything."""
    rows = results("video")
    middle = lambda row: row["seconds"][len(row["seconds"]) // 2]
    bound = "the spans alone"
    floor = {row["clip"]: middle(row) for row in rows if row["name"] == bound}
    called = {bound: "PyAV, key frames known", "PyAV, everything": "PyAV, every frame"}
    lines = [
        [
            f"{row['clip']}, {called.get(row['name'], row['name'])}",
            f"{middle(row):.1f} s",
            f"{middle(row) / floor[row['clip']]:.2f}x",
            f"{row['decoded']:,}",
            f"{row['peak_mb']:.0f} MB",
        ]
        for row in rows
    ]
    heads = ["64 frames of", "time", "over key frames known", "frames decoded", "memory"]
    return f"{table(heads, lines)}\n\n{machine(rows[0])}."


def again() -> str:
    """How soon second questions are answered; the first row, a first question, is left out."""
    rows = [
        [row["case"], f"{row['p50_s']:.2f} s", f"{row['times_sooner']:.1f}x"]
        for row in results("ask-0.5B")[1:]
    ]
    heads = ["case", "time to the first token", "speed-up over a cold run"]
    return f"{table(heads, rows)}\n\n{machine(results('ask-0.5B')[1])}."


def long() -> str:
    """A prompt of hundreds of thousands of tokens, in two sentences."""
    row = results("long-embedded")[-1]
    return (
        f"A prompt of {row['tokens']:,} tokens in the shape of the embedded checkpoint, in float32 "
        f"and with a larger context: the plan counts {row['planned_bytes'] / 1e6:,.0f} MB for "
        f"cache and activations, and {row['measured_bytes'] / 1e6:,.0f} MB were measured "
        f"({row['measured_over_planned']:.3f} of the plan). {machine(row)}."
    )


def needle() -> str:
    """What the heat map of a needle in a haystack of frames says, in two sentences."""
    found = lambda **wanted: [row["found"] for row in results("niah-embedded", **wanted)]
    share = lambda **wanted: f"{sum(found(**wanted)) / len(found(**wanted)):.0%}"
    rows = results("niah-embedded")
    needles = len({row["needle"] for row in rows})
    return (
        f"Of {needles} needles at six depths it finds {share(frames=16)} in clips of 16 frames, "
        f"the longest of its training, {share(frames=160)} in 160 frames and "
        f"{share(frames=256)} in 256. The misses are at the start of long clips: a needle at the "
        f"beginning of 256 frames is found {share(frames=256, depth=0.0)} of the time, one at the "
        f"end {share(frames=256, depth=1.0)}."
    )


def trust() -> str:
    """How often an explanation's map points at the right shape, and what it costs."""
    rows = []
    for row in results("explain", section="pointing") + results("explain", section="occlusion"):
        if row["section"] == "occlusion" or row["format"] == "grid":
            joined = results("explain", section=row["section"], name=row["name"], format="joined")
            both = [row, joined[0]] if row["section"] == "pointing" else [None, row]
            cells = [f"{100 * one['hit']:.1f}%" if one else "" for one in both]
            span = f"{100 * both[1]['low']:.1f} to {100 * both[1]['high']:.1f}"
            mass = [f"{100 * one['mass']:.1f}%" if one else "" for one in both]
            rows.append([row["name"], *cells, span, *mass, f"{row['n']:,}"])
    heads = ["map", "hit, grid", "hit, joined", "95% interval", "mass, grid", "mass, joined", "n"]
    first = results("explain", section="pointing")[0]
    text = (
        f"A box is {100 * first['area']:.1f}% of its picture on average. The head chosen on other "
        f"scenes is head {first['head'][1]} of layer {first['head'][0]}. {machine(first)}."
    )
    costs = [
        f"After {row['context']:,} tokens in the shape of {row['shape']}, explaining "
        f"{row['words']} words takes {row['ratio']:.2f} of the time of writing 64, and "
        f"{results('explain', section='memory', shape=row['shape'])[0]['above_bytes'] / 2**20:.0f} "
        "MiB."
        for row in results("explain", section="cost")
    ]
    return "\n\n".join(filter(None, [table(heads, rows), text, " ".join(costs)]))


def evaluation() -> str:
    """What lmms-eval said of the toy, by each road."""
    rows = []
    for row in results("lmms"):
        low, high = row["interval"]
        own = f"{row['generate']:.1%} ({low:.1%} to {high:.1%})"
        road = {"adapter": "by the adapter", "http": "over HTTP, 8 at a time"}[row["context"]]
        rows.append([road, str(row["questions"]), f"{row['right']:.1%}", own])
    return table(["road", "questions", "right", "`generate`"], rows)


def served() -> str:
    """The server under load: tokens a second by the number of clients, and the waiting."""
    rows = []
    for row in results("serve-cpu"):
        load = row["context"]
        if "c=" not in load or load.startswith("open"):
            continue
        names = (f"{name}_p{part}_ms" for name in ("ttft", "itl") for part in (50, 95))
        waits = [f"{row[name]:,.0f}" for name in names]
        kind, _, clients = load.partition(" c=")
        rows.append(
            [row["shape"], kind, clients, row["name"], f"{row['tokens_per_s']:,.0f}", *waits]
        )
    heads = ["shape", "questions", "clients", "server", "tokens/s"]
    heads += ["first, p50 ms", "p95", "between, p50 ms", "p95"]
    return table(heads, rows)


def beside_long() -> str:
    """A stream next to a long prompt, and a short question after it."""
    lines = []
    for row in results("serve-cpu", context="gaps"):
        lines.append(
            f"{row['shape']}: while a prompt of {row['prompt_tokens']:,} tokens is read, the "
            f"longest gap of a stream is {row['longest_gap_ms']:.0f} ms; of "
            f"{row['short_questions']} short questions that come meanwhile the first token is "
            f"there after {row['short_ttft_ms']:.0f} ms (median; the slowest "
            f"{row['short_ttft_worst_ms']:.0f} ms), alone after "
            f"{row['short_ttft_alone_ms']:.0f} ms."
        )
    return "\n\n".join(lines)


def any_device() -> str:
    """int4 by plain torch, and by what was done before."""
    rows = [
        [str(row["context"]), row["name"], f"{row['per_second']:.2f}", f"{row['ratio']:.1f}x"]
        for row in results("devices-cpu")
    ]
    told = table(["tokens before", "path", "tokens/s", "over before"], rows)
    return f"{told}\n\n{machine(results('devices-cpu')[0])}."


def verified() -> str:
    """Every checkpoint of which something is published, and the rows that were sent in of it."""
    sent = [
        json.loads(path.read_text()) for path in sorted((ROOT / "docs/verified").glob("*.json"))
    ]
    names = dict.fromkeys(name for one in published()[1] for name in one.checkpoints)
    rows = []
    for name in sorted(names | dict.fromkeys(row["checkpoint"] for row in sent)):
        rows += [verified_row(row) for row in sent if row["checkpoint"] == name] or [
            [name] + [""] * 8
        ]
    heads = "checkpoint revision device dtype hold differ tokens/s date by".split()
    return table(heads, rows)


def verified_row(row: dict) -> list[str]:
    """A row that was sent in."""
    verdicts = [check["holds"] for check in row["checks"]]
    speeds = [one["tokens_per_s"] for one in row.get("speed", {}).values()]
    return [
        row["checkpoint"],
        (row["revision"] or "")[:7],
        row.get("device", "no weights"),
        row.get("dtype", ""),
        str(verdicts.count(True)),
        str(verdicts.count(False)),
        f"{max(speeds):.1f}" if speeds else "",
        row["date"],
        row["sent_by"] or "",
    ]


def expectations() -> str:
    """What is published, where, and whether it needs weights."""
    rows = []
    for one in published()[1]:
        weights = "yes" if one.expected.keys() & {"answers", "logits"} else "no"
        what = ", ".join(
            sorted(one.expected.keys() - {"settings"} | one.expected.get("settings", {}).keys())
        )
        first = one.checkpoints[0].rpartition("/")[2]
        more = f" and {len(one.checkpoints) - 1} more" if len(one.checkpoints) > 1 else ""
        rows.append([one.id, first + more, what, weights, one.source])
    return table(["expectation", "of", "what", "weights", "source"], rows)


def summary() -> str:
    """The numbers that matter, next to their peers, from the rows of docs/results.md."""
    shape = {"shape": "0.5B", "capability": "AVX512"}
    peers = ("llava_min", "transformers", "llama.cpp")

    def rates(section: str, format: str) -> list[str]:
        """Tokens a second after, or of a prompt of, 1,500 tokens; ours compiled, where that is."""
        wanted = {"section": section, "context": 1500, "format": format, **shape}
        found = [results("generate-cpu", name=name, **wanted) for name in peers]
        compiled = results("generate-cpu", name="llava_min-compiled", **wanted)
        found[0] = compiled or found[0]
        return [f"{rows[0]['per_second']:#.3g}".rstrip(".") if rows else "" for rows in found]

    clients = {"shape": "0.5B", "context": "texts c=8"}
    server = [results("serve-cpu", name=name, **clients) for name in (peers[0], "llama-cpp-python")]
    starts = [results("load-cpu", section="cold", name=name)[0] for name in peers[:2]]
    started = [f"{row['seconds']:.2f}" for row in starts]
    served = [f"{rows[0]['tokens_per_s']:.0f}" for rows in server]
    rows = [
        [
            "tokens/s after a prompt of 1,500, compiled, bfloat16",
            *rates("decode", "bf16"),
        ],
        ["the same in int8 (llama.cpp: Q8_0)", *rates("decode", "int8")],
        ["the same in int4 (llama.cpp: Q4_0)", *rates("decode", "int4")],
        ["reading a prompt of 1,500, bfloat16, tokens/s", *rates("prefill", "bf16")],
        [
            "tokens/s for 8 clients of the server (llama-cpp-python: one at a time)",
            served[0],
            "",
            served[1],
        ],
        ["the toy: start, load, first token, s", *started, ""],
    ]
    return table(["0.5B shape, two threads", *peers], rows)


def fields() -> str:
    """Every field of a request to the server, and what becomes of it."""
    from llava_min.serve.fields import FIELDS

    rows = ["| field | it is | what it means |", "|---|---|---|"]
    rows += [f"| `{name}` | {field.rule} | {field.about} |" for name, field in FIELDS.items()]
    return "\n".join(rows)


def statuses() -> str:
    """What each error of a user is on the command line and over HTTP."""
    from llava_min import errors
    from llava_min.serve.errors import refusal_of

    rows = ["| error | exit code | HTTP status | `code` | when |", "|---|---:|---:|---|---|"]
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, Exception):
            if kind is errors.LlavaMinError:
                name, when, error = "any other", "A mistake of this project.", Exception()
            else:
                name, error = f"`{kind.__name__}`", kind("a line")
                when = kind.__doc__.partition("\n")[0]
            refusal = refusal_of(error)
            cells = [name, kind.exit_code, refusal.status, f"`{refusal.code}`", when]
            rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*rows[:2], *rows[3:], rows[2]])


def predictions() -> str:
    """What splits of published sizes should take."""
    from bench import scale

    return table(scale.HEADS, scale.predictions())


def shared() -> str:
    """What processes that share the cores of one CPU make of a token and of a batch."""
    rows = []
    for section, unit in (("tokens", "tokens/s"), ("batch", "answers/s")):
        found = results("scale-cpu", section=section)
        for row in found:
            ratio = row["per_second"] / found[0]["per_second"]
            name = row["name"].replace("_", " ")
            rows.append([name, f"{row['per_second']:.1f} {unit}", f"{ratio:.2f}x"])
    return table(["the toy, on two cores", "", ""], rows)


PARTS = {
    "README.md": (reading, summary),
    "docs/design.md": (trace, conductor, rooms),
    "docs/results.md": (
        exam,
        quality,
        paired,
        cache,
        needle,
        trust,
        photo,
        speed,
        speed_before,
        drafted,
        profile,
        operators,
        loading,
        frames,
        clips,
        again,
        long,
        served,
        beside_long,
        any_device,
    ),
    "docs/families.md": (families,),
    "docs/serving.md": (fields, statuses),
    "docs/verified.md": (verified, expectations),
    "docs/evaluation.md": (evaluation,),
    "docs/scale.md": (predictions, shared),
}


def marked(part: str) -> re.Pattern:
    """A generated part, its marks included."""
    return re.compile(rf"<!-- {part} -->\n.*?<!-- end -->", re.S)


def replaced(text: str, part: Callable[[], str]) -> str:
    """The text of a file with one generated part written again."""
    fresh = f"<!-- {part.__name__} -->\n{part()}\n<!-- end -->"
    return marked(part.__name__).sub(lambda match: fresh, text, count=1)


def main(wanted: list[str]) -> None:
    sys.path.insert(0, str(ROOT))  # for bench, which is not installed
    known = {part.__name__ for parts in PARTS.values() for part in parts}
    if unknown := set(wanted) - known:
        sys.exit(
            f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}"
        )
    wanted = wanted or sorted(known - {"trace"})
    for name, parts in PARTS.items():
        text = (ROOT / name).read_text()
        for part in parts:
            if part.__name__ in wanted:
                text = replaced(text, part)
        (ROOT / name).write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
