"""Make the README's pictures of a result, a report, the page and the runs anew, after `make demo`:

    python -m tests.readme_pictures

Needs Debian's chromium. `docs/images/made_of.json` says what decides how they look; `tests/contract/test_docs.py` fails
where that has changed.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from segpipe.files.code_closure import Code
from segpipe.files.project import PROJECT

FOLDER, MADE_OF = PROJECT / "docs" / "images", "made_of.json"
SHOWN = (
    *("evaluation/report/template.html", "evaluation/report/decision.html", "plots/cases.py", "plots/colours.py"),
    "server/page/page.html",
)
MODEL, UI, PATIENCE = "stroke-phantom", 5900, 60.0
EXPAND, ASSISTANT = (
    "[data-component-id*=runnamecellrenderer]",
    "[data-component-id='mlflow.assistant.chat_panel.close']",
)


def made_of() -> dict[str, str]:
    """The files that decide how the pictures look, each with a digest of what it does."""
    return Code().meanings([PROJECT / "segpipe" / name for name in SHOWN])


@contextmanager
def _server(*program: str, ready: str = "") -> Iterator[str]:
    """A server that answers, and its address: `ready`, or what it says."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([sys.executable, "-m", *program], cwd=PROJECT, stdout=log, stderr=log)
        try:
            until, address = time.monotonic() + PATIENCE, ready
            while True:
                log.seek(0)
                if not ready and (found := re.search(r"on (http://\S+)$", log.read(), re.MULTILINE)):
                    address = found[1]
                try:
                    urllib.request.urlopen(address, timeout=1).close()
                    break
                except (OSError, ValueError):
                    assert time.monotonic() < until, program
                    time.sleep(0.2)
            yield address
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    sys.path.insert(0, str(PROJECT / "tests" / "integration"))
    from browser import Browser

    from segpipe.registry import champions
    from segpipe.tracking import artifacts, connection

    connection.Store().connect()
    champion = champions.holder(MODEL)
    assert champion, "no champion yet: make demo"
    plots = artifacts.local(f"runs:/{champion.tags['evaluate_run']}/evaluation/plots")
    rows = [Image.open(plots / f"{rank}.png").convert("RGB") for rank in ("median", "worst")]
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    for place, row in enumerate(rows):
        sheet.paste(row, (0, place * rows[0].height))
    sheet.save(FOLDER / "result.png")
    report = artifacts.local(f"runs:/{champion.tags['register_run']}/register/report.html")
    case = next((PROJECT / "data").glob("phantom-*/sub-phantom0001/ses-0001/dwi"))
    store = ("--backend-store-uri", os.environ["MLFLOW_TRACKING_URI"])

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(folder)
        browser.look(900, 952)
        browser.open(report.as_uri())
        (FOLDER / "report.png").write_bytes(browser.picture())
        with _server("steps.demo_page", "--no-open", "--serving.port=0") as address:
            browser.look(1280, 900)
            browser.open(address)
            browser.wait("document.querySelectorAll('.zone').length")
            browser.choose(".zone input", *sorted(case.glob("*.nii.gz")))
            browser.wait("!document.getElementById('viewer').hidden")
            (FOLDER / "page.png").write_bytes(browser.picture())
        address = f"http://127.0.0.1:{UI}"
        with _server("mlflow", "ui", "--port", str(UI), *store, ready=address):
            browser.look(1500, 497)
            browser.open(f"{address}/#/experiments/1/runs?workflowType=machine_learning")
            for button in (EXPAND, ASSISTANT):
                browser.wait(f"!!document.querySelector({button!r})")
                browser.run(f"document.querySelector({button!r}).click()")
            time.sleep(3)
            (FOLDER / "runs.png").write_bytes(browser.picture())
        browser.close()
    (FOLDER / MADE_OF).write_text(json.dumps(made_of(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
