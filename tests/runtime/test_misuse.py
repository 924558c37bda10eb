"""What callers do wrong: threads and forks that meet in one stream, copies, and values that are none."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vosrt
from tests.fakes.memories import load_session, save_session
from tests.fakes.model import fake_model
from vosrt import InputError, Model, OptionError, PropagationOptions, SessionError, Stream, VosrtError, _signals
from vosrt.types import U8Array

Clip = tuple[U8Array, U8Array]

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def begun(clip: Clip, threads: int = 1) -> Stream:
    stream = fake_model(threads=threads).stream()
    stream.start(clip[0][0], clip[1][0])
    return stream


def in_threads(*bodies: Callable[[], None]) -> list[BaseException]:
    """Run bodies side by side; what they raised."""
    raised: list[BaseException] = []

    def guarded(body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(body,), daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "it waits for ever"
    return raised


def in_a_child(body: Callable[[], object]) -> str:
    """What a forked process says at the end of a body: the error that it got, or nothing."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # hanging is a failure
        said = ""
        try:
            body()
        except VosrtError as error:
            said = str(error)
        except BaseException as error:
            said = f"untyped: {error!r}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    assert os.waitpid(child, 0)[1] == 0, "the child hung or crashed"
    return said


def test_threads_share_a_stream(tiny_clip: Clip) -> None:
    """Every frame is taken once while other threads change objects, and each result is of one frame."""
    frames, masks = tiny_clip
    stream = begun(tiny_clip, threads=2)
    seen: list[int] = []

    def step() -> None:
        for t in range(30):
            result = stream.step(frames[t % 6])
            assert set(np.unique(result.labels)) <= {0, *result.object_ids}
            seen.append(result.index)

    def change() -> None:
        for _ in range(30):
            stream.add(np.where(masks[0] == 2, 7, 0))
            stream.soft_masks()
            stream.save()
            stream.remove(7)

    assert in_threads(step, step, change) == []
    assert sorted(seen) == list(range(1, 61))


def test_streams_are_stepped_together_and_alone(tiny_clip: Clip) -> None:
    """`step_all` excludes other calls on its streams, and two of them in another order do not wait for each other."""
    frames, _ = tiny_clip
    one, two = begun(tiny_clip), begun(tiny_clip)

    def together(*streams: Stream) -> None:
        for _ in range(20):
            assert all(isinstance(each, vosrt.StepResult) for each in vosrt.step_all(streams, [frames[1], frames[2]]))

    def alone() -> None:
        for _ in range(20):
            one.step(frames[3])

    assert in_threads(lambda: together(one, two), lambda: together(two, one), alone) == []
    assert (one.result({}).index, two.result({}).index) == (60, 40)


def test_closing_lets_a_call_end(tiny_clip: Clip) -> None:
    stream = begun(tiny_clip)

    def step() -> None:
        for _ in range(200):
            stream.step(tiny_clip[0][1])

    (raised,) = in_threads(step, stream.close)
    assert str(raised) == "the stream is closed; open another with model.stream()"


def test_a_call_within_a_call_is_refused(tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine or a signal handler may not come back to the stream that it serves."""
    stream = begun(tiny_clip)
    with stream.lock.hold("step"), pytest.raises(InputError, match="save was called within step of the same stream"):
        stream.save()
    assert stream.step(tiny_clip[0][1]).index == 1


@needs_fork
@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_process(threads: int, tiny_clip: Clip) -> None:
    """With one thread, model and stream go on in both processes; with more, the child's error says what to do."""
    frames, masks = tiny_clip
    stream = begun(tiny_clip, threads)
    model = fake_model(threads=threads)
    calls: list[Callable[[], Any]] = [
        lambda: stream.step(frames[1]),
        lambda: model.encode(frames[1]),
        lambda: model.stream().start(frames[0], masks[0]),
    ]
    for call in calls:
        said = in_a_child(lambda call=call: call())  # type: ignore[misc]
        assert said == "" if threads == 1 else "stayed in the parent process" in said

    def make_another() -> None:
        begun(tiny_clip, threads).step(frames[1])

    assert in_a_child(make_another) == ""
    assert stream.step(frames[1]).index == 1


@needs_fork
def test_a_forked_process_ends(tiny_clip: Clip) -> None:
    """Closing or freeing what has threads does not wait for those of the parent."""
    gc.collect()
    gc.freeze()  # the child collects what is made from here on, and not what other tests left
    stream = begun(tiny_clip, threads=2)
    held = [begun(tiny_clip, threads=2)]

    def free() -> None:
        held.clear()
        gc.collect()

    assert in_a_child(free) == ""
    gc.unfreeze()
    assert in_a_child(stream.close) == ""
    assert stream.step(tiny_clip[0][1]).index == 1


@needs_fork
def test_a_fork_in_the_middle_of_a_call(tiny_clip: Clip) -> None:
    stream = begun(tiny_clip)
    inside, go_on = threading.Event(), threading.Event()

    def stay() -> None:
        with stream.lock.hold("step"):
            inside.set()
            go_on.wait(20)

    staying = threading.Thread(target=stay)
    staying.start()
    assert inside.wait(20)
    try:
        assert "step ran in another thread when this process was forked" in in_a_child(stream.save)
    finally:
        go_on.set()
        staying.join()


@needs_fork
def test_a_forked_process_has_none_of_our_signal_handlers() -> None:
    """It ends at Ctrl-C and ``kill`` as any process does."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]

    def compare() -> None:
        if [signal.getsignal(number) for number in numbers] != before:
            raise InputError("handlers were inherited")

    with _signals.handled(), _signals.handled():
        assert [signal.getsignal(number) for number in numbers] != before
        assert in_a_child(compare) == ""
        assert [signal.getsignal(number) for number in numbers] != before
    compare()


@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy, pickle.dumps])
def test_models_and_streams_are_not_copied(take: Callable[[Any], Any], tiny_clip: Clip) -> None:
    with pytest.raises(InputError, match="a Model cannot be copied or pickled; load it in each process"):
        take(fake_model(threads=1))
    stream = begun(tiny_clip)
    with pytest.raises(InputError, match=r"a Stream cannot be copied or pickled; save\(\) gives bytes"):
        take(stream)
    assert stream.step(tiny_clip[0][1]).index == 1


def test_sessions_are_taken_from_any_buffer(tiny_clip: Clip, native: Any) -> None:
    session = begun(tiny_clip).save()
    for given in (session, bytearray(session), memoryview(session)):
        stream = fake_model(threads=1).stream()
        stream.load(given)
        assert stream.step(tiny_clip[0][1]).index == 1
    for wrong in (None, "x", 7):
        with pytest.raises(SessionError, match=r"expected the bytes that save\(\) gave"):
            fake_model(threads=1).stream().load(wrong)  # type: ignore[arg-type]


# Without their types, so that what is wrong can be said.
load: Any = Model.load
step_all: Any = vosrt.step_all
make_options: Any = PropagationOptions


class RaisingDlpack:
    """Array class that fails."""

    def __dlpack_device__(self) -> tuple[int, int]:
        raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda stream, model: model.stream(threads="2"), "threads is '2'; expected 0 to 1024"),
        (lambda stream, model: model.stream(threads=1.5), "threads is 1.5"),
        (lambda stream, model: model.stream(threads=5000), "threads is 5000; expected 0 to 1024"),
        (lambda stream, model: load("default", threads=10**6), "threads is 1000000"),
        (lambda stream, model: load("default", threads=1e6), "threads is 1000000.0"),
        (lambda stream, model: load("default", device=None), "device is None"),
        (lambda stream, model: load(None), "bundle is None"),
        (lambda stream, model: load(b"default"), "bundle is b'default'"),
        (lambda stream, model: model.stream(options=3), "options are 3; expected PropagationOptions"),
        (lambda stream, model: model.stream(size="96"), "size is '96'"),
        (lambda stream, model: model.encode_batch(None), "frames is NoneType"),
        (lambda stream, model: model.encode(RaisingDlpack()), "frame is RaisingDlpack, which does not say where"),
        (lambda stream, model: stream.step(RaisingDlpack()), "frame is RaisingDlpack, which does not say where"),
        (lambda stream, model: stream.step(np.broadcast_to(np.uint8(0), (70000, 70000, 3))), "at most 65536 a side"),
        (lambda stream, model: stream.remove(1.0), "object 1.0 is not tracked"),
        (lambda stream, model: stream.remove(True), "object True is not tracked"),
        (lambda stream, model: stream.remove(2**32 + 1), "object 4294967297 is not tracked; tracked are [1, 2]"),
        (lambda stream, model: step_all([None], [None]), "one of the streams is NoneType"),
        *((lambda s, m, name=name, value=value: make_options(**{name: value}), f"{name} is {value!r}")
          for name, value in [("context", 1.5), ("context", "x"), ("context", None), ("context", True), ("top_k", 2.5),
                              ("radius", "x"), ("temperature", None), ("pad_context", 2), ("yield_background", None)]),
    ],
)  # fmt: skip
def test_values_that_are_none_are_one_typed_line(
    call: Callable[[Stream, Model], Any], message: str, tiny_clip: Clip
) -> None:
    with pytest.raises(InputError) as refused:
        call(begun(tiny_clip), fake_model(threads=1))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_numbers_of_numpy_are_numbers(tiny_clip: Clip) -> None:
    options = make_options(context=np.int64(3), radius=np.float32(4), top_k=np.int32(5), pad_context=np.bool_(True))
    stream = fake_model(threads=1).stream(options=options, threads=np.int64(1))  # type: ignore[arg-type]
    stream.start(tiny_clip[0][0], tiny_clip[1][0])
    assert stream.step(tiny_clip[0][1]).object_ids == (1, 2)
    stream.remove(np.uint8(1))  # type: ignore[arg-type]
    assert stream.object_ids == (2,)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_small_session_costs_little_memory(tmp_path: Path, native: Any) -> None:
    """One frame of a grid with room for 1024 more allocates later what it remembers later."""
    side, channels = 128, 8
    memory = native.Memory(side, side, channels, context=1024, threads=1)
    embedding = np.full((side, side, channels), channels**-0.5, np.float32)
    memory.push(embedding)
    session = save_session(memory)
    del memory
    assert len(session) < 2e6

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    loaded, *_ = load_session(session, threads=1)
    assert resident() - before < 16e6
    loaded.push(embedding)
    assert resident() - before < 24e6
    assert loaded.info["frames"] == 2


def test_a_session_of_another_grid_is_refused(tiny_clip: Clip, native: Any) -> None:
    """No frame of this network has such cells."""
    memory = native.Memory(200, 200, 32)
    memory.push(np.full((200, 200, 32), 32**-0.5, np.float32))
    with pytest.raises(SessionError, match="its grid has 200 cells a side; those of this network have at most 32"):
        fake_model(threads=1).stream().load(save_session(memory, 1600, 1600))
    with pytest.raises(OptionError, match="threads is 2000"):
        load_session(save_session(memory, 1600, 1600), threads=2000)
