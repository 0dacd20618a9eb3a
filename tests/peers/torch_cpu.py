#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""libdeft beside PyTorch's scaled_dot_product_attention on a CPU: time of a decode step's attention.

    python3 tests/peers/torch_cpu.py DEFT_BENCH [THREADS [ARGUMENT...]]

Run by hand: it needs PyTorch and memory (70 GB for the largest tree). It runs `DEFT_BENCH attend
--auto --json ARGUMENT...`, over that command's own trees if no --tree is among them, and then two
forms of each in PyTorch, the best of which counts: a contiguous copy of its path for each leaf
(gathering them is not timed), and one product over all KV of the tree with a mask. As there, a few
copies of all KV take turns, so that it is cold; all query heads of a KV head are queries of one
product, which is faster than enable_gqa.
"""
import json
import math
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

MOST_BYTES = 60e9


def values(shape, dtype):
    """Random numbers that repeat: making so many new ones would take longer than what is timed."""
    n = math.prod(shape)
    some = torch.randn(min(n, 1 << 20), dtype=dtype)
    return some.repeat((n + len(some) - 1) // len(some))[:n].view(shape)


def median_ms(call, copies):
    times = []
    for i in range(9):
        begin = time.perf_counter()
        call(i % copies)
        times.append(time.perf_counter() - begin)
        if i >= 2 and sum(times) > 4:
            break
    return sorted(times)[len(times) // 2] * 1e3


def copies_of(size):
    return max(1, min(8, int(1e9 / size)))


def path_each(spec, kv_heads, group, dim, dtype):
    nodes, tokens = spec
    size = nodes[-1] * kv_heads * sum(tokens) * dim * 2 * dtype.itemsize
    if size > MOST_BYTES:
        return math.inf
    n = copies_of(size)
    shape = (nodes[-1], kv_heads, sum(tokens), dim)
    k, v = ([values(shape, dtype) for _ in range(n)] for _ in range(2))
    q = torch.randn((nodes[-1], kv_heads, group, dim), dtype=dtype)
    return median_ms(lambda i: F.scaled_dot_product_attention(q, k[i], v[i]), n)


def tree_mask(spec, kv_heads, group, dim, dtype):
    nodes, tokens = spec
    leaves, total = nodes[-1], sum(a * b for a, b in zip(nodes, tokens))
    seen, begin = torch.zeros((leaves, total), dtype=torch.bool), 0
    for level in range(len(nodes)):
        for leaf in range(leaves):
            at = begin + leaf * nodes[level] // leaves * tokens[level]
            seen[leaf, at:at + tokens[level]] = True
        begin += nodes[level] * tokens[level]
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -math.inf).repeat_interleave(group, 0)
    n = copies_of(kv_heads * total * dim * 2 * dtype.itemsize)
    k, v = ([values((1, kv_heads, total, dim), dtype) for _ in range(n)] for _ in range(2))
    q = torch.randn((1, kv_heads, leaves * group, dim), dtype=dtype)
    return median_ms(lambda i: F.scaled_dot_product_attention(q, k[i], v[i], attn_mask=mask), n)


def main():
    threads = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    torch.set_num_threads(threads)
    out = subprocess.run([sys.argv[1], "attend", "--auto", "--json", "--threads", str(threads), *sys.argv[3:]],
                         check=True, stdout=subprocess.PIPE, text=True).stdout
    print("%-22s %6s %4s %-5s %9s %9s %11s %10s %7s" % ("tree", "heads", "dim", "kv", "limit ms", "libdeft",
                                                      "path each", "tree mask", "ahead"))
    ratios = []
    for line in out.splitlines():
        if not line.startswith("{"):
            continue
        cell = json.loads(line)
        spec = [[int(x) for x in part.split(",")] for part in cell["tree"].split("/")]
        heads, kv_heads = (int(x) for x in cell["heads"].split("/"))
        dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[cell["kv"]]
        args = spec, kv_heads, heads // kv_heads, cell["dim"], dtype
        path, mask = path_each(*args), tree_mask(*args)
        ratios.append(min(path, mask) / cell["auto_ms"])
        print("%-22s %6s %4d %-5s %9.2f %9.2f %11.2f %10.2f %7.2f" %
              (cell["tree"], cell["heads"], cell["dim"], cell["kv"], cell["limit_ms"], cell["auto_ms"], path, mask,
               ratios[-1]), flush=True)
    print("cells=%d ahead=%d geomean=%.2f least=%.2f" %
          (len(ratios), sum(r > 1 for r in ratios), math.exp(sum(map(math.log, ratios)) / len(ratios)), min(ratios)))


main()
