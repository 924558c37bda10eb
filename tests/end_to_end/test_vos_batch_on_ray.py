"""``vos-run batch --ray`` on a cluster of several raylets on this machine: results, lost nodes, and wrong addresses."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.programs import program, wait_for
from vosrt.cli.batch_on_ray import cluster as connected
from vosrt.cli.segment import Request
from vosrt.errors import WorkError
from vosrt.video.prompts import Prompts

from .test_vos_batch import Batch, write_clip

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed: pip install '.[ray]'")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that runs nothing, and two nodes of one core each."""
    own = {"include_dashboard": False, "object_store_memory": 80 << 20, "env_vars": {"RAY_USAGE_STATS_ENABLED": "0"}}
    cluster = cluster_utils.Cluster()
    try:
        try:
            for cores in (0, 1, 1):
                cluster.add_node(num_cpus=cores, **own)
        except Exception as error:  # Ray has no class for it
            if "timed out during startup" not in str(error):
                raise
            pytest.skip("a node did not start within Ray's 30 seconds: this machine is too busy")
        yield cluster
    finally:
        cluster.shutdown()


def _start(batch: Batch, *more: str) -> subprocess.Popen[str]:
    arguments = program(*batch.arguments(batch.root / "out", "--jobs", "2", "--threads", "1", *more))
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def batch(tmp_path: Path, fake_bundle: Path) -> Batch:
    """Clips that run for long enough to be disturbed, and what they should give."""
    batch = Batch(tmp_path, fake_bundle)
    for index in range(3):
        write_clip(batch.clips / f"clip{index}.mp4", 60 + index)
    assert batch.run("--quiet", out="whole") == 0
    return batch


def _holders(out: Path) -> list[int]:
    """Processes that run a clip: they hold the lock of its folder."""
    found = []
    for lock in out.glob("clips/*/.vosrt-lock"):
        with suppress(FileNotFoundError, ValueError):  # released, or not written yet
            found.append(int(lock.read_text()))
    return found


def _stopped_actor(out: Path) -> int:
    """An actor that is stopped in the middle of a clip; 0 where none runs one."""
    for actor in _holders(out):
        os.kill(actor, signal.SIGSTOP)
        if actor in _holders(out):
            return actor
        os.kill(actor, signal.SIGCONT)
    return 0


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])


@pytest.mark.parametrize("lost", ["actor", "node"])
def test_a_lost_actor_or_node_changes_no_result(batch: Batch, cluster: Any, lost: str) -> None:
    out = batch.root / "out"
    process = _start(batch, "--ray", cluster.address)
    wait_for(lambda: list(out.glob("clips/*/masks/*.png")), process)
    actor = wait_for(lambda: _stopped_actor(out), process)
    if lost == "node":  # with all of its processes; actors are children of its raylet
        os.kill(_parent(actor), signal.SIGKILL)
    os.kill(actor, signal.SIGKILL)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert "its process or its node was lost" in said
    assert sorted(row["attempts"] for row in batch.rows().values()) == ["1", "1", "2"]
    assert batch.hashes() == batch.hashes("whole")


def test_an_interrupted_cluster_finishes_its_files_and_this_machine_goes_on(batch: Batch, cluster: Any) -> None:
    out = batch.root / "out"
    process = _start(batch, "--ray", cluster.address)
    wait_for(lambda: list(out.glob("clips/*/masks/*.png")), process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 130, said
    assert "--resume goes on" in said
    assert batch.run("--quiet", "--resume") == 0
    assert batch.hashes() == batch.hashes("whole")


def test_a_cluster_that_cannot_do_it_is_one_line_and_nothing_is_written(batch: Batch, cluster: Any) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{closed.getsockname()[1]}"
        for more, complaint in (
            (
                ["--ray", nowhere],
                f"--ray {nowhere}: [Errno 111] Connection refused; expected local, auto, or host:port",
            ),
            (["--ray", cluster.address, "--threads", "2"], "--threads is 2; expected at most the 1 cores of a node"),
        ):
            process = _start(batch, *more)
            _, said = process.communicate(timeout=120)
            assert process.returncode == 2
            assert complaint in said
            assert not (batch.root / "out").exists()


def test_a_node_without_the_folder_says_so(batch: Batch, cluster: Any) -> None:
    missing = batch.root / "missing"
    request = Request(source="clip.mp4", prompts=Prompts(), out=missing / "clip")
    with connected(cluster.address, missing, workers=1, threads=1) as run, pytest.raises(WorkError) as raised:
        list(run([("clip", request)], threading.Event()))
    assert f"{missing}: is no folder on node" in str(raised.value)
