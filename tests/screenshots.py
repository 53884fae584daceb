"""Take the pictures of pages that docs/ shows: python tests/screenshots.py (needs Chromium)."""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "support"))
import serving  # noqa: E402

SAMPLES = ROOT / "weights" / "tiny" / "samples"


def chat(target: Path) -> None:
    """A conversation with the embedded checkpoint."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    with (
        serving.server("--slots", "1", "--slot-tokens", "4096") as address,
        sync_playwright() as driver,
    ):
        window = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        shown = window.new_page(viewport={"width": 1000, "height": 820})
        shown.goto(address)
        shown.get_by_role("button", name="Try an example").click()
        done = shown.locator("article.assistant[aria-busy=false]")
        done.wait_for()
        shown.set_input_files("#file", SAMPLES / "clip.mp4")
        shown.locator("#question").fill("What color is the circle at the end?")
        shown.locator("#count", has_text="pictures").wait_for()
        shown.wait_for_timeout(500)
        shown.screenshot(path=target)
        window.close()


if __name__ == "__main__":
    chat(ROOT / "docs" / "chat.png")
