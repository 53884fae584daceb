"""The sample pictures and the sample clip that the default command, the README and the tests use.

python -m llava_min.weights.tiny.samples      draws them again into samples/
"""

from pathlib import Path

import av
import numpy as np

from . import scenes
from .files import FOLDER

SAMPLES = FOLDER / "samples"
SIZE = (320, 240)
FRAMES, RATE = 48, 12


def shape(
    kind: str, color: str, center: tuple[float, float], radius: float, turn: float = 0.0
) -> scenes.Shape:
    """A shape in the plain shade of its color."""
    return scenes.Shape(kind, color, scenes.COLORS[color], center, radius, turn)


def pictures() -> dict[str, scenes.Scene]:
    """The scenes of the still pictures, by file name."""
    star, circle = shape("star", "yellow", (0.2, 0.2), 38), shape("circle", "blue", (0.5, 0.52), 34)
    triangle, number = (
        shape("triangle", "red", (0.82, 0.8), 36),
        shape("42", "black", (0.83, 0.18), 44),
    )
    return {
        "shapes.png": scenes.Scene(
            SIZE, (star, circle, triangle), number, background=12, smooth=True
        ),
        "before.png": scenes.Scene(SIZE, (star, circle), None, background=12, smooth=True),
        "after.png": scenes.Scene(
            SIZE,
            (star, shape("circle", "green", (0.5, 0.52), 34)),
            None,
            background=12,
            smooth=True,
        ),
    }


def clip() -> list[scenes.Scene]:
    """A red circle that crosses to the right and turns purple; late, the number 7 flashes up."""
    frames = []
    for index in range(FRAMES):
        along = index / (FRAMES - 1)
        color = "red" if along < 0.5 else "purple"
        ball = shape("circle", color, (0.15 + 0.7 * along, 0.3), 36)
        number = shape("7", "black", (0.35, 0.7), 62) if 0.8 <= along < 0.88 else None
        frames.append(scenes.Scene(SIZE, (ball,), number, background=12, smooth=True))
    return frames


def write(folder: Path = SAMPLES) -> None:
    """Draw everything into `folder`."""
    folder.mkdir(exist_ok=True)
    for name, scene in pictures().items():
        scenes.render(scene).save(folder / name, optimize=True)
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "20", "preset": "slow"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for scene in clip():
            frame = av.VideoFrame.from_ndarray(np.asarray(scenes.render(scene)), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


if __name__ == "__main__":
    write()
