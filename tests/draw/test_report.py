"""The report page: what it holds, and how a browser opens it."""
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from jea.draw.report import Picture, Report


@pytest.fixture
def report(tmp_path):
    files = []
    for name, value in (("a", 30), ("b", 200)):
        files.append(tmp_path / f"{name}.png")
        Image.fromarray(np.full((8, 12, 3), value, np.uint8)).save(files[-1])
    return Report(title="test <of> pages", lead="segmentation & more", scores={"mIoU": 0.91534, "images": 1234, "none": float("nan")},
                  tables={"classes": {"sky": {"IoU": 0.9}, "<car>": {"IoU": 0.1}, "void": {"IoU": float("nan")},
                                      "tree": {"IoU": 0.25}}},
                  pictures=[Picture(files[0], "a.png, IoU 0.1", 'picture "a", prediction, label')],
                  charts=[Picture(files[1], "confusion", "confusion matrix")],
                  config="task: segmentation\ntrain:\n  lr: 0.1", changed=frozenset(["  lr: 0.1"]),
                  facts={"jea": "0.1.0"}, command="python test.py --config x")


class Checker(HTMLParser):
    """Tags that are closed, the headings, the pictures."""
    void = {"meta", "img", "br", "link", "input"}

    def __init__(self):
        super().__init__()
        self.open, self.headings, self.images, self.addresses = [], [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in self.void:
            self.open.append(tag)
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))
        if tag == "img":
            self.images.append(attributes)
        self.addresses += [value for name, value in attributes.items() if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_the_network_for_nothing(report, tmp_path):
    report.write(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    page = Checker()
    page.feed(text)
    assert page.open == [] and page.headings[0] == 1 and set(page.headings[1:]) == {2}
    assert len(page.images) == 2 and all(image["alt"] for image in page.images)
    assert page.addresses and all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "http://" not in text and "https://" not in text
    assert "test &lt;of&gt; pages" in text and "&lt;car&gt;" in text and "<car>" not in text
    for shown in ("0.9153", "1,234", "no value", "<mark>  lr: 0.1</mark>", "python test.py --config x"):
        assert shown in text, shown
    assert "<mark>train:" not in text


def contrast(a, b):
    def luminance(colour):
        parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_in_light_and_dark(report):
    """WCAG AA: 4.5 for text, on the page and on tinted boxes."""
    schemes = re.findall(r":root \{([^}]*)\}", report.html())
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#\w{6})", scheme))
        for text in ("ink", "soft", "link"):
            for ground in ("paper", "tint"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground, scheme)


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """
<script>
const errors = []; window.addEventListener("error", e => errors.push(e.message));
window.addEventListener("load", () => {
  const names = () => [...document.querySelectorAll("table.sortable tbody tr")].map(r => r.cells[0].textContent);
  const heads = document.querySelectorAll("table.sortable th button"), out = {start: names()};
  heads[1].click(); out.up = names(); heads[1].click(); out.down = names(); heads[0].focus(); heads[0].click(); out.name = names();
  out.sort = document.querySelector("table.sortable th").getAttribute("aria-sort");
  out.requests = performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:"));
  out.errors = errors; out.images = [...document.images].every(i => i.loading === "lazy" || i.complete);
  document.body.textContent = "PROBE" + JSON.stringify(out) + "END";
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_browser_sorts_the_table_without_an_error_or_a_request(report, tmp_path):
    (tmp_path / "report.html").write_text(report.html().replace("<body>", "<body>" + PROBE))
    done = subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                           "--disable-background-networking", "--disable-component-update", "--disable-sync",
                           f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom",
                           (tmp_path / "report.html").as_uri()], capture_output=True, text=True, timeout=120)
    found = json.loads(re.search(r"PROBE(.*)END", done.stdout, re.S).group(1).replace("&lt;", "<").replace("&gt;", ">"))
    assert found["start"] == ["sky", "<car>", "void", "tree"]
    assert found["up"] == ["<car>", "tree", "sky", "void"] and found["down"] == ["sky", "tree", "<car>", "void"]
    assert found["name"] == ["<car>", "sky", "tree", "void"] and found["sort"] == "ascending"
    assert found["requests"] == [] and found["errors"] == [] and found["images"]
