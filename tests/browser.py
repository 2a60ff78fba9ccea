"""A headless Chromium, driven by its own chromedriver over the WebDriver protocol (https://www.w3.org/TR/webdriver2/)."""

from __future__ import annotations

import base64
import json
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

LOAD_SECONDS = 120.0


class Browser:
    """One window.

    Args:
        folder: for its profile and the driver's log.
        port: of loopback, free.
    """

    def __init__(self, folder: Path, port: int, *, chromium: str, driver: str, size: tuple[int, int] = (1600, 1300)):
        self._address = f"http://127.0.0.1:{port}"
        with (folder / "chromedriver.log").open("ab") as log:
            self._driver = subprocess.Popen([driver, f"--port={port}"], stdout=log, stderr=log)
        options = {
            "binary": chromium,
            "args": [
                *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
                *(f"--user-data-dir={folder / 'profile'}", f"--window-size={size[0]},{size[1]}"),
            ],
        }
        capabilities = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
        try:
            self._wait_for_driver()
            self._session = self._call("POST", "/session", {"capabilities": capabilities})["sessionId"]
        except BaseException:
            self._driver.kill()
            self._driver.wait()
            raise

    def open(self, address: str) -> None:
        """Open an address afresh, even where only what follows its # differs."""
        self._call("POST", f"/session/{self._session}/url", {"url": "about:blank"})
        self._call("POST", f"/session/{self._session}/url", {"url": address})

    def run(self, script: str, *arguments: Any) -> Any:
        """Return the result of JavaScript in the page."""
        return self._call("POST", f"/session/{self._session}/execute/sync", {"script": script, "args": list(arguments)})

    def text(self) -> str:
        """Return the text that is seen."""
        return str(self.run("return document.body ? document.body.innerText : ''"))

    def wait_for(self, script: str, seconds: float = LOAD_SECONDS) -> Any:
        """Return the result of JavaScript as soon as it is true.

        Raises:
            AssertionError: it is not until then; with the text that is seen instead.
        """
        deadline = time.monotonic() + seconds
        while not (result := self.run(f"return {script}")):
            assert time.monotonic() < deadline, f"not so: {script}; on the page: {self.text()[:3000]}"
            time.sleep(0.2)
        return result

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", f"/session/{self._session}/screenshot")))

    def close(self) -> None:
        try:
            self._call("DELETE", f"/session/{self._session}")
        finally:
            self._driver.kill()
            self._driver.wait()

    def _wait_for_driver(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                self._call("GET", "/status")
                return
            except OSError:
                assert self._driver.poll() is None and time.monotonic() < deadline, "chromedriver does not come up"
                time.sleep(0.1)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._address + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=180) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None
