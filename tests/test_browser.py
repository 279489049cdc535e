"""What a person sees: a real Chromium opens both UIs after a run. Pictures go to `screenshots/`, which git ignores: look at them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import warmed
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

HOUSE = Path(__file__).resolve().parent.parent
SCREENSHOTS = HOUSE / "screenshots"
ROUNDS = 3
FEDROUNDS = [sys.executable, "-m", "fedrounds.cli.main"]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-software-rasterizer --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1600,1200"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory, warm, program):
    """A study of few rounds, run."""
    home = tmp_path_factory.mktemp("browser")
    shutil.copytree(HOUSE / "studies" / "diabetes", home / "study")
    operations = home / "study" / "operations.toml"
    operations.write_text(re.sub(r"(?m)^rounds = \d+", f"rounds = {ROUNDS}", operations.read_text()))
    warm(home / "state")
    ended = program("run", home / "study", "--state", home / "state", "--json", timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return home


@pytest.fixture(scope="module")
def ui(home):
    """The addresses that `fedrounds ui` prints; both ports that it is asked for are free ones."""
    serving = start_ui(home / "study", home / "state", "--mlflow-port", "0", "--prefect-port", "0")
    try:
        yield json.loads(serving.stdout.readline())
    finally:
        stop(serving)


def start_ui(study, state, *ports):
    command = [*FEDROUNDS, "ui", str(study), "--state", str(state), "--json", *ports]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def stop(serving) -> int:
    if serving.poll() is None:
        serving.send_signal(signal.SIGTERM)
    try:
        return serving.wait(20)
    finally:
        serving.kill()
        serving.stdout.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with opened(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@contextmanager
def opened(profile):
    """A Chromium whose profile is in that folder."""
    found = shutil.which("chromium"), shutil.which("chromedriver")
    if None in found:
        pytest.fail(f"expected chromium and chromedriver, found {found}: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(found[1]))
    browser.set_page_load_timeout(60)
    SCREENSHOTS.mkdir(exist_ok=True)
    try:
        yield browser
    finally:
        browser.quit()


def wait(browser, what, until, timeout_s=30):
    """The first true value of `until(browser)`; else a failure that says what was waited for, with a picture."""
    patient = WebDriverWait(browser, timeout_s, 0.1, ignored_exceptions=[StaleElementReferenceException])
    try:
        return patient.until(until)
    except WebDriverException:
        browser.save_screenshot(str(SCREENSHOTS / "failed.png"))
        pytest.fail(f"expected {what} at {browser.current_url} within {timeout_s} s: see {SCREENSHOTS}/failed.png")


def visit(browser, url, name, *texts):
    """Open a page, wait until it shows the texts, take its picture."""
    place, hash_, _ = url.partition("#")
    if hash_ and browser.current_url.startswith(f"{place}#"):  # a page of the program that is loaded already
        browser.get(f"{place}#/none")
        wait(browser, "no page", lambda it: "Page Not Found" in shown(it))
    else:
        browser.get("about:blank")
    browser.get(url)
    for text in texts:
        wait(browser, f"'{text}'", lambda it, text=text: text in shown(it))
    picture(browser, name)


def shown(browser) -> str:
    return browser.execute_script("return document.body ? document.body.innerText : ''")


def picture(browser, name):
    browser.save_screenshot(str(SCREENSHOTS / f"{name}.png"))


def ask(url, body=None):
    request = urllib.request.Request(url, body and json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
        return json.load(answer)


# --- MLflow -----------------------------------------------------------------------------------------------------------


def test_the_address_opens_the_studys_runs_with_every_round_and_site(browser, ui):
    rounds = [f"round {number}" for number in range(1, ROUNDS + 1)]
    note = "real patients, simulated hospitals"
    visit(browser, ui["mlflow"], "mlflow-runs", *rounds, "site north", "log_loss", "auc", note)
    assert "Model training" in shown(browser)
    links = {link.text for link in browser.find_elements("css selector", "a[href*='/runs/']")}
    assert links >= {*rounds, "site north", "site east", "site south", "site west"}


def test_no_assistant_opens_beside_the_study(browser, ui):
    visit(browser, ui["mlflow"], "mlflow-runs", "round 1")
    assert "Assistant" not in shown(browser)
    panels = browser.find_elements("css selector", "[data-assistant-ui]")
    assert not [panel for panel in panels if panel.is_displayed()]


def test_the_experiment_says_what_the_study_asks(browser, ui):
    visit(browser, ui["mlflow"].split("#")[0] + "#/experiments", "mlflow-experiments", "diabetes", "Will this patient")


def test_the_loss_chart_has_a_point_a_round(browser, ui):
    visit(browser, ui["charts"], "mlflow-charts", "log_loss")
    points = """
        const card = [...document.querySelectorAll('[data-testid="experiment-view-compare-runs-card"]')]
            .find(card => card.innerText.startsWith('log_loss'));
        return card ? card.querySelectorAll('svg .scatterlayer .points path').length : 0;
    """
    wait(browser, "a loss chart with points", lambda it: it.execute_script(points) == ROUNDS + 1)
    picture(browser, "mlflow-charts")
    run = re.search(r"runs/(\w+)/", ui["charts"])[1]
    api = ui["charts"].split("#")[0] + "api/2.0/mlflow"
    history = ask(f"{api}/metrics/get-history?run_id={run}&metric_key=log_loss")["metrics"]
    assert [point["step"] for point in history] == list(range(ROUNDS + 1))


def test_the_lineages_page_tells_the_result(browser, ui):
    page = ui["charts"].replace("/model-metrics", "")
    visit(browser, page, "mlflow-lineage", f"{ROUNDS} rounds.", "AUC of the federated model", "Champion: round")
    visit(browser, ui["charts"].replace("/model-metrics", "/artifacts/plots/rounds.png"), "mlflow-plot", "rounds.png")
    loaded = "return [...document.images].some(image => image.complete && image.naturalWidth > 500)"
    wait(browser, "the picture of the rounds", lambda it: it.execute_script(loaded))
    picture(browser, "mlflow-plot")


def test_a_rounds_page_tells_who_trained_and_leads_to_its_version(browser, ui):
    visit(browser, ui["mlflow"], "mlflow-runs", "round 2")
    link = next(a for a in browser.find_elements("css selector", "a[href*='/runs/']") if a.text == "round 2")
    visit(browser, link.get_attribute("href"), "mlflow-round", "4 sites trained on", "training_patients", "v2")


def test_the_registered_model_has_a_version_a_round_and_a_champion(browser, ui):
    versions = [f"Version {number}" for number in range(1, ROUNDS + 1)]
    visit(browser, ui["model"], "mlflow-model", *versions, "champion", "models:/diabetes@champion")
    api = ui["mlflow"].split("#")[0] + "api/2.0/mlflow"
    champion = ask(f"{api}/registered-models/alias?name=diabetes&alias=champion")["model_version"]
    page = ui["model"].replace("?", f"/versions/{champion['version']}?")
    visit(browser, page, "mlflow-version", "champion", "log-loss", "Promoted", "fedrounds.model_digest")


# --- Prefect ----------------------------------------------------------------------------------------------------------


def test_prefect_shows_the_flow_run_with_its_tasks(browser, ui):
    visit(browser, ui["prefect"], "prefect-runs", "diabetes", "Completed")
    link = browser.find_element("css selector", "a[href*='/runs/flow-run/']").get_attribute("href")
    browser.get(link)
    tab = "//li[contains(@class, 'p-tab')][normalize-space()='Task Runs']"
    wait(browser, "the tab of tasks", lambda it: it.find_elements("xpath", tab))[0].click()
    for name in (f"fit · north · round {ROUNDS}", f"aggregate · round {ROUNDS}", "load · north", "gate · north"):
        wait(browser, f"the task '{name}'", lambda it, name=name: name in shown(it) or scroll(it))
    picture(browser, "prefect-flow-run")


def scroll(browser) -> None:
    browser.execute_script(
        "for (const box of document.querySelectorAll('*')) if (box.scrollHeight > box.clientHeight) box.scrollTop += 2000"
    )


ARTIFACTS = {
    "gate": ["passed (25 checks)", "north"],
    "result": ["AUC federated", "Pooled", "north"],
    "round": [f"Round {ROUNDS} of {ROUNDS}", "validation patients", "Decision on round", "Champion: round"],
    "sites": ["patients judging", "AUC", "north"],
    "progress": [f"Round {ROUNDS} of {ROUNDS}"],
}


@pytest.mark.parametrize(("key", "texts"), ARTIFACTS.items())
def test_prefect_shows_the_gate_the_rounds_the_hospitals_and_the_result(browser, ui, key, texts):
    server = ui["prefect"].removesuffix("/runs")
    found = {it["key"]: it["latest_id"] for it in ask(f"{server}/api/artifacts/latest/filter", {})}
    artifact = found[f"{key}-diabetes"]
    visit(browser, f"{server}/artifacts/artifact/{artifact}", f"prefect-{key}", *texts)


def test_prefect_keeps_a_version_a_round_and_one_progress_that_has_arrived(ui):
    found = ask(f"{ui['prefect'].removesuffix('/runs')}/api/artifacts/filter", {})
    told = sorted(it["description"].split(" · ")[0] for it in found if it["key"] == "round-diabetes")
    assert told == [f"Round {number} of {ROUNDS}" for number in [*range(ROUNDS + 1), ROUNDS]]  # the last visit scores
    assert [it["data"] for it in found if it["key"] == "progress-diabetes"] == [100.0]


# --- the report -------------------------------------------------------------------------------------------------------


def test_the_note_leads_to_the_report_which_mlflow_shows(browser, ui):
    page = ui["charts"].replace("/model-metrics", "")
    visit(browser, page, "mlflow-lineage", "Open the report")
    link = browser.find_element("link text", "Open the report").get_attribute("href")
    visit(browser, link, "mlflow-report", "report.html", "model_card.md")
    wait(browser, "the page in its frame", lambda it: it.find_elements("css selector", "iframe"))
    browser.switch_to.frame(browser.find_element("css selector", "iframe"))
    wait(browser, "the report", lambda it: "The hospitals side by side" in shown(it))
    browser.switch_to.default_content()
    picture(browser, "mlflow-report")


OUTSIDE = """
const outside = [];
for (const svg of document.querySelectorAll('svg')) {
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
    for (const [said, box] of texts)
        if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
            outside.push(`${said} leaves its picture`);
    texts.forEach(([one, a], i) => texts.slice(i + 1).forEach(([two, b]) => {
        const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left), tall = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (wide > 1 && tall > 4) outside.push(`${one} covers ${two}`);
    }));
}
return outside;
"""


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_report_reads_on_a_phone_and_a_desk_in_light_and_dark(browser, home, program, theme, width):
    report = home / "state" / "diabetes" / "report.html"
    assert program("report", home / "study", "--state", home / "state").returncode == 0
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    )
    try:
        browser.get_log("browser")
        visit(
            browser, report.as_uri(), f"report-{theme}-{width}", "The hospitals side by side", "How this page was made"
        )
        assert browser.get_log("browser") == []
        assert browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)") == []
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert (
            browser.execute_script(
                "return [...document.querySelectorAll('svg')].filter(it => !it.querySelector('title')).length"
            )
            == 0
        )
        assert browser.execute_script("return document.querySelectorAll('svg').length") == 4
        assert browser.execute_script(OUTSIDE) == []
        ground = browser.execute_script("return getComputedStyle(document.documentElement).backgroundColor")
        assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 28)"}[theme]
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


# --- the command itself -----------------------------------------------------------------------------------------------


def test_taken_ports_are_replaced_and_ctrl_c_leaves_no_process(home, ui):
    taken = [str(int(re.search(r":(\d+)/", ui[key])[1])) for key in ("mlflow", "prefect")]
    serving = start_ui(home / "study", home / "state", "--mlflow-port", taken[0], "--prefect-port", taken[1])
    try:
        found = json.loads(serving.stdout.readline())
        assert not [key for key, port in zip(("mlflow", "prefect"), taken, strict=True) if f":{port}/" in found[key]]
        children = descendants(warmed.itself(serving.pid))
        assert len(children) == 2
        serving.send_signal(signal.SIGINT)
        assert serving.wait(20) == 0
        assert not [pid for pid in children if alive(pid)]
    finally:
        stop(serving)


def descendants(pid) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children] + [far for child in children for far in descendants(int(child))]


def alive(pid) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
