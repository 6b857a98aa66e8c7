"""Opens a page in headless Chromium, in frames of several widths, and says what is in it."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no chromium is installed")

# A frame can be narrower than the narrowest window. The page in it tells the page around it.
_BEFORE = """<script>{
const errors = [];
addEventListener("error", ({message, target}) => errors.push(message || target.outerHTML), true);
addEventListener("unhandledrejection", event => errors.push(String(event.reason)));
console.error = (...words) => errors.push(words.join(" "));
addEventListener("load", () => setTimeout(async () => {
  const pictures = [...document.images];
  const links = [...document.querySelectorAll("[src], [href]")].map(one => one.src || one.href);
  const found = {
    width: innerWidth,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    pictures: pictures.length,
    broken: pictures.filter(picture => !picture.naturalWidth).map(picture => picture.alt),
    links: links.filter(link => !/^(data:|file:)/.test(link)),
    probe: await (async () => { PROBE })(),
  };
  parent.postMessage({...found, errors}, "*");
}, 300));
}</script>"""
_AROUND = """<!doctype html><meta charset="utf-8"><body><pre></pre><script>
const found = [];
addEventListener("message", event => {
  found.push(event.data);
  if (found.length === document.querySelectorAll("iframe").length)
    document.querySelector("pre").textContent = JSON.stringify(found);
});
</script>"""


def look(page: Path, folder: Path, widths: tuple[int, ...] = (400, 1400), probe: str = "") -> list:
    """What the page shows in frames of these widths, narrowest first: a dict of each.

    ``errors`` of the console, number of ``pictures`` and the texts of ``broken`` ones, pixels of
    horizontal ``overflow``, ``links`` that lead out of the page, and what the JavaScript ``probe``
    returns. ``folder`` takes copies of the page.
    """
    text = page.read_text("utf-8")
    assert "<head>" in text
    watched = folder / "watched.html"
    watched.write_text(
        text.replace("<head>", "<head>" + _BEFORE.replace("PROBE", probe), 1), "utf-8"
    )
    frames = [f'<iframe src="watched.html" width="{w}" height="900"></iframe>' for w in widths]
    around = folder / "around.html"
    around.write_text(_AROUND + "".join(frames), "utf-8")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=2000,1000"]
    flags += ["--virtual-time-budget=20000", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", around.resolve().as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (told,) = re.findall("<pre>(.*?)</pre>", done.stdout, re.S)
    assert told, f"the page told nothing: {done.stderr[-500:]}"
    return sorted(json.loads(html.unescape(told)), key=lambda one: one["width"])
