#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""libdeft beside PyTorch's scaled_dot_product_attention on one GPU: accuracy on trees, time of prefill.

    python3 tests/peers/torch_compare.py LIBDEFT.so

Run by hand: it needs PyTorch, a GPU, and a libdeft.so that was built with CUDA. Errors are relative
norms against float64 over the same rounded inputs. PyTorch gets the tree as a mask over all its tokens:
its kernel for that (memory-efficient attention), and beside it the unfused products.
"""
import ctypes as C
import math
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

F16, BF16, CUDA = 2, 3, 2


class Config(C.Structure):
    _fields_ = [("struct_size", C.c_size_t), ("flags", C.c_uint64), ("device", C.c_int), ("n_layers", C.c_uint32),
                ("n_q_heads", C.c_uint32), ("n_kv_heads", C.c_uint32), ("head_dim", C.c_uint32), ("kv_type", C.c_int),
                ("act_type", C.c_int), ("pool_tokens", C.c_size_t), ("n_threads", C.c_uint32), ("isa", C.c_int),
                ("split", C.c_int), ("chunk_tokens", C.c_uint32), ("scale", C.c_float), ("softcap", C.c_float),
                ("window", C.c_uint32), ("windows", C.c_void_p), ("sinks", C.c_void_p), ("log", C.c_void_p),
                ("log_arg", C.c_void_p), ("log_level", C.c_int), ("allocator", C.c_void_p * 3),
                ("hooks", C.c_void_p * 3), ("device_index", C.c_int32), ("pool_spare", C.c_size_t)]


class Step(C.Structure):
    _fields_ = [("ctx", C.c_void_p), ("number", C.c_uint64)]


lib = C.CDLL(sys.argv[1])
lib.deft_last_error.restype = C.c_char_p
lib.deft_tree_root.restype = C.c_uint64
for name in ("deft_tree_root", "deft_last_error", "deft_ctx_destroy"):
    getattr(lib, name).argtypes = [C.c_void_p]
lib.deft_tree_append.argtypes = [C.c_void_p, C.c_uint64, C.c_size_t, C.c_void_p]
lib.deft_tree_fork.argtypes = [C.c_void_p, C.c_uint64, C.c_size_t, C.c_void_p]
lib.deft_step_begin.argtypes = [C.c_void_p, C.c_void_p, C.c_size_t, C.c_uint64, C.c_void_p]
for name in ("deft_step_write", "deft_step_attend"):
    getattr(lib, name).argtypes = [Step, C.c_uint32, C.c_void_p, C.c_void_p]
lib.deft_cuda_set_stream.argtypes = [C.c_void_p, C.c_void_p]


def check(status, ctx=None):
    if status != 0:
        raise SystemExit("status %d: %s" % (status, lib.deft_last_error(ctx) if ctx else b""))


def context(heads, kv_heads, dim, dtype, tokens):
    ctx = C.c_void_p()
    config = Config(struct_size=C.sizeof(Config), device=CUDA, n_layers=1, n_q_heads=heads, n_kv_heads=kv_heads,
                    head_dim=dim, kv_type=F16 if dtype == torch.float16 else BF16, pool_tokens=tokens)
    check(lib.deft_ctx_create(C.byref(config), C.byref(ctx)))
    check(lib.deft_cuda_set_stream(ctx, torch.cuda.current_stream().cuda_stream), ctx)
    return ctx


def grow(ctx, nodes, tokens):
    """The tree, and for each node (in order of the step) its length and the ranges of tokens above it."""
    tree = C.c_void_p()
    check(lib.deft_tree_create(ctx, C.byref(tree)), ctx)
    level, spans, above, n = [lib.deft_tree_root(tree)], [], [[]], 0
    for depth, (count, length) in enumerate(zip(nodes, tokens)):
        if depth:
            kids = []
            for p, node in enumerate(level):
                k = count * (p + 1) // len(level) - count * p // len(level)
                out = (C.c_uint64 * k)()
                check(lib.deft_tree_fork(tree, node, k, out), ctx)
                kids += [(h, above[p]) for h in out]
            level, above = [h for h, _ in kids], [a for _, a in kids]
        for i, node in enumerate(level):
            check(lib.deft_tree_append(tree, node, length, None), ctx)
            spans.append((n, length, above[i]))
            above[i] = above[i] + [(n, length)]
            n += length
    return tree, spans


def accuracy(nodes, tokens, heads, kv_heads, dim, dtype):
    n = sum(a * b for a, b in zip(nodes, tokens))
    ctx = context(heads, kv_heads, dim, dtype, n + 64)
    _, spans = grow(ctx, nodes, tokens)
    q, k, v = (torch.randn(n, h, dim, device="cuda", dtype=torch.float32).to(dtype) for h in (heads, kv_heads, kv_heads))
    o = torch.full_like(q, float("nan"))
    step = Step()
    check(lib.deft_step_begin(ctx, None, 0, 0, C.byref(step)), ctx)
    check(lib.deft_step_write(step, 0, k.data_ptr(), v.data_ptr()), ctx)
    check(lib.deft_step_attend(step, 0, q.data_ptr(), o.data_ptr()), ctx)
    torch.cuda.synchronize()
    mask = torch.zeros(n, n, dtype=torch.bool)
    for start, length, above in spans:
        for a, b in above:
            mask[start:start + length, a:a + b] = True
        mask[start:start + length, start:start + length] = torch.ones(length, length).tril().bool()
    mask = mask.cuda()
    rows = torch.arange(n - min(n, 256), n, device="cuda")  # the last ones have the longest paths
    group = heads // kv_heads
    qt, kt, vt = (x.transpose(0, 1) for x in (q[rows], k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)))
    s = (qt.double() @ kt.double().transpose(1, 2)) / math.sqrt(dim)
    ref = (s.masked_fill(~mask[rows], -math.inf).softmax(-1) @ vt.double()).transpose(0, 1)

    def error(x):
        return ((x.double() - ref).norm() / ref.norm()).item()

    ours, others = error(o[rows]), {}
    for name, backend in (("efficient", SDPBackend.EFFICIENT_ATTENTION), ("math", SDPBackend.MATH)):
        try:
            with sdpa_kernel(backend):
                x = F.scaled_dot_product_attention(qt[None], kt[None], vt[None], attn_mask=mask[rows][None, None])
            others[name] = error(x[0].transpose(0, 1))
        except RuntimeError:
            pass
    print("%-28s %2d/%-2d %3d %-8s ours %.3e  PyTorch: fused %.3e (ratio %.2f), unfused in float32 %.3e" % (
        "%s/%s" % (",".join(map(str, nodes)), ",".join(map(str, tokens))), heads, kv_heads, dim, str(dtype)[6:], ours,
        others["efficient"], ours / others["efficient"], others["math"]), flush=True)
    lib.deft_ctx_destroy(ctx)
    return ours / others["efficient"]


def median_us(f, reps=30):
    a, b = torch.cuda.Event(True), torch.cuda.Event(True)
    for _ in range(5):
        f()
    times = []
    for _ in range(reps):
        a.record()
        f()
        b.record()
        b.synchronize()
        times.append(a.elapsed_time(b) * 1e3)
    return sorted(times)[reps // 2]


def prefill(n, heads, kv_heads, dim, dtype):
    ctx = context(heads, kv_heads, dim, dtype, n + 64)
    tree = C.c_void_p()
    check(lib.deft_tree_create(ctx, C.byref(tree)), ctx)
    check(lib.deft_tree_append(tree, lib.deft_tree_root(tree), n, None), ctx)
    q, k, v = (torch.randn(n, h, dim, device="cuda", dtype=dtype) for h in (heads, kv_heads, kv_heads))
    o, step = torch.empty_like(q), Step()
    check(lib.deft_step_begin(ctx, None, 0, 0, C.byref(step)), ctx)
    check(lib.deft_step_write(step, 0, k.data_ptr(), v.data_ptr()), ctx)
    check(lib.deft_step_attend(step, 0, q.data_ptr(), o.data_ptr()), ctx)
    ours = median_us(lambda: check(lib.deft_step_attend(step, 0, q.data_ptr(), o.data_ptr()), ctx))
    qt, kt, vt = (x.transpose(0, 1)[None] for x in (q, k, v))
    others = {}
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
        with sdpa_kernel(backend):
            others[name] = median_us(lambda: F.scaled_dot_product_attention(qt, kt, vt, is_causal=True,
                                                                            enable_gqa=heads != kv_heads))
    x = F.scaled_dot_product_attention(qt, kt, vt, is_causal=True, enable_gqa=heads != kv_heads)[0].transpose(0, 1)
    differ = ((x.float() - o.float()).norm() / x.float().norm()).item()
    flop = 2.0 * heads * dim * n * (n + 1)
    print("prefill %5d %2d/%-2d %3d %-8s ours %7.1f us (%4.0f TFLOP/s)  %s  differ by %.1e" % (
        n, heads, kv_heads, dim, str(dtype)[6:], ours, flop / ours * 1e-6,
        "  ".join("%s %.1f us: %.2f of its speed" % (a, t, t / ours) for a, t in others.items()), differ), flush=True)
    lib.deft_ctx_destroy(ctx)


torch.manual_seed(1)
print(torch.cuda.get_device_name(), "PyTorch", torch.__version__, flush=True)
for heads, kv_heads, dim in ((32, 8, 128), (32, 32, 128)):
    prefill(4096, heads, kv_heads, dim, torch.float16)
worst = 0.0
for dtype in (torch.float16, torch.bfloat16):
    for heads, kv_heads, dim in ((32, 8, 128), (8, 8, 64), (6, 2, 80), (4, 1, 256)):
        for nodes, tokens in (((1, 2, 64), (8, 256, 32)), ((1, 4, 16), (300, 77, 33))):
            worst = max(worst, accuracy(nodes, tokens, heads, kv_heads, dim, dtype))
print("worst ratio of errors: %.2f" % worst)
