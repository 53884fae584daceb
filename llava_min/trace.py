"""see() states a tensor's axes where it is made; there watch() copies it and edit() replaces it.

in:  a place's name, a tensor, its axes such as "B N D", and inside a block the layer's number
out: the same tensor, or what an edit puts in its place

    patches = see("patch_embedding", patches, "B N D")

    with watch("stream") as streams, edit("mixed", 2, without_the_first_head):
        model.generate("Where is the star?", images=["picture.png"])

A call of see() reads as a comment and checks the number of axes. While nobody observes, that and
one look at the thread's observers is all that it costs. Observers belong to the thread that made
them: another thread's tensors pass unseen. Besides them the package has one global, the choice of
kernels in kernels/choose.py.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TextIO

from .errors import ParameterError, shown

if TYPE_CHECKING:
    from torch import Tensor

Change = Callable[["Tensor"], "Tensor"]
Observer = Callable[[str, int | None, "Tensor"], "Tensor"]  # gets name, layer, tensor


class Place(NamedTuple):
    """Where see() is called: the file, the axes, whether each layer has one, and what passes."""

    file: str
    axes: str
    layered: bool
    what: str


PLACES = {name: Place(*place) for name, place in {
    "tiles":                  ("model.py", "B S S 3", False, "square pictures or frames, uint8"),
    "pixels":                 ("vision.py", "B 3 S S", False, "the same, normalised"),
    "patch_embedding":        ("vision.py", "B N D", False, "patches with their positions"),
    "tower.stream":           ("vision.py", "B N D", True, "what enters a block"),
    "tower.mixed":            ("vision.py", "B N H E", True, "each head's output"),
    "tower.attention_update": ("vision.py", "B N D", True, "what attention adds to the stream"),
    "tower.mlp_update":       ("vision.py", "B N D", True, "what the MLP adds to the stream"),
    "features":               ("vision.py", "B N D", False, "what leaves the tower"),
    "projected":              ("projector.py", "B N W", False, "patches as wide as the decoder"),
    "pooled":                 ("projector.py", "B N W", False, "the halved patch maps of frames"),
    "patch_map":              ("projector.py", "W R C", False, "a grid's patches as one map"),
    "visual_rows":            ("projector.py", "tokens W", False, "rows of a picture or of frames"),
    "embedded":               ("decoder.py", "B T D", False, "rows of text"),
    "stream":                 ("decoder.py", "B T D", True, "what enters a block or the last norm"),
    "query":                  ("decoder.py", "B T H E", True, "the queries, rotated"),
    "mixed":                  ("decoder.py", "B T H E", True, "each head's output"),
    "attention_update":       ("decoder.py", "B T D", True, "what attention adds to the stream"),
    "mlp_update":             ("decoder.py", "B T D", True, "what the MLP adds to the stream"),
    "hidden":                 ("decoder.py", "B T D", False, "the stream after the last norm"),
    "logits":                 ("decoder.py", "B T V", False, "one number for each word"),
}.items()}  # fmt: skip


class Observers(threading.local):
    """The observers of this thread, in the order in which they came."""

    here: tuple[Observer, ...] = ()


_observers = Observers()


def see(name: str, tensor: "Tensor", axes: str, layer: int | None = None) -> "Tensor":
    """`tensor`, or what edits make of it, after its number of axes was checked ("B N D")."""
    assert tensor.ndim == axes.count(" ") + 1, f"{name}: axes {axes}, shape {tuple(tensor.shape)}"
    for observer in _observers.here:
        tensor = observer(name, layer, tensor)
    return tensor


def observed() -> bool:
    """Whether this thread has an observer."""
    return bool(_observers.here)


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Give `observer` every tensor that passes in this thread inside a `with` block."""
    _observers.here += (observer,)
    try:
        yield
    finally:
        _observers.here = tuple(other for other in _observers.here if other is not observer)


@contextmanager
def unobserved() -> Iterator[None]:
    """Let no observer see what runs inside a `with` block."""
    before, _observers.here = _observers.here, ()
    try:
        yield
    finally:
        _observers.here = before


@contextmanager
def watch(name: str, layer: int | None = None) -> Iterator[list["Tensor"]]:
    """A list of copies of all tensors that pass a place inside a `with` block, in order.

    name: one of PLACES. layer: a layer's number; None is every layer, so that each pass of the
    model adds as many tensors as there are layers. A copy stays as it was, whatever happens to the
    tensor later, and stays on its device. ParameterError: no such place.
    """
    check(name, layer)
    passed: list[Tensor] = []

    def keep(tensor: "Tensor") -> "Tensor":
        passed.append(tensor.detach().clone())
        return tensor

    with observing(at(name, layer, keep)):
        yield passed


@contextmanager
def edit(name: str, layer: int | None, change: Change) -> Iterator[None]:
    """Put change(tensor) in the place of every tensor that passes a place inside a `with` block.

    name and layer: as in `watch`. `change` gets a copy, which it may write to, and returns a tensor
    of the same shape and dtype on the same device. Several edits and watches of one place follow
    each other in the order of their `with`. ParameterError: no such place, a tensor that does not
    fit, or none that passed.
    """
    check(name, layer)
    where, count = name if layer is None else f"{name} in layer {layer}", 0

    def changed(tensor: "Tensor") -> "Tensor":
        nonlocal count
        count += 1
        new = change(tensor.clone())
        kind = tensor.shape, tensor.dtype, tensor.device
        if not isinstance(new, type(tensor)) or (new.shape, new.dtype, new.device) != kind:
            raise ParameterError(
                f"An edit of {where} must return {described(tensor)}, not {described(new)}."
            )
        return new

    with observing(at(name, layer, changed)):
        yield
    if not count:
        raise ParameterError(f"Nothing was edited: no {where} passed inside the with block.")


def check(name: str, layer: int | None) -> None:
    """ParameterError if no place is called so, or if it has no such layer."""
    if name not in PLACES:
        raise ParameterError(f"No place is called {shown(name)}; there are {', '.join(PLACES)}.")
    if layer is not None and not PLACES[name].layered:
        raise ParameterError(f"{name} is not inside a layer: its layer must be None, not {layer}.")


def at(name: str, layer: int | None, change: Change) -> Observer:
    """An observer that changes what passes one place, in one layer or (None) in all."""

    def observer(there: str, number: int | None, tensor: "Tensor") -> "Tensor":
        return change(tensor) if there == name and layer in (None, number) else tensor

    return observer


def described(value: object) -> str:
    """A tensor as "float32 [1, 3, 256] on cpu"; anything else as it is written."""
    dtype, shape, device = (getattr(value, name, None) for name in ("dtype", "shape", "device"))
    if shape is None or device is None:
        return shown(value)
    return f"{str(dtype).removeprefix('torch.')} {list(shape)} on {device}"


class Tracer:
    """Prints one line for each place the first time that something passes it.

    A line shows file, name, axes = sizes, dtype and milliseconds.
    """

    def __init__(self, stream: TextIO):
        self.stream, self.last = stream, time.perf_counter()
        self.seen: set[str] = set()

    def __call__(self, name: str, layer: int | None, tensor: "Tensor") -> "Tensor":
        now = time.perf_counter()
        if name not in self.seen:
            self.seen.add(name)
            place = PLACES[name]
            sizes = ", ".join(
                axis if axis == str(size) else f"{axis}={size}"
                for axis, size in zip(place.axes.split(), tensor.shape)
            )
            dtype = str(tensor.dtype).removeprefix("torch.")
            milliseconds = 1000 * (now - self.last)
            print(
                f"{place.file:14} {name:22} {sizes:34} {dtype:9} {milliseconds:9.2f} ms",
                file=self.stream,
            )
        self.last = now
        return tensor


@contextmanager
def tracing(stream: TextIO) -> Iterator[None]:
    """Print every stage to `stream` inside a `with` block."""
    with observing(Tracer(stream)):
        yield
