"""Code before and after a network: texts in, words out."""

import zlib

import numpy as np

LABELS = np.array([b"good", b"bad"], object)


def tokens(text: np.ndarray):
    """(batch,) texts to (batch, length) numbers of words and a mask; where a tokenizer of your own would stand."""
    rows = [[zlib.crc32(word) % 1000 for word in one.lower().split()[:128]] or [0] for one in text]
    mask = np.array([[1] * len(row) + [0] * (max(map(len, rows)) - len(row)) for row in rows])
    ids = np.zeros_like(mask)
    ids[mask > 0] = np.concatenate(rows)
    return {"input_ids": ids, "attention_mask": mask}


def labels(logits: np.ndarray):
    """(batch, 2) scores to (batch,) words and chances."""
    chances = np.exp(logits - logits.max(1, keepdims=True))
    return {"label": LABELS[logits.argmax(1)], "chance": (chances / chances.sum(1, keepdims=True)).max(1)}
