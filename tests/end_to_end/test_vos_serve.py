"""``vos-run serve``: frames in, masks out, limits, figures, and clients that vanish."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.fakes.programs import program
from vosrt.model import Model
from vosrt.types import U8Array

pytest.importorskip("starlette", reason="pip install 'vosrt[serve]'")
pytest.importorskip("prometheus_client", reason="pip install 'vosrt[serve]'")
client = pytest.importorskip("websockets.sync.client", reason="pip install 'vosrt[serve]'")
exceptions = pytest.importorskip("websockets.exceptions")
httpx = pytest.importorskip("httpx", reason="pip install 'vosrt[dev]'")

MASK = np.zeros((64, 96), np.uint8)
MASK[8:32, 8:32] = 3


def frame(t: int) -> U8Array:
    image = np.random.default_rng(1).integers(90, 130, (64, 96, 3), dtype=np.uint8)
    image[8:32, 8 + 2 * t : 32 + 2 * t] = (20, 20, 240)
    return image


def png(image: U8Array) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1])).save(data, format="PNG")
    return data.getvalue()


@contextmanager
def served(bundle: Path, *more: str, token: str = "") -> Iterator[tuple[str, int]]:
    """A server in a process of its own: its address, and the number of the process."""
    arguments = program("serve", "--bundle", str(bundle), "--engine", "fake", "--port", "0", "--size", "native")
    environment = os.environ | {"VOSRT_TOKEN": token}
    with subprocess.Popen([*arguments, "--json", *more], stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["address"], process.pid
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0


def figure(address: str, name: str) -> float:
    text = httpx.get(address.replace("ws:", "http:").replace("/v1/stream", "/metrics"), timeout=60).text
    found = re.search(rf"^{re.escape(name)} ([\d.e+]+)$", text, re.MULTILINE)
    assert found is not None, text
    return float(found[1])


def begin(socket: Any, first: int = 0) -> tuple[dict[str, Any], U8Array]:
    socket.send('{"mask": true}')
    socket.send(png(MASK))
    return step(socket, first)


def step(socket: Any, t: int) -> tuple[dict[str, Any], U8Array]:
    socket.send(png(frame(t)))
    answer = json.loads(socket.recv(timeout=60))
    with Image.open(io.BytesIO(socket.recv(timeout=60))) as mask:
        return answer, np.asarray(mask, np.uint8)


def connect(address: str, **more: Any) -> Any:
    return client.connect(address, open_timeout=60, ping_timeout=None, **more)


def test_masks_are_those_of_a_stream_and_figures_count_them(fake_bundle: Path) -> None:
    with Model.load(fake_bundle, engine="fake").stream(size="native") as stream:
        expected = [stream.start(frame(0), MASK), *(stream.step(frame(t)) for t in (1, 2))]
    with served(fake_bundle) as (address, _), connect(address) as socket:
        answers = [begin(socket), step(socket, 1), step(socket, 2)]
        for (answer, labels), result in zip(answers, expected, strict=True):
            assert (labels == result.labels).all()
            assert answer["frame"] == result.index
            assert [each["id"] for each in answer["objects"]] == [3]
            assert answer["objects"][0]["area_px"] == result.objects[3].area_px
        assert figure(address, "vosrt_frames_total") == 3
        assert figure(address, "vosrt_sessions") == 1
        assert figure(address, "vosrt_step_seconds_count") == 3


def test_wrong_messages_are_answered_and_the_stream_goes_on(fake_bundle: Path) -> None:
    with served(fake_bundle, "--max-megapixels", "0.01") as (address, _), connect(address) as socket:
        for message, complaint in [
            (png(frame(0)), "the first frame needs a mask"),
            ("hello", 'is not {"mask": true}'),
        ]:
            socket.send(message)
            assert complaint in json.loads(socket.recv(timeout=60))["error"]
        for mask, complaint in [
            (b"no picture", "no JPEG or PNG"),
            (png(frame(0)), "expected a PNG of one channel"),
            (png(np.zeros((200, 100), np.uint8)), "has 100×200 pixels"),
        ]:
            socket.send('{"mask": true}')
            socket.send(mask)
            assert complaint in json.loads(socket.recv(timeout=60))["error"]
        assert begin(socket)[0]["frame"] == 0
        socket.send(png(np.zeros((32, 32, 3), np.uint8)))
        assert "error" in json.loads(socket.recv(timeout=60))  # another size
        assert step(socket, 1)[0]["frame"] == 1
        assert figure(address, 'vosrt_refused_total{reason="input"}') == 6


def test_limits_send_clients_away_with_a_reason(fake_bundle: Path) -> None:
    with served(fake_bundle, "--sessions", "1", "--idle", "1") as (address, _), connect(address) as first:
        begin(first)
        with connect(address) as second, pytest.raises(exceptions.ConnectionClosed, match="all 1 streams are taken"):
            second.recv(timeout=60)
        with pytest.raises(exceptions.ConnectionClosed, match="no message came for 1 s"):
            first.recv(timeout=60)
        with connect(address) as third:
            assert begin(third)[0]["frame"] == 0


def test_a_token_is_asked_for_where_one_is_set(fake_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(fake_bundle, token="secret") as (address, _):
        for headers in ({}, {"Authorization": "Bearer other"}):
            with pytest.raises(exceptions.InvalidStatus):
                connect(address, additional_headers=headers)
        with connect(address, additional_headers={"Authorization": "Bearer secret"}) as socket:
            assert begin(socket)[0]["frame"] == 0
    from vosrt.cli.run import main

    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert "set VOSRT_TOKEN" in capsys.readouterr().err


def test_pages_of_other_sites_are_refused(fake_bundle: Path) -> None:
    with served(fake_bundle) as (address, _), pytest.raises(exceptions.InvalidStatus):
        connect(address, origin="http://other.example")


def test_streams_do_not_disturb_each_other_and_vanished_clients_free_theirs(fake_bundle: Path) -> None:
    alone: list[U8Array] = []
    with served(fake_bundle, "--sessions", "4", "--workers", "2") as (address, process):
        with connect(address) as socket:
            alone = [begin(socket)[1], *(step(socket, t)[1] for t in range(1, 6))]
        failures: list[BaseException] = []

        def follow() -> None:
            try:
                with connect(address) as socket:
                    labels = [begin(socket)[1], *(step(socket, t)[1] for t in range(1, 6))]
                assert all((a == b).all() for a, b in zip(labels, alone, strict=True))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=follow) for _ in range(3)]
        for thread in threads:
            thread.start()
        vanishing = connect(address).__enter__()
        begin(vanishing)
        vanishing.send(png(frame(1)))
        vanishing.socket.close()  # without a farewell, in the middle of a step
        for thread in threads:
            thread.join()
        assert failures == []
        for _ in range(600):
            if figure(address, "vosrt_sessions") == 0:
                break
            time.sleep(0.1)
        assert figure(address, "vosrt_sessions") == 0
        assert Path(f"/proc/{process}").exists()
        with connect(address) as socket:
            assert (begin(socket)[1] == alone[0]).all()
