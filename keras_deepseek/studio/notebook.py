"""The page of Studio in the output of a notebook's cell.

The address of the page is reached in a way of its own on Colab and behind JupyterHub. Where no port
may be reached, as on Kaggle, the output holds the page itself.
"""

import contextlib
import importlib.util
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from html import escape

from keras_deepseek.errors import InvalidInputError

SECONDS_BETWEEN_PICTURES = 15.0
"""The time between two versions of the page where no port may be reached."""

COLAB_HOSTS = (".googleusercontent.com", ".colab.dev")
"""The hosts of Colab's proxy, under any name below them."""

_HEIGHT = 720
_MOST_SHARE = 0.02  # Of the time, for drawing the page anew.


def is_colab() -> bool:
    """Returns True if this process runs on Colab."""
    return "COLAB_RELEASE_TAG" in os.environ


def show(
    url: str, make_page: Callable[[], str], has_stopped: threading.Event
) -> threading.Thread | None:
    """Shows the page in the output of the cell that runs.

    Args:
        url: The address of the page on this machine.
        make_page: Function that returns the page as one HTML text.
        has_stopped: Is set when Studio stops.

    Returns:
        The thread that draws the page anew, or `None` if the port can be reached.

    Raises:
        NotImplementedError: This process is not the kernel of a notebook.
    """
    if "ipykernel" not in sys.modules:
        raise NotImplementedError  # By this error IPython knows to show the object as text.
    from IPython.display import display

    address, _, key = url.partition("#")
    port = int(address.rstrip("/").rpartition(":")[2])
    prefix = os.environ.get("JUPYTERHUB_SERVICE_PREFIX")
    if is_colab():
        from google.colab import output

        output.serve_kernel_port_as_iframe(port, path=f"/#{key}", height=str(_HEIGHT))
    elif prefix and importlib.util.find_spec("jupyter_server_proxy"):
        there = f"{prefix}proxy/{port}/#{key}"
        display(_bundle(there, f"{_link(there)}{_frame('src', there)}"), raw=True)
    elif prefix or "KAGGLE_KERNEL_RUN_TYPE" in os.environ:  # No proxy leads to the port.
        handle = display(_bundle(url, _frame("srcdoc", make_page())), raw=True, display_id=True)

        def draw_anew() -> None:
            wait = SECONDS_BETWEEN_PICTURES
            while not has_stopped.wait(wait):
                begin = time.perf_counter()
                with contextlib.suppress(OSError, InvalidInputError):  # The next time, then.
                    handle.update(_bundle(url, _frame("srcdoc", make_page())), raw=True)
                wait = max(SECONDS_BETWEEN_PICTURES, (time.perf_counter() - begin) / _MOST_SHARE)

        thread = threading.Thread(target=draw_anew, daemon=True)
        thread.start()
        return thread
    else:  # The browser is perhaps on this machine.
        display(_bundle(url, inline_html(url, make_page())), raw=True)
    return None


def inline_html(url: str, page: str) -> str:
    """Returns HTML that shows a copy of the page, until the browser reaches the live page.

    The copy stays in a saved notebook, and on another machine, from which the address can't be
    reached.
    """
    address = url.partition("#")[0]
    live = json.dumps(url)
    name = f"studio-{secrets.token_hex(4)}"  # Two cells may show one Studio.
    script = (
        f"const icon = new Image(), frame = document.getElementById('{name}');"
        "icon.onload = () => { frame.removeAttribute('srcdoc'); frame.removeAttribute('sandbox');"
        f" frame.src = {live}; }}; icon.src = {json.dumps(address + 'icon.svg')};"
    )
    frame = _frame("srcdoc", page, f'id="{name}"')
    return f"{_link(url)}{frame}<script>{{{script}}}</script>"


def _bundle(url: str, html: str) -> dict[str, str]:
    """Returns the output of a cell as HTML, and as text for programs that show no HTML."""
    return {"text/html": html, "text/plain": f"Studio: {url}"}


def _link(address: str) -> str:
    url = escape(address)
    return f'<p>Studio: <a href="{url}" target="_blank">{url}</a></p>'


def _frame(attribute: str, value: str, more: str = "") -> str:
    sandbox = 'sandbox="allow-scripts"' if attribute == "srcdoc" else ""
    return (
        f'<iframe {more} {sandbox} {attribute}="{escape(value)}" title="Studio" width="100%" '
        f'height="{_HEIGHT}" style="border:0"></iframe>'
    )
