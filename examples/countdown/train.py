#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Train a small Llama on lines of Countdown and write it as GGUF.

    generate train 1 20000000 > lines.txt
    python3 train.py lines.txt model.gguf [--minutes 4] [--dim 192] [--layers 6]

A token is a number up to 999, one of three words, a sign, or the end of a line. The loss counts what
comes after the problem: steps, and values. Needs PyTorch, uses a GPU if there is one.

countdown.gguf is from 200,000 lines (generate train 1 200000), --minutes 26 --batch 256 --dim 128 --layers 3
--heads 2 --ffn 384 --lr 3e-3, seed 1, on one core of a server CPU: 1,360 steps, loss 0.22.
"""
import argparse
import math
import re
import struct
import time

import numpy as np
import torch
import torch.nn.functional as F

WORDS = ["impossible", "likely", "sure"]
BYTES = [chr(c) for c in range(33, 127)]  # the digits are the numbers 0 to 9
TOKENS = ["<s>", "</s>"] + BYTES + [str(i) for i in range(10, 1000)] + WORDS
ID = {t: i for i, t in enumerate(TOKENS)}
END = ID["</s>"]
LENGTH = 48
PIECES = re.compile(rb"\d+|impossible|likely|sure|[^\d\n]|\n")


def tokenize(path):
    """All lines as rows [n][LENGTH], padded with -1, and where each problem ends."""
    ids = {t.encode(): i for t, i in ID.items()}
    ids[b"\n"] = END
    with open(path, "rb") as f:
        flat = np.array([ids[p] for p in PIECES.findall(f.read())], dtype=np.int16)
    ends = np.flatnonzero(flat == END)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lens = ends - starts + 1
    keep = lens <= LENGTH
    starts, lens = starts[keep], lens[keep]
    at = np.arange(LENGTH)[None, :]
    rows = np.where(at < lens[:, None], flat[np.minimum(starts[:, None] + at, len(flat) - 1)], -1)
    return torch.from_numpy(rows)


class Layer(torch.nn.Module):
    def __init__(self, dim, ffn, heads):
        super().__init__()
        self.heads = heads
        self.attn_norm = torch.nn.Parameter(torch.ones(dim))
        self.ffn_norm = torch.nn.Parameter(torch.ones(dim))
        q = heads * 64
        for name, n, k in (("q", q, dim), ("k", q, dim), ("v", q, dim), ("o", dim, q), ("gate", ffn, dim), ("up", ffn, dim),
                           ("down", dim, ffn)):
            setattr(self, name, torch.nn.Parameter(torch.randn(n, k) * (0.02 if name not in ("o", "down") else 0.008)))

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        h = F.rms_norm(x, (x.shape[-1],), self.attn_norm, 1e-5)
        q, k, v = ((h @ w.T).view(b, t, self.heads, 64).transpose(1, 2) for w in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x = x + y.transpose(1, 2).reshape(b, t, -1) @ self.o.T
        h = F.rms_norm(x, (x.shape[-1],), self.ffn_norm, 1e-5)
        return x + (F.silu(h @ self.gate.T) * (h @ self.up.T)) @ self.down.T


def rotate(x, cos, sin):
    """Pairs of neighbours, as Llama's GGUF files have them."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


class Llama(torch.nn.Module):
    def __init__(self, dim, ffn, layers, heads):
        super().__init__()
        self.embedding = torch.nn.Parameter(torch.randn(len(TOKENS), dim) * 0.02)
        self.layers = torch.nn.ModuleList(Layer(dim, ffn, heads) for _ in range(layers))
        self.norm = torch.nn.Parameter(torch.ones(dim))
        angles = torch.arange(LENGTH)[:, None] * 10000.0 ** (-torch.arange(0, 64, 2) / 64)[None, :]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids):
        x = self.embedding[ids]
        cos, sin = (c[:ids.shape[1]].to(x.dtype) for c in (self.cos, self.sin))
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.rms_norm(x, (x.shape[-1],), self.norm, 1e-5) @ self.embedding.T


def loss_of(model, rows):
    """Of the tokens after the problem's ';'."""
    ids = rows.clamp(min=0)
    logits = model(ids[:, :-1])
    want = rows[:, 1:].clone()
    seen = torch.cumsum((ids == ID[";"]).int(), 1)[:, :-1]
    want[(seen == 0) | (want < 0)] = -100
    return F.cross_entropy(logits.flatten(0, 1).float(), want.flatten(), ignore_index=-100)


def train(model, rows, args, device):
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}], lr=args.lr,
                                  betas=(0.9, 0.98), fused=device == "cuda")
    compiled = torch.compile(model) if device == "cuda" else model
    start, step, shown = time.time(), 0, 0.0
    order = torch.randperm(len(rows))
    while True:
        done = (time.time() - start) / (60 * args.minutes)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * done))
        at = step * args.batch % (len(rows) - args.batch)
        batch = rows[order[at:at + args.batch]].to(device, torch.long, non_blocking=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = loss_of(compiled, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if done - shown > 0.05 or step == 0:
            shown = done
            print(f"{60 * args.minutes * done:6.0f} s  step {step}  lines {step * args.batch}  loss {loss.item():.4f}", flush=True)
        step += 1
    return step


# ---- GGUF ----

U32, F32, BOOL, STRING, ARRAY, I32 = 4, 6, 7, 8, 9, 5


def gguf_string(s):
    b = s.encode()
    return struct.pack("<Q", len(b)) + b


def gguf_value(kind, value):
    if kind == STRING:
        return gguf_string(value)
    if kind == ARRAY:
        of, items = value
        return struct.pack("<IQ", of, len(items)) + b"".join(gguf_value(of, i) for i in items)
    return struct.pack({U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}[kind], value)


def write_gguf(path, model, args):
    meta = [("general.architecture", STRING, "llama"), ("general.name", STRING, "countdown"),
            ("general.license", STRING, "MIT"),
            ("llama.block_count", U32, args.layers), ("llama.context_length", U32, LENGTH),
            ("llama.embedding_length", U32, args.dim), ("llama.feed_forward_length", U32, args.ffn),
            ("llama.attention.head_count", U32, args.heads), ("llama.attention.head_count_kv", U32, args.heads),
            ("llama.attention.key_length", U32, 64), ("llama.rope.dimension_count", U32, 64),
            ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5), ("llama.rope.freq_base", F32, 10000.0),
            ("tokenizer.ggml.model", STRING, "gpt2"), ("tokenizer.ggml.pre", STRING, "llama-bpe"),
            ("tokenizer.ggml.tokens", ARRAY, (STRING, TOKENS)),
            ("tokenizer.ggml.token_type", ARRAY, (I32, [3, 3] + [1] * (len(TOKENS) - 2))),
            ("tokenizer.ggml.merges", ARRAY, (STRING, [])),
            ("tokenizer.ggml.bos_token_id", U32, 0), ("tokenizer.ggml.eos_token_id", U32, END),
            ("tokenizer.ggml.add_bos_token", BOOL, False)]
    tensors = [("token_embd.weight", model.embedding), ("output_norm.weight", model.norm)]
    for i, layer in enumerate(model.layers):
        for name, ours in (("attn_norm", "attn_norm"), ("ffn_norm", "ffn_norm"), ("attn_q", "q"), ("attn_k", "k"),
                           ("attn_v", "v"), ("attn_output", "o"), ("ffn_gate", "gate"), ("ffn_up", "up"), ("ffn_down", "down")):
            tensors.append((f"blk.{i}.{name}.weight", getattr(layer, ours)))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(meta))
    for key, kind, value in meta:
        head += gguf_string(key) + struct.pack("<I", kind) + gguf_value(kind, value)
    data = b""
    for name, t in tensors:
        t = t.detach().float().cpu()
        kind = 0 if t.dim() == 1 else 1  # F32, F16
        head += gguf_string(name) + struct.pack("<I", t.dim()) + struct.pack(f"<{t.dim()}Q", *reversed(t.shape))
        head += struct.pack("<IQ", kind, len(data))
        raw = t.numpy().astype(np.float32 if kind == 0 else np.float16).tobytes()
        data += raw + b"\0" * (-len(raw) % 32)
    with open(path, "wb") as f:
        f.write(head + b"\0" * (-len(head) % 32) + data)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("lines")
    p.add_argument("gguf")
    p.add_argument("--minutes", type=float, default=4)
    p.add_argument("--dim", type=int, default=192)
    p.add_argument("--ffn", type=int, default=512)
    p.add_argument("--layers", type=int, default=6)
    p.add_argument("--heads", type=int, default=3)
    p.add_argument("--batch", type=int, default=4096)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--seed", type=int, default=1)
    args = p.parse_args()
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = tokenize(args.lines)
    model = Llama(args.dim, args.ffn, args.layers, args.heads).to(device)
    print(f"{len(rows)} lines, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, on {device}", flush=True)
    steps = train(model, rows, args, device)
    write_gguf(args.gguf, model, args)
    print(f"{steps} steps, {steps * args.batch / len(rows):.2f} times over the lines")


main()
