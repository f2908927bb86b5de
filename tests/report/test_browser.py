"""The page in a real browser, as a reader has it: from disk, without a network."""

import json
import re
import shutil
from collections.abc import Iterator

import pytest

from attnopt.report import page as report

from . import fake
from .conftest import QUICK

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install -e '.[dev]')")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def faults() -> list[str]:
    return []


@pytest.fixture
def visit(browser, project, sweep, faults):
    """Opens the page in a window of a width and a theme, noting what a page must not do."""
    pages = []

    def open_page(width=1280, scheme="light", query="", compared=False):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on(
            "console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else faults.append(r.url))
        path = sweep / "reports/compare.html" if compared else project / "reports/index.html"
        page.goto(path.as_uri() + query)
        page.wait_for_selector("[data-drawn]")
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_every_figure_is_drawn_without_a_fault(visit, faults, width, scheme):
    page = visit(width, scheme)
    charts = page.query_selector_all("[data-chart]")
    assert len(charts) > 8
    for chart in charts:
        assert chart.get_attribute("data-drawn") == "yes"
        for panel in chart.query_selector_all(".panels svg"):
            assert len(panel.query_selector_all(".series")) > 0
            box = panel.bounding_box()
            assert box["width"] > 150
            assert box["height"] > 100
    assert "NaN" not in page.evaluate("[...document.querySelectorAll('.panels')].map(p => p.innerHTML).join()")
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    assert faults == []


def test_titles_of_lengths_that_were_not_measured_fit_a_narrow_window(browser, project, context, tmp_path):
    asked = QUICK.model_copy(update={"lengths": [4096, 32768]})
    report.write_report(project, context.records.variants, asked, tmp_path)
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto((tmp_path / "index.html").as_uri())
    page.wait_for_selector("[data-drawn]")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "the page scrolls sideways"
    title = page.get_by_text("Cost at 32k tokens, attention alone, extrapolated from").first.bounding_box()
    assert title["x"] >= 0
    assert title["x"] + title["width"] <= 390
    page.close()


def test_the_samples_browser_shows_what_was_picked(visit, faults):
    page = visit()
    page.select_option("#browser [name=variant]", "masks")
    page.select_option("#browser [name=prompt]", fake.PROMPTS[1])
    page.select_option("#browser [name=seed]", "1")
    teacher, student = page.query_selector_all("#texts article")
    assert teacher.inner_text().startswith("Teacher")
    assert "masks, seed 1" in student.inner_text()
    assert f"{fake.PROMPTS[1]} masks says</script><b onclick" in student.inner_text()
    assert "teacher’s perplexity" in student.inner_text()
    page.select_option("#browser [name=variant]", "hedgehog")
    assert page.eval_on_selector_all("#browser [name=seed] option", "options => options.map(o => o.value)") == ["0"]
    page.select_option("#browser [name=variant]", "all variants")
    assert len(page.query_selector_all("#texts article")) == 1 + len(fake.VARIANTS)
    assert faults == []


def test_tokens_are_coloured_by_their_kl(visit, faults):
    for scheme in ("light", "dark"):
        page = visit(scheme=scheme)
        page.select_option("#browser [name=variant]", "masks")
        tokens = page.locator("#texts article").nth(1).locator(".token")
        colours = tokens.evaluate_all("spans => spans.map(s => getComputedStyle(s).backgroundColor)")
        values = tokens.evaluate_all("spans => spans.map(s => Number(s.title.replace('KL ', '')))")
        top = float(page.get_attribute("#scale", "data-top"))
        assert len({c for c, v in zip(colours, values, strict=True) if v < top}) > 5
        assert len({c for c, v in zip(colours, values, strict=True) if v >= top}) <= 1, "one colour beyond the scale"
        assert page.locator("#texts article").nth(0).locator(".token").count() == 0, "the teacher's text is plain"
        assert "KL per token" in page.locator("#texts article").nth(1).inner_text()
        assert page.locator("#texts .leaks").count() == 0
        page.select_option("#browser [name=variant]", "performer_bidirectional")
        assert page.locator("#texts .leaks").count() == 1
    assert faults == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_the_comparison_is_drawn_without_a_fault(visit, faults, width, scheme):
    page = visit(width, scheme, compared=True)
    panels = page.locator("[data-chart=compare] .panels svg")
    assert panels.count() == 4
    for panel in panels.all():
        assert panel.locator(".series[data-name=performer] path").count() >= 4, "a point per run, and their line"
    assert {"64", "128", "256"} <= set(panels.first.locator("text").all_text_contents())
    panels.first.focus()
    page.keyboard.press("ArrowRight")
    assert "performer.features: 64" in page.locator("#tip").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    assert faults == []


def test_a_legend_hides_and_isolates_and_an_axis_changes(visit, faults):
    page = visit()
    chart = page.locator("[data-chart=growth]")
    drawn = chart.locator(".panels svg").first.locator(".series")
    before = drawn.count()
    chart.locator(".key", has_text="masks").click()
    assert drawn.count() == before - 1
    chart.locator(".key", has_text="masks").press("Enter")
    assert drawn.count() == before
    chart.locator(".key", has_text="nsa").dblclick()
    assert drawn.count() == 1
    labels = chart.locator(".panels svg text").all_inner_texts()
    chart.locator(".axis.y").click()
    assert chart.locator(".panels svg text").all_inner_texts() != labels
    chart.locator("select").select_option("attention alone")
    assert "16k" in chart.locator(".panels svg").first.text_content()
    assert faults == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_first_screen_is_a_picture_and_three_sentences(visit, faults, scheme):
    page = visit(scheme=scheme)
    page.set_viewport_size({"width": 1280, "height": 800})
    opening = page.locator(".opening")
    assert opening.locator("p.lead, .rest p").count() == 3
    for part in (opening.locator("p.lead"), opening.locator(".rest p").last, opening.locator(".panels svg")):
        box = part.bounding_box()
        assert box["y"] + box["height"] <= 800, "it is on the first screen"
    assert "choose based" in opening.locator(".panels svg .name").all_text_contents()
    assert faults == []


def test_a_switch_changes_the_cost_and_another_the_test(visit, faults):
    page = visit()
    for name, chosen in (("pareto", "against prefill time"), ("recall_state", "a gap of 16 tokens")):
        chart = page.locator(f"[data-chart={name}]")
        before = chart.locator(".panels").inner_html()
        chart.locator("select[name=of]").select_option(chosen)
        assert chart.locator(".panels").inner_html() != before
        assert chart.locator("select[name=of]").input_value() == chosen
    chart = page.locator("[data-chart=recall_state]")
    chart.locator("select[name=label]").select_option("phone book")
    assert chart.locator(".panels svg").count() == 1, "this teacher cannot: no retention"
    assert faults == []


def test_values_show_under_the_pointer_and_by_keyboard(visit, faults):
    page = visit()
    panel = page.locator("[data-chart=quality] .panels svg")
    panel.scroll_into_view_if_needed()
    assert page.locator("#tip").is_hidden()
    panel.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#tip").inner_text().startswith("based")
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()
    point = panel.locator(".series[data-name=routing] path").last.bounding_box()
    page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    assert page.locator("#tip").inner_text().startswith("routing")
    assert faults == []


def test_the_theme_follows_the_system_the_address_and_the_button(visit):
    def paper(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light, dark = paper(visit()), paper(visit(scheme="dark"))
    assert light != dark
    page = visit(query="?theme=dark")
    assert paper(page) == dark
    for expected in ("Theme: system", "Theme: light"):
        page.click("#theme")
        assert page.inner_text("#theme") == expected
    assert paper(page) == light


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
@pytest.mark.parametrize("compared", [False, True])
def test_axe_finds_no_serious_fault(visit, width, scheme, compared):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = axe.Axe().run(visit(width, scheme, compared=compared)).response["violations"]
    serious = [
        (v["id"], [n["html"][:120] for n in v["nodes"][:3]]) for v in found if v["impact"] in ("serious", "critical")
    ]
    assert serious == []


HOSTILE = '<img src=x onerror="window.hacked = 1"><script>window.hacked = 2</script><svg onload="window.hacked = 3">'


def hacked(browser, page_file) -> object:
    page = browser.new_page()
    page.goto(page_file.as_uri())
    page.wait_for_selector("[data-drawn]")
    if page.locator("#browser").count():
        page.select_option("#browser [name=variant]", "all variants")
    page.wait_for_timeout(200)
    found = page.evaluate("window.hacked ?? null")
    page.close()
    return found


def test_markup_in_a_sample_a_title_or_a_setting_does_not_run(browser, tmp_path):
    names = fake.write(tmp_path, ["softmax", "masks"])
    record = tmp_path / "results/sample/masks/0/record.json"
    content = json.loads(record.read_text())
    for sample in content["samples"]:
        sample |= {"text": HOSTILE, "prompt": HOSTILE, "teacher_text": HOSTILE, "tokens": [HOSTILE], "token_kl": [0.1]}
    record.write_text(json.dumps(content))
    with (tmp_path / "params.yaml").open("a") as file:
        file.write(f"# {HOSTILE}\n")
    report.write_report(tmp_path, names, QUICK.model_copy(update={"title": HOSTILE}), tmp_path / "out")
    text = (tmp_path / "out/index.html").read_text()
    assert text.count("window.hacked") > 5, "the text is there"
    assert hacked(browser, tmp_path / "out/index.html") is None


@pytest.mark.parametrize("compared", [False, True])
def test_markup_that_got_into_the_page_does_not_run_either(browser, project, sweep, tmp_path, compared):
    """The content security policy: behind the escaping, should that fail one day."""
    page = (sweep / "reports/compare.html" if compared else project / "reports/index.html").read_text()
    inside = tmp_path / "inside.html"
    inside.write_text(page.replace("<h1>", f"<h1>{HOSTILE}", 1))
    assert hacked(browser, inside) is None
    inside.write_text(re.sub(r"<meta http-equiv[^>]*>", "", inside.read_text()))
    assert hacked(browser, inside) is not None, "without the policy it runs: the test can tell"
