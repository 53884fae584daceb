"""PNG files of every kind, written and read by the letter of the specification.

A picture is samples [H W C], numbers of the file's own depth. C is 1 for grey and for a palette,
2 with alpha, 3 for RGB, 4 with alpha.
Agrees with: the PNG specification (W3C, third edition), sections 7 to 11.
"""

import struct
import zlib

import numpy as np

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of each color type
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
SIGNATURE = b"\x89PNG\r\n\x1a\n"
ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
         (1, 0, 2, 1)]  # fmt: skip


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def file_of(
    samples, depth, color, *, front=b"", after=b"", interlaced=False, filters=(0,)
) -> bytes:
    """The PNG of these samples; `front` and `after` are chunks before and after the pixels."""
    height, width, _ = samples.shape
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    parts = [samples[y::dy, x::dx] for y, x, dy, dx in ADAM7] if interlaced else [samples]
    rows = b"".join(filtered(part, depth, filters) for part in parts if part.size)
    packed = zlib.compress(rows)
    cut = len(packed) // 2
    pixels = chunk(b"IDAT", packed[:cut]) + chunk(b"IDAT", packed[cut:])
    return SIGNATURE + chunk(b"IHDR", header) + front + pixels + after + chunk(b"IEND", b"")


def filtered(part: np.ndarray, depth: int, filters) -> bytes:
    """The rows of a part as bytes, each after the number of its filter."""
    bits = (part[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    lines = np.packbits(bits.reshape(len(part), -1).astype(np.uint8), axis=1).astype(int)
    step, before, out = max(part.shape[2] * depth // 8, 1), np.zeros(lines.shape[1], int), b""
    for number, line in enumerate(lines):
        kind = filters[number % len(filters)]
        left = np.concatenate([np.zeros(step, int), line])[: len(line)]
        corner = np.concatenate([np.zeros(step, int), before])[: len(line)]
        guess = (0 * line, left, before, (left + before) // 2, paeth(left, before, corner))[kind]
        out += bytes([kind]) + ((line - guess) % 256).astype(np.uint8).tobytes()
        before = line
    return out


def paeth(left, above, corner):
    """The neighbour that is nearest to left + above - corner; of equal ones the first."""
    distances = [abs(above - corner), abs(left - corner), abs(left + above - 2 * corner)]
    return np.choose(np.argmin(distances, axis=0), [left, above, corner])


def samples_of(data: bytes) -> tuple[np.ndarray, int, int, dict[bytes, bytes]]:
    """(samples [H W C], depth, color type, {kind: body} of the chunks) of a PNG."""
    position, bodies, packed = len(SIGNATURE), {}, b""
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        kind, body = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        packed += body if kind == b"IDAT" else b""
        bodies[kind], position = body, position + 12 + length
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", bodies[b"IHDR"])
    samples, rows = np.zeros((height, width, CHANNELS[color]), int), zlib.decompress(packed)
    for y, x, dy, dx in ADAM7 if interlaced else [(0, 0, 1, 1)]:
        part = samples[y::dy, x::dx]
        if part.size:
            part[:], rows = unfiltered(rows, part.shape, depth)
    assert not rows
    return samples, depth, color, bodies


def unfiltered(rows: bytes, shape: tuple[int, ...], depth: int) -> tuple[np.ndarray, bytes]:
    """(the samples of a part, the rows after it)."""
    height, width, channels = shape
    length, step = -(-width * channels * depth // 8), max(channels * depth // 8, 1)
    before, lines = [0] * length, []
    for _ in range(height):
        kind, line, rows = rows[0], list(rows[1 : 1 + length]), rows[1 + length :]
        for i in range(length):
            left = line[i - step] if i >= step else 0
            corner = before[i - step] if i >= step else 0
            above, far = before[i], left + before[i] - corner
            near = min((left, above, corner), key=lambda value: abs(far - value))
            guess = (0, left, above, (left + above) // 2, near)[kind]
            line[i] = (line[i] + guess) % 256
        lines.append(line)
        before = line
    bits = np.unpackbits(np.array(lines, np.uint8), axis=1)[:, : width * channels * depth]
    weights = 1 << np.arange(depth - 1, -1, -1)
    return bits.reshape(height, width, channels, depth) @ weights, rows


def on_white(data: bytes) -> np.ndarray:
    """What a PNG shows on white: levels [H W 3] in float64, 255 where it is transparent."""
    samples, depth, color, bodies = samples_of(data)
    top, hidden = 2**depth - 1, bodies.get(b"tRNS")
    alpha = np.ones(samples.shape[:2])
    if color == 3:
        table = np.frombuffer(bodies[b"PLTE"], np.uint8).reshape(-1, 3)
        opaque = np.frombuffer((hidden or b"").ljust(len(table), b"\xff"), np.uint8)
        levels, alpha = table[samples[..., 0]].astype(float), opaque[samples[..., 0]] / 255
    else:
        levels = samples[..., : 3 if color & 2 else 1] * (255 / top)
        alpha = samples[..., -1] / top if color & 4 else alpha
        if hidden:
            value = np.frombuffer(hidden, ">u2").astype(int) & top
            alpha = 1.0 - (samples == value).all(-1)
    levels = np.broadcast_to(levels, (*levels.shape[:2], 3))
    return levels * alpha[..., None] + 255 * (1 - alpha[..., None])
