"""Plots as SVG text, drawn from the JSON lines in bench/results/ and from nothing else.

sweep     one section: rate over size, a line for each candidate
roofline  all sections: FLOPs per byte against TFLOP/s, under the machine's two limits
"""

import json
import math
from pathlib import Path

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 420, 70, 190, 40, 50
COLOURS = (
    "#c0392b", "#2471a3", "#1e8449", "#7d3c98", "#b9770e", "#566573",
    "#17a589", "#212121", "#e056a0", "#8bc34a", "#6d3b1f", "#56b4e9",
)  # fmt: skip


class Axes:
    """Two logarithmic axes over the given values, and the SVG elements drawn so far."""

    def __init__(self, title: str, across: str, up: str, xs: list[float], ys: list[float]):
        self.x, self.y = span(xs), span(ys)
        self.parts = [
            f'<text x="{LEFT}" y="22" font-size="15">{title}</text>',
            f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" '
            f'text-anchor="middle">{across}</text>',
            f'<text x="16" y="{HEIGHT / 2}" text-anchor="middle" '
            f'transform="rotate(-90 16 {HEIGHT / 2})">{up}</text>',
        ]
        for value in ticks(self.x):
            x = self.place(value, 1)[0]
            self.parts += [
                f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}" '
                'stroke="#ddd"/>',
                f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" '
                f'text-anchor="middle">{short(value)}</text>',
            ]
        for value in ticks(self.y):
            y = self.place(1, value)[1]
            self.parts += [
                f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>',
                f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short(value)}</text>',
            ]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Data -> pixels."""
        across = (math.log(x) - math.log(self.x[0])) / math.log(self.x[1] / self.x[0])
        up = (math.log(y) - math.log(self.y[0])) / math.log(self.y[1] / self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (
            HEIGHT - TOP - BOTTOM
        )

    def line(self, points: list[tuple[float, float]], colour: str, dashed: bool = False) -> None:
        """Draw a line through points of the data."""
        placed = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.place(*point) for point in points))
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        self.parts.append(
            f'<polyline points="{placed}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
        )

    def dot(self, x: float, y: float, colour: str, label: str) -> None:
        """Draw a point of the data, whose label is seen where a pointer rests on it."""
        x, y = self.place(x, y)
        self.parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}">'
            f"<title>{label}</title></circle>"
        )

    def legend(self, names: list[str]) -> None:
        """Name the lines at the right, in the order of COLOURS."""
        for index, name in enumerate(names):
            y, colour = TOP + 16 * index, COLOURS[index % len(COLOURS)]
            self.parts.append(
                f'<rect x="{WIDTH - RIGHT + 12}" y="{y}" width="10" height="10" fill="{colour}"/>'
                f'<text x="{WIDTH - RIGHT + 27}" y="{y + 10}">{name}</text>'
            )

    def svg(self) -> str:
        """The whole drawing."""
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
            'font-family="sans-serif" font-size="12">\n'
            '<rect width="100%" height="100%" fill="white"/>\n'
            f"{body}\n</svg>\n"
        )


def span(values: list[float]) -> tuple[float, float]:
    """Limits of an axis: a little more than the values, never empty.

    >>> span([10.0, 100.0])
    (8.0, 125.0)
    """
    return min(values) / 1.25, max(values) * 1.25


def ticks(limits: tuple[float, float]) -> list[float]:
    """Powers of ten in an axis, with 2 and 5 where there are few.

    >>> ticks((8.0, 125.0))
    [10.0, 20.0, 50.0, 100.0]
    """
    exponents = range(math.floor(math.log10(limits[0])), math.ceil(math.log10(limits[1])) + 1)
    factors = (1, 2, 5) if len(exponents) <= 4 else (1,)
    values = [factor * 10.0**exponent for exponent in exponents for factor in factors]
    return [value for value in values if limits[0] <= value <= limits[1]]


def short(value: float) -> str:
    """A number, shortened for the label of an axis.

    >>> short(32768.0), short(0.5), short(2e6)
    ('33k', '0.5', '2M')
    """
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            digits = ".3g" if value < 10 * factor else ".0f"
            return f"{value / factor:{digits}}{letter}"
    return f"{value:g}"


def sweep(section: str, rows: list[dict]) -> str:
    """Rate over size: TFLOP/s where arithmetic is the limit of most rows, GB/s elsewhere."""
    compute = sum(
        row["flops"] / row["matmul_tflop_per_s"] > 1e3 * row["bytes"] / row["copy_gb_per_s"]
        for row in rows
    )
    key, unit = ("tflop_per_s", "TFLOP/s") if 2 * compute > len(rows) else ("gb_per_s", "GB/s")
    names = sorted(
        {row["name"] for row in rows}, key=lambda name: (not name.startswith("llava_min"), name)
    )
    limit = rows[0]["matmul_tflop_per_s" if unit == "TFLOP/s" else "copy_gb_per_s"]
    sizes = [row["size"] for row in rows]
    axes = Axes(
        f"{section}, {rows[0]['device']}", "size", unit, sizes, [row[key] for row in rows] + [limit]
    )
    axes.line([(min(sizes), limit), (max(sizes), limit)], "#999", dashed=True)
    for index, name in enumerate(names):
        points = sorted(
            (row["size"], row[key], row["shape"]) for row in rows if row["name"] == name
        )
        axes.line([(x, y) for x, y, _ in points], COLOURS[index % len(COLOURS)])
        for x, y, shape in points:
            axes.dot(x, y, COLOURS[index % len(COLOURS)], f"{name}, {shape}: {y:.0f} {unit}")
    axes.legend(names)
    return axes.svg()


def roofline(rows: list[dict]) -> str:
    """Our kernels only: each at its FLOPs per byte."""
    rows = [row for row in rows if row["ours"] and row["flops"]]
    copy, matmul = rows[0]["copy_gb_per_s"], rows[0]["matmul_tflop_per_s"]
    intensity = [row["flops"] / row["bytes"] for row in rows]
    corner = 1e3 * matmul / copy
    ends = (min(*intensity, corner / 4), max(*intensity, corner * 4))
    axes = Axes(
        f"roofline, {rows[0]['device']}",
        "FLOPs per byte",
        "TFLOP/s",
        list(ends),
        [row["tflop_per_s"] for row in rows] + [matmul, ends[0] * copy / 1e3],
    )
    axes.line(
        [(ends[0], ends[0] * copy / 1e3), (corner, matmul), (ends[1], matmul)], "#999", dashed=True
    )
    sections = sorted({row["section"] for row in rows})
    for row, x in zip(rows, intensity):
        colour = COLOURS[sections.index(row["section"]) % len(COLOURS)]
        axes.dot(
            x,
            row["tflop_per_s"],
            colour,
            f"{row['section']}, {row['shape']}: {row['tflop_per_s']:.1f} TFLOP/s",
        )
    axes.legend(sections)
    return axes.svg()


def draw(source: Path) -> list[Path]:
    """Every plot of one file of results, beside it."""
    rows, written = [json.loads(line) for line in source.read_text().splitlines()], []
    pictures = (
        {"roofline": roofline(rows)} if any(row["ours"] and row["flops"] for row in rows) else {}
    )
    for section in sorted({row["section"] for row in rows}):
        pictures[section] = sweep(section, [row for row in rows if row["section"] == section])
    for name, svg in pictures.items():
        path = source.with_name(f"{source.stem}-{name.replace(' ', '-')}.svg")
        path.write_text(svg)
        written.append(path)
    return written
