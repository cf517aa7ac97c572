"""The report in a real browser: what it shows, what it does when the slider moves, and that it asks nobody anything."""

import json
import shutil
import subprocess
from types import SimpleNamespace

import pytest
from example_evidence import NASTY, evidence, volume

from segpipe.evaluation.report import page as report_page

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium here")
SWITCHES = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--enable-logging=stderr", "--virtual-time-budget=3000", "--window-size=480,900"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
PROBE = """<script>
addEventListener("load", () => {
  const images = [...document.images], found = {sizes: images.map(i => i.naturalWidth), moves: []};
  for (const input of document.querySelectorAll("input[type=range]")) {
    const block = input.closest(".case"), shown = () => [...block.querySelectorAll("img")].map(i => i.src);
    const before = shown(), told = block.querySelector("output").value;
    input.value = input.max;
    input.dispatchEvent(new Event("input"));
    found.moves.push({before, told, after: shown(), tells: block.querySelector("output").value});
  }
  found.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  found.loaded = performance.getEntriesByType("resource").map(e => e.name).filter(name => !name.startsWith("data:"));
  const place = document.createElement("pre");
  place.id = "probe";
  place.textContent = JSON.stringify(found);
  document.body.append(place);
});
</script>"""


def opened(page, folder):
    """What the browser made of a page: the probe's findings, its console, and the addresses the page asked for.

    What the browser asks for its own purposes has no origin.
    """
    path, log = folder / "page with a space.html", folder / "net.json"
    path.write_text(page.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    places = (f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}")
    done = subprocess.run(
        [BROWSER, *SWITCHES, *places, "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=60, check=True, encoding="utf-8",
    )  # fmt: skip
    events = json.loads(log.read_text(encoding="utf-8"))["events"]
    requests = [event["params"] for event in events if "initiator" in event.get("params", {})]
    asked = {request["url"] for request in requests if request["initiator"] != "not an origin"}
    probe = done.stdout.rpartition('<pre id="probe">')[2].partition("</pre>")[0]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return SimpleNamespace(**json.loads(probe.replace("&amp;", "&")), console=console, asked=asked)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    shown = {"worst": volume(5, 3)._replace(case=NASTY), "median": volume(6, 4), "best": volume(1, 5)}
    report_page.write(evidence(title=f"stroke {NASTY}", shown=shown), folder)
    return (folder / report_page.FILE).read_text(encoding="utf-8")


def test_the_page_shows_all_its_pictures_and_asks_nobody(page, tmp_path):
    decision = {"promote": True, "rule": "first model", "reasons": [NASTY]}
    tree = [{"id": "a", "lines": [NASTY], "parents": []}]
    decided = report_page.with_decision(page, decision, [(NASTY, "x")], tree)
    seen = opened(decided, tmp_path)
    assert len(seen.sizes) == 9 + (3 + 2) * 4
    assert all(size > 0 for size in seen.sizes)
    assert seen.console == []
    assert seen.loaded == []
    assert seen.asked == set()
    assert seen.overflow <= 0


def test_moving_the_slider_changes_the_picture_and_says_which_slice_it_is(page, tmp_path):
    seen = opened(page, tmp_path)
    assert [(move["told"], move["tells"]) for move in seen.moves] == [
        ("slice 2 of 5", "slice 5 of 5"),
        ("slice 3 of 6", "slice 6 of 6"),
    ]
    for move in seen.moves:
        assert len(set(move["before"])) == len(set(move["after"])) == 1
        assert move["before"] != move["after"]


def test_the_page_may_not_load_anything_even_where_it_is_told_to(page, tmp_path):
    elsewhere = '<img src="http://127.0.0.1:9/x.png">'
    policy = page[page.index('<meta http-equiv="Content-Security-Policy"') :].partition("\n")[0]
    refused = opened(page.replace("</main>", elsewhere + "</main>"), tmp_path)
    assert any("Content Security Policy" in line for line in refused.console)
    assert refused.asked == set()
    free = opened(page.replace(policy, "").replace("</main>", elsewhere + "</main>"), tmp_path)
    assert free.asked == {"http://127.0.0.1:9/x.png"}
