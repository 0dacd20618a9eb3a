#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Write dequant.bin: blocks of each type that the engine reads, and what they stand for.

Run by hand:  pip install gguf numpy;  make_dequant.py [OUTDIR]

The reference is the gguf package. For each type, little-endian:
    uint32   type, n_values, n_bytes
    uint8    stored[n_bytes]       random, but every half that scales is finite
    float32  value[n_values]
"""
import os
import struct
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q

SEED = 20240903
HALVES = {Q.Q4_0: [0], Q.Q4_1: [0, 2], Q.Q8_0: [0], Q.Q6_K: [208]}  # offsets in a block


def stored(rng, kind):
    if kind == Q.F16:
        return np.arange(0, 0x10000, 53, dtype="<u2").view(np.uint8)  # subnormal, Inf and NaN too
    if kind == Q.BF16:
        return np.arange(0, 0x10000, 97, dtype="<u2").view(np.uint8)
    if kind == Q.F32:
        return rng.standard_normal(64).astype("<f4").view(np.uint8)
    size = gguf.GGML_QUANT_SIZES[kind][1]
    data = rng.integers(0, 256, (1024 // gguf.GGML_QUANT_SIZES[kind][0], size), dtype=np.uint8)
    for at in HALVES[kind]:
        data[:, at + 1] &= 0xbf  # an exponent below that of infinity
    return data.reshape(-1)


def main():
    out = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    rng = np.random.default_rng(SEED)
    with open(f"{out}/dequant.bin", "wb") as f:
        for kind in (Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q6_K):
            data = stored(rng, kind)
            if kind == Q.BF16:  # exact by definition; the package flushes subnormals
                value = (data.view("<u2").astype("<u4") << 16).view("<f4")
            else:
                value = gguf.quants.dequantize(data, kind)
            f.write(struct.pack("<3I", kind, value.size, data.size))
            f.write(data.tobytes())
            f.write(np.ascontiguousarray(value, dtype="<f4").tobytes())


if __name__ == "__main__":
    main()
