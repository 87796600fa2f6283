"""The page of `c2fmae app` in a browser: this needs the `app` extra, playwright and a Chromium on the machine."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

from c2fmae_hf import C2FMAEForPreTraining, C2FMAEImageProcessor
from c2fmae_hf.app.playground import Playground, WeightsFacts
from test_app import BAD_FILES, GOOD_FILES, encoded, gradient, write_record
from testing_utils import randomized, small_config


APP = Path(__file__).resolve().parents[1] / "examples/app"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [name for name in ("gradio", "gradio_client", "playwright") if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f'needs {", ".join(MISSING)}: pip install ".[app]" playwright'),
    # Gradio's warnings, not ours.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on the machine: apt install chromium")

# Names of classes come with the weights, perhaps a stranger's.
HOSTILE = '<img src=x onerror="document.title=1">'
# Every address that the server's process speaks to, by Python's own account.
WATCH = """
import os, sys

def note(event, args):
    if event == "socket.connect" and not isinstance(args[1], (str, bytes)):
        host = str(args[1][0])
    elif event == "socket.getaddrinfo":
        host = str(args[0])
    else:
        return
    with open(os.environ["WATCHED"], "a") as file:
        file.write(host + "\\n")

sys.addaudithook(note)
"""


@dataclass
class Server:
    process: subprocess.Popen
    address: str
    log: Path
    contacts: Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_server(folder: Path, command: list[str], **environment: str) -> Server:
    (folder / "watch").mkdir()
    (folder / "watch/sitecustomize.py").write_text(WATCH)
    port = free_port()
    paths = [str(folder / "watch"), *filter(None, [os.environ.get("PYTHONPATH")])]
    server_environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "WATCHED": str(folder / "contacts.txt"),
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "True",  # a user's setting, which the app overrules
        **environment,
    }
    log = folder / "log.txt"
    with open(log, "w") as output:
        process = subprocess.Popen(command, env=server_environment, stdout=output, stderr=subprocess.STDOUT)
    server = Server(process, f"http://127.0.0.1:{port}", log, folder / "contacts.txt")
    try:
        wait_until_it_answers(server)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return server


def wait_until_it_answers(server: Server, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(server.address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the server does not answer:\n{server.log.read_text()}")


def stop_server(server: Server) -> None:
    server.process.send_signal(signal.SIGINT)
    try:
        server.process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()
        raise AssertionError("the server did not end by itself") from None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "small-pretraining"
    names = {0: HOSTILE, **{number: f"class {number}" for number in range(1, 5)}}
    config = small_config(image_size=64, semantic_id2label=names)
    model = randomized(C2FMAEForPreTraining(config))
    model.save_pretrained(folder)
    C2FMAEImageProcessor.from_config(config).save_pretrained(folder)
    write_record(folder.parent, model)
    return folder


@pytest.fixture(scope="module")
def server(checkpoint, tmp_path_factory) -> Iterator[Server]:
    command = [sys.executable, "-m", "c2fmae_hf", "app", str(checkpoint)]
    server = start_server(tmp_path_factory.mktemp("server"), command)
    yield server
    stop_server(server)
    assert sorted(path.name for path in APP.iterdir() if path.is_file()) == ["README.md", "app.py", "requirements.txt"]
    log = server.log.read_text()
    assert "c2fmae_hf/app/page.py" not in log, (
        log
    )  # as it would be in a traceback; Gradio logs those of requests that it refuses
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(server.address, timeout=5)
    contacts = set(server.contacts.read_text().split()) if server.contacts.is_file() else set()
    assert contacts <= {"127.0.0.1", "localhost", "::1", "0.0.0.0", "None"}


@dataclass
class Visit:
    """An open page, and what a reader of its console and of its requests would see."""

    page: object
    problems: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def text(self, selector: str) -> str:
        """Text of a block of HTML, or of an element in it."""
        inner = self.page.locator(f"{selector} .html-container")
        return (inner if inner.count() else self.page.locator(selector)).inner_text().strip()

    def source(self, selector: str) -> str:
        return self.page.locator(f"{selector} img").first.get_attribute("src")

    def after(self, act: Callable[[], object], selector: str) -> None:
        """Do something, and wait until the picture, or the block of HTML, that the selector finds has changed."""
        attribute = "src" if selector.endswith("img") else "innerHTML"
        if attribute == "innerHTML":
            selector += " .html-container"  # what is beside it shows that something is being done
        before = self.page.locator(selector).first.evaluate(f"element => element.{attribute}")
        act()
        self.page.wait_for_function(
            f"([selector, before]) => document.querySelector(selector).{attribute} !== before", arg=[selector, before]
        )

    def upload(self, path: Path) -> str:
        """Hand in a file; what the page says to it."""

        with self.page.expect_file_chooser() as dialog:
            self.page.get_by_role("button", name="Upload a photograph").click()
        # What was said of an earlier file goes at once.
        self.page.wait_for_function("document.querySelector('#status').innerText.trim() === ''")
        self.after(lambda: dialog.value.set_files(str(path)), "#status")
        return self.text("#status")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(server, browser, request, tmp_path) -> Iterator[Visit]:
    """The page, at the width that the test asks for; afterwards nothing may have gone wrong in it."""
    width = getattr(request, "param", 1280)
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(20_000)
    visit = Visit(page)

    def note_host(address: str) -> None:
        if address.split(":")[0] not in ("data", "blob"):
            visit.hosts.add(urlsplit(address).hostname)

    page.on("console", lambda message: message.type == "error" and visit.problems.append(message.text))
    page.on("pageerror", lambda error: visit.problems.append(str(error)))
    page.on("request", lambda sent: note_host(sent.url))
    page.on("websocket", lambda sent: note_host(sent.url))
    page.goto(server.address)
    page.wait_for_selector("#panel-masked img")
    page.wait_for_selector("#attention_photo img", state="attached")
    yield visit
    page.screenshot(path=tmp_path / f"page-{width}.png", full_page=True)
    page.close()
    assert visit.problems == []
    assert visit.hosts == {"127.0.0.1"}


@needs_browser
def test_the_page_says_which_weights_it_runs(visit):
    text = visit.text("#weights")
    assert "small-pretraining" in text
    assert "It knows 5 classes: " in visit.text("#about")
    assert "an encoder of 2 blocks, width 32, for photographs of 64 x 64 pixels in patches of 8" in text
    assert "Trained on me/photos (1 234 images) for 4 200 steps of 16 images" in text


@needs_browser
def test_what_is_hidden_can_be_chosen(visit):
    page = visit.page
    assert page.title() == "C2FMAE: from semantics to pixels"
    assert "hides 48 of 64 patches" in visit.text("#counts")
    sources = {visit.source("#panel-masked")}
    assert page.locator("#panels figure").count() == 5  # with random masks, and the photograph first
    assert page.locator("#panels figure").first.get_attribute("id") == "panel-photograph"
    for name in ("instance", "random"):
        visit.after(lambda name=name: page.get_by_label(name.capitalize(), exact=True).check(), "#panels")
        assert f"{name.capitalize()} masking" in visit.text("#counts")
    sources.add(visit.source("#panel-masked"))
    assert page.locator("#panel-regions").count() == 0
    visit.after(lambda: page.locator("#ratio input[type=number]").fill("0.5"), "#panels")
    assert "hides 32 of 64 patches" in visit.text("#counts")
    sources.add(visit.source("#panel-masked"))
    visit.after(lambda: page.get_by_label("Mask number").fill("7"), "#panels")
    sources.add(visit.source("#panel-masked"))
    visit.after(lambda: page.locator("#next").click(), "#panels")
    assert page.get_by_label("Mask number").input_value() == "8"
    sources.add(visit.source("#panel-masked"))
    assert len(sources) >= 4
    assert {image.get_attribute("alt") != "" for image in page.locator("#panels img").all()} == {True}


@needs_browser
def test_numbers_that_are_none_of_the_possible(visit):
    """What is shown is of the nearest one, and says so."""
    page = visit.page
    visit.after(lambda: page.locator("#ratio input[type=number]").fill("1"), "#panels")
    assert "hides 61 of 64 patches" in visit.text("#counts")
    visit.after(lambda: page.locator("#ratio input[type=number]").fill("0.5"), "#panels")
    before = visit.source("#panel-masked")
    for typed, used in (("-5", "0"), ("1.5", "2"), ("99999999999", str(2**31 - 1))):
        seed = page.get_by_label("Mask number")
        seed.fill(typed)
        seed.blur()
        page.wait_for_function(
            "([label, used]) => [...document.querySelectorAll('input')].some(input => input.value === used)",
            arg=["Mask number", used],
        )
    page.wait_for_function("before => document.querySelector('#panel-masked img').src !== before", arg=before)
    visit.after(lambda: page.locator("#layer input[type=number]").fill("1"), "#attention_text")
    visit.after(lambda: page.locator("#layer input[type=number]").fill("99"), "#attention_text")
    assert "layer 2, the mean of 2 heads" in visit.text("#attention_text")
    assert page.locator(".toast-wrap .toast-body").count() == 0


@needs_browser
def test_of_quick_clicks_the_last_one_counts(visit):
    page = visit.page
    for number, name in ((6, "Palace"), (7, "Flower"), (4, "Rocket")):
        for thumbnail in (2, 8, number):
            page.get_by_label(f"Thumbnail {thumbnail} of 8").click()
            page.wait_for_timeout(40)
        page.wait_for_function(
            "name => document.querySelector('#status').innerText.includes(name)", arg=f"“{name}” is shown"
        )
    photo = page.locator("#attention_photo img").first
    photo.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('#attention_photo img').naturalWidth > 0")
    box = photo.bounding_box()
    for row, column in ((2, 2), (5, 5), (7, 3)):
        photo.click(position={"x": (column - 0.5) * box["width"] / 8, "y": (row - 0.5) * box["height"] / 8})
        page.wait_for_timeout(60)
    page.wait_for_function("document.querySelector('#attention_text').innerText.startsWith('Row 7, column 3')")


@needs_browser
def test_names_of_classes_are_text(visit):
    assert visit.page.get_by_text(HOSTILE).count() > 0  # as text: an element would not be found by it
    assert visit.page.locator('img[src="x"]').count() == 0


@needs_browser
def test_examples(visit):
    visit.after(lambda: visit.page.get_by_label("Thumbnail 4 of 8").click(), "#panel-image img")
    assert visit.text("#status") == "The example “Rocket” is shown."


@needs_browser
@pytest.mark.parametrize("name", GOOD_FILES)
def test_uploads(visit, tmp_path, name):
    path = tmp_path / f"photograph.{'gif' if name == 'animated' else 'png'}"
    path.write_bytes(GOOD_FILES[name][0])
    before = visit.source("#panel-image"), visit.source("#attention_photo")
    text = visit.upload(path)
    assert text.startswith("The uploaded file is shown.")
    assert GOOD_FILES[name][2] in text
    visit.page.wait_for_function(
        "before => document.querySelector('#attention_photo img').src !== before", arg=before[1]
    )
    assert visit.source("#panel-image") != before[0]


@needs_browser
@pytest.mark.parametrize("name", ["text", "one pixel", "cut off", "huge", "large", "floating point"])
def test_bad_uploads_get_a_message_and_change_nothing(visit, tmp_path, name):
    path = tmp_path / "photograph.png"
    path.write_bytes(BAD_FILES[name][0])
    before = visit.source("#panel-image"), visit.source("#attention_photo")
    text = visit.upload(path)
    assert re.match(rf"The uploaded file cannot be used: .*({BAD_FILES[name][1]})", text)
    assert "Error" not in text
    assert text.endswith("The previous photograph stays.")
    assert visit.page.locator("#status [role=alert]").count() == 1
    assert (visit.source("#panel-image"), visit.source("#attention_photo")) == before
    # And the next one is taken.
    path.write_bytes(encoded(gradient(64, 64), "PNG"))
    assert visit.upload(path) == "The uploaded file is shown."


@needs_browser
def test_a_click_shows_a_patch_s_attention(visit):
    photo = visit.page.locator("#attention_photo img").first
    photo.scroll_into_view_if_needed()  # it is loaded late
    visit.page.wait_for_function("document.querySelector('#attention_photo img').naturalWidth > 0")
    box = photo.bounding_box()

    def click(row: int, column: int) -> None:
        photo.click(position={"x": (column - 0.5) * box["width"] / 8, "y": (row - 0.5) * box["height"] / 8})

    maps = [visit.source("#attention_map")]
    for row, column in ((2, 7), (8, 1)):
        visit.after(lambda row=row, column=column: click(row, column), "#attention_map img")
        visit.page.wait_for_function(
            "start => document.querySelector('#attention_text').innerText.startsWith(start)",
            arg=f"Row {row}, column {column}, layer 2, the mean of 2 heads",
        )
        maps.append(visit.source("#attention_map"))
    assert len(set(maps)) == 3
    visit.after(lambda: visit.page.locator("#layer input[type=number]").fill("1"), "#attention_text")
    assert visit.text("#attention_text").startswith("Row 8, column 1, layer 1, the mean of 2 heads")
    visit.page.get_by_label("Heads").click()
    visit.after(lambda: visit.page.get_by_role("option", name="Head 2").click(), "#attention_text")
    assert visit.text("#attention_text").startswith("Row 8, column 1, layer 1, head 2")


@needs_browser
def test_the_keyboard_suffices(visit):
    page = visit.page
    element = "document.activeElement"
    focused = f"{element}.getAttribute('aria-label') || {element}.innerText || {element}.value"

    def tab_to(name: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate(f"({focused} || '').startsWith({json.dumps(name)})"):
                return
        raise AssertionError(f"{name}: not reached by the Tab key")

    tab_to("Thumbnail 2")
    visit.after(lambda: page.keyboard.press("Enter"), "#panel-image img")
    assert "Astronaut" in visit.text("#status")
    tab_to("Upload a photograph")
    tab_to("instance")
    visit.after(lambda: page.keyboard.press("Space"), "#panels")
    assert "Instance masking" in visit.text("#counts")
    tab_to("number input for Row of the patch")
    visit.after(lambda: page.keyboard.press("ArrowUp"), "#attention_text")
    assert visit.text("#attention_text").startswith("Row 6, column 5")


@needs_browser
@pytest.mark.parametrize("visit", [400, 320, 1280], indirect=True)
def test_nothing_is_cut_off_at_any_width(visit):
    page = visit.page
    page.wait_for_timeout(500)
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    wide = page.evaluate(
        "width => [...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > width + 1)"
        ".map(e => e.outerHTML.slice(0, 80))",
        width,
    )
    assert wide == []
    for selector in ("#attention_photo", "#attention_map"):  # they keep their place before they are scrolled to
        box = page.locator(selector).first.bounding_box()
        assert box["height"] == pytest.approx(box["width"], abs=4)
    panels = [page.locator(f"#panel-{name} img").bounding_box() for name in ("photograph", "masked", "semantic")]
    assert [round(box["y"]) for box in panels] == [round(panels[0]["y"])] * 3  # at least three in a line
    assert all(box["width"] > 70 for box in panels)
    for selector in ("#panel-image img", "#attention_photo img", "#attention_map img"):
        page.locator(selector).first.scroll_into_view_if_needed()
        page.wait_for_function("selector => document.querySelector(selector).naturalWidth > 0", arg=selector)
        box = page.locator(selector).first.bounding_box()
        assert box["width"] > 70
        assert box["height"] > 70


def test_twenty_at_once(server, tmp_path):
    """Visitors with a photograph each, of one colour, by which they know their own answers."""
    from gradio_client import Client, handle_file

    masking, place = ["random", 0.5, 0], [1, 1, 1, 0]

    def ask(number: int) -> list[str]:
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (64, 64), (10 * number, 0, 0)).save(path)
        client = Client(server.address, verbose=False, analytics_enabled=False, download_files=False)
        answer = client.predict(handle_file(path), *masking, *place, api_name="/upload")
        again = client.predict(*masking, api_name="/predict")
        attention = client.predict(*place, api_name="/attention")
        assert re.search("is shown", str(answer))
        assert "Row 1, column 1, layer 1" in str(attention)
        panels = [next(value for value in found if "panel-masked" in str(value)) for found in (answer, again)]
        return [re.search(r'id="panel-masked".*?src="([^"]+)"', str(value))[1] for value in panels]

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, range(20)))
    assert all(first == second for first, second in answers)
    assert len({first for first, _ in answers}) == 20


def test_bad_requests_get_a_message(server):
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(server.address, verbose=False, analytics_enabled=False, download_files=False)
    assert "choose or upload one" in str(client.predict("random", 0.5, 0, api_name="/predict"))
    assert "choose or upload one" in str(client.predict(1, 1, 1, 0, api_name="/attention"))
    for address in ("https://example.com/a.png", "http://127.0.0.1:1/a.png", "/etc/passwd"):
        sent = {"path": address, "meta": {"_type": "gradio.FileData"}}
        with pytest.raises(AppError) as caught:
            client.predict(sent, "random", 0.5, 0, 1, 1, 1, 0, api_name="/upload")
        if ":" in address:
            assert "Addresses are not fetched" in str(caught.value)
    # The nearest number that is possible is taken.
    assert "choose or upload one" in str(client.predict("random", 7, -3, api_name="/predict"))
    with pytest.raises(AppError) as caught:
        client.predict("columns", 0.5, 0, api_name="/predict")
    assert "page.py" not in str(caught.value)


def test_a_model_of_pixels_alone_has_a_page():
    page = pytest.importorskip("c2fmae_hf.app.page")
    model = C2FMAEForPreTraining(small_config(granularities=["image"]))
    playground = Playground(model)
    components = page.build_app(playground, WeightsFacts("folder", "architecture", "training")).blocks.values()
    choices = next(one.choices for one in components if getattr(one, "elem_id", None) == "strategy")
    assert choices == [("Random", "random")]
    shown = next(one.value for one in components if getattr(one, "elem_id", None) == "panels")
    assert re.findall(r'id="panel-(\w+)"', shown) == ["photograph", "masked", "image"]
    assert "Instances" not in shown


def test_a_folder_without_weights_is_named(tmp_path):
    command = [sys.executable, "-m", "c2fmae_hf", "app", str(tmp_path / "nowhere")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "c2fmae app: error: " in ended.stderr
    assert "nowhere: expected a folder of a pre-training model, found none" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_layout_of_a_space_runs_without_the_package_installed(checkpoint, python_without_package, tmp_path):
    """As docs/app.md puts it together."""
    space, ignored = tmp_path / "space", shutil.ignore_patterns("__pycache__")
    shutil.copytree(APP, space, ignore=ignored)
    shutil.copytree(APP.parents[1] / "src/c2fmae_hf", space / "c2fmae_hf", ignore=ignored)
    (space / "weights").mkdir()
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        shutil.copy(checkpoint / name, space / "weights")
    for name in ("run.json", "trainer_state.json"):
        shutil.copy(checkpoint.parent / name, space / "weights")
    command = [python_without_package, str(space / "app.py")]
    server = start_server(tmp_path, command, PYTHONPATH=str(tmp_path / "watch"))
    try:
        with urllib.request.urlopen(f"{server.address}/config", timeout=30) as answer:
            config = answer.read().decode()
    finally:
        stop_server(server)
    assert "space/weights" in config
    assert "Trained for 4 200 steps" in config
