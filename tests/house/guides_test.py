"""The guides keep their rules, and what breaks a rule ends the build with file and line."""

import socket

import nbformat
import pytest

from guides import build

GUIDE = """\
\"\"\"
Title: A guide
Author: The keras_deepseek authors
Date created: 2026/11/30
Last modified: 2026/11/30
Description: It draws a line.
Time: 2 seconds on two cores, 1 minute with PyTorch
Install: "keras_deepseek[pictures]" scikit-learn
Accelerator: NvidiaTeslaT4
\"\"\"

import matplotlib.pyplot as plt

\"\"\"
## A line
\"\"\"

plt.plot([1, 2])
plt.savefig("line.png")
assert plt.gcf()
"""
FAULTS = {
    "no header": (lambda text: text[text.index("import") :], 1, "expected a header with Title"),
    "no time": (lambda text: text.replace("Time: 2", "Tim: 2"), 7, "got 'Tim: 2 seconds"),
    "header without time": (
        lambda text: "\n".join(line for line in text.splitlines() if "Time" not in line),
        1,
        "the header has no Time",
    ),
    "another time": (lambda text: text.replace("on two cores", ""), 7, "expected a match for"),
    "another machine": (lambda text: text.replace("NvidiaTeslaT4", "H100"), 9, "TpuV5E8"),
    "wrong syntax": (lambda text: text.replace("[1, 2]", "[1, 2"), 18, "does not match"),
    "too long": (
        lambda text: text.replace("plt.plot", "# A comment.\n\n" + "a = 1\n" * 117 + "plt.plot"),
        138,
        "got 121 lines of code, expected 119 at most",
    ),
    "no picture": (lambda text: text.replace("savefig", "show"), 18, "expected a picture"),
    "no assertion": (lambda text: text.replace("assert ", ""), 18, "expected an assertion"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_guide_that_breaks_a_rule_ends_the_build(fault, tmp_path, monkeypatch):
    spoil, line, message = FAULTS[fault]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "02_good.py").write_text(GUIDE, encoding="utf-8")
    (tmp_path / "03_bad.py").write_text(spoil(GUIDE), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        build.main(["out", "02_good.py", "03_bad.py"])
    assert str(ended.value).startswith(f"03_bad.py:{line}: ")
    assert message in str(ended.value)
    assert not (tmp_path / "out").exists()


def test_a_guide_that_is_not_utf_8_ends_the_build(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "02_bad.py").write_bytes(GUIDE.replace("a line", "a l\xefne").encode("latin-1"))
    with pytest.raises(SystemExit, match=r"^02_bad.py:6: 'utf-8' codec can't decode byte 0xef"):
        build.main(["out", "02_bad.py"])


def test_a_guide_becomes_a_notebook_a_page_and_a_folder_for_kaggle(tmp_path):
    (tmp_path / "02_line.py").write_text(GUIDE, encoding="utf-8")
    github = ["--github", "owner/name/blob/notebooks/guides", "--kaggle-user", "somebody"]
    build.main([str(tmp_path), str(tmp_path / "02_line.py"), *github])
    notebook = nbformat.read(tmp_path / "notebooks/02_line.ipynb", as_version=4)
    nbformat.validate(notebook)
    opening, install, *cells = notebook.cells
    assert "colab.research.google.com/github/owner/name/blob/notebooks" in opening.source
    address = "keras_deepseek[pictures] @ git+https://github.com/owner/name"
    assert install.source == f'%pip install "{address}" scikit-learn'
    assert [cell.cell_type for cell in cells] == ["code", "markdown", "code"]
    page = (tmp_path / "site/guides/02_line.md").read_text(encoding="utf-8")
    assert page.startswith("# A guide\n\n[Download the notebook](02_line.ipynb) · [Open in Colab](")
    assert "python\nimport matplotlib.pyplot as plt\n````\n\n## A line\n\n````" in page
    metadata = (tmp_path / "kaggle/02_line/kernel-metadata.json").read_text(encoding="utf-8")
    assert '"machine_shape": "NvidiaTeslaT4"' in metadata
    assert '"enable_internet": false' in metadata


def test_the_guides_keep_their_rules_and_a_second_build_is_the_same(root, tmp_path):
    written = []
    for name in ("first", "second"):
        build.main([str(tmp_path / name)])
        files = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
        written.append({path.relative_to(tmp_path / name): path.read_bytes() for path in files})
    assert written[0] == written[1]
    guides = list((root / "guides").glob("[0-9][0-9]_*.py"))
    assert len(written[0]) == 5 * len(guides) + 1
    text = b"".join(written[0].values()).decode()
    for private in (str(root), str(tmp_path), socket.gethostname(), "git+https"):
        assert private not in text
