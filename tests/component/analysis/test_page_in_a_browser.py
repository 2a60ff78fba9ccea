"""The page as a reader meets it: clicked through in Chromium, wide, narrow, dark, without its script, and printed."""

import base64
from contextlib import contextmanager

import pytest

from harness.analysis.answers.contrasts import contrasts
from harness.analysis.report import report as reports
from harness.analysis.runs import load_records

pytestmark = pytest.mark.slow

STUDY = """
grid: {diffusion.schedule: [linear, cosine]}
replicates: 4
evaluate:
  - {name: eval, nll: {}, fidelity: {num_samples: 64, num_steps: 10}, grid: 36}
  - {name: eval, sweep: {num_steps: [5, 10], num_samples: 64}}
"""
ARMS = ["linear", "cosine"]


def numbers(run):
    jitter = [0.0, 0.01, -0.02, 0.015][run.replicate] * (run.arm == "cosine")
    nll = 3.0 + run.replicate / 10 - (run.arm == "cosine") / 2 + jitter
    return {"nll": nll, "nll_standard_error_bpd": 0.001}


@pytest.fixture(scope="module")
def runs_folder(study_runs_of_module):
    return study_runs_of_module(STUDY, numbers)


@pytest.fixture(scope="module")
def page(runs_folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reports, "WITHOUT_RUNS", {})
        return reports.report(runs_folder, tmp_path_factory.mktemp("figures"))


@pytest.fixture
def opened(browser_programs, page):
    """Return a context manager that opens the page at a width; `dark`, or without scripts."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    @contextmanager
    def opened(width=1400, *, dark=False, script=True):
        options = webdriver.ChromeOptions()
        options.binary_location = browser_programs["chromium"]
        # A container has no sandbox for root, and little shared memory.
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        if not script:
            options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
        driver = webdriver.Chrome(options=options, service=Service(browser_programs["chromedriver"]))
        try:
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
            driver.get(page.as_uri())
            yield driver
            assert driver.get_log("browser") == [], "the page has errors, or its policy refused something"
        finally:
            driver.quit()

    return opened


def every(driver, selector):
    return driver.find_elements("css selector", selector)


def one(driver, selector):
    (element,) = every(driver, selector)
    return element


def shown(driver, selector):
    return [element for element in every(driver, selector) if element.is_displayed()]


def column(driver, number):
    rows = every(driver, "table.results tbody tr[data-arm]")
    return [row.find_elements("tag name", "td")[number].text.splitlines()[0] for row in rows]


def click(driver, element):
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def test_the_page_can_be_clicked_through(opened, runs_folder):
    from selenium.webdriver.support.ui import Select

    with opened() as driver:
        sorts_tables(driver)
        switches_baselines(driver, load_records(runs_folder), Select)
        marks_one_arm(driver)
        switches_to_a_logarithmic_axis(driver)
        tells_a_value_and_zooms(driver)
        shows_samples_of_another_seed(driver, Select)


def sorts_tables(driver):
    assert column(driver, 0) == ARMS
    button = one(driver, "table.results th:nth-child(3) button")
    assert button.text.startswith("NLL")
    click(driver, button)
    assert column(driver, 0) == ["cosine", "linear"]
    click(driver, button)
    assert column(driver, 0) == ARMS
    assert one(driver, "table.results th[aria-sort]").get_attribute("aria-sort") == "descending"
    last = every(driver, "table.results tbody tr")[-1]
    assert last.get_attribute("data-arm") or last.get_attribute("class") == "baseline"


def switches_baselines(driver, runs, Select):
    nll_of = {row.get_attribute("data-arm"): row for row in every(driver, "table.results tbody tr[data-arm]")}
    below = {index: row.find_elements("css selector", "small.difference")[0] for index, row in nll_of.items()}
    assert (below["0"].text, below["1"].text) == ("baseline", "-0.499 better")
    select = Select(one(driver, "select.baseline"))
    assert [option.text for option in select.options] == ARMS
    select.select_by_visible_text("cosine")
    assert (below["0"].text, below["1"].text) == ("+0.499 worse", "baseline")
    assert "bad" in below["0"].get_attribute("class").split()
    click(driver, one(driver, "details.contrasts summary"))
    compared = contrasts(runs, baseline="cosine")
    rows = [row.text for row in every(driver, ".differences tbody tr")]
    assert len(rows) == len(compared)
    assert rows[0].startswith("linear 3.150 4 +0.499")
    assert one(driver, ".against").text == "cosine"
    select.select_by_visible_text("linear")
    assert (below["0"].text, below["1"].text) == ("baseline", "-0.499 better")
    assert every(driver, ".differences tbody tr")[0].text.startswith("cosine 2.651")


def marks_one_arm(driver):
    plots = every(driver, ".panel")
    assert len(plots) >= 4
    button = every(driver, ".arms button")[1]
    click(driver, button)
    for plot in plots:
        dim = {group.get_attribute("data-arm") for group in plot.find_elements("css selector", "g.dim")}
        clear = {
            group.get_attribute("data-arm") for group in plot.find_elements("css selector", "g[data-arm]:not(.dim)")
        }
        assert (dim, clear) == ({"0"}, {"1"})
    assert {row.get_attribute("data-arm") for row in every(driver, "tr.marked")} == {"1"}
    click(driver, button)
    assert not every(driver, ".dim") and not every(driver, "tr.marked")


def switches_to_a_logarithmic_axis(driver):
    plot = every(driver, ".panel")[0]
    button = plot.find_element("css selector", "button[data-axis=x]")

    def ticks():
        return [text.text for text in plot.find_elements("css selector", "text")]

    before, pressed = ticks(), button.get_attribute("aria-pressed")
    click(driver, button)
    assert button.get_attribute("aria-pressed") != pressed and ticks() != before
    click(driver, button)
    assert (button.get_attribute("aria-pressed"), ticks()) == (pressed, before)


def tells_a_value_and_zooms(driver):
    from selenium.webdriver.common.action_chains import ActionChains

    plot = every(driver, ".panel")[0]
    svg, tip = plot.find_element("css selector", "svg"), plot.find_element("css selector", ".tip")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", svg)
    seed = plot.find_elements("css selector", "g.seed[data-arm='1'] .curve")[0].get_attribute("d")
    x, y = map(float, seed[1:].split("L")[-1].split())
    half_width, half_height = svg.size["width"] / 2, svg.size["height"] / 2
    ActionChains(driver).move_to_element_with_offset(svg, round(x - half_width), round(y - half_height)).perform()
    assert tip.is_displayed()
    name, note, value = tip.text.splitlines()
    assert name in ARMS and ("seed" in note) and value.endswith("iterations")
    before = [text.text for text in plot.find_elements("css selector", "text")]
    back = plot.find_element("css selector", "h4 button:last-child")
    assert not back.is_displayed()
    drag = ActionChains(driver).move_to_element_with_offset(svg, -60, -40).click_and_hold()
    drag.move_by_offset(120, 80).release().perform()
    assert back.is_displayed()
    assert [text.text for text in plot.find_elements("css selector", "text")] != before
    click(driver, back)
    assert [text.text for text in plot.find_elements("css selector", "text")] == before


def shows_samples_of_another_seed(driver, Select):
    def pictures():
        return [image.get_attribute("alt") for image in shown(driver, ".samples img")]

    assert pictures() == [f"samples of {arm}, seed 0" for arm in ARMS]
    Select(one(driver, "select.replicate")).select_by_visible_text("seed 2")
    assert pictures() == [f"samples of {arm}, seed 2" for arm in ARMS]


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_a_narrow_page_does_not_scroll_sideways(opened, script):
    with opened(390, script=script) as driver:
        size = driver.execute_cdp_cmd("Page.getLayoutMetrics", {})
        assert size["cssContentSize"]["width"] <= 390
        assert size["cssContentSize"]["width"] == size["cssLayoutViewport"]["clientWidth"]


def test_without_its_script_all_figures_and_tables_are_shown(opened):
    with opened(script=False) as driver:
        pictures = shown(driver, "figure img")
        assert len(pictures) == len(every(driver, "figure")) >= 4
        assert all(int(picture.get_attribute("naturalWidth")) > 100 for picture in pictures)
        assert not shown(driver, ".panels") and not shown(driver, "select") and not shown(driver, "th button")
        assert "-0.499 better" in one(driver, "table.results").text


def test_with_its_script_curves_stand_in_the_place_of_their_pictures(opened):
    with opened() as driver:
        curves = every(driver, "figure.curves")
        assert len(curves) == 3
        for figure in curves:
            assert not figure.find_element("css selector", "img").is_displayed()
            assert figure.find_element("css selector", ".panel path.curve").is_displayed()


def test_a_dark_page_is_dark_and_its_letters_light(opened):
    def brightness(colour):
        return sum(map(float, colour[colour.index("(") + 1 : -1].split(",")[:3])) / 3

    for dark in (True, False):
        with opened(dark=dark) as driver:
            body = one(driver, "body")
            paper, ink = (brightness(body.value_of_css_property(name)) for name in ("background-color", "color"))
            assert (paper < 60 and ink > 200) if dark else (paper > 200 and ink < 60)


def test_a_printed_page_has_all_that_is_folded_and_the_figures_as_pictures(opened):
    with opened() as driver:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        driver.execute_script("dispatchEvent(new Event('beforeprint'))")
        assert not shown(driver, "nav") and not shown(driver, ".panels") and not shown(driver, "button[data-arm]")
        assert len(shown(driver, "figure img")) == len(every(driver, "figure"))
        assert one(driver, "table.runs").is_displayed() and shown(driver, "table.contrasts")
        pdf = base64.b64decode(driver.execute_cdp_cmd("Page.printToPDF", {})["data"])
        assert pdf.startswith(b"%PDF-") and len(pdf) > 20_000
