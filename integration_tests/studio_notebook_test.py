"""Studio in notebooks that nbclient runs: Jupyter, JupyterHub, Colab and Kaggle.

Not part of a plain `tox`: `tox -e studio`. Colab is a module of the same name and calls; the other
places are what they are: a kernel, Jupyter Server with its proxy, environment variables.
"""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import pytest

from integration_tests.studio_pages import expect
from keras_deepseek.studio import Studio
from tests.oracles.run_records import invent

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

PLACES = ("COLAB_RELEASE_TAG", "JUPYTERHUB_SERVICE_PREFIX", "KAGGLE_KERNEL_RUN_TYPE")

MODEL = """
import keras, numpy as np
from keras_deepseek.studio import launch_studio
from keras_deepseek.training import Trainer

model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)])
trainer = Trainer(model, optimizer="sgd", loss="mse")
x = np.random.default_rng(0).random((64, 4)).astype("float32")
"""
LAUNCH = "studio = launch_studio(trainer=trainer, port=0, path='runs/notebook.sqlite')"
FIT = "history = trainer.fit(x, x[:, :1], batch_size=8, epochs=5, verbose=0)"


def run(folder, monkeypatch, cells, **variables):
    """Returns the outputs of each cell of a notebook."""
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    client = nbclient.NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return [cell.outputs for cell in notebook.cells]


def html_of(outputs):
    """Returns the HTML of the last output."""
    return outputs[-1]["data"]["text/html"]


def as_file(folder, html):
    """Returns the address of a file that shows an output."""
    path = folder / "output.html"
    path.write_text(f'<!doctype html><meta charset="utf-8">{html}', encoding="utf-8")
    return path.as_uri()


def test_the_last_line_of_a_cell_shows_the_page_also_later(tmp_path, monkeypatch, open_page):
    outputs = run(tmp_path, monkeypatch, [MODEL, LAUNCH, FIT, "studio"])
    html = html_of(outputs[-1])
    # The kernel is gone, as in a saved notebook: the output holds the page.
    page = open_page(as_file(tmp_path, html))
    frame = page.frame_locator("iframe")
    frame.get_by_text("has ended at step 40").first.wait_for()
    frame.locator(".u-over").first.wait_for()


def test_the_page_is_live_where_its_port_is_reached(tmp_path, open_page):
    invent(tmp_path / "runs" / "run.sqlite", steps=50, begin=1e9)
    with Studio(tmp_path / "runs", port=0) as studio:
        page = open_page(as_file(tmp_path, studio._repr_html_()))
        address = studio.url.partition("#")[0]
        page.wait_for_selector(f"iframe[src^='{address}']")
        frame = page.frame_locator("iframe")
        frame.get_by_text("has ended at step 50").first.wait_for()
        invent(tmp_path / "runs" / "second.sqlite", steps=60, begin=1.1e9)
        frame.get_by_text("has ended at step 60").first.wait_for()


def test_kaggle_gets_a_page_that_is_drawn_anew(tmp_path, monkeypatch, open_page):
    faster = "from keras_deepseek.studio import notebook; notebook.SECONDS_BETWEEN_PICTURES = 0.2"
    later = "import time; time.sleep(2)"  # Until the page was drawn again.
    outputs = run(
        *(tmp_path, monkeypatch, [MODEL, faster, f"{LAUNCH}\nstudio", FIT, later]),
        KAGGLE_KERNEL_RUN_TYPE="Interactive",
    )
    (page_output,) = [output for output in outputs[2] if "data" in output]
    assert "127.0.0.1" not in page_output["data"]["text/html"]
    assert outputs[3:] == [[], []]
    page = open_page(as_file(tmp_path, html_of(outputs[2])))
    frame = page.frame_locator("iframe")
    frame.get_by_text("has ended at step 40").first.wait_for()
    frame.locator(".u-over").first.wait_for()


def test_colab_serves_the_port_by_its_own_call(tmp_path, monkeypatch):
    colab = """
import sys, types

called = []
output = types.ModuleType("google.colab.output")
output.serve_kernel_port_as_iframe = lambda port, **how: called.append((port, how))
package = types.ModuleType("google.colab")
package.output = output
sys.modules |= {"google.colab": package, "google.colab.output": output}
"""
    ask = """
import json, urllib.request

(port, how), = called
key = how["path"].removeprefix("/#")
host = {"Host": f"abc-{port}-colab.googleusercontent.com", "X-Studio-Key": key}
request = urllib.request.Request(f"http://127.0.0.1:{port}/api/poll", b"{}", host)
print(json.dumps([how, json.load(urllib.request.urlopen(request))["order"]]))
"""
    outputs = run(
        *(tmp_path, monkeypatch, [colab, MODEL, LAUNCH, FIT, "studio", ask]),
        COLAB_RELEASE_TAG="release-colab_20260801",
    )
    how, runs = json.loads(outputs[-1][-1]["text"])
    assert re.fullmatch(r"/#[\w-]{32}", how["path"])
    assert int(how["height"]) > 400
    assert runs == ["notebook"]


@contextmanager
def jupyter(folder, prefix):
    """Yields the address of a Jupyter Server under a prefix, as JupyterHub starts one."""
    settings = ["--ServerApp.base_url", prefix, "--IdentityProvider.token", "", "--port", "0"]
    settings += ["--no-browser", "--allow-root", "--ServerApp.root_dir", str(folder)]
    environment = {**os.environ, "JUPYTER_RUNTIME_DIR": str(folder / "runtime")}
    with subprocess.Popen(
        [sys.executable, "-m", "jupyter_server", *settings],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            end = time.monotonic() + 60
            while not (server_files := list(folder.glob("runtime/jpserver-*.json"))):
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.1)
            port = json.loads(server_files[0].read_text())["port"]
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def test_jupyterhub_reaches_the_port_by_its_proxy(tmp_path, monkeypatch, open_page):
    pytest.importorskip("jupyter_server_proxy", reason="jupyter-server-proxy is not installed")
    prefix = "/user/ana/"
    outputs = run(
        *(tmp_path, monkeypatch, [MODEL, LAUNCH, FIT, "studio"]),
        JUPYTERHUB_SERVICE_PREFIX=prefix,
    )
    html = html_of(outputs[-1])
    assert re.search(rf'src="{prefix}proxy/\d+/#[\w-]{{32}}"', html), html
    monkeypatch.delenv("JUPYTERHUB_SERVICE_PREFIX")
    with Studio(tmp_path / "runs", port=0) as studio, jupyter(tmp_path, prefix) as hub:
        address, _, key = studio.url.partition("#")
        port = address.rstrip("/").rpartition(":")[2]
        there = f"{hub}{prefix}proxy/{port}/"
        with urllib.request.urlopen(there) as answer:
            assert b"app.js" in answer.read()
        page = open_page(f"{there}#{key}")
        expect(page, "has ended at step 40")
        page.locator(".u-over").first.wait_for()
