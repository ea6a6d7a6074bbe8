"""The report in a real browser, headless Chromium: `pytest -m browser` on a machine with one (`TEST_CHROMIUM=PATH`)."""

import importlib.resources
import json
import math
import os
import shutil

import pytest

from experiments.reports import html as html_report
from tests import reports

pytestmark = pytest.mark.browser

WIDTHS = (390, 1440)
THEMES = ("light", "dark")
# Every box with text in it: what it holds must not be wider than it, or reach out of the page.
CUT_OFF = """() => {
  const wide = document.documentElement.clientWidth, found = [];
  const unseen = ".unseen, .skip, svg, datalist, [hidden]";
  for (const element of document.querySelectorAll("main *, header *")) {
    const style = getComputedStyle(element), box = element.getBoundingClientRect();
    if (!box.width || element.closest(unseen) || style.display === "inline") continue;
    const holds = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const over = element.scrollWidth > element.clientWidth + 1;
    if (over && (holds || style.overflowX !== "visible")) found.push(["box", element.outerHTML.slice(0, 120)]);
    if (box.right > wide + 1 || box.left < -1) found.push(["page", element.outerHTML.slice(0, 120)]);
  }
  for (const text of document.querySelectorAll(".plot text")) {
    const box = text.getBoundingClientRect(), plot = text.closest(".plot").getBoundingClientRect();
    const over = box.left < plot.left - 1 || box.right > plot.right + 1;
    if (text.textContent.trim() && over) found.push(["chart", text.textContent]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    path = os.environ.get("TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, "no Chromium here: apt-get install chromium, or TEST_CHROMIUM=PATH"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def folder(tmp_path):
    reports.evaluation(tmp_path)
    return tmp_path


@pytest.fixture
def opened(chromium):
    """Opens a folder's report; a page that asks for anything, or whose scripts complain, fails the test."""
    contexts, asked, complaints = [], [], []

    def opens(folder, *, width=1440, theme="light"):
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(html_report.write(folder).as_uri())
        return page

    yield opens
    for context in contexts:
        context.close()
    assert [url for url in asked if not url.startswith(("file://", "data:"))] == []
    assert {url.rsplit("/", 1)[-1] for url in asked if url.startswith("file://")} == {html_report.FILE}
    assert complaints == []


def read(folder):
    return json.loads((folder / "results.json").read_text())


def move(page, number):
    """The slider to a stop."""
    page.locator("#budget").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", str(number)
    )


def fates(page):
    return page.locator("#board [role=gridcell]").evaluate_all(
        "cells => cells.map((cell) => cell.className.replace(' lit', ''))"
    )


def point(page, patch):
    page.locator(f"#board [data-patch='{patch}']").hover()
    return page.locator("#fate").inner_text()


def own_map(report, method, tokens, scene=0):
    return next(
        one for one in report["gallery"][scene]["maps"] if (one["method"], one["visual_tokens"]) == (method, tokens)
    )


def where(patch):
    return f"row {patch // 24 + 1}, column {patch % 24 + 1}"


def drawn(page):
    """Waits until every chart is there, without a look at it: full-page pictures have them all."""
    for number in range(page.locator(".plot").count()):
        page.locator(f"#figure-{number} .main-svg").first.wait_for(state="attached")
    assert page.evaluate("scrollY") == 0


class TestGallery:
    def test_slider_moves_through_budgets(self, folder, opened):
        page, report = opened(folder), read(folder)
        assert page.locator("#budget-value").inner_text() == "128 of 576"
        for stop, tokens in enumerate((64, 128, 192)):
            move(page, stop)
            assert page.locator("#budget-value").inner_text() == f"{tokens} of 576"
            one, shown = own_map(report, "tokencarve", tokens), fates(page)
            hosts = {host for _, host in one["merged"]}
            assert {i for i, fate in enumerate(shown) if fate == "host"} == hosts
            assert {i for i, fate in enumerate(shown) if fate == "kept"} == set(one["kept"]) - hosts
            assert {i for i, fate in enumerate(shown) if fate == "merged"} == {patch for patch, _ in one["merged"]}
            assert f"{tokens} patches kept, {tokens // 2} merged" in page.locator("#counts").inner_text()
        move(page, 3)
        assert set(fates(page)) == {"kept"}

        move(page, 1)
        page.locator("#budget").focus()
        page.keyboard.press("ArrowRight")
        assert page.locator("#budget-value").inner_text() == "192 of 576"
        assert page.locator("#budget").get_attribute("aria-valuetext") == "192 of 576 visual tokens"

    def test_selector_changes_the_method(self, folder, opened):
        page, report = opened(folder), read(folder)
        page.locator("#method").select_option("random")
        one = own_map(report, "random", 128)
        assert {i for i, fate in enumerate(fates(page)) if fate == "kept"} == set(one["kept"])
        lost = next(i for i in range(576) if i not in one["kept"])
        assert "not among the 128 tokens that random leaves at decoder layer 2, going by chance" in point(page, lost)

    def test_pointing_at_a_patch_says_what_became_of_it(self, folder, opened):
        page, report = opened(folder), read(folder)
        one, ranks = own_map(report, "tokencarve", 128), report["gallery"][0]["ranks"]["tokencarve"]
        guest, host = one["merged"][0]
        others = [patch for patch, other in one["merged"] if other == host]
        said = point(page, host)
        assert "Kept." in said
        assert all(where(patch) in said for patch in others)
        lit = page.locator("#board .lit").evaluate_all("cells => cells.map((cell) => Number(cell.dataset.patch))")
        assert set(lit) == {host, *others}
        for name in ("attention", "information", "fused"):
            assert page.locator(f"#rank-{name}").inner_text() == f"{ranks[name][host]} of 576"
        assert f"stage II merged into the most similar patch, {where(host)}" in point(page, guest)
        assert f"fused rank {ranks['fused'][guest]}, the best 192 pass" in point(page, guest)
        lost = next(i for i in range(576) if i not in one["kept"] and i not in dict(one["merged"]))
        assert f"its fused rank is {ranks['fused'][lost]}, and only the best 192 pass" in point(page, lost)

    def test_patches_by_keyboard(self, folder, opened):
        page = opened(folder)
        page.locator("#board [tabindex='0']").focus()
        for key, place in (("ArrowDown", 24), ("ArrowRight", 25), ("End", 47), ("ArrowUp", 23), ("Home", 0)):
            page.keyboard.press(key)
            assert page.evaluate("document.activeElement.dataset.patch") == str(place)
            assert page.locator("#patch").inner_text() == f"Patch in {where(place)}"

    def test_scenes_and_answers(self, folder, opened):
        page, report = opened(folder), read(folder)
        page.locator("#strip button").nth(2).click()
        record = report["gallery"][2]
        assert page.locator("#question").inner_text() == record["question"]
        rows = page.locator("#answers tbody tr").evaluate_all("rows => rows.map((row) => row.innerText)")
        assert [row.split()[:3] for row in rows] == [
            ["vanilla", "576", "LEAF"],
            ["tokencarve", "128", "LEAF"],
            ["random", "128", "LAKE"],
        ]
        assert page.locator("#image").evaluate("image => image.naturalWidth") == 336


class TestNumbers:
    def test_charts_show_those_of_the_page(self, folder, opened):
        page = opened(folder)
        drawn(page)
        charts = json.loads(page.locator("#charts").text_content())
        shown = page.evaluate(
            "() => [...document.querySelectorAll('.plot')].map((plot) => plot.data.map((t) => [t.name, t.x, t.y]))"
        )
        for chart, traces in zip(charts.values(), shown, strict=True):
            if chart["kind"] == "points":
                assert traces == [[one["name"], one["x"], one["y"]] for one in chart["series"]]
            else:
                assert traces == [[one["name"], one["values"], chart["names"]] for one in chart["series"]]

    def test_numbers_that_are_none_do_not_stop_it(self, folder, opened):
        report = read(folder)
        report["methods"][1] |= {"prefill_s": 1e308, "flops": math.inf, "cache_bytes": math.nan}
        report["methods"][0] |= {"cache_bytes": 0, "prefill_s": 0}
        report["gallery"][0]["ranks"]["tokencarve"]["fused"][3] = math.nan
        reports.write(folder, report)
        page = opened(folder)
        drawn(page)
        assert "methods[1].prefill_s" in page.locator("#tables .notes").inner_text()
        assert page.locator("#budget-value").inner_text() == "128 of 576"
        assert page.locator("#strip button").count() == 2


class TestCharts:
    def test_names_are_texts_and_not_markup(self, folder, opened):
        report, name = read(folder), "<a href='https://example.org'>%{x} & <b>bold</b></a>"
        report["methods"][2]["method"] = name
        del report["gallery"]
        reports.write(folder, report)
        page = opened(folder)
        drawn(page)
        assert page.locator(".plot a").count() == 0
        for number in (0, 2):  # a legend, and names beside bars
            shown = page.locator(f"#figure-{number} text").evaluate_all("all => all.map((one) => one.textContent)")
            assert name in [text.strip() for text in shown]
        page.locator("#figure-0").scroll_into_view_if_needed()
        page.locator("#figure-0 .scatterlayer .trace:nth-child(3) .point").hover(force=True)
        hover = page.locator("#figure-0 .hoverlayer text").first
        hover.wait_for(state="attached")
        assert name in page.locator("#figure-0 .hoverlayer").evaluate("layer => layer.textContent")
        assert page.locator(".plot a").count() == 0

    def test_all_are_there_when_it_is_printed_at_once(self, folder, opened):
        page = opened(folder)
        missing = "() => [...document.querySelectorAll('.plot')].filter((plot) => !plot.querySelector('svg')).length"
        page.evaluate("() => { dispatchEvent(new Event('beforeprint')); }")
        assert page.evaluate(missing) == 0


class TestLooks:
    @pytest.mark.parametrize("width", WIDTHS)
    @pytest.mark.parametrize("theme", THEMES)
    def test_nothing_is_cut_off_and_all_can_use_it(self, folder, opened, width, theme, request):
        page = opened(folder, width=width, theme=theme)
        drawn(page)
        page.locator("details").evaluate_all("all => all.forEach((one) => { one.open = true; })")
        if keep := os.environ.get("TEST_SCREENSHOTS"):  # a folder, for people who want to look
            page.screenshot(path=f"{keep}/{width}-{theme}.png", full_page=True)
        assert page.evaluate("document.documentElement.dataset.theme") == theme
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert page.evaluate(CUT_OFF) == []
        faults = check(page)
        assert [f for f in faults if f["impact"] in ("serious", "critical")] == []

    @pytest.mark.parametrize("width", WIDTHS)
    def test_all_methods_side_by_side(self, tmp_path, opened, width):
        """28 methods at four budgets: long tables, long legends, many answers."""
        report = reports.comparison(tmp_path)
        page = opened(tmp_path, width=width)
        drawn(page)
        assert page.locator("#budget-value").inner_text() == "128 of 576"
        page.locator("#method").select_option("divprune")
        said = {
            row["method"]: report["samples"][0]["predictions"][row["cell"]]
            for row in report["rows"]
            if row["tokens"] == 128
        }
        rows = page.locator("#answers tbody tr").evaluate_all("rows => rows.map((row) => row.innerText.split(/\\s+/))")
        assert {row[0]: row[2] for row in rows if row[1] == "128"} == said
        if keep := os.environ.get("TEST_SCREENSHOTS"):
            page.screenshot(path=f"{keep}/compare-{width}.png", full_page=True)
        assert page.evaluate(CUT_OFF) == []
        assert [f for f in check(page) if f["impact"] in ("serious", "critical")] == []

    def test_the_button_changes_the_theme(self, folder, opened):
        page = opened(folder)
        light = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.locator("#theme").click()
        assert page.locator("#theme").get_attribute("aria-pressed") == "true"
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light

    def test_faults_are_seen(self, folder, opened):
        """Otherwise the other tests prove little."""
        page = opened(folder, width=390)
        page.evaluate("() => { document.querySelector('#image').removeAttribute('alt'); }")
        page.locator("#question").evaluate("element => { element.style.color = '#bbb'; }")
        page.locator("#counts").evaluate("element => { element.style.whiteSpace = 'nowrap'; }")
        assert {"image-alt", "color-contrast"} <= {fault["id"] for fault in check(page)}
        assert page.evaluate(CUT_OFF) != []


def check(page):
    """What axe-core has to say against a page."""
    script = importlib.resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    # Through the debugger and not as an element: the page's policy lets no script in that is not its own.
    page.evaluate(script)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        {"id": fault["id"], "impact": fault["impact"], "where": [node["html"][:160] for node in fault["nodes"][:3]]}
        for fault in found["violations"]
    ]


def test_nothing_leaves_even_if_it_is_tried(folder, chromium):
    """The policy stands: a page that wants to load something may not."""
    context = chromium.new_context()
    page, failed = context.new_page(), []
    page.goto(html_report.write(folder).as_uri())
    page.on("requestfailed", lambda request: failed.append(request.failure))
    blocked = page.evaluate(
        """async () => {
          const blocked = [];
          document.addEventListener("securitypolicyviolation", (event) => blocked.push(event.effectiveDirective));
          new Image().src = "https://example.org/x.png";
          await fetch("https://example.org/x").catch(() => {});
          const script = document.createElement("script");
          script.textContent = "window.ran = true";
          document.body.append(script);
          await new Promise((done) => setTimeout(done, 300));
          return [...new Set(blocked)].sort().concat(String(window.ran));
        }"""
    )
    context.close()
    assert blocked == ["connect-src", "img-src", "script-src-elem", "undefined"]


def test_three_hundred_scenes_open_at_once(tmp_path, opened):
    reports.evaluation(tmp_path, scenes=300)
    page = opened(tmp_path)
    assert (tmp_path / html_report.FILE).stat().st_size < 15e6
    # The processor time of the page's thread: on a machine that nobody else uses, what one waits for.
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.reload()
    busy = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}["TaskDuration"]
    waited = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000
    print(f"opened in {waited:.2f} s, {busy:.2f} s of them work")
    assert 0.05 < busy < 3
    assert page.locator("#strip button").count() == 300
    page.locator("#strip button").nth(299).click()
    assert page.locator("#question").inner_text().endswith("number 3?")
