"""Prints what a new Chromium loads of a page, in bytes, as JSON.

Started by `studio.py`: `python benchmarks/rivals/page_weight.py ADDRESS`.
"""

import json
import os
import sys

from playwright.sync_api import sync_playwright

SECONDS = 8


def main() -> None:
    loaded = {"requests": 0, "transferred": 0, "decoded": 0}

    def add(name: str, number: int) -> None:
        loaded[name] += number

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM"), args=["--no-sandbox"]
        )
        page = browser.new_page()
        session = page.context.new_cdp_session(page)
        session.send("Network.enable")
        session.on("Network.requestWillBeSent", lambda _: add("requests", 1))
        session.on("Network.loadingFinished", lambda e: add("transferred", e["encodedDataLength"]))
        session.on("Network.dataReceived", lambda e: add("decoded", e["dataLength"]))
        page.goto(sys.argv[1])
        page.wait_for_timeout(1000 * SECONDS)  # Charts are loaded after the page.
        browser.close()
    print(json.dumps(loaded))


if __name__ == "__main__":
    main()
