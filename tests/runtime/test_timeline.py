"""Frames keep their numbers over holes, and times go on where a clock does not."""

from __future__ import annotations

import pytest

from vosrt.video.timeline import Timeline

STEP = 0.04


def place_all(timeline: Timeline, stamps: list[float | None]) -> tuple[list[int], list[float]]:
    placed = [timeline.place(stamp, STEP) for stamp in stamps]
    return [index for index, _ in placed], [round(time_s, 4) for _, time_s in placed]


def test_regular_stamps_pass_as_they_are() -> None:
    timeline = Timeline(STEP)
    assert place_all(timeline, [0.0, 0.04, 0.08]) == ([0, 1, 2], [0.0, 0.04, 0.08])
    assert timeline.warnings("clip") == []


def test_missing_stamps_follow_by_the_duration_of_the_frame_before() -> None:
    assert place_all(Timeline(STEP), [None, None, None]) == ([0, 1, 2], [0.0, 0.04, 0.08])


@pytest.mark.parametrize("restart", [0.0, 3600.0])
def test_a_clock_that_jumps_goes_on(restart: float) -> None:
    timeline = Timeline(STEP, jumps_allowed=False)
    indices, times = place_all(timeline, [1.0, 1.04, 1.08, restart, restart + 0.04])
    assert (indices, times) == ([0, 1, 2, 3, 4], [1.0, 1.04, 1.08, 1.12, 1.16])
    assert timeline.warnings("clip") == [
        "clip: the timestamps restart or jump at frame 3; its time was set to follow the frame before"
    ]


def test_a_long_step_stays_where_one_clock_counts_for_all_frames() -> None:
    timeline = Timeline(STEP)
    assert place_all(timeline, [0.0, 3600.0, 7200.0]) == ([0, 1, 2], [0.0, 3600.0, 7200.0])
    assert timeline.warnings("clip") == []


def test_a_doubled_stamp_moves_no_other_frame() -> None:
    timeline = Timeline(STEP, jumps_allowed=False)
    assert place_all(timeline, [0.0, 0.04, 0.04, 0.12]) == ([0, 1, 2, 3], [0.0, 0.04, 0.0404, 0.12])
    assert timeline.warnings("clip") == []


def test_a_frame_that_cannot_be_decoded_keeps_its_number() -> None:
    timeline = Timeline(STEP)
    timeline.place(0.0, STEP)
    timeline.fail(0.08)
    assert timeline.place(0.04, STEP) == (1, 0.04)  # it came out late, as B-frames do
    assert timeline.place(0.12, STEP) == (3, 0.12)
    assert timeline.warnings("clip") == [
        "clip: frame 2 could not be decoded and is left out; the other frames keep their numbers"
    ]


def test_a_packet_whose_picture_comes_after_all_is_not_lost() -> None:
    timeline = Timeline(STEP)
    timeline.place(0.0, STEP)
    timeline.fail(0.04)
    assert timeline.place(0.04, STEP, damaged=True) == (1, 0.04)
    assert timeline.warnings("clip") == ["clip: frame 1 is damaged"]


def test_frames_that_vanished_in_a_hole_are_counted_by_their_time() -> None:
    timeline = Timeline(STEP)
    place_all(timeline, [0.0, 0.04])
    timeline.note_hole()
    assert timeline.place(0.2, STEP) == (5, 0.2)
    assert timeline.lost == [2, 3, 4]


def test_a_gap_alone_is_no_loss() -> None:
    """Phones and screen recorders leave frames out."""
    timeline = Timeline(STEP)
    assert place_all(timeline, [0.0, 0.04, 0.2, 0.24])[0] == [0, 1, 2, 3]


def test_a_hole_in_a_video_of_varying_steps_renumbers_nothing() -> None:
    timeline = Timeline(STEP)
    place_all(timeline, [0.0, 0.04, 0.2])
    timeline.note_hole()
    assert timeline.place(0.4, STEP)[0] == 3


def test_what_fails_at_the_end_is_lost_too() -> None:
    timeline = Timeline(STEP)
    timeline.place(0.0, STEP)
    for stamp in (0.04, 0.08):
        timeline.fail(stamp)
    assert timeline.close() == 2
    assert timeline.lost == [1, 2]


def test_many_faults_are_one_line() -> None:
    timeline = Timeline(STEP)
    for place in range(8):
        timeline.place(place * STEP, STEP, damaged=True)
    assert timeline.warnings("clip") == ["clip: 8 frames (0, 1, 2, 3, 4, …) are damaged"]


def test_a_new_connection_goes_on_after_the_time_that_passed() -> None:
    timeline = Timeline(STEP, jumps_allowed=False)
    place_all(timeline, [5.0, 5.04])
    timeline.resume(3.0)
    index, time_s = timeline.place(0.0, STEP)
    assert (index, round(time_s, 4)) == (2, 8.04)
    assert timeline.joins == []


def test_the_clock_of_a_new_connection_may_begin_late() -> None:
    """RTSP has no timestamps until the server has told how its clock runs."""
    timeline = Timeline(STEP, jumps_allowed=False)
    place_all(timeline, [5.0, 5.04])
    timeline.resume(3.0)
    times = [timeline.place(stamp, STEP)[1] for stamp in (None, 900.0, 900.04)]
    assert times == pytest.approx([8.04, 8.08, 8.12])
    assert timeline.joins == []


@pytest.mark.parametrize("wrong", [4.0, 0.4])
def test_one_wrong_stamp_moves_no_other_frame(wrong: float) -> None:
    timeline = Timeline(STEP)
    stamps = [0.0, 0.04, wrong, 0.12, 0.16]
    times = [timeline.place(a, STEP, next_s=b)[1] for a, b in zip(stamps, [*stamps[1:], None], strict=True)]
    assert times == pytest.approx([0.0, 0.04, 0.08, 0.12, 0.16])
    assert timeline.joins == [2]


def test_a_long_step_before_a_regular_one_stays() -> None:
    timeline = Timeline(STEP)
    stamps = [0.0, 0.04, 4.0, 4.04, 4.08]
    times = [timeline.place(a, STEP, next_s=b)[1] for a, b in zip(stamps, [*stamps[1:], None], strict=True)]
    assert times == pytest.approx(stamps)
    assert timeline.joins == []
