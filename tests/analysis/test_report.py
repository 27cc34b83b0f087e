"""Reports: what they tell, whatever is missing; nothing in them is taken for markup."""

import base64
import dataclasses
import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import ckptavg
from ckptavg.analysis import write_report
from ckptavg.analysis.report.html import facts, page, tag
from ckptavg.errors import OutputError, ResourceError, RunError
from ckptavg.runs.describe import human_size
from ckptavg.runs.history import EpochLog
from ckptavg.runs.proof import tensor_records
from ckptavg.runs.record import BatchNormRecord, Record
from tests.helpers.command_line import main
from tests.helpers.files import fill, leftovers, write_h5

NASTY = """<img src=x onerror="alert(1)">&amp;'$x_{\x01\u202e</pre>"""
TAGS = {
    *("html", "head", "meta", "link", "title", "style", "body", "header", "section", "h1", "h2"),
    *("p", "dl", "dt", "dd", "div", "figure", "img", "figcaption", "ul", "li", "code", "pre"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}


class Page(HTMLParser):
    """A page as a browser reads it: texts by tag, attributes, pictures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags, self.attributes, self.pictures, self._open = set(), [], [], []
        self.texts: dict[str, list[str]] = {}
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag == "img":
            (source,) = (value for name, value in attrs if name == "src")
            self.pictures.append(
                base64.b64decode(source.removeprefix("data:image/svg+xml;base64,"))
            )
        if tag not in ("meta", "link", "img"):
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        for name in set(self._open):
            self.texts[name][-1] += data

    def words(self, *tags: str) -> str:
        return "\n".join(text for name in tags or ("body",) for text in self.texts.get(name, ()))


def write_run(folder: Path, epochs: int, *, history: bool = True, **facts) -> Path:
    """A run of a small model whose weights walk at random."""
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True)
    rng = np.random.default_rng(0)
    weights = np.zeros((40, 30))
    logs = []
    for epoch in range(1, epochs + 1):
        weights = weights + rng.normal(size=weights.shape)
        path = checkpoints / f"epoch-{epoch:04d}.weights.h5"
        tensors = {f"layers/dense_{n}/vars/0": weights[n::2].astype("float32") for n in range(2)}
        write_h5(path, tensors)
        metrics = {"loss": 1.0 / epoch, "val_loss": 2.0 / epoch}
        known = {
            "epoch": epoch,
            "step": 10 * epoch,
            "learning_rate": 0.1,
            "metrics": metrics,
            "versions": {"ckptavg": "0.1", "keras": "3"},
            "time": f"2026-01-01T00:{epoch // 60:02d}:{epoch % 60:02d}+00:00",
        }
        record = Record(path.name, path.stat().st_size, **{**known, **facts})
        record.write(checkpoints / f"epoch-{epoch:04d}.json", tensor_records(path))
        names = ("epoch", "step", "learning_rate", "metrics", "time")
        logs.append(EpochLog(*(getattr(record, name) for name in names)).to_line())
    if history:
        (folder / "history.jsonl").write_text("".join(logs))
    return folder


def change(run: Path, epoch: int, **facts) -> None:
    path = run / "checkpoints" / f"epoch-{epoch:04d}.json"
    record = Record.read(path)
    dataclasses.replace(record, **facts).write(path, record.read_tensors())


def test_the_report_of_a_training(trained_run, tmp_path):
    average = tmp_path / "swa.weights.h5"
    ckptavg.merge(ckptavg.open_run(trained_run).select(last=3), average, recipe="ema:0.5")
    done = write_report(trained_run, tmp_path / "r.html", merged=average)
    assert (done.output, done.notes) == (tmp_path / "r.html", ())
    assert done.size == done.output.stat().st_size < 2_000_000
    found = Page(done.output)
    assert found.tags <= TAGS
    assert len(found.pictures) == 7
    assert all(picture.lstrip().startswith(b"<?xml") for picture in found.pictures)
    words = found.words("dd")
    records = ckptavg.open_run(trained_run).records
    for told in (
        "tiny (Sequential)",
        f"6 epochs, {records[-1].step:,} steps",
        "4 checkpoints of epochs 3-6",
        f"ckptavg {ckptavg.__version__}",
        "ema:0.5",
        "3 checkpoints of epochs 4-6",
        "0.1429, 0.2857, 0.5714",
        "2.33 of 3 checkpoints",
        "every byte that was averaged was checked",
        "stale: averaged with the weights",
    ):
        assert told in words, told
    cells = found.texts["td"]
    for record in records:
        row = cells.index(record.file)
        numbers = (record.learning_rate, *record.metrics.values())
        assert cells[row - 9 : row] == [
            str(record.epoch),
            str(record.step),
            *(f"{number:#.4g}" for number in numbers),
            human_size(record.size),
            {4: "0.1429", 5: "0.2857", 6: "0.5714"}.get(record.epoch, ""),
        ]
    merge, refresh = found.texts["pre"]
    assert merge.splitlines() == list(done.commands)
    assert "merge" in merge.splitlines()[0]
    assert refresh.startswith("ckptavg update-bn")


def test_a_report_is_the_same_each_time_and_replaces_nothing_unasked(tmp_path):
    run, out = write_run(tmp_path / "run", 2), tmp_path / "r.html"
    write_report(run, out)
    first = out.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        write_report(run, out)
    write_report(ckptavg.open_run(run), out, overwrite=True)
    assert out.read_bytes() == first
    for name, reason in (
        ("swa.weights.h5", "name an .html file"),
        ("nowhere/r.html", "does not exist"),
        ("run/checkpoints/r.html", "in the checkpoint folder of a run"),
    ):
        with pytest.raises(OutputError, match=reason):
            write_report(run, tmp_path / name, overwrite=True)
    assert not leftovers(tmp_path)


def test_a_full_disk_leaves_the_former_report(tmp_path, small_disk):
    run, out = write_run(tmp_path / "run", 1), small_disk / "r.html"
    out.write_text("former")
    ballast = fill(small_disk, leave=8192)
    with pytest.raises(ResourceError, match=r"r\.html: the disk of .* is full"):
        write_report(run, out, overwrite=True)
    ballast.unlink()
    assert [path.name for path in small_disk.iterdir()] == ["r.html"]
    assert out.read_text() == "former"


def test_names_are_text_wherever_they_stand(tmp_path):
    folder = tmp_path / NASTY.replace("/", "|")
    state = BatchNormRecord(2, "fresh", 10, 2, NASTY, mode=NASTY)
    metrics = {NASTY: 0.5, f"val_{NASTY}": 0.25, "_hidden": 1.0}
    run = write_run(
        folder, 3, metrics=metrics, versions={NASTY: NASTY}, time=NASTY, batch_norm=state
    )
    (run / "checkpoints" / "<b>.weights.h5").write_bytes(b"")
    config = {"class_name": NASTY, "config": {"name": NASTY}}
    content = {"format": "ckptavg-model", "version": 1, "has_assets": False, "metadata": {}}
    (run / "model.json").write_text(json.dumps({**content, "config": config}))
    merged = tmp_path / "<i>&.weights.h5"
    ckptavg.merge(run, merged)
    path = Path(f"{merged}.json")
    record = Record.read(path)
    dataclasses.replace(record, recipe=NASTY, batch_norm=state).write(path, record.read_tensors())
    done = write_report(run, tmp_path / "r.html", merged=merged)
    found = Page(done.output)
    assert found.tags <= TAGS
    assert {name for name, _ in found.attributes} <= {
        "charset", "http-equiv", "content", "name", "rel", "href", "class", "role", "aria-label",
        "tabindex", "src", "alt", "lang",
    }  # fmt: skip
    shown = NASTY.replace("\x01", "\ufffd")
    for where in ("th", "dd", "figcaption"):
        assert shown in found.words(where), where
    assert "<b>.weights.h5" in found.words("li")
    assert "<i>&.weights.h5" in found.words("pre")
    assert all(b"onerror" not in picture for picture in found.pictures)


@pytest.mark.parametrize(
    ("epochs", "facts", "expected"),
    [
        (1, {}, "A single checkpoint has no distances to others."),
        (1, {"metrics": {}}, "The learning rate by epoch."),
        (1, {"metrics": {}, "learning_rate": None}, "No metrics or learning rates"),
        (3, {"step": None, "history": False}, "3 epochs"),
        (1, {"metrics": {"loss": float("nan"), "auc": float("inf")}}, "nan"),
        (1, {"batch_norm": BatchNormRecord(1, "running")}, "statistics from training"),
        (1, {"metrics": {f"m{n}": n / 7 for n in range(20)}}, "14 more metrics are in the table"),
    ],
)
def test_what_is_missing_is_said_or_left_out(tmp_path, epochs, facts, expected):
    run = write_run(tmp_path / "run", epochs, **facts)
    done = write_report(run, tmp_path / "r.html")
    found = Page(done.output)
    assert expected in found.words()
    assert "no configuration in the run" in found.words("dd")
    assert f"{epochs} checkpoint" in found.words("header")
    assert done.commands[0] == f"ckptavg doctor {run}"
    assert done.notes == ()


@pytest.mark.usefixtures("unrendered")
def test_a_run_with_every_fault_has_a_report_that_tells_of_them(tmp_path):
    run = write_run(tmp_path / "run", 6)
    average = tmp_path / "swa.weights.h5"
    ckptavg.merge(run, average)
    folder = run / "checkpoints"
    change(run, 2, non_finite=("layers/dense_0/vars/0",))
    (folder / "epoch-0003.weights.h5").unlink()
    (folder / "epoch-0009.weights.h5").write_bytes(b"torn")
    (run / "history.jsonl").write_text("{}\n")
    (run / "model.json").write_text("{}")
    done = write_report(run, tmp_path / "r.html", merged=average)
    notes = "\n".join(done.notes)
    for told in (
        "NaN or infinity in 1 checkpoint of epoch 2",
        "Recorded, but the file is missing: 1 checkpoint of epoch 3",
        "Incomplete, without a record: epoch-0009.weights.h5",
        "The history is missing: line 1",
        "The average is not shown among the checkpoints",
    ):
        assert told in notes, told
    found = Page(done.output)
    assert found.words("li").count("\n") == 4
    assert "epoch-0002.weights.h5 (NaN or infinity)" in found.texts["td"]
    assert "epoch-0003.weights.h5 (missing)" in found.texts["td"]
    assert len(found.pictures) == 5
    # a checkpoint that is not what was saved: there are no distances, and the report says why
    path = folder / "epoch-0005.weights.h5"
    path.write_bytes(path.read_bytes()[:-100])
    done = write_report(run, tmp_path / "r.html", overwrite=True)
    assert "The geometry of the checkpoints could not be measured" in done.notes[-1]
    assert len(Page(done.output).pictures) == 1


@pytest.mark.usefixtures("unrendered")
def test_what_is_no_average_and_averages_of_others(tmp_path):
    run = write_run(tmp_path / "run", 3)
    other = write_run(tmp_path / "other", 2)
    average = tmp_path / "swa.weights.h5"
    ckptavg.merge([run, other], average)
    done = write_report(run, tmp_path / "r.html", merged=average)
    assert "also averages" in done.notes[0]
    assert str(other / "checkpoints") in done.commands[0]
    for path in (run / "checkpoints" / "epoch-0001.weights.h5", tmp_path / "nothing.weights.h5"):
        with pytest.raises(RunError):
            write_report(run, tmp_path / "s.html", merged=path)
    with pytest.raises(RunError, match="there is no run"):
        write_report(tmp_path / "nowhere", tmp_path / "s.html")
    assert not (tmp_path / "s.html").exists()


@pytest.mark.usefixtures("unrendered")
def test_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "run", 2)
    change(run, 1, non_finite=("layers/dense_0/vars/0",))
    status, text, err = main("report", "run")
    assert status == 0, err
    assert re.match(r"wrote report.html: [\d.]+ kB\n  NaN or infinity in 1 checkpoint", text)
    status, _, err = main("report", "run")
    assert (status, "error: report.html exists already" in err) == (1, True)
    ckptavg.merge("run", "swa.weights.h5")
    options = ("--merged", "swa.weights.h5", "-o", "r.html", "--overwrite", "--json")
    content = json.loads(main("report", "run", *options, "--max-memory", "64MiB")[1])
    assert content["output"] == "r.html"
    assert content["size"] == Path("r.html").stat().st_size
    assert content["merged"] == "swa.weights.h5"
    assert content["commands"][0] == "ckptavg merge run -o swa.weights.h5"
    assert len(content["notes"]) == 1
    status, _, err = main("report", "run", "-o", "s.html", "--max-memory", "1kB")
    assert (status, "too low" in err, Path("s.html").exists()) == (1, True, False)


_WITHOUT = """
import sys

blocked = sys.argv.pop(1).split(",")

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import ckptavg.cli
ckptavg.cli.main()
"""


@pytest.mark.parametrize(
    ("blocked", "expected"),
    [("keras,tensorflow,pandas,jax,torch", None), ("matplotlib", "pip install 'ckptavg[plots]'")],
)
def test_a_report_needs_matplotlib_and_no_keras(tmp_path, blocked, expected):
    run, out = write_run(tmp_path / "run", 2), tmp_path / "r.html"
    command = [sys.executable, "-c", _WITHOUT, blocked, "report", str(run), "-o", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (result.returncode == 0) == out.exists() == (expected is None), result.stderr
    if expected is not None:
        assert result.stderr.startswith("error: a report needs matplotlib")
        assert expected in result.stderr


def test_markup_is_made_of_tags_only():
    assert tag("p", "a < b & c", class_='x"y') == '<p class="x&quot;y">a &lt; b &amp; c</p>'
    assert tag("p", tag("b", "1"), None, ["2", tag("i", "<")]) == "<p><b>1</b>2<i>&lt;</i></p>"
    assert facts([("a", "1"), ("b", None), ("c", "")]) == "<dl><dt>a</dt><dd>1</dd></dl>"
    whole = page("<t>", tag("p", "\udcff\x00"))
    assert "<title>&lt;t&gt;</title>" in whole
    assert "<p>?\ufffd</p>" in whole


_MEASURE = """<!DOCTYPE html><body><script>
const found = {};
onload = async () => {
  for (const width of [1280, 390]) {
    const frame = document.createElement("iframe");
    frame.style = `width: ${width}px; height: 900px; border: 0`;
    const loaded = new Promise(done => frame.onload = done);
    frame.src = "report.html";
    document.body.append(frame);
    await loaded;
    const page = frame.contentDocument, root = page.documentElement;
    const wide = [...page.body.querySelectorAll("*")].filter(
      e => !e.closest(".scroll, pre") && e.getBoundingClientRect().right > width + 0.5);
    found[width] = {
      overflow: root.scrollWidth - root.clientWidth,
      wide: wide.map(e => e.outerHTML.slice(0, 80)),
      pictures: [...page.images].map(i => i.complete && i.naturalWidth > 0),
      widest: Math.max(...[...page.images].map(i => i.getBoundingClientRect().width)),
      resources: frame.contentWindow.performance.getEntriesByType("resource")
        .map(r => r.name).filter(name => !name.startsWith("data:")),
      text: getComputedStyle(page.body).fontSize,
    };
  }
  document.title = "measured";
  document.body.textContent = JSON.stringify(found);
};
</script></body>"""


def test_in_a_browser_nothing_overflows_and_nothing_is_asked_for(tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no chromium to look at a report with")
    served = tmp_path / "served"
    served.mkdir()
    name = "a_long_metric_name_of_the_second_output_" * 3
    run = write_run(tmp_path / ("run" * 40), 60, metrics={"loss": 1.0, name: 2.0})
    average = tmp_path / f"{'swa' * 30}.weights.h5"
    ckptavg.merge(run, average, recipe="ema:0.9")
    write_report(run, served / "report.html", merged=average)
    (served / "index.html").write_text(_MEASURE)
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *_):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=served)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        quiet = ("gpu", "background-networking", "component-update", "sync")
        command = [
            chromium, "--headless", "--no-sandbox", "--no-first-run", "--virtual-time-budget=20000",
            *(f"--disable-{what}" for what in quiet), f"--user-data-dir={tmp_path / 'user'}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--window-size=1400,1000",
            "--dump-dom", f"http://127.0.0.1:{server.server_port}/index.html",
        ]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        server.shutdown()
    assert "<title>measured</title>" in result.stdout, result.stdout[-2000:] + result.stderr[-2000:]
    text = re.search(r"<body>(.*)</body>", result.stdout, re.DOTALL)[1]
    found = json.loads(text.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    for width in ("1280", "390"):
        assert found[width]["overflow"] == 0
        assert found[width]["wide"] == []
        assert found[width]["resources"] == []
        assert found[width]["pictures"] == [True] * 7
        assert found[width]["text"] == "16px"
    assert 300 < found["390"]["widest"] < 390 < found["1280"]["widest"] < 640
    assert set(asked) <= {"/index.html", "/report.html", "/favicon.ico"}  # the first page's icon


@pytest.mark.usefixtures("unrendered")
def test_an_average_of_another_run_is_refused(trained_run, tmp_path):
    other = Path(shutil.copytree(trained_run, tmp_path / "other"))
    merged = tmp_path / "other.weights.h5"
    ckptavg.merge(other, merged)
    message = r"other\.weights\.h5 is not an average of .*run, but of checkpoints such as .*other"
    with pytest.raises(RunError, match=message):
        write_report(trained_run, tmp_path / "r.html", merged=merged)
    assert not (tmp_path / "r.html").exists()
    shutil.rmtree(other)  # what is gone may have been of this run
    assert write_report(trained_run, tmp_path / "r.html", merged=merged).notes
