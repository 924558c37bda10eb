"""The page of ``vos-run ui`` over HTTP: who may ask, what is refused, marking, following, correcting, exporting."""

from __future__ import annotations

import csv
import io
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.fakes.media import serving
from vosrt.errors import InputError
from vosrt.model import Model
from vosrt.page.export import KINDS
from vosrt.types import U8Array

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")

WIDTH, HEIGHT, COUNT = 160, 120, 10
TOKEN, TAB, OTHER = "t" * 32, "a" * 32, "b" * 32


def scene(t: int) -> tuple[U8Array, U8Array]:
    """A red disc that moves to the right and a blue square that stays: picture and truth."""
    image = np.random.default_rng(3).integers(150, 190, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    truth = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.circle(truth, (40 + 4 * t, 60), 24, 1, -1)
    truth[20:60, 115:150] = 2
    image[truth == 1], image[truth == 2] = (40, 40, 220), (220, 60, 40)
    return image, truth


def write_frames(folder: Path) -> Path:
    folder.mkdir()
    for t in range(COUNT):
        cv2.imwrite(str(folder / f"{t:03d}.png"), scene(t)[0])
    return folder


class Served:
    """A page on a socket, and requests to it."""

    def __init__(self, root: Path, bundle: Path, *, upload_bytes: int = 1 << 20, source: str = "") -> None:
        import uvicorn

        from vosrt.cli.ui import listen
        from vosrt.page.desk import Desk, Limits
        from vosrt.page.server import Page

        self.desk = Desk(lambda: Model.load(bundle, engine="fake", threads=1), limits=Limits(upload_bytes=upload_bytes))
        self._socket = listen("127.0.0.1", 0)
        self.port = self._socket.getsockname()[1]
        app = Page(self.desk, root, source).app(frozenset({f"127.0.0.1:{self.port}", f"localhost:{self.port}"}), TOKEN)
        self._server = uvicorn.Server(
            uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
        )
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"X-Vosrt-Token": TOKEN, "X-Vosrt-Tab": TAB},
            timeout=60,
            trust_env=False,
        )
        while not self._server.started:
            time.sleep(0.01)

    def post(self, name: str, /, **body: Any) -> Any:
        return self.http.post(f"/api/{name}", json=body)

    def did(self, name: str, /, **body: Any) -> dict[str, Any]:
        answer = self.post(name, **body)
        assert answer.status_code == 200, answer.text
        done: dict[str, Any] = answer.json()
        return done

    def labels(self, frame: int) -> U8Array | None:
        answer = self.http.get(f"/api/labels/{frame}")
        if answer.status_code == 204:
            return None
        return np.asarray(cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED), np.uint8)

    def ids(self, frame: int) -> set[int]:
        """The objects in the labels of a frame, 0 for background; empty if there are no labels."""
        labels = self.labels(frame)
        return set() if labels is None else set(map(int, np.unique(labels)))

    def idle(self) -> dict[str, Any]:
        """Wait until nothing runs; the task that says how it ended."""
        while self.desk.task["kind"] != "idle":
            time.sleep(0.02)
        return dict(self.desk.task)

    def close(self) -> None:
        self.http.close()
        self._server.should_exit = True
        self._thread.join()
        self.desk.close()
        self._socket.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_frames(tmp_path / "clip")
    (tmp_path / "secret.txt").write_text("mine")
    return tmp_path


@pytest.fixture
def served(root: Path, fake_bundle: Path) -> Iterator[Served]:
    page = Served(root, fake_bundle)
    try:
        yield page
    finally:
        page.close()


def opened(served: Served) -> Served:
    served.did("open", path="clip")
    assert served.desk.frames is not None
    assert served.desk.frames.wait(COUNT - 1, 30)
    return served


def iou(found: U8Array | None, truth: U8Array, object_id: int) -> float:
    assert found is not None
    a, b = found == object_id, truth == object_id
    return float((a & b).sum() / (a | b).sum())


def test_only_who_has_the_token_may_ask(served: Served) -> None:
    for headers in ({}, {"X-Vosrt-Token": "t" * 31}, {"X-Vosrt-Token": "é"}):
        answer = httpx.post(
            f"http://127.0.0.1:{served.port}/api/open",
            json={"path": "clip"},
            headers=[(name, value.encode()) for name, value in headers.items()],
            trust_env=False,
        )
        assert answer.status_code == 401
        assert "token" in answer.json()["error"]
    assert served.desk.frames is None
    assert httpx.get(f"http://127.0.0.1:{served.port}/", trust_env=False).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://127.0.0.1:{port}"}, 403),
        ({"Host": "evil.example:{port}"}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Host": "192.168.0.7.evil.example:{port}"}, 421),
        ({"Host": "192.168.0.7:{port}"}, 200),
        ({"Host": "[fe80::1]:{port}", "Origin": "http://[fe80::1]:{port}"}, 200),
        ({"Host": "192.168.0.7:{port}", "Origin": "http://192.168.0.8:{port}"}, 403),
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Origin": "http://localhost:{port}", "Host": "localhost:{port}"}, 200),
    ],
)
def test_other_sites_and_other_names_are_refused(served: Served, headers: dict[str, str], status: int) -> None:
    """A page of another site cannot ask, nor can one whose name was made to point to this machine."""
    given = {name: value.format(port=served.port) for name, value in headers.items()}
    assert served.http.get("/api/files", headers=given).status_code == status
    assert served.http.get("/", headers=given).status_code == status


def test_the_page_may_load_nothing_from_elsewhere(served: Served) -> None:
    answer = served.http.get("/")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    for name in ("main.js", "view.js", "timeline.js", "api.js", "style.css", "icon.svg"):
        text = served.http.get(f"/static/{name}").text
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text


@pytest.mark.parametrize(
    "path",
    ["../secret.txt", "/etc/passwd", "clip/../../secret", "link", "\0", "missing", "x" * 5000],
)
def test_files_outside_the_root_are_refused(root: Path, fake_bundle: Path, path: str) -> None:
    (root / "inside").mkdir()
    (root / "inside" / "link").symlink_to(root / "clip")
    served = Served(root / "inside", fake_bundle)
    try:
        answer = served.post("open", path=path)
        assert answer.status_code == 400
        assert "is not in" in answer.json()["error"]
        assert served.http.get("/api/files", params={"folder": path}).status_code == 404
    finally:
        served.close()


@pytest.mark.parametrize("name", ["..%2f..%2fserver.py", "%2e%2e/server.py", "server.py", "main.py"])
def test_only_the_pages_own_files_are_served(served: Served, name: str) -> None:
    assert served.http.get(f"/static/{name}").status_code == 404


def test_folders_list_videos_and_folders_only(served: Served, root: Path) -> None:
    (root / "film.MP4").write_bytes(b"x")
    (root / ".hidden.mp4").write_bytes(b"x")
    found = served.http.get("/api/files").json()
    names = {entry["name"] for entry in found["entries"]}
    assert {"clip", "film.MP4"} <= names
    assert not names & {".hidden.mp4", "secret.txt"}
    assert found["above"] is None


def test_marking_following_and_correcting(served: Served) -> None:
    """Click, follow to the end, correct in the middle and follow again; undo takes all of it back."""
    opened(served)
    assert served.did("object")["object"] == 1
    served.did("click", frame=0, object=1, x=40, y=60)
    assert iou(served.labels(0), scene(0)[1], 1) > 0.85
    assert served.labels(1) is None
    served.did("follow", frame=0)
    ended = {"kind": "idle", "run": 1, "was": "follow"}
    assert served.idle() == {**ended, "followed": COUNT - 1, "at": COUNT - 1, "stopped": False}
    assert iou(served.labels(COUNT - 1), scene(COUNT - 1)[1], 1) > 0.6
    assert served.did("object")["object"] == 2
    served.did("click", frame=5, object=2, box=[108, 12, 48, 56])
    assert iou(served.labels(5), scene(5)[1], 2) > 0.8
    assert iou(served.labels(5), scene(5)[1], 1) > 0.6
    served.did("follow", frame=5)
    served.idle()
    assert served.ids(8) == {0, 1, 2}
    assert served.ids(4) == {0, 1}
    served.did("follow", frame=5, direction="backward")
    assert served.idle()["followed"] == 4  # frame 0 is marked
    assert iou(served.labels(2), scene(2)[1], 2) > 0.6
    assert iou(served.labels(2), scene(2)[1], 1) > 0.6
    served.did("undo")
    assert served.ids(4) == {0, 1}
    served.did("redo")
    assert served.ids(4) == {0, 1, 2}
    for _ in range(8):
        served.did("undo")
    assert served.labels(0) is None
    assert served.desk.describe()["objects"] == []


def test_two_marked_frames_meet_in_between(served: Served) -> None:
    """Between two marked frames the page shows what `Model.propagate` finds in both directions."""
    opened(served)
    served.did("object")
    for frame in (0, COUNT - 1):
        served.did("click", frame=frame, object=1, x=40 + 4 * frame, y=60)
    marks = {frame: np.asarray(served.labels(frame)) for frame in (0, COUNT - 1)}
    served.did("follow", frame=COUNT - 1, direction="backward")
    assert served.idle()["followed"] == COUNT - 2
    frames, model = served.desk.frames, served.desk.model.result()
    assert frames is not None
    expected = list(model.propagate(frames.folder, marks, direction="both"))
    for item in expected:
        np.testing.assert_array_equal(np.asarray(served.labels(item.frame.index)), item.labels)
    alone = list(model.propagate(frames.folder, {0: marks[0]}, direction="forward"))
    assert any((item.labels != other.labels).any() for item, other in zip(expected, alone, strict=True))


def test_brush_and_polygon_change_what_was_found(served: Served) -> None:
    opened(served)
    served.did("object")
    served.did("paint", frame=3, object=1, points=[[10, 10], [50, 10], [50, 40], [10, 40]])
    labels = served.labels(3)
    assert labels is not None
    assert labels[25, 30] == 1
    assert labels[60, 60] == 0
    served.did("paint", frame=3, object=1, points=[[30, 25]], radius=5, add=False)
    labels = served.labels(3)
    assert labels is not None
    assert labels[25, 30] == 0
    assert labels[12, 12] == 1
    served.did("paint", frame=3, object=1, points=[[100, 60], [140, 60]], radius=4)
    labels = served.labels(3)
    assert labels is not None
    assert labels[60, 100] == labels[60, 120] == labels[60, 140] == 1
    assert labels[70, 120] == 0


def test_frames_are_accepted_as_references(served: Served) -> None:
    opened(served)
    served.did("object")
    served.did("click", frame=0, object=1, x=40, y=60)
    served.did("follow", frame=0)
    served.idle()
    assert not served.desk.project.state.found[4].marked
    served.did("accept", frame=4)
    assert served.desk.project.state.found[4].marked
    kept = served.labels(4)
    served.did("follow", frame=0)
    served.idle()
    assert np.array_equal(np.asarray(served.labels(4)), np.asarray(kept))
    served.did("accept", frame=4, marked=False)
    assert not served.desk.project.state.found[4].marked
    assert served.post("accept", frame=400).status_code == 400


def test_objects_have_names_and_colours_and_are_removed(served: Served) -> None:
    opened(served)
    served.did("object")
    served.did("object", object=1, name=" Dog ", colour="#00ff88")
    assert served.desk.describe()["objects"] == [{"object_id": 1, "name": "Dog", "colour": "#00ff88"}]
    for body in ({"object": 1, "name": " "}, {"object": 1, "colour": "red"}, {"object": 9, "name": "x"}):
        assert served.post("object", **body).status_code == 400
    served.did("click", frame=0, object=1, x=40, y=60)
    served.did("remove", object=1)
    assert served.labels(0) is None


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("click", {"frame": 0, "object": 1, "x": 160, "y": 5}, "outside the frame"),
        ("click", {"frame": 0, "object": 1, "x": "5", "y": 5}, "expected a number"),
        ("click", {"frame": 0, "object": 1, "x": 5, "y": 5, "positive": False}, "nothing is marked"),
        ("click", {"frame": 99, "object": 1, "x": 5, "y": 5}, "frame 99 is not there"),
        ("click", {"frame": 0, "object": 7, "x": 5, "y": 5}, "object 7 is not there"),
        ("click", {"frame": 0, "object": 1, "box": [1, 2, 3]}, "the box is"),
        ("paint", {"frame": 0, "object": 1, "points": [[1, 2]]}, "1 corners"),
        ("paint", {"frame": 0, "object": 1, "points": [["a", 2]], "radius": 3}, "no numbers"),
        ("paint", {"frame": 0, "object": 1, "points": []}, "no points"),
        ("paint", {"frame": 0, "object": 1, "points": [[1e400, 2]], "radius": 3}, "no points"),
        ("follow", {"frame": 0}, "shows no object"),
        ("follow", {"frame": 0, "direction": "up"}, "direction is 'up'"),
        ("export", {"kinds": ["masks"]}, "nothing to export"),
        ("open", {}, "expected text"),
    ],
)
def test_wrong_requests_change_nothing(served: Served, name: str, body: dict[str, Any], message: str) -> None:
    opened(served)
    served.did("object")
    before = served.desk.project.state
    answer = served.http.post(f"/api/{name}", content=json.dumps(body).encode())
    assert answer.status_code == 400
    assert message in answer.json()["error"]
    assert served.desk.project.state is before


def test_bodies_are_json_and_bounded(served: Served) -> None:
    assert served.http.post("/api/click", content=b"{").status_code == 400
    assert served.http.post("/api/click", content=b"[]").status_code == 400
    assert "larger than 4 MB" in served.http.post("/api/click", content=b" " * (5 << 20)).json()["error"]


def test_uploads_are_opened_and_bounded(served: Served, root: Path, fake_bundle: Path) -> None:
    from vosrt.cli.demo import CLIP

    answer = served.http.post("/api/upload", params={"name": "../../demo.mp4"}, content=CLIP.read_bytes())
    assert answer.status_code == 200, answer.text
    assert served.desk.describe()["clip"]["name"] == "../../demo.mp4"  # shown as it is, used for no path
    assert all(path.parent == served.desk.folder for path in served.desk.folder.glob("*.mp4"))
    small = Served(root, fake_bundle, upload_bytes=1000)
    try:
        for content in (b"x" * 1001, iter([b"x" * 600, b"x" * 600])):
            refused = small.http.post("/api/upload", params={"name": "a.mp4"}, content=content)
            assert refused.status_code == 413
            assert "larger than" in refused.json()["error"]
        broken = small.http.post("/api/upload", params={"name": "a.mp4"}, content=b"x" * 900)
        assert broken.status_code == 400
        assert str(small.desk.folder) not in broken.json()["error"]
        assert list(small.desk.folder.glob("*.mp4")) == []
    finally:
        small.close()


def test_everything_is_exported(served: Served) -> None:
    """And the page offers all of it."""
    page = httpx.get(f"http://127.0.0.1:{served.port}/", trust_env=False).text
    assert all(f'name="{kind}"' in page for kind in KINDS)
    opened(served)
    served.did("object")
    served.did("object", object=1, name="Disc", colour="#ff8800")
    served.did("click", frame=2, object=1, x=48, y=60)
    served.did("follow", frame=2)
    served.idle()
    served.did(
        "export", kinds=["video", "masks", "rle", "cutout", "coco", "labelme", "yolo", "mot", "cvat", "label-studio"]
    )
    download = served.idle()["download"]
    answer = httpx.get(f"http://127.0.0.1:{served.port}{download}", trust_env=False)
    assert answer.headers["content-disposition"] == 'attachment; filename="clip-vosrt.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        names = set(archive.namelist())
        expected = {
            "overlay.mp4",
            "masks.jsonl",
            "objects.csv",
            "summary.json",
            "coco.json",
            "mot.txt",
            "cvat.xml",
            "yolo/data.yaml",
        }
        assert expected <= names
        assert sum(name.startswith("masks/") for name in names) == COUNT
        assert sum(name.startswith("cutout/") for name in names) == COUNT
        rows = list(csv.DictReader(io.StringIO(archive.read("objects.csv").decode())))
        assert [row["frame"] for row in rows] == [str(t) for t in range(2, COUNT)]
        summary = json.loads(archive.read("summary.json"))
        assert summary["marked_frames"] == [2]
        assert summary["objects"][0]["name"] == "Disc"
    assert httpx.get(f"http://127.0.0.1:{served.port}/download/guess", trust_env=False).status_code == 404


def test_masks_drawn_by_hand_are_exported_where_no_model_loads(root: Path, tmp_path: Path) -> None:
    page = Served(root, tmp_path / "no bundle")
    try:
        opened(page).did("object")
        page.did("paint", frame=3, object=1, points=[[10, 10], [50, 10], [50, 40], [10, 40]])
        page.did("export", kinds=["masks"])
        assert page.idle()["download"]
    finally:
        page.close()


def test_one_tab_works_and_another_may_take_over(served: Served) -> None:
    """The first tab that listens may change things; a second one is refused until it takes over."""
    opened(served)
    with served.http.stream("GET", "/api/events", params={"tab": TAB}) as first:
        lines = first.iter_lines()
        start = json.loads(next(lines))
        assert start["owner"] is True
        assert start["state"]["clip"]["frames"] == COUNT
        other = {"X-Vosrt-Tab": OTHER}
        refused = served.http.post("/api/object", json={}, headers=other)
        assert refused.status_code == 409
        assert "another tab" in refused.json()["error"]
        assert served.http.post("/api/upload", content=b"x", headers=other).status_code == 409
        assert served.http.post("/api/take", headers=other).status_code == 200
        assert served.http.post("/api/object", json={}, headers=other).status_code == 200
        assert served.post("object").status_code == 409
        assert any(json.loads(line).get("owner") is False for line in lines)


def test_a_tab_that_took_over_gives_way_when_it_is_closed(served: Served) -> None:
    with (
        served.http.stream("GET", "/api/events", params={"tab": TAB}) as first,
        served.http.stream("GET", "/api/events", params={"tab": OTHER}) as second,
    ):
        lines, others = first.iter_lines(), second.iter_lines()
        assert json.loads(next(lines))["owner"] is True
        assert json.loads(next(others))["owner"] is False
        served.http.post("/api/take", headers={"X-Vosrt-Tab": OTHER})
        assert next(each for each in map(json.loads, lines) if "owner" in each)["owner"] is False
        second.close()
        assert next(each for each in map(json.loads, lines) if "owner" in each)["owner"] is True


def test_changes_are_told_as_they_happen(served: Served) -> None:
    opened(served)
    served.did("object")
    with served.http.stream("GET", "/api/events", params={"tab": TAB}) as events:
        lines = events.iter_lines()
        assert json.loads(next(lines))["frames"] == {}
        served.did("click", frame=0, object=1, x=40, y=60)
        served.did("follow", frame=0)
        rows: dict[str, Any] = {}
        for line in lines:
            rows.update(json.loads(line).get("frames", {}))
            if len(rows) == COUNT:
                break
    assert rows["0"][0] == 1
    assert rows["3"][0] == 0
    ((object_id, area, confidence),) = rows["3"][1]
    assert object_id == 1
    assert area > 500
    assert 0 < confidence <= 1
    assert served.http.get("/api/events", params={"tab": "x"}).status_code == 400


def test_the_command_refuses_what_it_cannot_open(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from vosrt.cli.run import main

    base = ["ui", "--engine", "fake", "--no-browser"]
    for given, message in (
        (["rtsp://127.0.0.1:9/live"], "cannot be opened as a video"),
        ([str(root / "missing.mp4")], "missing.mp4"),
        (["--root", str(root / "secret.txt")], "is no folder"),
        (["--host", "203.0.113.1"], "cannot be used"),
        (["--upload-mb", "0"], "expected 1 or more"),
    ):
        assert main([*base, *given]) == 2
        assert message in capsys.readouterr().err


def ball(count: int, width: int = WIDTH, height: int = HEIGHT) -> U8Array:
    """A red disc that swings to and fro, as a camera filmed it at its picture ``count``."""
    image = np.random.default_rng(3).integers(150, 190, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    cv2.circle(image, (80 + round(30 * np.sin(count / 15)), 60), 24, (40, 40, 220), -1)
    return np.asarray(cv2.resize(image, (width, height)), np.uint8)


def red(image: U8Array) -> U8Array:
    """Where the disc is in a picture that was compressed."""
    blue, green, of = (image[..., each].astype(int) for each in range(3))
    return np.asarray((of - green > 60) & (of - blue > 60), np.uint8)


class Camera:
    """A camera that answers with JPEG pictures, one after the other, as many cheap ones do.

    Attributes:
        sizes: width and height of the pictures of each connection; the last one stays.
        drop: ends the connection.
        stall: sends nothing while it is set.
    """

    def __init__(self) -> None:
        self.sizes, self.drop, self.stall = [(WIDTH, HEIGHT)], threading.Event(), threading.Event()
        self.connections = self.count = 0
        self._server = ExitStack()
        self.address = f"http://someone:secret@{self._server.enter_context(serving(self.send))}/camera"

    def send(self, handler: BaseHTTPRequestHandler) -> None:
        width, height = self.sizes[min(self.connections, len(self.sizes) - 1)]
        self.connections += 1
        self.drop.clear()
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        handler.end_headers()
        while not self.drop.wait(0.03):
            if self.stall.is_set():
                continue
            self.count += 1
            data = cv2.imencode(".jpg", ball(self.count, width, height))[1].tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
            handler.wfile.write(head.encode() + data + b"\r\n")

    def close(self) -> None:
        self.drop.set()
        self._server.close()


@contextmanager
def filmed(served: Served) -> Iterator[Camera]:
    camera = Camera()
    try:
        served.desk.open(camera.address, "camera")
        yield camera
    finally:
        served.desk.close()
        camera.close()


def until(true: Any, seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.02)


def freeze_and_mark(served: Served) -> int:
    """Freeze what the page shows, and mark the disc there."""
    shown = served.http.get("/api/live", params={"after": 0})
    assert shown.status_code == 200
    time.sleep(0.2)  # a person clicks what was shown a moment ago
    position = int(served.did("freeze", number=int(shown.headers["X-Vosrt-Number"]))["frame"])
    assert served.http.get(f"/api/frame/{position}").content == shown.content
    if not served.desk.project.state.objects:
        served.did("object")
    rows, columns = np.nonzero(red(served.desk.live().image(position)))
    served.did("click", frame=position, object=1, x=int(columns.mean()), y=int(rows.mean()))
    return position


def agrees(served: Served, position: int) -> float:
    return iou(served.labels(position), red(served.desk.live().image(position)), 1)


def test_a_live_picture_is_frozen_marked_and_followed(served: Served) -> None:
    with filmed(served) as camera:
        assert served.desk.describe()["clip"]["live"]
        numbers = [int(served.http.get("/api/live", params={"after": 0}).headers["X-Vosrt-Number"])]
        while len(numbers) < 4:
            after = served.http.get("/api/live", params={"after": numbers[-1]})
            numbers.append(int(after.headers["X-Vosrt-Number"]))
        assert numbers == sorted(set(numbers))
        start = freeze_and_mark(served)
        until(lambda: len(served.desk.live()) > start + 3)  # what comes while one is marked is kept
        served.did("follow", frame=start)
        until(lambda: served.desk.task.get("live", {}).get("frames", 0) > 5)
        served.did("stop")
        task = served.idle()
        assert task["stopped"]
        assert 0 < task["live"]["p50_ms"] <= task["live"]["p95_ms"]
        followed = sorted(served.desk.project.state.found)
        assert followed == list(range(start, task["at"] + 1))
        assert min(agrees(served, each) for each in followed) > 0.5
        sources = [served.desk.live().kept[each][0] for each in followed]
        assert sources == sorted(set(sources))
        # A correction goes on from the frame that was shown, through what came meanwhile, to the newest picture.
        served.did("click", frame=task["at"], object=1, x=80, y=110, positive=False)
        served.did("follow", frame=task["at"])
        until(lambda: served.desk.task.get("live", {}).get("frames", 0) > 2)
        served.did("export", kinds=["masks"])  # ends the run
        download = served.idle()["download"]
        with zipfile.ZipFile(io.BytesIO(served.http.get(download).content)) as archive:
            masks = [each for each in archive.namelist() if each.startswith("masks/")]
        assert len(masks) == len(served.desk.project.state.found)
        assert camera.connections == 1


def test_a_live_source_that_drops_and_changes_its_size_is_followed_on(served: Served) -> None:
    with filmed(served) as camera:
        camera.sizes = [(WIDTH, HEIGHT), (2 * WIDTH, 2 * HEIGHT), (WIDTH, 2 * HEIGHT)]
        start = freeze_and_mark(served)
        served.did("follow", frame=start)
        live = served.desk.live()
        for count, note in ((1, "320×240 now"), (2, "160×240 now")):
            camera.drop.set()
            until(lambda count=count: live.reconnects == count)
            assert note in served.desk.describe()["clip"]["note"]
            before = len(live)
            until(lambda before=before: served.desk.task["at"] > before + 3)
            assert live.image(served.desk.task["at"]).shape == (HEIGHT, WIDTH, 3)
            assert agrees(served, served.desk.task["at"]) > 0.5
        camera.stall.set()
        time.sleep(0.3)
        assert served.http.get("/api/live", params={"after": live.number}).status_code == 204
        served.did("stop")  # also where no picture comes
        assert served.idle()["stopped"]


def test_what_no_live_source_has_is_refused(served: Served) -> None:
    opened(served)
    assert served.http.get("/api/live").status_code == 404
    assert served.post("freeze", number=1).status_code == 400
    assert served.post("live").status_code == 400
    assert served.http.get("/api/live", params={"after": "x"}).status_code == 400


def test_the_address_of_the_command_can_be_opened_again_and_no_other(root: Path, fake_bundle: Path) -> None:
    camera = Camera()
    served = Served(root, fake_bundle, source=camera.address)
    try:
        shown = served.http.get("/api/files").json()["source"]
        assert "secret" not in shown
        served.did("open", path="clip")
        assert not served.desk.describe()["clip"]["live"]
        served.did("open", source=True)
        assert served.desk.describe()["clip"]["name"] == shown
        assert served.post("open", path=camera.address).status_code == 400
    finally:
        served.close()
        camera.close()


class Pictures:
    """A live source whose pictures come when the test says so."""

    def __init__(self) -> None:
        from vosrt.video.base import SourceInfo

        self.info, self.warnings, self._go = (
            SourceInfo("test", 32, 24, 25.0, None, live=True),
            (),
            threading.Semaphore(0),
        )
        self.first, self.ended = self._picture(0), False

    def _picture(self, number: int) -> Any:
        from vosrt.video.base import Frame

        return Frame(np.full((24, 32, 3), 5 * number % 250, np.uint8), number, number / 25, str(number))

    def __iter__(self) -> Iterator[Any]:
        yield self.first
        number = 0
        while not self.ended:
            self._go.acquire()
            number += 1
            yield self._picture(number)

    def send(self, count: int = 1) -> None:
        for _ in range(count):
            self._go.release()

    def close(self) -> None:
        self.ended = True


def test_whoever_follows_a_live_source_gets_its_newest_picture(tmp_path: Path) -> None:
    from vosrt.page.live import LiveFrames

    source = Pictures()
    live = LiveFrames(source, tmp_path, limit_bytes=1 << 20, reopen=Pictures)
    until(lambda: live.number == 1)
    assert live.freeze(0) == 0
    live.keep_every_s = 0.0
    source.send(9)
    until(lambda: live.number == 10)
    assert live.reach(1, 1)
    assert [each[0] for each in live.kept] == [1, 10]  # the eight between are forgotten
    assert not live.reach(2, 0.05)  # no picture is followed twice
    assert int(live.image(1).mean()) == pytest.approx(45, abs=2)
    source.send()
    assert live.reach(2, 5)
    source.ended = True
    source.send()
    live.close()
    assert not list(tmp_path.iterdir())


def test_a_live_source_keeps_the_newest_frames_that_fit(tmp_path: Path) -> None:
    from vosrt.page.live import LiveFrames
    from vosrt.page.project import Found, Project

    source = Pictures()
    live, project = LiveFrames(source, tmp_path, limit_bytes=6000, reopen=Pictures), Project()
    for position in range(40):
        assert live.reach(position, 5)
        project.put(position, Found.of(np.ones((24, 32), np.uint8), {1: 1.0}))
        project.forget(live.oldest)
        source.send()
    assert 0 < live.oldest < 39
    assert sorted(project.state.found) == list(range(live.oldest, 40))
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) <= 6000
    assert project.rows(0) == []
    live.image(39)
    with pytest.raises(InputError, match="is not there; expected"):
        live.image(0)
    source.ended = True
    source.send()
    live.close()


def test_a_pixel_is_explained(served: Served) -> None:
    """As ``vos-run explain`` does, in either direction; the frame's stream is kept for the next pixel."""
    opened(served)
    served.did("object")
    served.did("click", frame=4, object=1, x=56, y=60)
    assert served.post("explain", frame=4, x=5, y=5).status_code == 400
    for direction in ("forward", "backward"):
        served.did("follow", frame=4, direction=direction)
        served.idle()
    for frame, before in ((8, {4, 5, 6, 7}), (1, {4, 3, 2})):
        served.did("explain", frame=frame, x=40 + 4 * frame, y=60)
        found = served.idle()["explained"]
        assert (found["frame"], found["object"]) == (frame, 1)
        assert {vote["frame"] for vote in found["votes"]} <= before
        assert sum(vote["weight"] for vote in found["votes"]) == pytest.approx(1, abs=1e-3)
        known = served.desk._explained
        served.did("explain", frame=frame, x=2, y=2)
        assert served.idle()["explained"]["object"] == 0
        assert served.desk._explained is known
    assert "outside the frame" in served.post("explain", frame=8, x=WIDTH, y=0).json()["error"]
