"""The admin as people use it: a real browser on a whole Tollgate that runs."""

import datetime
import re
import shutil
import threading
import time
import uuid

import openai
import psycopg
import pytest
from playwright.sync_api import expect, sync_playwright

from controlplane import embedded

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
TIMEOUT_S = 60  # Nothing here takes as long, unless it hangs.
expect.set_options(timeout=TIMEOUT_S * 1000)
FEATURES = {"search": "120.50", "summaries": "30.25"}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium: the browser tests need one (Debian: apt install chromium)"
    ),
]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, tollgate):
    """A tab, signed in. Whatever the page's scripts complain of fails the test."""
    complaints = []
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    tab = context.new_page()
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    tab.goto(tollgate.facts["admin_url"])
    tab.fill("input[name=username]", tollgate.facts["username"])
    tab.fill("input[name=password]", tollgate.facts["password"])
    tab.click("button[type=submit]")
    expect(tab.get_by_role("heading", name="Overview")).to_be_visible()
    yield tab
    context.close()
    assert not complaints


@pytest.fixture(scope="module")
def last_month(tollgate):
    """The demo team spent money last month, by two features."""
    day = datetime.datetime.now(datetime.UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    day -= datetime.timedelta(days=9)
    url = embedded.Postgres(tollgate.data_dir / "postgres").url
    with psycopg.connect(url) as database:
        ids = "SELECT team_id, id FROM teams_project WHERE name = %s"
        team, project = database.execute(ids, [tollgate.facts["project"]]).fetchone()
        for number, (feature, cost) in enumerate(FEATURES.items()):
            at = day + datetime.timedelta(hours=number)
            database.execute(
                "INSERT INTO budgets_usagehour (id, hour, team_id, project_id, virtual_key_id, alias, model, provider,"
                " requests, errors, input_tokens, output_tokens, cached_tokens, cost_usd, latency_histogram,"
                " first_token_histogram)"
                " VALUES (%s, %s, %s, %s, %s, 'chat', 'gpt', 'openai', 10, 1, 100, 50, 0, %s, '{0,0,10}', '{}')",
                [uuid.uuid4(), at, team, project, uuid.uuid4(), cost],
            )
            database.execute(
                "INSERT INTO budgets_usagetaghour (id, hour, team_id, project_id, tag_key, tag_value, requests, tokens,"
                " cost_usd) VALUES (%s, %s, %s, %s, 'feature', %s, 10, 150, %s)",
                [uuid.uuid4(), at, team, project, feature, cost],
            )


def client_of(tollgate):
    facts = tollgate.facts
    return openai.OpenAI(base_url=facts["gateway_url"], api_key=facts["virtual_key"], max_retries=0)


def say_hello(client, model, text="Say hello", **options):
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **options)


def show(page, label):
    """A range of time on the dashboard. What is read of the page right after is the new one's."""
    page.get_by_role("link", name=label).click()
    page.wait_for_url(f"**range={label.lower().replace(' ', '-')}**")


def ask_until_it_is_shown(page, tollgate):
    """One request, which is then among today's on the dashboard."""
    show(page, "Today")
    before = requests_shown(page)
    with client_of(tollgate) as client:
        say_hello(client, tollgate.facts["model"])
    deadline = time.monotonic() + TIMEOUT_S
    while requests_shown(page) <= before:
        assert time.monotonic() < deadline, "the request is not on the dashboard"
        page.wait_for_timeout(250)
        page.reload()


def requests_shown(page):
    return int(page.locator("#kpi-requests").inner_text().replace(",", ""))


def test_what_a_team_spent_last_month_by_feature_takes_three_clicks(page, tollgate, last_month):
    show(page, "Last month")
    page.locator("[data-top=team]").get_by_role("link", name=tollgate.facts["team"], exact=True).click()
    page.get_by_label("Split by").get_by_role("link", name="Feature", exact=True).click()
    rows = page.locator("#tg-breakdown tbody tr")
    expect(rows).to_have_count(len(FEATURES))
    assert [row.split()[:2] for row in rows.all_inner_texts()] == [["search", "$120.50"], ["summaries", "$30.25"]]
    expect(page.locator("#tg-breakdown tfoot")).to_contain_text("$150.75")
    expect(page.locator("#kpi-range")).to_have_text("$150.75")


def test_a_filter_goes_into_the_url_and_a_table_sorts(page, last_month):
    show(page, "Last month")
    page.get_by_label("Environment").select_option("dev")
    page.wait_for_url("**environment=dev**")
    expect(page.get_by_text("Nothing was used that fits these filters")).to_be_visible()
    page.get_by_role("link", name="Clear the filters").click()
    features = page.locator("[data-top='tag:feature']")
    features.get_by_role("button", name="Spend").click()
    expect(features.locator("tbody tr").first).to_contain_text("search")
    features.get_by_role("button", name="Spend").click()
    expect(features.locator("tbody tr").first).to_contain_text("summaries")


def test_the_charts_are_drawn_in_light_and_in_dark(page, last_month):
    show(page, "Last month")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.reload()
        drawn = "id => Chart.getChart(id).data.datasets.some(set => set.data.some(value => value))"
        for chart in ("tg-spend", "tg-requests", "tg-latency"):
            assert page.evaluate(drawn, chart), chart


def test_a_request_comes_to_be_on_the_dashboard_whose_row_leads_to_its_receipt(page, tollgate):
    ask_until_it_is_shown(page, tollgate)
    page.get_by_role("link", name="Open the records").click()
    page.locator("#result_list tbody th a, #result_list tbody td a").first.click()
    expect(page.locator("#tg-receipt")).to_contain_text("Cost in USD")
    expect(page.locator("#tg-receipt")).to_contain_text("Output")
    expect(page.locator("#tg-attempts tbody tr")).to_have_count(1)


def test_the_red_button_cuts_a_running_stream_and_shows_who_has_acknowledged(page, tollgate):
    events, ended = [], threading.Event()

    def stream():
        try:
            with client_of(tollgate) as client:
                for chunk in say_hello(client, "demo-slow", "[[simulate tokens_per_second=1]] Hello", stream=True):
                    events.append(chunk)
        except openai.APIError as error:
            events.append(error)
        ended.set()

    running = threading.Thread(target=stream, daemon=True)
    running.start()
    while not events:
        page.wait_for_timeout(20)
    assert not ended.is_set()

    page.locator("#kill-switch-link").click()
    page.get_by_role("button", name="Stop everything").click()
    expect(page.locator("[data-reach]")).to_contain_text("1 request on")
    reason = page.locator("#tg-throw").get_by_label("Why?")
    reason.fill("a drill")
    reason.press("Enter")

    summary = page.locator("#tg-summary")
    expect(summary).to_have_text(re.compile(r"^(\d+) of \1 workers?, 1 stream cut"))
    expect(page.locator("#tg-in-force")).to_contain_text("a drill")
    assert ended.wait(TIMEOUT_S)
    running.join()
    assert isinstance(events[-1], openai.APIError)
    with client_of(tollgate) as client, pytest.raises(openai.PermissionDeniedError, match="a drill"):
        say_hello(client, tollgate.facts["model"])

    page.get_by_role("button", name="Lift").first.click()
    page.locator("#tg-lift").get_by_label("Why?").fill("drill over")
    page.get_by_role("button", name="Lift it").click()
    expect(page.get_by_text("Nothing is halted")).to_be_visible()
    expect(page.locator("#tg-history")).to_contain_text("drill over")
    with client_of(tollgate) as client:
        assert say_hello(client, tollgate.facts["model"]).choices


def test_a_key_is_found_by_its_name_and_stopped_alone(page, tollgate):
    page.locator("#kill-switch-link").click()
    page.get_by_role("button", name="Stop a virtual key").click()
    page.get_by_label("Which?").fill("dem")
    page.locator("[data-options] button").first.click()
    page.locator("#tg-throw").get_by_label("Why?").fill("leaked")
    page.get_by_role("button", name="Stop it now").click()
    expect(page.locator("#tg-in-force")).to_contain_text("key: demo")
    with client_of(tollgate) as client, pytest.raises(openai.PermissionDeniedError):
        say_hello(client, tollgate.facts["model"])
    page.get_by_role("button", name="Lift").first.click()
    page.locator("#tg-lift").get_by_label("Why?").fill("found again")
    page.get_by_role("button", name="Lift it").click()
    expect(page.get_by_text("Nothing is halted")).to_be_visible()


def test_the_dashboard_fits_a_phone(page, last_month):
    page.set_viewport_size({"width": 390, "height": 844})
    show(page, "Last month")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#kill-switch-link").click()
    expect(page.get_by_role("button", name="Stop everything")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
