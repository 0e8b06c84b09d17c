"""A browser that a test drives, over its own debugging protocol."""

import base64
import itertools
import json
import re
import subprocess
import time

from websockets.sync.client import connect

from tests.report.test_in_browser import BROWSER, QUIET


class Page:
    """One page of a headless Chromium.

    Attributes:
        complaints: What was logged to the console, and errors that nobody caught.
    """

    def __init__(self, profile):
        command = [BROWSER, *QUIET, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        for line in self._process.stderr:
            if address := re.search(r"DevTools listening on (ws://\S+)", line):
                break
        self._socket = connect(address[1], max_size=None, open_timeout=60)
        self._ids, self._session, self.complaints = itertools.count(1), None, []
        (target,) = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()
        self._process.terminate()
        self._process.wait(30)
        self._process.stderr.close()

    def call(self, method, **params):
        number = next(self._ids)
        session = {"sessionId": self._session} if self._session else {}
        self._socket.send(json.dumps({"id": number, "method": method, "params": params, **session}))
        while True:
            message = json.loads(self._socket.recv(timeout=120))
            if message.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(message["params"])
            if message.get("method") == "Page.javascriptDialogOpening":
                self.complaints.append(message["params"])
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def go(self, url):
        self.call("Page.navigate", url=url)

    def value(self, expression):
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression, *, seconds=60):
        """Until an expression is true; what it is then."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.value(f"(() => {{ try {{ return {expression}; }} catch {{ return null; }} }})()")
            if found:
                return found
            assert time.monotonic() < deadline, (expression, self.value("document.body.innerText"), self.complaints)
            time.sleep(0.1)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def press(self, key, *, shift=False):
        how = {"key": key, "code": key, "windowsVirtualKeyCode": {"Enter": 13, "Escape": 27, "Tab": 9}[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", modifiers=8 * shift, **how, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", modifiers=8 * shift, **how)

    def picture(self, path, *, width, height, is_dark=False):
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
