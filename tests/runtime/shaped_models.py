"""Small models that do, or do not, mind padding."""

from __future__ import annotations

import numpy as np
import onnx

HEADER = '<ir_version: 10, opset_import: ["": 21]> model '
TOKENS = "(float[batch, length, 4] x, int64[batch, length] attention_mask) => "
MASK = "m = Cast <to = 1> (attention_mask) axes = Constant <value_ints = [2]> () column = Unsqueeze (m, axes) "

ROWS = HEADER + "(float[batch, 4] x) => (float[batch, 4] y) { y = Softmax (x) }"
"""Each row for itself."""

MASKED_MEAN = (
    HEADER + TOKENS + "(float[batch, 4] y) {" + MASK + "one = Constant <value_ints = [1]> () product = Mul (x, column) "
    "sum = ReduceSum <keepdims = 0> (product, one) count = ReduceSum <keepdims = 0> (column, one) "
    "y = Div (sum, count) }"
)
"""The mean of the tokens that count."""

TOKEN_BY_TOKEN = HEADER + TOKENS + "(float[batch, length, 4] y) {" + MASK + "p = Mul (x, column) y = Softmax (p) }"

PLAIN_MEAN = (
    HEADER + TOKENS + "(float[batch, 4] y) { one = Constant <value_ints = [1]> () "
    "y = ReduceMean <keepdims = 0> (x, one) }"
)
"""The mean of all tokens, whatever the mask says."""

COUNTS_POSITIONS = (
    HEADER + TOKENS + "(float[batch, length, 4] y) {" + MASK + "p = Mul (x, column) shape = Shape (attention_mask) "
    "one = Constant <value_int = 1> () length = Gather (shape, one) f = Cast <to = 1> (length) y = Div (p, f) }"
)
"""Divided by the number of positions: what stands in the padding has no say, but that it is there."""

MIXED_ROWS = HEADER + "(float[batch, 4] x) => (float[batch, 4] y) { least = ReduceMin (x) y = Div (x, least) }"
"""Divided by the least value of all rows, as dynamic quantization does with the range."""

TWICE_AS_LONG = (
    HEADER + TOKENS + "(float[batch, twice, 4] y) {" + MASK + "p = Mul (x, column) y = Concat <axis = 1> (p, p) }"
)
"""The answers to the padding stand among the others."""

FIXED_ROOM = (
    HEADER + TOKENS + "(float[batch, length, 4] y) {" + MASK + "p = Mul (x, column) shape = Constant <value_ints = "
    "[0, 5, 4]> () y = Reshape (p, shape) }"
)
"""Runs with five tokens alone."""

ROOM_FOR_14 = (
    HEADER + TOKENS + "(float[batch, length, 4] y) {" + MASK + "p = Mul (x, column) shape = Shape (attention_mask) "
    "one = Constant <value_ints = [1]> () length = Gather (shape, one) nought = Constant <value_ints = [0]> () "
    "table = Constant <value_floats = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0]> () "
    "places = Slice (table, nought, length) axis = Constant <value_ints = [1]> () "
    "column_of_places = Unsqueeze (places, axis) y = Add (p, column_of_places) }"
)
"""Adds the number of the position, and knows 14 of them."""


def model(text: str) -> bytes:
    return onnx.parser.parse_model(text).SerializeToString()


def feed(text: str, batch: int = 2, length: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs of one of the models; the mask leaves out the last token of the first row."""
    random = np.random.default_rng(seed)
    if "attention_mask" not in text:
        return {"x": random.uniform(0.5, 2, (batch, 4)).astype(np.float32)}
    mask = np.ones((batch, length), np.int64)
    mask[0, length - 1 :] = length == 1
    return {"x": random.uniform(0.5, 2, (batch, length, 4)).astype(np.float32), "attention_mask": mask}
