"""The dashboard, in a real Chromium, as operators use it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from axe_playwright_python.sync_playwright import Axe
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from playwright.sync_api import Browser, Page, Route, expect
from support import browser as browsers
from support.endpoint import EndpointServer
from support.server import Answer, Server, free_port

HOUSE = "1998,2150,3,2.5,0.4,2"
CITIES = ("austin", "boston", "chicago", "houston")
EVIL = '<img src=x onerror="document.title=1">.tar.gz'
STRANGE = ("a 'b\" & $(c) `d`.tar.gz", "\u202eevil\u202c gnp.tar.gz", "größe ☃ 模型.tar.gz", "%41+b?c=d#e.tar.gz")
OWN = {"Content_Type": "application/json", "X_Polyhost_Dashboard": "1"}
MANY = 50_000
ENDPOINT = "arn:aws:sagemaker:us-east-1:123456789012:endpoint/polyhost"
OPERATOR = ("AKIAOPERATOR00000000", "the-secret-of-the-operator")
VIEWER = ("AKIAVIEWERVIEWER0000", "the-secret-of-the-viewer-0")
NOBODY = ("AKIANOBODYNOBODY0000", "the-secret-of-the-nobody-0")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browsers.browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, samples_folder: Path) -> Iterator[EndpointServer]:
    folder = tmp_path_factory.mktemp("dashboard") / "models"
    (folder / "deep" / "er").mkdir(parents=True)
    for city in CITIES:
        shutil.copy(samples_folder / f"{city}.tar.gz", folder)
    shutil.copy(samples_folder / "squeezenet.tar.gz", folder)
    for name in (EVIL, *STRANGE, "deep/er/model.tar.gz"):
        shutil.copy(samples_folder / "houston.tar.gz", folder / name)
    server = EndpointServer("native", folder)
    yield server
    assert server.stop() == 0, server.process.log


@pytest.fixture
def page(chromium: Browser, server: EndpointServer) -> Iterator[Page]:
    with browsers.page(chromium, server.url) as page:
        expect(page.locator("#health")).to_have_text("Healthy")
        yield page


def row(page: Page, name: str) -> Any:
    return page.locator("#rows tr").filter(has=page.locator(f'th[title="{escaped(name)}"]'))


def escaped(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"')


def press(page: Page, name: str, button: str) -> None:
    row(page, name).get_by_role("button", name=f"{button} {name}", exact=True).click()


def post(server: Server, path: str, document: Any, **headers: str) -> Answer:
    return server.request("POST", path, json.dumps(document), **{**OWN, **headers})


def test_the_page_shows_what_happens(page: Page, server: EndpointServer) -> None:
    """Requests, hits, errors, latencies and loads appear by themselves."""
    for _ in range(3):
        server.predict("houston.tar.gz", HOUSE)
    with pytest.raises(ClientError, match="is not a number"):
        server.predict("houston.tar.gz", "no,numbers")

    expect(page.locator("#requests .note")).to_have_text(re.compile(r"^4 since the start"))
    expect(page.locator("#errors .value")).to_have_text("1")
    expect(page.locator("#hits .value")).to_have_text("75.0 %")
    expect(page.locator("#latency .p50 dd")).to_have_text(re.compile(r"^[\d.]+ (ms|s)$"))
    expect(page.locator("#events li").first).to_have_text(re.compile(r"Loaded.*(ms|s).*houston\.tar\.gz"))
    expect(page.locator("#memory .note")).to_have_text("1 model resident")
    expect(page.locator("#disk .note")).to_have_text("1 model unpacked")
    expect(page.locator("#requests .chart .line")).to_have_attribute("d", re.compile("^M.*L"))
    houston = row(page, "houston.tar.gz")
    expect(houston.locator(".place")).to_have_text("In memory")
    for column, text in ((".uses", "4"), (".hits", "3"), (".errors", "1"), (".size", re.compile("KiB"))):
        expect(houston.locator(column)).to_have_text(text)
    expect(houston.locator(".used")).to_have_text(re.compile("s ago"))
    expect(row(page, "austin.tar.gz").locator(".place")).to_have_text("In the folder")


def test_models_are_searched_filtered_and_sorted_by_the_server(page: Page) -> None:
    """By words of the name; the address keeps what was asked."""
    page.keyboard.press("/")
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.type("DEEP model")
    expect(page.locator("#rows tr")).to_have_count(1)
    expect(page.locator("#rows .folder")).to_have_text("deep/er/")
    expect(page.locator("#page-range")).to_have_text("1\N{EN DASH}1 of 1")
    page.locator("#search").fill("nothing is called so")
    expect(page.locator("#no-models")).to_have_text("No model is like that.")
    page.locator("#search").fill("tar.gz")
    page.get_by_role("button", name="Size").click()
    expect(page.locator("th[data-sort=size]")).to_have_attribute("aria-sort", "descending")
    expect(page.locator("#rows tr").first).to_contain_text("squeezenet")
    page.get_by_role("button", name="Model", exact=True).click()
    page.get_by_role("button", name="Model", exact=True).click()
    names = page.locator("#rows th")
    expect(names.first).to_have_attribute("title", max(all_names()))
    page.reload()
    expect(page.locator("#search")).to_have_value("tar.gz")
    expect(names.first).to_have_attribute("title", max(all_names()))
    page.get_by_role("group", name="Where models are").get_by_role("button", name="In the folder").click()
    expect(row(page, "squeezenet.tar.gz")).to_be_visible()


def test_the_answer_of_a_slow_server_is_waited_for(page: Page) -> None:
    """Though the page looks again every other second."""
    page.evaluate("AbortSignal.timeout = () => new AbortController().signal")  # a busy machine may take its time
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route(re.compile(r"/dashboard/models\?.*search=deep"), hold)
    page.locator("#search").fill("deep")
    for _ in range(3):
        page.wait_for_event("response", lambda response: "/dashboard/state" in response.url)
    assert len(held) == 1
    held[0].continue_()
    expect(page.locator("#rows tr")).to_have_count(1)
    expect(page.locator("#rows .folder")).to_have_text("deep/er/")
    page.unroute_all(behavior="ignoreErrors")


def all_names() -> list[str]:
    return [*(f"{city}.tar.gz" for city in CITIES), "squeezenet.tar.gz", EVIL, *STRANGE, "deep/er/model.tar.gz"]


def test_a_model_is_loaded_pinned_and_unloaded(page: Page, server: EndpointServer) -> None:
    """By its buttons; the server does it, the row and the events say so."""
    boston = row(page, "boston.tar.gz")
    press(page, "boston.tar.gz", "Load")
    expect(boston.locator(".place")).to_have_text("In memory")
    expect(page.locator(".toast")).to_contain_text("Loaded boston.tar.gz")
    expect(page.locator("#events li").first).to_contain_text("boston.tar.gz")
    press(page, "boston.tar.gz", "Pin")
    expect(boston.locator(".pinned")).to_be_visible()
    assert model(server, "boston.tar.gz")["is_pinned"]
    press(page, "boston.tar.gz", "Unpin")
    expect(boston.locator(".pinned")).to_be_hidden()
    press(page, "boston.tar.gz", "Unload")
    expect(boston.locator(".place")).to_have_text("On disk")
    assert model(server, "boston.tar.gz")["status"] == "disk"


def model(server: EndpointServer, name: str) -> dict[str, Any]:
    rows = server.request("GET", "/dashboard/models?limit=200").json()["rows"]
    (found,) = (row for row in rows if row["name"] == name)
    return dict(found)


def test_what_cannot_be_done_is_said(page: Page, server: EndpointServer, samples_folder: Path) -> None:
    """The server's sentence, as clients get it."""
    folder = Path(json_of(server, "/dashboard/state")["containers"][0]["source"])
    (folder / "broken.tar.gz").write_bytes(b"this is no archive")
    try:
        page.get_by_role("button", name="List again").click()
        press(page, "broken.tar.gz", "Load")
        expect(page.locator(".toast[data-is=error]")).to_contain_text("Failed to extract model data archive")
        expect(row(page, "broken.tar.gz").locator(".place")).to_have_text("In the folder")
    finally:
        (folder / "broken.tar.gz").unlink()


def json_of(server: Server, path: str) -> Any:
    answer = server.request("GET", path)
    assert answer.status == 200, answer.text
    return answer.json()


def test_a_model_is_tried(page: Page) -> None:
    """Status, latency, headers and answer; the same as code; the keyboard is enough."""
    button = row(page, "austin.tar.gz").locator(".try-it")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#try-body")).to_be_focused()
    page.keyboard.type(HOUSE)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#answer-status")).to_have_text("200")
    expect(page.locator("#answer-facts")).to_have_text(
        re.compile(r"^[\d.]+ m?s in the server, [\d.]+ m?s from here, \d+ B$")
    )
    assert json.loads(page.locator("#answer-body").inner_text())
    page.get_by_text("Headers", exact=True).click()
    expect(page.locator("#answer-headers")).to_contain_text("x-amzn-invoked-production-variant")
    page.locator("#try-body").fill("it's\nno number")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("#answer-status")).to_have_text("424")
    expect(page.locator("#answer-body")).to_contain_text("CLIENT_ERROR_FROM_MODEL")
    page.get_by_role("button", name="Copy as curl").click()
    expect(page.locator("#snippet")).to_contain_text("'it'\\''s\nno number'")
    page.get_by_role("button", name="Copy as boto3").click()
    expect(page.locator("#snippet")).to_contain_text('TargetModel="austin.tar.gz"')
    page.keyboard.press("Escape")
    expect(page.locator("#try")).to_be_hidden()
    expect(button).to_be_focused()


def test_the_code_of_a_try_works(page: Page, server: EndpointServer, tmp_path: Path) -> None:
    """What is copied answers what the dialog answered, also for names that a shell would take apart."""
    for name in (STRANGE[0], EVIL):
        press(page, name, "Try")
        page.locator("#try-body").fill(HOUSE)
        page.get_by_role("button", name="Send", exact=True).click()
        expect(page.locator("#answer-status")).to_have_text("200")
        answer = page.locator("#answer-body").inner_text()
        page.get_by_role("button", name="Copy as curl").click()
        expect(page.locator("#snippet")).to_contain_text("curl -sS")
        curl = page.locator("#snippet").text_content()
        page.get_by_role("button", name="Copy as boto3").click()
        expect(page.locator("#snippet")).to_contain_text("import boto3")
        boto3 = page.locator("#snippet").text_content()
        page.keyboard.press("Escape")
        assert answer in subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True).stdout
        assert (
            answer in subprocess.run([sys.executable, "-c", boto3], capture_output=True, text=True, check=True).stdout
        )


def test_a_file_is_sent_as_it_is(page: Page, tmp_path: Path) -> None:
    """Bytes that are no text, in both directions."""
    (tmp_path / "picture.bin").write_bytes(bytes(range(256)))
    press(page, "chicago.tar.gz", "Try")
    page.locator("#try-file").set_input_files(tmp_path / "picture.bin")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("#answer-status")).to_have_text("424")
    page.get_by_role("button", name="Copy as curl").click()
    expect(page.locator("#snippet")).to_contain_text("--data-binary '@picture.bin'")


def test_names_are_text_whatever_they_are(page: Page, server: EndpointServer) -> None:
    """Nothing of a key is markup, code or an address, in the table, the events, the dialog and what is said."""
    for name in (EVIL, *STRANGE):
        expect(row(page, name).locator(".file")).to_have_text(name)
        press(page, name, "Try")
        expect(page.locator("#try-target")).to_have_value(name)
        page.locator("#try-body").fill(HOUSE)
        page.get_by_role("button", name="Send", exact=True).click()
        expect(page.locator("#answer-status")).to_have_text("200")
        page.keyboard.press("Escape")
        press(page, name, "Unload")
        expect(page.locator(".toast").last).to_contain_text(f"Unloaded {name}")
        expect(page.locator("#events li").first.locator(".target")).to_have_text(name)
    assert page.locator("img").count() == 1
    expect(page).to_have_title("polyhost · Polyhost")


def test_light_dark_and_a_phone(chromium: Browser, server: EndpointServer) -> None:
    """The system's choice, then the reader's, which is kept; nothing is wider than a phone."""
    backgrounds = []
    for scheme in ("light", "dark"):
        with browsers.page(chromium, server.url, color_scheme=scheme, viewport={"width": 360, "height": 740}) as page:
            expect(row(page, EVIL)).to_be_visible()
            backgrounds.append(background(page))
            assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
            page.get_by_role("button", name=f"Use the {'dark' if scheme == 'light' else 'light'} theme").click()
            backgrounds.append(background(page))
            page.reload()
            assert background(page) == backgrounds[-1]
            press(page, "austin.tar.gz", "Try")
            assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
    light, dark, dark_again, light_again = backgrounds
    assert (light, dark) == (light_again, dark_again)
    assert light != dark


def background(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))


def violations(page: Page) -> list[str]:
    """What axe finds, such as too little contrast, with the place."""
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {node['html'][:120]} {node['failureSummary']}" for one in found for node in one["nodes"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_nothing_keeps_people_from_using_it(
    chromium: Browser, server: EndpointServer, locked: EndpointServer, scheme: str, width: int
) -> None:
    """By the rules of axe: the page, a try with its answer, a failed login; in both themes, also on a phone."""
    server.predict("houston.tar.gz", HOUSE)
    settings = {"color_scheme": scheme, "viewport": {"width": width, "height": 800}}
    with browsers.page(chromium, server.url, **settings) as page:
        expect(row(page, "houston.tar.gz").locator(".place")).to_have_text("In memory")
        expect(page.locator("#events li").first).to_be_visible()
        assert violations(page) == []
        press(page, "houston.tar.gz", "Try")
        page.locator("#try-body").fill("no,numbers")
        page.get_by_role("button", name="Send", exact=True).click()
        expect(page.locator("#answer-status")).to_have_text("424")
        page.get_by_role("button", name="Copy as boto3").click()
        page.locator("summary").click()
        assert violations(page) == []
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    with browsers.page(chromium, locked.url, **settings) as page:
        log_in(page, (VIEWER[0], "wrong"))
        expect(page.get_by_role("alert").first).to_have_text("There is no user with this access key and secret.")
        assert violations(page) == []


def test_axe_finds_what_is_wrong(chromium: Browser, server: EndpointServer) -> None:
    """Else the test above would pass whatever the page is like."""
    with browsers.page(chromium, server.url) as page:
        expect(page.locator("#health")).to_have_text("Healthy")
        page.evaluate("document.documentElement.style.setProperty('--muted', '#ccc')")
        page.evaluate("document.querySelector('#theme').removeAttribute('aria-label')")
        assert {one.partition(":")[0] for one in violations(page)} == {"button-name", "color-contrast"}


def tab_to(page: Page, name: str) -> None:
    """Press Tab until what has this label or text has the focus, and can be seen to have it."""
    for _ in range(150):
        page.keyboard.press("Tab")
        label, style, width = page.evaluate(
            "(() => { const one = document.activeElement, style = getComputedStyle(one);"
            " return [one.ariaLabel || one.labels?.[0]?.textContent.trim() || one.textContent.trim(),"
            " style.outlineStyle, style.outlineWidth]; })()"
        )
        if label.startswith(name):
            assert (style, width) == ("solid", "2px"), name
            return
    raise AssertionError(f"Tab never comes to {name}")


def test_charts_are_read_by_the_arrows(chromium: Browser, server: EndpointServer) -> None:
    """Each step in words, as for a pointer; Escape ends it."""
    with browsers.page(chromium, server.url) as page:
        expect(row(page, "austin.tar.gz")).to_be_visible()
        tab_to(page, "Requests per second")
        chart = page.get_by_role("slider", name="Requests per second")
        expect(chart).to_have_attribute("aria-valuetext", "now")
        page.keyboard.press("ArrowLeft")
        expect(chart).to_have_attribute("aria-valuetext", re.compile(r"^\d+ s ago: [\d.]+ per second$"))
        page.keyboard.press("Home")
        expect(chart).to_have_attribute("aria-valuetext", re.compile(r"^(5 min|\d+ min \d+ s) ago: "))
        expect(page.locator("#requests .note")).to_have_text(re.compile(" ago: "))
        page.keyboard.press("Escape")
        expect(page.locator("#requests .note")).to_have_text(re.compile("since the start$"))


def test_all_can_be_done_by_keyboard(chromium: Browser, server: EndpointServer) -> None:
    """Whatever has the focus shows it."""
    post(server, "/dashboard/unload", {"container": "polyhost/AllTraffic/0", "target": "austin.tar.gz"})
    with browsers.page(chromium, server.url) as page:
        expect(row(page, "austin.tar.gz")).to_be_visible()
        tab_to(page, "Use the dark theme")
        page.keyboard.press("Enter")
        page.keyboard.press("/")
        page.keyboard.type("austin")
        tab_to(page, "On disk")
        tab_to(page, "Errors")
        page.keyboard.press("Enter")
        expect(page.locator("th[data-sort=errors]")).to_have_attribute("aria-sort", "descending")
        expect(page.locator("#rows tr")).to_have_count(1)
        tab_to(page, "Load austin.tar.gz")
        page.keyboard.press("Enter")
        expect(row(page, "austin.tar.gz").locator(".place")).to_have_text("In memory")
        expect(page.locator(".toast")).to_have_count(1)
        page.keyboard.press("Escape")
        expect(page.locator(".toast")).to_have_count(0)
        tab_to(page, "Try austin.tar.gz")
        page.keyboard.press("Enter")
        page.keyboard.type(HOUSE)
        page.keyboard.press("Control+Enter")
        expect(page.locator("#answer-status")).to_have_text("200")
        page.keyboard.press("Escape")
        expect(page.get_by_role("button", name="Try austin.tar.gz")).to_be_focused()
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Enter")
        expect(row(page, "austin.tar.gz").locator(".place")).to_have_text("On disk")


def test_an_empty_folder_tells_how_the_first_model_comes(
    chromium: Browser, tmp_path: Path, samples_folder: Path
) -> None:
    """By a command that does it."""
    (tmp_path / "two words").mkdir()
    server = EndpointServer("native", tmp_path / "two words")
    try:
        with browsers.page(chromium, server.url, viewport={"width": 360, "height": 740}) as page:
            expect(page.locator("#no-models")).to_contain_text("There are no models yet.")
            assert violations(page) == []
            assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
            command = page.locator("#no-models code").inner_text()
            shutil.copy(samples_folder / "boston.tar.gz", tmp_path / "model.tar.gz")
            subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
            page.get_by_role("button", name="List again").click()
            expect(row(page, "model.tar.gz").locator(".place")).to_have_text("In the folder")
            expect(page.locator("#no-models")).to_be_hidden()
    finally:
        server.kill()


def test_a_server_that_goes_and_comes_back_is_noticed(chromium: Browser, server: EndpointServer) -> None:
    """The page says so and goes on by itself."""
    folder = json_of(server, "/dashboard/state")["containers"][0]["source"]
    port = free_port()
    first = EndpointServer("native", folder, port=port)
    try:
        with browsers.page(chromium, first.url) as page:
            expect(page.locator("#health")).to_have_text("Healthy")
            first.predict("houston.tar.gz", HOUSE)
            expect(page.locator("#requests .note")).to_have_text("1 since the start")
            first.stop()
            expect(page.locator("#health")).to_have_text("Disconnected")
            first = EndpointServer("native", folder, port=port)
            expect(page.locator("#health")).to_have_text("Healthy")
            expect(page.locator("#requests .note")).to_have_text("0 since the start")
            expect(page.locator("#no-events")).to_be_visible()
    finally:
        first.kill()


def test_other_sites_can_do_nothing(server: EndpointServer) -> None:
    """Neither by forms nor by scripts, and the page is in nobody's frame."""
    document = {"container": "polyhost/AllTraffic/0", "target": "houston.tar.gz"}
    for headers in (
        {"X_Polyhost_Dashboard": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ):
        assert post(server, "/dashboard/load", document, **headers).status == 403
    assert post(server, "/dashboard/load", document, Origin=server.url, Sec_Fetch_Site="same-origin").status == 200
    for path in ("/", "/dashboard/app.js", "/dashboard/state"):
        fields = server.request("GET", path).fields
        policy = fields["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert fields["x-content-type-options"] == "nosniff"
        assert fields["referrer-policy"] == "no-referrer"


def test_bad_requests_are_answered_in_words(server: EndpointServer) -> None:
    """Never with an internal error."""
    container = "polyhost/AllTraffic/0"
    for path in (
        "/dashboard/models?sort=colour", "/dashboard/models?limit=x", "/dashboard/models?container=no/such/0",
        "/dashboard/models?status=gone", "/dashboard/models?what=else",
    ):  # fmt: skip
        answer = server.request("GET", path)
        assert answer.status == 400, path
        assert answer.json()["Message"]
    rows = json_of(server, "/dashboard/models?limit=9999999&offset=-5")["rows"]
    assert {row["name"] for row in rows} >= set(all_names())
    assert json_of(server, "/dashboard/models?offset=123456789012345678")["rows"] == []
    assert json_of(server, "/dashboard/state?after=x&event=-1&endpoints=99999999999999999999")["events_ever"] >= 0
    for document in (
        None, [], {}, {"container": container}, {"container": container, "target": "../a.tar.gz"},
        {"container": container, "target": "missing.tar.gz"}, {"container": "x", "target": "houston.tar.gz"},
        {"container": container, "target": "houston.tar.gz", "more": 1},
    ):  # fmt: skip
        answer = post(server, "/dashboard/load", document)
        assert answer.status == 400, answer.text
        assert "Internal" not in answer.json()["Message"]
    bad_type = {"container": container, "target": "houston.tar.gz", "body": "", "content_type": "a\r\nb: c"}
    assert post(server, "/dashboard/invoke", bad_type).status == 400
    assert post(server, "/dashboard/login", {"access_key_id": "a", "secret_access_key": "b"}).status == 400
    assert post(server, "/dashboard/predict", {}).status == 404


def test_files_of_the_page_are_asked_for_again_only_when_they_change(server: EndpointServer) -> None:
    """By their ETag."""
    first = server.request("GET", "/dashboard/style.css")
    again = server.request("GET", "/dashboard/style.css", If_None_Match=first.fields["etag"])
    assert (first.status, again.status, again.body) == (200, 304, b"")
    assert server.request("HEAD", "/").fields["content-type"] == "text/html; charset=utf-8"


def test_every_endpoint_has_its_models(chromium: Browser, samples_folder: Path, tmp_path: Path) -> None:
    """One is chosen; a container with a single model has that one."""
    (tmp_path / "north").mkdir()
    (tmp_path / "south").mkdir()
    shutil.copy(samples_folder / "boston.tar.gz", tmp_path / "north")
    shutil.copy(samples_folder / "houston.tar.gz", tmp_path / "south")
    server = EndpointServer("native", tmp_path / "north", "--model-root", str(tmp_path))
    try:
        sagemaker = server.client("sagemaker")
        sagemaker.create_model(
            ModelName="one",
            ExecutionRoleArn="arn:aws:iam::000000000000:role/any",
            PrimaryContainer={"Image": "xgboost:1", "ModelDataUrl": f"file://{tmp_path}/south/houston.tar.gz"},
        )
        variant = {"VariantName": "a", "ModelName": "one", "InitialInstanceCount": 1, "InstanceType": "ml.m5.large"}
        sagemaker.create_endpoint_config(EndpointConfigName="one", ProductionVariants=[variant])
        with browsers.page(chromium, server.url) as page:
            expect(row(page, "boston.tar.gz")).to_be_visible()
            expect(page.locator("#container")).to_be_hidden()
            sagemaker.create_endpoint(EndpointName="single", EndpointConfigName="one")
            page.get_by_label("Container").select_option("single")
            expect(row(page, "houston.tar.gz").locator(".place")).to_have_text("In memory")
            expect(page.locator("#rows tr")).to_have_count(1)
            press(page, "houston.tar.gz", "Try")
            expect(page.locator("#try-target")).to_be_hidden()
            page.locator("#try-body").fill(HOUSE)
            page.get_by_role("button", name="Send", exact=True).click()
            expect(page.locator("#answer-status")).to_have_text("200")
    finally:
        server.kill()


@pytest.mark.second_stage
def test_fifty_thousand_models(chromium: Browser, samples_folder: Path, tmp_path: Path) -> None:
    """The last page, a search, a sort and a load, with nothing in the page but what it shows."""
    one = Path(shutil.copy(samples_folder / "houston.tar.gz", tmp_path / "one"))
    for number in range(100):
        (tmp_path / "models" / f"customer_{number:02d}").mkdir(parents=True)
    for number in range(MANY):
        os.link(one, tmp_path / "models" / f"customer_{number % 100:02d}" / f"model-{number:05d}.tar.gz")
    server = EndpointServer("native", tmp_path / "models")
    name = "customer_07/model-31407.tar.gz"
    try:
        with browsers.page(chromium, server.url) as page:
            expect(page.locator("#page-range")).to_have_text("1\N{EN DASH}50 of 50,000")
            page.get_by_role("button", name="Last used").click()
            server.predict(name, HOUSE)
            expect(page.locator("#rows th").first).to_have_attribute("title", name)
            page.get_by_role("button", name="Next").click()
            expect(page.locator("#page-range")).to_have_text("51\N{EN DASH}100 of 50,000")
            page.locator("#search").fill("31407")
            expect(page.locator("#rows tr")).to_have_count(1)
            press(page, name, "Unload")
            expect(row(page, name).locator(".place")).to_have_text("On disk")
            page.locator("#search").fill("")
            expect(page.get_by_role("button", name="On disk 1")).to_be_visible()
            expect(page.locator("#rows tr")).to_have_count(50)
        last = json_of(server, "/dashboard/models?sort=name&offset=49999")["rows"]
        assert [row["name"] for row in last] == ["customer_99/model-49999.tar.gz"]
    finally:
        server.kill()


# With access control


def allow(*actions: str, **condition: Any) -> dict[str, Any]:
    statement = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
    if condition:
        statement["Condition"] = condition
    return {"Version": "2012-10-17", "Statement": [statement]}


def principals() -> dict[str, Any]:
    austin = {"StringLike": {"sagemaker:TargetModel": "austin*"}}
    policies = {
        OPERATOR: [allow("polyhost:*", "sagemaker:*")],
        VIEWER: [allow("polyhost:ViewDashboard"), allow("polyhost:LoadModel", "sagemaker:InvokeEndpoint", **austin)],
        NOBODY: [],
    }
    return {
        "account_id": "123456789012",
        "users": [
            {"name": name, "access_key_id": key, "secret_access_key": secret, "policies": policies[key, secret]}
            for name, (key, secret) in (("olga", OPERATOR), ("vera", VIEWER), ("noah", NOBODY))
        ],
    }


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, samples_folder: Path) -> Iterator[EndpointServer]:
    folder = tmp_path_factory.mktemp("locked")
    (folder / "models").mkdir()
    for city in CITIES:
        shutil.copy(samples_folder / f"{city}.tar.gz", folder / "models")
    file = folder / "principals.json"
    write(file, principals())
    server = EndpointServer("native", folder / "models", "--auth", "sigv4", "--auth-file", str(file))
    server.file = file
    yield server
    assert server.stop() == 0, server.process.log
    for _, secret in (OPERATOR, VIEWER, NOBODY):
        assert secret not in server.process.log


def write(file: Path, document: dict[str, Any]) -> None:
    new = file.with_suffix(".new")
    new.write_text(json.dumps(document))
    new.chmod(0o600)
    new.replace(file)


def log_in(page: Page, who: tuple[str, str]) -> None:
    page.get_by_label("Access key id").fill(who[0])
    page.get_by_label("Secret access key").fill(who[1])
    page.get_by_role("button", name="Log in").click()


def test_whoever_logs_in_may_do_what_policies_allow(chromium: Browser, locked: EndpointServer) -> None:
    """A wrong secret is refused, a viewer's unload too; the cookie is not for scripts; a log-out ends it."""
    with browsers.page(chromium, locked.url) as page:
        log_in(page, (VIEWER[0], "wrong"))
        expect(page.get_by_role("alert").first).to_have_text("There is no user with this access key and secret.")
        log_in(page, NOBODY)
        expect(page.get_by_role("alert").first).to_contain_text("not authorized to perform: polyhost:ViewDashboard")
        log_in(page, VIEWER)
        expect(page.locator("#user")).to_have_text("vera")
        (cookie,) = page.context.cookies(locked.url + "/dashboard/")
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/dashboard")
        assert page.evaluate("document.cookie") == ""

        press(page, "austin.tar.gz", "Load")
        expect(row(page, "austin.tar.gz").locator(".place")).to_have_text("In memory")
        press(page, "austin.tar.gz", "Unload")
        expect(page.locator(".toast[data-is=error]")).to_contain_text("polyhost:UnloadModel on resource: " + ENDPOINT)
        press(page, "boston.tar.gz", "Load")
        expect(page.locator(".toast[data-is=error]").last).to_contain_text("polyhost:LoadModel")
        page.keyboard.press("Escape")  # what was said lies over the buttons
        press(page, "austin.tar.gz", "Try")
        page.locator("#try-body").fill(HOUSE)
        page.get_by_role("button", name="Send", exact=True).click()
        expect(page.locator("#answer-status")).to_have_text("200")
        page.locator("#try-target").fill("boston.tar.gz")
        page.get_by_role("button", name="Send", exact=True).click()
        expect(page.locator("#answer-status")).to_have_text("403")
        page.get_by_role("button", name="Copy as curl").click()
        expect(page.locator("#snippet")).to_contain_text("--aws-sigv4")
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("Access key id")).to_be_visible()
        page.reload()
        expect(page.get_by_label("Access key id")).to_be_visible()


def test_a_login_ends_with_its_user(chromium: Browser, locked: EndpointServer) -> None:
    """Taken out of the file, or given another secret, the user is asked again."""
    for change in (
        lambda users: users.pop(0),
        lambda users: users[0].update(secret_access_key="another-secret-of-olga"),
    ):
        with browsers.page(chromium, locked.url) as page:
            log_in(page, OPERATOR)
            expect(page.locator("#user")).to_have_text("olga")
            changed = principals()
            change(changed["users"])
            write(locked.file, changed)
            expect(page.get_by_label("Access key id")).to_be_visible()
            expect(page.locator("#dashboard")).to_be_hidden()
            write(locked.file, principals())
            log_in_when_it_is_back(page)


def log_in_when_it_is_back(page: Page) -> None:
    """The file is looked at once a second."""
    for _ in range(5):
        log_in(page, OPERATOR)
        expect(page.locator("#login-form button")).to_be_enabled()
        if page.locator("#dashboard").is_visible():
            return
    raise AssertionError("it never came back")


def test_cookies_are_for_nothing_else(locked: EndpointServer) -> None:
    """Neither for the endpoint nor for MMS's routes; one that was changed is for nothing at all."""
    document = {"access_key_id": OPERATOR[0], "secret_access_key": OPERATOR[1]}
    answer = post(locked, "/dashboard/login", document)
    cookie = answer.fields["set-cookie"].partition(";")[0]
    assert "Max-Age=28800" in answer.fields["set-cookie"]
    assert locked.request("GET", "/dashboard/state", Cookie=cookie).json()["user"] == "olga"
    assert locked.request("GET", "/models", Cookie=cookie).status == 403
    target = {"X_Amzn_SageMaker_Target_Model": "austin.tar.gz"}
    assert locked.request("POST", "/invocations", HOUSE, Cookie=cookie, **target).status == 403
    name, _, token = cookie.partition("=")
    for changed in ("", "x", token[:-8], token[8:], token.swapcase(), "A" * 9000, "é"):
        answer = locked.request("GET", "/dashboard/state", Cookie=f"{name}={changed}".encode("latin-1"))
        assert answer.status == 401
        assert "access_key" not in answer.text
    assert locked.request("GET", "/").status == 200


def test_an_api_key_logs_in_alone(chromium: Browser, locked: EndpointServer) -> None:
    """In the field of the secret, and the other one empty. Scripts send it with each request."""
    changed = principals()
    changed["users"][1]["api_keys"] = ["sha256:" + hashlib.sha256(b"phk_veras").hexdigest()]
    write(locked.file, changed)
    with browsers.page(chromium, locked.url) as page:
        for _ in range(5):  # the file is looked at once a second
            log_in(page, ("", "phk_veras"))
            expect(page.locator("#login-form button")).to_be_enabled()
            if page.locator("#dashboard").is_visible():
                break
        expect(page.locator("#user")).to_have_text("vera")
    state = locked.request("GET", "/dashboard/state", Authorization="Bearer phk_veras")
    assert state.json()["user"] == "vera"
    assert locked.request("GET", "/dashboard/state", Authorization="Bearer phk_vera").status == 403
    write(locked.file, principals())


def test_signed_requests_need_no_login(locked: EndpointServer) -> None:
    """As boto3 signs, so that scripts can do what the page does."""
    path = "/dashboard/load"
    body = json.dumps({"container": "polyhost/AllTraffic/0", "target": "chicago.tar.gz"}).encode()
    assert post(locked, path, json.loads(body)).status == 401
    request = AWSRequest("POST", locked.url + path, data=body, headers={"X-Polyhost-Dashboard": "1"})
    SigV4Auth(Credentials(*OPERATOR), "sagemaker", "us-east-1").add_auth(request)
    named = {name.replace("-", "_"): value for name, value in request.headers.items()}
    assert locked.request("POST", path, body, **named).status == 200
    assert '"chicago.tar.gz"' in locked.process.wait_for_line("polyhost:LoadModel .chicago")


def test_the_container_half_alone_has_none() -> None:
    """As MMS answers."""
    server = Server("native", environ={"SAGEMAKER_MULTI_MODEL": "true"})
    try:
        assert server.request("GET", "/").status == 405
        assert server.request("GET", "/dashboard/state").status == 404
    finally:
        server.kill()


def test_the_cookie_stays_on_tls_where_there_is_tls(tmp_path: Path, samples_folder: Path) -> None:
    """Secure."""
    write(tmp_path / "principals.json", principals())
    certificate = ("-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem", "-subj", "/CN=localhost",
                   "-addext", "subjectAltName=IP:127.0.0.1")  # fmt: skip
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *certificate], check=True, capture_output=True
    )
    server = EndpointServer(
        "native", samples_folder, "--auth", "sigv4", "--auth-file", str(tmp_path / "principals.json"),
        "--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"),
    )  # fmt: skip
    try:
        document = {"access_key_id": OPERATOR[0], "secret_access_key": OPERATOR[1]}
        answer = requests.post(
            f"https://127.0.0.1:{server.port}/dashboard/login",
            json=document,
            headers={"X-Polyhost-Dashboard": "1"},
            verify=str(tmp_path / "cert.pem"),
        )
        assert answer.headers["set-cookie"].endswith("; HttpOnly; SameSite=Strict; Secure")
    finally:
        server.kill()
