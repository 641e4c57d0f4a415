"""Frames: what is packed is read, whatever pieces it comes in, and what is no frame is refused in one line."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.api.model_view import ModelView
from serving.cluster.frames import (
    LENGTH,
    MS,
    AnswerFrame,
    FrameError,
    FrameReader,
    InferFrame,
    RefusalFrame,
    SentTensor,
    Told,
    pong_frame,
    read_answer,
    read_open,
    read_pong,
    read_refusal,
    read_repository,
    read_request,
    repository_frame,
)
from serving.cluster.greeting import Greeting, read_greeting, scheduled_views
from serving.models.tensors import DATATYPES, TensorSpec

NUMBER = st.floats(allow_nan=False)
ID = st.integers(0, 2**64 - 1)
COUNT = st.integers(0, 2**32 - 1)
SHORT = st.binary(max_size=255)
PLACE = st.integers(0, 2**16 - 1)
SHAPE = st.lists(COUNT, max_size=5).map(tuple)
TENSORS = st.lists(st.builds(SentTensor, PLACE, SHAPE, st.binary(max_size=300)), max_size=4).map(tuple)
REQUESTS = st.builds(
    InferFrame,
    ID,
    COUNT,
    PLACE,
    st.integers(0, 255),
    NUMBER,
    SHORT,
    SHORT,
    st.lists(PLACE, max_size=4).map(tuple),
    TENSORS,
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
LOAD_MS = st.lists(st.floats(0.0, 1e9, width=32), max_size=4).map(lambda ms: np.array(ms, MS).tobytes())
TOLD = st.builds(Told, FINITE, st.integers(0, 2**32 - 1), FINITE, st.binary(max_size=40), LOAD_MS)
ANSWERS = st.builds(AnswerFrame, ID, st.booleans(), NUMBER, NUMBER, NUMBER, COUNT, TOLD, TENSORS)
REFUSALS = st.builds(RefusalFrame, ID, st.integers(0, 255), st.booleans(), TOLD, st.text(max_size=200))


def bytes_of(frame: InferFrame | AnswerFrame | RefusalFrame) -> bytes:
    return b"".join(frame.pack())


@given(st.lists(st.one_of(REQUESTS, ANSWERS, REFUSALS), max_size=4), st.lists(st.integers(1, 60), min_size=1))
def test_frames_are_read_as_they_were_packed_in_whatever_pieces_they_come(frames: list, pieces: list[int]) -> None:
    read = {1: read_request, 2: read_answer, 3: read_refusal}
    kinds = [1 if isinstance(f, InferFrame) else 2 if isinstance(f, AnswerFrame) else 3 for f in frames]
    got: list = []

    def take(frame: memoryview) -> None:
        got.append(read[kinds[len(got)]](frame))

    reader = FrameReader(10_000, take)
    stream, at, turn = b"".join(map(bytes_of, frames)), 0, 0
    while at < len(stream):
        reader.feed(stream[at : at + pieces[turn % len(pieces)]])
        at, turn = at + pieces[turn % len(pieces)], turn + 1
    assert got == frames


@given(st.one_of(REQUESTS, ANSWERS), st.data())
def test_a_frame_that_is_cut_short_or_goes_on_is_refused(frame: InferFrame | AnswerFrame, data: st.DataObject) -> None:
    read = read_request if isinstance(frame, InferFrame) else read_answer
    whole = bytes_of(frame)[LENGTH.size :]
    cut = data.draw(st.integers(0, len(whole) - 1))
    for wrong in (whole[:cut], whole + b"x"):
        with pytest.raises(FrameError, match="a frame of"):
            read(memoryview(wrong))


@given(ID, st.booleans(), st.text(max_size=100), st.text(max_size=30))
def test_what_is_to_be_loaded_is_read_as_it_was_packed(id_: int, load: bool, name: str, version: str) -> None:
    frame = b"".join(repository_frame(id_, load, name, version))
    assert read_repository(memoryview(frame)[LENGTH.size :]) == (id_, load, name, version)


TENSOR_SPECS = st.lists(
    st.builds(
        TensorSpec, st.text(max_size=5), st.sampled_from([*DATATYPES]), st.lists(st.integers(-1, 9), max_size=3).map(tuple),
        st.booleans(), NUMBER, NUMBER, COUNT, st.booleans(),
    ), min_size=1, max_size=3,
).map(tuple)  # fmt: skip


@given(st.booleans(), TOLD)
def test_a_sign_of_life_is_read_as_it_was_packed(accepting: bool, told: Told) -> None:
    assert read_pong(memoryview(b"".join(pong_frame(accepting, told)))[LENGTH.size :]) == (accepting, told)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["log_slowdown", "in_flight_ms"])
def test_what_is_told_and_is_no_number_is_refused(field: str, value: float) -> None:
    frame = b"".join(pong_frame(True, Told(0.0, 1, 2.0, b"\1\0\0\0")._replace(**{field: value})))
    with pytest.raises(FrameError, match="a slowdown of"):
        read_pong(memoryview(frame)[LENGTH.size :])


@pytest.mark.parametrize("load_ms", [np.array([1.0, ms], MS).tobytes() for ms in (np.nan, np.inf, -1.0)] + [b"123"])
def test_times_to_load_that_are_none_are_refused(load_ms: bytes) -> None:
    frame = b"".join(pong_frame(True, Told(0.0, 1, 2.0, b"", load_ms)))
    with pytest.raises(FrameError, match="times to load"):
        read_pong(memoryview(frame)[LENGTH.size :])


@given(TENSOR_SPECS, TENSOR_SPECS, st.lists(st.integers(1, 99), max_size=3, unique=True))
def test_a_greeting_is_read_as_it_was_packed(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], sizes: list[int]
) -> None:
    def view(scheduled: str) -> ModelView:
        return ModelView("m", scheduled, "2", "pytorch", inputs, outputs, 5.0, 1, versions=("1", "2"))

    buckets = tuple((size, view(f"m:2@{size}")) for size in sorted(sizes))
    whole = replace(view("m:2"), buckets=buckets, largest=max(sizes, default=None))
    total_ms = {one.scheduled: [1.0, 2.5] for one in scheduled_views({"m:2": whole})}
    share = dict.fromkeys(total_ms, [0.5, 1.0])
    greeting = Greeting({"m:2": whole}, total_ms, share, [1, 4], 7, 1000, [{"name": "m", "state": "READY"}])
    frame = b"".join(greeting.pack())[LENGTH.size :]
    assert read_greeting(memoryview(frame)) == greeting
    with pytest.raises(FrameError, match="cannot be read"):
        read_greeting(memoryview(frame.replace(b'"m:2', b'"m:3', 1)[:-1]))


@given(st.binary(max_size=60))
def test_bytes_that_are_no_frame_are_refused_in_one_line_or_read(data: bytes) -> None:
    for read in (read_request, read_answer, read_refusal, read_pong, read_open, read_repository, read_greeting):
        try:
            read(memoryview(data))
        except FrameError as error:
            assert str(error) and "\n" not in str(error)


@pytest.mark.parametrize("length", [0, 1001, 2**32 - 1])
def test_a_frame_that_is_empty_or_too_long_is_refused_before_it_has_come(length: int) -> None:
    reader = FrameReader(1000, lambda frame: None)
    with pytest.raises(FrameError, match="from 1 to 1000 are allowed"):
        reader.feed(LENGTH.pack(length))
