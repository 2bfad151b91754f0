"""What the compiled step is told of a model and of its caches: addresses and sizes in numpy
records.

Only the layout is here; program.py fills it in, step.py reads it.
"""

from __future__ import annotations

import numpy as np

FLOAT32, BFLOAT16, FLOAT16, INT8 = range(4)  # how the numbers of a matrix stand in memory
NO_NORM, LAYER_NORM, RMS_NORM = range(3)
GELU, GELU_TANH, RELU, RELU2, SILU = range(5)
NO_QK_NORM, BEFORE_ROPE, AFTER_ROPE = range(3)

QKV, OUT, UP, DOWN = range(4)  # the matrices of a layer
ATTENTION, ATTENTION_POST, MLP, MLP_POST = range(4)  # its norms

MATRIX = np.dtype(
    [
        ("weight", np.int64),  # (rows, columns), 0 where there is no matrix
        ("scales", np.int64),  # (rows, groups of 64 columns) float32, of int8
        ("bias", np.int64),  # (rows,) float32 or 0
        ("rows", np.int64),
        ("columns", np.int64),
        ("kind", np.int64),
    ]
)
NORM = np.dtype(
    [
        ("weight", np.int64),  # (n,) float32 or 0
        ("bias", np.int64),
        ("kind", np.int64),
        ("eps", np.float64),
    ]
)
LAYER = np.dtype(
    [
        ("window", np.int64),  # 0: all
        ("rotary", np.int64),  # which table turns it, -1 for none
        ("qk_weight", np.int64),  # (n_head + n_kv_head, head_dim) float32 or 0
        ("shared_norm", np.int64),  # the MLP takes what attention took
    ]
)
MODEL = np.dtype(
    [
        ("n_embd", np.int64),
        ("n_head", np.int64),
        ("n_kv_head", np.int64),
        ("head_dim", np.int64),
        ("rotary_dim", np.int64),
        ("inner", np.int64),  # the widest MLP, gate and up together
        ("activation", np.int64),
        ("gated", np.int64),
        ("parallel", np.int64),
        ("qk_norm", np.int64),
        ("qk_whole", np.int64),  # over all heads of q and of k
        ("qk_eps", np.float64),
        ("position", np.int64),  # (context_length, n_embd) float32 or 0
        ("embed_scale", np.float64),
        ("attention_scale", np.float64),
        ("attention_softcap", np.float64),  # 0: none
        ("logit_scale", np.float64),
        ("logit_softcap", np.float64),
    ]
)
STORE = np.dtype(  # one layer's keys and values in one cache
    [
        ("keys", np.int64),  # (n_kv_head, capacity, head_dim)
        ("values", np.int64),
        ("key_scales", np.int64),  # (n_kv_head, capacity) float32 of int8, or 0
        ("value_scales", np.int64),
        ("capacity", np.int64),
        ("origin", np.int64),  # the position of row 0
    ]
)
ROW = np.dtype(  # one token to run
    [
        ("token", np.int64),
        ("position", np.int64),
        ("cache", np.int64),  # which of those given
    ]
)
