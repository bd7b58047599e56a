"""What a notebook shows, with a stand-in for its kernel; `integration_tests` has real ones."""

import importlib.util
import re
import sys
import threading
from types import ModuleType

import pytest

from keras_deepseek.studio import notebook

URL = "http://127.0.0.1:6006/#the-secret"


class Kernel:
    """The part of a kernel that shows outputs."""

    def __init__(self):
        self.outputs, self.updated = [], threading.Event()

    def display(self, bundle, *, raw, display_id=False):
        assert raw
        self.outputs.append(bundle["text/html"])
        return self if display_id else None

    def update(self, bundle, *, raw):
        assert raw
        self.outputs[-1] = bundle["text/html"]
        self.updated.set()


@pytest.fixture
def kernel(monkeypatch):
    """Returns the kernel of this process, on no place in particular."""
    for name in ("COLAB_RELEASE_TAG", "JUPYTERHUB_SERVICE_PREFIX", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    kernel, display = Kernel(), ModuleType("IPython.display")
    display.display = kernel.display
    for name in ("ipykernel", "IPython"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return kernel


def test_outside_of_a_notebook_nothing_is_shown(kernel, monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel")
    with pytest.raises(NotImplementedError):
        notebook.show(URL, lambda: "<p>page</p>", threading.Event())
    assert kernel.outputs == []


def test_a_cell_has_the_page_and_a_script_that_makes_it_live(kernel):
    notebook.show(URL, lambda: "<p>a 'page'</p>", threading.Event())
    (html,) = kernel.outputs
    assert 'sandbox="allow-scripts" srcdoc="&lt;p&gt;a &#x27;page&#x27;&lt;/p&gt;"' in html
    assert f'frame.src = "{URL}"' in html


def test_two_cells_may_show_one_studio():
    first, second = (re.findall("studio-[0-9a-f]+", notebook.inline_html(URL, "")) for _ in "ab")
    assert len(set(first)) == len(set(second)) == 1  # The script names its own frame.
    assert first != second


def test_the_page_is_drawn_anew_on_kaggle_until_studio_stops(kernel, monkeypatch):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.setattr(notebook, "SECONDS_BETWEEN_PICTURES", 0.001)
    pages, has_stopped = iter(["first", OSError("busy"), "second"]), threading.Event()

    def make_page():
        page = next(pages, "last")
        if isinstance(page, OSError):
            raise page
        return page

    thread = notebook.show(URL, make_page, has_stopped)
    assert kernel.updated.wait(10)
    has_stopped.set()
    thread.join(10)
    assert not thread.is_alive()
    (html,) = kernel.outputs
    assert "127.0.0.1" not in html
    assert "first" not in html


def test_jupyterhub_reaches_the_port_by_its_proxy(kernel, monkeypatch):
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/ana/")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "jupyter_server_proxy")
    notebook.show(URL, lambda: "page", threading.Event())
    (proxied,) = kernel.outputs
    assert 'src="/user/ana/proxy/6006/#the-secret"' in proxied


def test_without_the_proxy_jupyterhub_gets_the_page(kernel, monkeypatch):
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/ana/")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    has_stopped = threading.Event()
    thread = notebook.show(URL, lambda: "page", has_stopped)
    has_stopped.set()
    thread.join(10)
    assert 'srcdoc="page"' in kernel.outputs[0]
    assert "127.0.0.1" not in kernel.outputs[0]


def test_colab_serves_the_port_by_its_own_call(kernel, monkeypatch):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_20260801")
    called, colab = [], ModuleType("google.colab")
    colab.output = ModuleType("google.colab.output")
    colab.output.serve_kernel_port_as_iframe = lambda port, **how: called.append((port, how))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    notebook.show(URL, lambda: "page", threading.Event())
    assert called == [(6006, {"path": "/#the-secret", "height": "720"})]
    assert kernel.outputs == []
