"""The page of a run: complete, escaped, alone, and readable in a real browser."""

from __future__ import annotations

import html
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from spa_graph.models_zoo.demo import model_path
from tests.conftest import Command, assert_refused
from tests.models import CHAIN, network

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

ODD = "w<b>&$1$"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


class _Reader(HTMLParser):
    """The page's text, its tags, and whether they are closed as they were opened."""

    VOID = {"meta", "link", "br", "img", "input", "hr"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(path: Path) -> _Reader:
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """CHAIN with a weight whose name means something to HTML and to matplotlib."""
    model = network(CHAIN)
    for weight in model.graph.initializer:
        weight.name = ODD if weight.name == "w2" else weight.name
    for node in model.graph.node:
        node.input[:] = [ODD if name == "w2" else name for name in node.input]
    onnx.save(model, tmp_path / "odd.onnx")
    return tmp_path / "odd.onnx"


def test_the_page_has_everything(process: Command, odd: Path) -> None:
    arguments = ("odd.onnx", "--flops", 0.5, "--latency-seconds", 0.1, "--html", "r.html")
    ran = process(*arguments)
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[-1] == "wrote odd.pruned.onnx, r.html"
    reader = read(odd.with_name("r.html"))
    text = " ".join(" ".join(reader.text).split())
    for part in (
        "Summary", "Verified: equals the original", "with 95% confidence", "What was run",
        "spa-prune odd.onnx --flops 0.5 --latency-seconds 0.1 --html r.html", "onnxruntime",
        "Channels", "Importance", "By l1.", "The cut in each group", "FLOPs per operator",
        "Parameters per operator", "Latency per operator", "What is frozen, and why",
        "is graph output `y`",
    ):  # fmt: skip
        assert part in text, part
    assert f"{ODD}:0" in text
    assert html.escape(ODD) in odd.with_name("r.html").read_text()
    pictures = [attributes for tag, attributes in reader.tags if tag == "svg"]
    assert len(pictures) == 6
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in pictures)


def test_the_page_stands_alone(process: Command, odd: Path) -> None:
    ran = process("odd.onnx", "--flops", 0.5, "--latency-seconds", 0, "--html", "r.html", "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    reader = read(odd.with_name("r.html"))
    assert not [tag for tag, _ in reader.tags if tag in ("script", "link", "img", "iframe")]
    for tag, attributes in reader.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert "@import" not in odd.with_name("r.html").read_text()
    assert odd.with_name("r.html").stat().st_size < 300_000


def test_ids_of_pictures_do_not_clash(process: Command, odd: Path) -> None:
    """Two pictures on a page must not draw with each other's clips and marks."""
    process("odd.onnx", "--flops", 0.5, "--latency-seconds", 0, "--html", "r.html", "--quiet")
    page = odd.with_name("r.html").read_text()
    bodies: dict[str, set[str]] = {}
    for body in re.findall(r'<clipPath id="[^"]+">.*?</clipPath>', page, re.S):
        name = body.partition('id="')[2].partition('"')[0]
        bodies.setdefault(name, set()).add(" ".join(body.split()))
    assert bodies
    assert all(len(each) == 1 for each in bodies.values())


def test_the_curve_of_an_earlier_sweep(process: Command, chain: Path) -> None:
    x = np.random.default_rng(0).normal(size=(32, 3, 8, 8)).astype(np.float32)
    np.savez(chain.with_name("x.npz"), x=x)
    options = ("--calibrate", "x.npz", "--latency-seconds", 0)
    swept = process("sweep", "chain.onnx", "--flops", "0.8,0.6", *options, "--html", "s.html")
    assert swept.code == 0, swept.err
    page = " ".join(read(chain.with_name("s.html")).text)
    for part in ("Quality against budget", "obspa-flops-0.8.onnx", "Pareto frontier", "0.8"):
        assert part in page, part
    ran = process("chain.onnx", "--flops", 0.7, *options, "--html", "r.html")
    assert ran.code == 0, ran.err
    assert "Of the sweep in chain.sweep" in " ".join(read(chain.with_name("r.html")).text)
    onnx.save(network(CHAIN, seed=9), chain)  # another network: that sweep says nothing about it
    ran = process("chain.onnx", "--flops", 0.7, *options, "--html", "r.html", "--overwrite")
    assert ran.code == 0, ran.err
    assert "Of the sweep" not in " ".join(read(chain.with_name("r.html")).text)


def test_where_the_page_may_go(command: Command, chain: Path) -> None:
    start = (chain, "--flops", 0.5)
    assert_refused(command, chain.parent, *start, "--html", chain, says="is part of the input")
    missing = chain.parent / "no" / "r.html"
    assert_refused(command, chain.parent, *start, "--html", missing, says="does not exist")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the demo network."""
    from spa_graph import prune
    from spa_graph.pictures.report import report_page

    folder = tmp_path_factory.mktemp("page")
    result = prune(model_path(), flops=0.5, latency_seconds=0.2, profile=True)
    path = folder / "r.html"
    path.write_text(report_page(result.report, "spa-prune model.onnx --flops 0.5"), "utf-8")
    return path


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.filterwarnings("ignore")
def test_in_chromium(shown: Path, width: int) -> None:
    """It fits the screen, asks nothing of the network, and letters are large enough."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium on the path")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": width, "height": 800})
        complaints: list[Any] = []
        asked: list[str] = []
        view.on("console", lambda message: complaints.append(message.text))
        view.on("pageerror", lambda error: complaints.append(str(error)))
        view.on("request", lambda request: asked.append(request.url))
        view.goto(shown.as_uri())
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        assert view.locator("svg[role=img]").count() == 6
        sizes = view.evaluate(
            "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect())"
            ".map(r => [r.left, r.right, r.width])"
        )
        assert all(left >= 0 and right <= width for left, right, _ in sizes)
        # 8 points of a picture that is 3.8 inches wide
        assert all(8 * size / (72 * 3.8) > 9 for _, _, size in sizes)
        folded = view.locator("details").first
        assert not folded.locator("table").is_visible()
        folded.locator("summary").click()
        assert folded.locator("table").is_visible()
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        assert complaints == []
        assert asked == [shown.as_uri()]
        browser.close()
