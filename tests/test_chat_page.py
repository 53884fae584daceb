"""The server's page in a real browser: what people do with it, and what it refuses.

The browser is Chromium, driven by playwright; without either, only the first tests run.
"""

import base64
import json
import re
import signal
import urllib.request

import false_server
import peers
import pytest
import serving
import small
from test_page import browser  # noqa: F401

import llava_min
from llava_min.serve import page

STAR = small.TINY / "samples" / "shapes.png"
CLIP = small.TINY / "samples" / "clip.mp4"
DESCRIBED = "A yellow star in the top left, the number 42 in the top right"
SECONDS = 60_000  # milliseconds, to wait for something on a busy machine


# Without a browser ---------------------------------------------------------------------------


def test_the_file_is_small_and_makes_nothing_of_markup():
    text = page.FILE.read_text()
    assert len(text.encode()) <= 60_000
    found = re.sub(r"https\?:", "", text)
    assert not re.search(
        r"https?:|@import|url\(|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|\bFunction\(",
        found,
    )
    assert not re.search(r"<[^>]+\s(style|on\w+)=", text)  # the policy would refuse it


def test_the_policy_names_the_pages_own_script():
    response = page.chat_page()
    rules = dict(
        rule.split(" ", 1) for rule in response.headers["content-security-policy"].split("; ")
    )
    assert rules["default-src"] == "'none'" and rules["require-trusted-types-for"] == "'script'"
    assert page.policy("<style></style><script>1</script>") != page.policy(
        "<style></style><script>2</script>"
    )
    assert "unsafe" not in str(rules) and rules["frame-ancestors"] == "'none'"


@pytest.fixture(scope="module")
def toy():
    with serving.server("--slots", "2", "--slot-tokens", "4096") as address:
        yield address


def got(url: str, body: dict | None = None, **headers: str):
    data = None if body is None else json.dumps(body).encode()
    if body is not None:
        headers["content-type"] = "application/json"
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_browsers_get_the_page_and_programs_what_they_always_got(toy):
    _, headers, body = got(toy, accept="text/html,*/*")
    assert body == page.FILE.read_bytes() and headers["x-content-type-options"] == "nosniff"
    assert json.loads(got(toy)[2])["name"] == "llava_min"
    assert got(f"{toy}/example.png")[2] == STAR.read_bytes()


QUESTION = {
    "role": "user",
    "content": [
        {
            "type": "image_url",
            "image_url": {"url": "data:;base64," + base64.b64encode(STAR.read_bytes()).decode()},
        },
        {"type": "text", "text": "Where is the star?"},
    ],
}


def test_an_explanation_is_the_page_of_the_same_explanation(toy):
    code, _, body = got(
        f"{toy}/explanations", {"messages": [QUESTION], "answer": "In the top left."}
    )
    found = json.loads(body)
    _, headers, text = got(f"{toy}/{found['url']}")
    assert code == 200 and headers["content-security-policy"] == "frame-ancestors 'self'"
    shown = json.loads(re.search(rb'id="data">(.*?)</script>', text)[1])
    own = llava_min.load().explain("Where is the star?", "In the top left.", images=[STAR])
    assert [word["text"] for word in shown["words"]] == own.tokens
    assert got(f"{toy}/explanations/{'0' * 32}")[0] == 404


@pytest.mark.parametrize(
    "body", [{"messages": [QUESTION]}, {"messages": [QUESTION], "answer": " "}, {"answer": "x"}, []]
)
def test_what_cannot_be_explained_is_the_clients_mistake(toy, body):
    assert got(f"{toy}/explanations", body)[0] == 400


def test_with_a_key_the_page_opens_and_an_explanation_needs_its_name_only():
    with serving.server("--slots", "1", "--slot-tokens", "2048", "--api-key", "k") as address:
        assert got(address, accept="text/html")[0] == 200
        body = {"messages": [QUESTION], "answer": "In the top left."}
        assert got(f"{address}/explanations", body)[0] == 401
        _, _, made = got(f"{address}/explanations", body, authorization="Bearer k")
        assert got(f"{address}/{json.loads(made)['url']}")[0] == 200


# In Chromium -------------------------------------------------------------------------------------


@pytest.fixture
def visit(browser):  # noqa: F811
    """A function that opens the page of an address; in the end it said and asked nothing wrong."""
    contexts, heard = [], []

    def visit(address: str, allowed: str = "$^", **options):
        context = browser.new_context(**options)
        shown = context.new_page()
        shown.set_default_timeout(SECONDS)

        def said(text: str) -> None:
            if not re.search(allowed, text):
                heard.append(text)

        shown.on("console", lambda message: said(message.text))
        shown.on("pageerror", lambda error: said(f"error: {error}"))
        shown.on("dialog", lambda dialog: said(f"dialog: {dialog.message}"))
        own = (f"{address}/", f"blob:{address}/")
        shown.on("request", lambda one: one.url.startswith(own) or said(f"asked: {one.url}"))
        shown.goto(f"{address}/")
        shown.locator("#send:not([disabled])").wait_for()
        contexts.append(context)
        return shown

    yield visit
    for context in contexts:
        context.close()
    assert heard == []


def ask(shown, text: str) -> None:
    shown.locator("#question").fill(text)
    shown.locator("#question").press("Enter")


def answered(shown, number: int = 1) -> str:
    """The text of an answer, once it is complete."""
    article = shown.locator("article.assistant").nth(number - 1)
    article.and_(shown.locator("[aria-busy=false]")).wait_for()
    return article.locator(".text").inner_text()


def test_the_example_is_one_click_with_its_picture(toy, visit):
    shown = visit(toy)
    sent = []
    shown.on("request", lambda one: sent.append(one.post_data) if one.method == "POST" else None)
    shown.get_by_role("button", name="Try an example").click()
    assert answered(shown).startswith(DESCRIBED)
    (body,) = (json.loads(one) for one in sent if '"stream"' in one)
    picture, words = body["messages"][0]["content"]
    data = picture["image_url"]["url"].partition("base64,")[2]
    assert base64.b64decode(data) == STAR.read_bytes()  # as it is: no tile changes by a level
    assert words["text"] == "Describe the picture."
    line = shown.locator("article.assistant .soft").inner_text()
    assert re.search(r"^363 tokens read in [\d.]+ s.*; 34 written, [\d.]+ a second$", line)
    assert shown.locator("#status").inner_text() == "Answer complete, 34 tokens"
    assert "of 4,096 tokens" in shown.locator("#usage").inner_text()
    assert shown.evaluate("document.getElementById('used').value") == 363 + 34


def test_nothing_is_sent_before_the_server_has_said_its_model(toy, visit):
    """What was written meanwhile stays, and is sent then."""
    shown, held = visit(toy), []
    shown.route("**/v1/models", lambda route: held.append(route))
    with shown.expect_request("**/v1/models"):
        shown.reload()
    ask(shown, "What is this?")
    assert shown.locator("#send[disabled]").count() == 1
    assert shown.locator("#question").input_value() == "What is this?"
    held.pop().continue_()
    shown.locator("#send:not([disabled])").click()
    assert answered(shown)


def test_pictures_and_videos_are_picked_pasted_and_dropped(toy, visit):
    shown = visit(toy)
    shown.set_input_files("#file", [STAR, CLIP])
    give = """([data, kind]) => {
      const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
      const moved = new DataTransfer();
      moved.items.add(new File([bytes], kind + ".png", {type: "image/png"}));
      const given = {bubbles: true, cancelable: true};
      document.dispatchEvent(kind === "paste"
        ? new ClipboardEvent("paste", {clipboardData: moved, ...given})
        : new DragEvent("drop", {dataTransfer: moved, ...given}));
    }"""
    data = base64.b64encode(STAR.read_bytes()).decode()
    for kind in ("paste", "drop"):
        shown.evaluate(give, [data, kind])
    names = shown.locator("#draft img, #draft video").evaluate_all(
        "all => all.map(one => one.alt || one.ariaLabel)"
    )
    assert names == ["shapes.png", "clip.mp4", "paste.png", "drop.png"]
    for name in ("shapes.png", "paste.png", "drop.png"):
        shown.get_by_role("button", name=f"Remove {name}").click()
    ask(shown, "What color is the circle at the end?")
    assert answered(shown) == "Purple."
    assert shown.locator("article.user video").count() == 1
    assert shown.locator("#draft li").count() == 0


def test_tokens_are_counted_before_anything_is_sent(toy, visit):
    shown = visit(toy)
    shown.locator("#question").fill("Where is the star?")
    shown.set_input_files("#file", [STAR])
    shown.locator("#count", has_text="pictures").wait_for()
    counted = shown.locator("#count").inner_text()
    tokens = llava_min.load().prepare("Where is the star?", images=[STAR])
    assert counted == f"{tokens.plan.tokens} tokens, {tokens.visual_tokens} of them pictures"
    assert got(f"{toy}/metrics")[2].count(b"prompt_tokens_total 0") <= 1


def test_a_conversation_is_edited_answered_again_and_copied(toy, visit):
    shown = visit(toy, permissions=["clipboard-read", "clipboard-write"])
    shown.set_input_files("#file", [STAR])
    ask(shown, "Where is the star?")
    assert answered(shown) == "In the top left."
    ask(shown, "What color is the star?")
    assert answered(shown, 2) == "Yellow."
    # so that it says "Copied" until it was seen
    shown.evaluate("() => { window.clock = setTimeout; window.setTimeout = () => 0; }")
    shown.get_by_role("button", name="Copy").last.click()
    shown.get_by_role("button", name="Copied").wait_for()
    shown.evaluate("() => { window.setTimeout = window.clock; }")
    assert shown.evaluate("navigator.clipboard.readText()") == "Yellow."
    shown.get_by_role("button", name="Again").click()
    assert answered(shown, 2) == "Yellow."
    shown.locator("#question").press("ArrowUp")  # the last question comes back
    assert shown.locator("#question").input_value() == "What color is the star?"
    assert shown.locator("article").count() == 2
    ask(shown, "Is there a triangle?")
    assert answered(shown, 2) == "Yes."
    shown.get_by_role("button", name="Edit").first.click()
    assert shown.locator("article").count() == 0 and shown.locator("#draft img").count() == 1
    ask(shown, "Where is the circle?")
    assert answered(shown) == "In the center."
    shown.get_by_role("button", name="New chat").click()
    assert shown.locator("article").count() == 0


def test_settings_count_and_stay(toy, visit):
    shown = visit(toy)
    shown.get_by_role("button", name="Settings").click()
    shown.get_by_label("Longest answer, in tokens").fill("3")
    shown.get_by_label("Key of this server").fill("secret")
    shown.get_by_role("button", name="Done").click()
    shown.set_input_files("#file", [STAR])
    ask(shown, "Describe the picture.")
    first = answered(shown)
    assert DESCRIBED.startswith(first) and len(first) < 20
    assert "cut at the longest answer" in shown.locator("article.assistant .soft").inner_text()
    shown.get_by_role("button", name="Continue").click()
    longer = re.compile(rf".{{{len(first) + 1}}}", re.S)
    shown.locator("article.assistant .text", has_text=longer).wait_for()
    assert DESCRIBED.startswith(answered(shown))
    kept = shown.evaluate("JSON.stringify(localStorage)")
    assert '"llava_min.max_tokens":"3"' in kept and "secret" not in kept and "Describe" not in kept
    shown.reload()
    assert shown.locator("#s-max_tokens").input_value() == "3"
    assert shown.locator("#s-key").input_value() == "secret"


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A server of a small random model, whose answers go on for hundreds of tokens."""
    folder = small.small(tmp_path_factory.mktemp("endless") / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"eos_token_id": 0, "max_position_embeddings": 65_536}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").unlink()
    with serving.server("-m", str(folder), "--slots", "1", "--slot-tokens", "40000") as address:
        yield address


@pytest.mark.parametrize("how", ["the button", "Escape", "another chat"])
def test_stop_stops_the_servers_work(endless, visit, how):
    shown = visit(endless)
    shown.evaluate("document.getElementById('s-max_tokens').value = 39000")
    ask(shown, "Go on.")
    shown.locator(".assistant .text", has_text=re.compile(r".{6}", re.S)).wait_for()
    assert b"requests_processing 1" in got(f"{endless}/metrics")[2]
    if how == "Escape":
        shown.keyboard.press("Escape")
    elif how == "the button":
        shown.get_by_role("button", name="Stop").click()
    else:
        shown.get_by_role("button", name="New chat").click()
    for _ in range(100):
        if b"requests_processing 0" in got(f"{endless}/metrics")[2]:
            break
        shown.wait_for_timeout(100)
    else:
        raise AssertionError("it still works")
    if how != "another chat":
        assert len(answered(shown)) > 5
        assert shown.locator("article.assistant .soft").inner_text() == "stopped"
        assert shown.get_by_role("button", name="Continue").count() == 1
    assert shown.locator("#send").inner_text() == "Send"


def test_enter_sends_but_not_while_a_word_is_composed(toy, visit):
    shown = visit(toy)
    box = shown.locator("#question")
    box.fill("x")
    box.evaluate(
        "one => one.dispatchEvent(new KeyboardEvent('keydown', "
        "{key: 'Enter', isComposing: true, bubbles: true}))"
    )
    box.press("Shift+Enter")
    assert shown.locator("article").count() == 0 and "\n" in box.input_value()


def test_explain_shows_where_the_words_looked(toy, visit):
    shown = visit(toy, allowed="Canvas2D")
    shown.set_input_files("#file", [STAR])
    ask(shown, "Where is the star?")
    assert answered(shown) == "In the top left."
    shown.get_by_role("button", name="Explain").click()
    inner = shown.frame_locator("iframe")
    inner.locator("#words button[aria-pressed=true]").wait_for()
    words = inner.locator("#words button").all_inner_texts()
    assert "".join(words[:5]).startswith("In the top left")
    shown.get_by_role("button", name="Close").click()
    assert shown.locator("iframe").count() == 0


def test_two_tabs_at_once(toy, visit):
    tabs = [visit(toy), visit(toy)]
    for shown in tabs:
        shown.set_input_files("#file", [STAR])
    ask(tabs[0], "Where is the star?")
    ask(tabs[1], "What color is the circle?")
    assert [answered(shown) for shown in tabs] == ["In the top left.", "Blue."]


def test_a_server_that_dies_and_comes_back(visit):
    first = serving.Process("--slots", "1", "--slot-tokens", "2048")
    shown = visit(first.address, allowed="Failed to load resource")
    shown.set_input_files("#file", [STAR])
    ask(shown, "Where is the star?")
    assert answered(shown) == "In the top left."
    first.stop(signal.SIGKILL)
    ask(shown, "What color is the star?")
    shown.locator("article.assistant .wrong").wait_for()
    assert answered(shown) == "In the top left."  # what was there stays
    shown.locator("#send[disabled]").wait_for()
    port = first.address.rpartition(":")[2]
    with serving.process("--slots", "1", "--slot-tokens", "2048", "--port", port):
        shown.locator("#send:not([disabled])").wait_for()
        assert shown.locator("#alert").inner_text() == ""
        shown.get_by_role("button", name="Try again").click()
        assert answered(shown, 2) == "Yellow."


# A server that means ill --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def false():
    with false_server.false_server() as address:
        yield address


def test_markup_of_a_model_is_text(false, visit):
    shown = visit(false)
    assert shown.locator("#model").inner_text() == "<b>evil</b>"
    ask(shown, "markup")
    text = answered(shown)
    assert "<img src=x onerror=alert(1)><script>alert(2)</script>" in text
    assert "![x](http://evil.test/?q=1)" in text and "[y](javascript:alert(3))" in text
    assert "<svg onload=alert(4)>" in text and "<i>1</i>" in text
    node = shown.locator("article.assistant .text")
    assert node.locator("img, script, svg, i, iframe").count() == 0
    links = node.locator("a").evaluate_all("all => all.map(one => [one.href, one.rel])")
    assert links == [["https://good.test/a", "noopener noreferrer"]] and "(good.test)" in text
    assert node.locator("strong").inner_text() == "bold" and node.locator("td").count() == 2
    assert node.locator("ol li").count() == 2 and node.locator("code").first.inner_text() == "<b>"


def test_letters_that_come_in_parts_are_whole(false, visit):
    shown = visit(false)
    ask(shown, "letters")
    assert answered(shown) == false_server.LETTERS


def test_a_hundred_thousand_tokens_leave_the_page_alive(false, visit):
    shown = visit(false)
    ask(shown, "many")
    assert answered(shown).rstrip().endswith(f"w{false_server.MANY - 1}")
    ask(shown, "letters")
    assert answered(shown, 2) == false_server.LETTERS


@pytest.mark.parametrize(
    "question, message",
    [("error", "<u>it broke</u>"), ("cut", "stopped before the answer was complete")],
)
def test_an_error_in_the_middle_leaves_what_came(false, visit, question, message):
    shown = visit(false)
    ask(shown, question)
    wrong = shown.locator("article.assistant .wrong")
    wrong.wait_for()
    assert message in wrong.inner_text() and answered(shown) == "so far"
    assert shown.get_by_role("button", name="Try again").count() == 1


def test_nonsense_is_an_error(false, visit):
    shown = visit(false)
    ask(shown, "nonsense")
    shown.locator("article.assistant .wrong").wait_for()
    assert answered(shown) == ""


# What it looks like -------------------------------------------------------------------------------

SIZES = {"wide": (1200, 900), "phone": (360, 740)}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_fits_and_everybody_can_use_it(toy, visit, size, scheme):
    """No sideways scroll; nothing that axe-core finds; buttons large enough for a finger."""
    width, height = SIZES[size]
    shown = visit(
        toy, viewport={"width": width, "height": height}, color_scheme=scheme, bypass_csp=True
    )
    shown.get_by_role("button", name="Try an example").click()
    answered(shown)
    shown.set_input_files("#file", [STAR, CLIP])
    shown.locator("#count", has_text="pictures").wait_for()
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    small_ones = shown.evaluate(
        "[...document.querySelectorAll('button')].filter(one => one.offsetParent"
        " && Math.min(one.offsetWidth, one.offsetHeight) < 44).map(one => one.textContent)"
    )
    assert small_ones == []
    axe = (peers.node_package("axe-core") / "axe.min.js").read_text()
    for dialog in (False, True):
        if dialog:
            shown.get_by_role("button", name="Settings").click()
        shown.evaluate(axe)
        found = shown.evaluate(
            "axe.run().then(one => one.violations.map(v => [v.id, v.nodes.map(n => n.html)]))"
        )
        assert found == []
