"""Code before and after models, as users write it, with its faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np

SLOW_SPACES = 10


def lengths(text: np.ndarray) -> np.ndarray:
    """(n,) texts to (n, 4): how many bytes, vowels, spaces and capitals."""
    print("a user's code prints")
    rows = []
    for one in text.tolist():
        match one:
            case b"bad":
                raise ValueError("this text is bad")
            case b"bug":
                raise KeyError("bug")
            case b"exit":
                raise SystemExit(3)
            case b"crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case b"leaves a child":  # which holds all that the process had open
                if os.fork() == 0:
                    time.sleep(600)
                    os._exit(0)
                raise SystemExit(4)
            case b"child comes back":
                os.fork()
            case b"reads":
                assert sys.stdin.read() == "" and subprocess.run(["cat"], capture_output=True).stdout == b""
            case b"two lines":
                raise ValueError("first\nsecond")
            case b"odd words":
                raise ValueError("\udcff" + "x" * 100_000)
            case b"misshapen":
                return np.zeros((len(text), 5), np.float32)
        if one.startswith(b"slow "):
            time.sleep(float(one[5:]) / 1e3)
        rows.append([len(one), sum(map(one.count, b"aeiou")), one.count(b" "), sum(c in b"ABC" for c in one)])
    return np.array(rows, np.float32)


def words(output: np.ndarray) -> dict[str, np.ndarray]:
    """(n, 4) numbers, twice what `lengths` says, to a sentence for each item, and their sum."""
    spaces = output[:, 2] // 2
    if (spaces == SLOW_SPACES).any():
        time.sleep(0.08)
    if (spaces > SLOW_SPACES).any():
        raise KeyError("spaces")
    said = [b"%d bytes, %d vowels" % (row[0], row[1]) for row in output]
    made = np.empty(len(said), object)
    made[:] = said
    return {"said": made, "sum": output.sum(axis=1)}


def tokens(text: np.ndarray) -> dict[str, np.ndarray]:
    """Texts to rows of the numbers of their letters, and a mask, as long as the longest of them."""
    longest = max(map(len, text))
    ids = np.zeros((len(text), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, one in enumerate(text):
        ids[row, : len(one)] = np.frombuffer(one, np.uint8) - ord("a")
        mask[row, : len(one)] = 1
    return {"ids": ids, "attention_mask": mask}


def fails(**given: np.ndarray) -> np.ndarray:
    raise RuntimeError("it never works")


def misnamed(text: np.ndarray) -> dict[str, np.ndarray]:
    return {"nothing": np.zeros((len(text), 4), np.float32)}


no_function = 3


def first(output_0: np.ndarray, output_1: np.ndarray) -> np.ndarray:
    """What a tagger says of the first token."""
    return output_0[:, 0]


def picky(text: np.ndarray) -> np.ndarray:
    raise ValueError("no picture")


def as_lists(text: np.ndarray) -> dict[str, list[list[float]]]:
    return {"input": [[float(len(one)), 0.0, 0.0, 0.0] for one in text]}
