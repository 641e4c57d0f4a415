"""Frames: what is packed is read, whatever pieces it comes in, and what is no frame is refused in one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.cluster.frames import (
    LENGTH,
    AnswerFrame,
    FrameError,
    FrameReader,
    InferFrame,
    RefusalFrame,
    read_answer,
    read_open,
    read_refusal,
    read_request,
)

NUMBER = st.floats(allow_nan=False)
ID = st.integers(0, 2**64 - 1)
COUNT = st.integers(0, 2**32 - 1)
SHORT = st.binary(max_size=255)
BODY = st.binary(max_size=500)
REQUESTS = st.builds(InferFrame, ID, st.integers(0, 2**16 - 1), st.integers(0, 255), NUMBER, COUNT, SHORT, SHORT, BODY)
ANSWERS = st.builds(
    AnswerFrame, ID, st.booleans(), NUMBER, NUMBER, NUMBER, COUNT, st.tuples(NUMBER, NUMBER), COUNT, BODY
)
REFUSALS = st.builds(
    RefusalFrame, ID, st.integers(0, 255), st.booleans(), st.tuples(NUMBER, NUMBER), st.text(max_size=200)
)


def bytes_of(frame: InferFrame | AnswerFrame | RefusalFrame) -> bytes:
    return b"".join(frame.pack())


@given(st.lists(st.one_of(REQUESTS, ANSWERS, REFUSALS), max_size=4), st.lists(st.integers(1, 60), min_size=1))
def test_frames_are_read_as_they_were_packed_in_whatever_pieces_they_come(frames: list, pieces: list[int]) -> None:
    read = {1: read_request, 2: read_answer, 3: read_refusal}
    kinds = [1 if isinstance(f, InferFrame) else 2 if isinstance(f, AnswerFrame) else 3 for f in frames]
    got: list = []

    def take(frame: memoryview) -> None:
        one = read[kinds[len(got)]](frame)
        got.append(one._replace(values=bytes(one.values)) if hasattr(one, "values") else one)

    reader = FrameReader(10_000, take)
    stream, at, turn = b"".join(map(bytes_of, frames)), 0, 0
    while at < len(stream):
        reader.feed(stream[at : at + pieces[turn % len(pieces)]])
        at, turn = at + pieces[turn % len(pieces)], turn + 1
    assert got == frames


@given(st.binary(max_size=60))
def test_bytes_that_are_no_frame_are_refused_in_one_line_or_read(data: bytes) -> None:
    for read in (read_request, read_answer, read_refusal, read_open):
        try:
            read(memoryview(data))
        except FrameError as error:
            assert str(error) and "\n" not in str(error)


@pytest.mark.parametrize("length", [0, 1001, 2**32 - 1])
def test_a_frame_that_is_empty_or_too_long_is_refused_before_it_has_come(length: int) -> None:
    reader = FrameReader(1000, lambda frame: None)
    with pytest.raises(FrameError, match="from 1 to 1000 are allowed"):
        reader.feed(LENGTH.pack(length))
