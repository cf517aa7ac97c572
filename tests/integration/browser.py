"""Debian's chromium, driven over a socket of its own with the DevTools protocol."""

import base64
import json
import shutil
import socket
import subprocess
import time

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE = 20.0  # seconds
DONE = "['viewer', 'error'].some(id => !document.getElementById(id).hidden)"  # the page has an answer to its files
SWITCHES = (
    *(
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--hide-scrollbars",
    ),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--remote-debugging-pipe", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "about:blank"),
)


class Browser:
    """One tab. `console` is what the page complained of, `asked` the addresses that it asked for."""

    def __init__(self, folder):
        ours, theirs = socket.socketpair()
        channel = f'exec "$@" 3<&{theirs.fileno()} 4>&{theirs.fileno()}'
        self.process = subprocess.Popen(
            ["bash", "-c", channel, "bash", BROWSER, f"--user-data-dir={folder}", *SWITCHES],
            pass_fds=(theirs.fileno(),),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        ours.settimeout(PATIENCE)
        self.socket, self.left, self.number, self.session = ours, b"", 0, None
        self.console, self.asked = [], []
        tab = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method, **params):
        """A command's result; what happens meanwhile is noted."""
        self.number += 1
        session = {"sessionId": self.session} if self.session else {}
        message = {"id": self.number, "method": method, "params": params, **session}
        self.socket.sendall(json.dumps(message).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("id") == self.number:
                assert "error" not in told, f"{method}: {told['error']}"
                return told["result"]
            self._note(told.get("method"), told.get("params"))

    def _next(self):
        while b"\0" not in self.left:
            part = self.socket.recv(1 << 20)
            assert part, "the browser is gone"
            self.left += part
        message, _, self.left = self.left.partition(b"\0")
        return json.loads(message)

    def _note(self, event, params):
        if event == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        if event in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.console.append(params)

    def open(self, url):
        """Load a page."""
        self("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def run(self, expression):
        """The value of an expression in the page."""
        done = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, expression):
        """Wait until an expression holds."""
        until = time.monotonic() + PATIENCE
        while not self.run(expression):
            assert time.monotonic() < until, f"never: {expression}"
            time.sleep(0.05)

    def choose(self, selector, *paths):
        """Give files to an input."""
        found = self("Runtime.evaluate", expression=f"document.querySelector({selector!r})")["result"]["objectId"]
        self("DOM.setFileInputFiles", objectId=found, files=[str(path) for path in paths])

    def press(self, key):
        """A key, down and up."""
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def look(self, width, height, scheme="light"):
        """A window of this size, with or without dark colours."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self):
        """What is seen, as PNG."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return base64.b64decode(self("Page.captureScreenshot")["data"])

    def close(self):
        self.socket.sendall(json.dumps({"id": 0, "method": "Browser.close"}).encode() + b"\0")
        self.process.wait(PATIENCE)
        self.socket.close()
