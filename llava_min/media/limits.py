"""How much is too much: limits that are checked from headers, before anything large is made."""

from ..errors import MediaError

IMAGE_BYTES = 64 << 20
VIDEO_BYTES = 2 << 30  # of a video that is fetched or read from stdin; a file on disk may be longer
PIXELS = 89_478_485  # Pillow warns from here on; we refuse
FRAME_PIXELS = 35_000_000  # one 8K frame
SIDE = 65_535
REDIRECTS = 5
FETCH_SECONDS = 60
PROMPT_BYTES = 1 << 20


def check_pixels(name: str, size: tuple[int, int], most: int = PIXELS) -> None:
    """MediaError where a picture of `size` (width, height) is empty or too large."""
    width, height = size
    if width < 1 or height < 1 or max(size) > SIDE or width * height > most:
        raise MediaError(
            "cannot read the picture",
            name,
            f"1 to {most:,} pixels and sides up to {SIDE:,}",
            f"{width} x {height}",
        )
