"""The page that says where the microseconds go: words, and bars as SVG; nothing else is loaded.

in:  the rows of the stage trace      out: the text of trace.html
Read next: this is the end of the folder.
"""

from html import escape

NAME = "trace.html"
LABEL, BAR, HEIGHT = 190, 560, 24  # pixels: of a part's name, of the longest bar, of a line
KERNELS = 12  # lines of the list of kernels
COLOURS = {
    "attention": "#2471a3",
    "qkv": "#b9770e",
    "output": "#d68910",
    "gate_up": "#c0392b",
    "down": "#e67e22",
    "head": "#7d3c98",
    "patches": "#7d3c98",
    "norms": "#1e8449",
    "rope": "#17a589",
    "activation": "#27ae60",
    "additions and copies": "#566573",
    "gaps between kernels": "#c8ccd0",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1f23; background: #fff }
h2 { margin-top: 2.5rem } svg { max-width: 100%; height: auto } .warning { color: #c0392b }
table { border-collapse: collapse; width: 100%; font-size: 13px } th { text-align: left }
td, th { padding: 2px 8px; border-bottom: 1px solid #e3e6e8 } .number { text-align: right }
td.name { font-family: ui-monospace, monospace; overflow-wrap: anywhere }
"""


def html(rows: list[dict], limits: dict[str, float], dry: bool) -> str:
    """The page, one section for each trace."""
    sections = []
    for name in dict.fromkeys(row["trace"] for row in rows if "trace" in row):
        sections.append(section(name, [row for row in rows if row.get("trace") == name]))
    device = next((row["device"] for row in rows if "device" in row), "")
    warning = '<p class="warning">A dry run: the figures mean nothing.</p>\n' if dry else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width"/>\n'
        f"<title>Where the microseconds go</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>Where the microseconds go</h1>\n{warning}<p>{escape(device)}. {floor_words(limits)}"
        " The black line in a bar is the floor of that part: it cannot end sooner on this machine."
        f"</p>\n{''.join(sections)}</body>\n</html>\n"
    )


def floor_words(limits: dict[str, float]) -> str:
    """What floors are computed from."""
    if not limits:
        return "The limits of this machine were not measured, so there are no floors."
    return (
        f"It reads {limits['read'] / 1e9:,.0f} GB/s and multiplies "
        f"{limits['matmul'] / 1e12:,.0f} TFLOP/s in bfloat16, both measured in the same run."
    )


def section(name: str, rows: list[dict]) -> str:
    """One trace: what it amounts to, a bar for each part, and its longest kernels."""
    parts = [row for row in rows if "kernel" not in row and row["us"]]
    kernels = [row for row in rows if "kernel" in row]
    return (
        f"<h2>{escape(name)}</h2>\n<p>{words(parts)}</p>\n{bars(parts)}\n"
        "<details><summary>The kernels that take longest</summary>\n<table>\n"
        '<tr><th>kernel</th><th>part</th><th class="number">calls</th>'
        '<th class="number">microseconds</th><th class="number">share</th></tr>\n'
        f"{''.join(map(line, kernels[:KERNELS]))}</table></details>\n"
    )


def line(row: dict) -> str:
    """One kernel of the list."""
    numbers = (f"{row['calls']:,}", f"{row['us']:,.1f}", f"{row['share']:.1%}")
    cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
    return f'<tr><td class="name">{escape(row["kernel"])}</td><td>{row["part"]}</td>{cells}</tr>\n'


def words(parts: list[dict]) -> str:
    """The trace in a few sentences."""
    first = parts[0]
    gaps = sum(row["us"] for row in parts if row["part"] == "gaps between kernels")
    text = (
        f"It takes {first['us_together']:,.0f} microseconds. {first['kernels']:,} kernels run for "
        f"{first['us_kernels']:,.0f} of them; {gaps:,.0f} are gaps between kernels. The largest "
        f"part is {escape(first['part'])}: {first['share']:.0%}."
    )
    known = [row for row in parts if row.get("floor_us")]
    if known:
        floor = sum(row["floor_us"] for row in known)
        far = max(known, key=lambda row: row["us"] - row["floor_us"])
        text += (
            f" The floors of all parts are {floor:,.0f} microseconds together, "
            f"{floor / first['us_together']:.0%} of the whole. Most is to be gained in "
            f"{escape(far['part'])}: {far['us']:,.0f} microseconds, where {far['floor_us']:,.0f} "
            "are the floor."
        )
    return text


def bars(parts: list[dict]) -> str:
    """A bar for each part, the longest first, its floor as a black line."""
    longest = max(max(row["us"], row.get("floor_us") or 0.0) for row in parts)
    drawn = []
    for index, row in enumerate(parts):
        y, width = HEIGHT * index, BAR * row["us"] / longest
        drawn.append(f'<text x="{LABEL - 8}" y="{y + 16}" text-anchor="end">{row["part"]}</text>')
        colour = COLOURS.get(row["part"], "#566573")
        drawn.append(
            f'<rect x="{LABEL}" y="{y + 3}" width="{max(width, 1):.1f}" '
            f'height="{HEIGHT - 7}" fill="{colour}"/>'
        )
        end, label = LABEL + width, f"{row['us']:,.1f} us, {row['share']:.1%}"
        if row.get("floor_us"):
            x = LABEL + BAR * row["floor_us"] / longest
            drawn.append(
                f'<line x1="{x:.1f}" y1="{y}" x2="{x:.1f}" y2="{y + HEIGHT - 1}" '
                'stroke="#000" stroke-width="2"/>'
            )
            end, label = max(end, x), f"{label}, {row['us'] / row['floor_us']:.2f}x its floor"
        drawn.append(f'<text x="{end + 6:.1f}" y="{y + 16}">{label}</text>')
    width, height = LABEL + BAR + 220, HEIGHT * len(parts)
    title = "Microseconds of each part: " + ", ".join(
        f"{row['part']} {row['us']:,.0f}" for row in parts
    )
    inner = "\n".join(drawn)
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(title)}" font-size="13" font-family="system-ui, sans-serif">\n'
        f"{inner}\n</svg>"
    )
