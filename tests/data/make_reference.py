#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Write reference_logits.bin and reference_greedy.txt for SmolLM2-135M-Instruct (Q4_1).

Run by hand:  pip install gguf numpy tokenizers;  make_reference.py MODEL.gguf [OUTDIR]

A decoder of its own, in float64, on the weights of the GGUF dequantised by the gguf package: the
reference rounds nothing but the stored weights, so an engine in float32 with float32 activations
should be within a few 1e-4 of it, and one with float16 KV or tensor cores within a few 1e-2.

GGUF stores the rows of a Llama model's Q and K so that RoPE turns the pairs (2 i, 2 i + 1) of a
head; it is applied here in that form, without undoing the permutation.

reference_logits.bin, little-endian:
    char     magic[8]          "DEFTREF1"
    uint32   n_tokens, n_rows, n_ids, n_vocab
    int32    token[n_tokens]           the text
    int32    row[n_rows]               positions whose logits follow
    int32    id[n_ids]                 vocabulary ids, ascending, that were sampled
    float32  logit[n_rows][n_ids]      at position row[r] of id[i]
    float64  norm[n_tokens]            Euclidean norm of all n_vocab logits at each position
    int32    argmax[n_tokens]          at each position, the lowest id of the largest
    float32  margin[n_tokens]          largest minus second largest logit
The logits at position p are those after tokens 0..p.

reference_greedy.txt: a record for each prompt, three lines and an empty one:
    prompt   the text that was encoded (special tokens parsed, no BOS), as a JSON string
    ids      ids of the prompt | ids that greedy decoding appends, EOS included if reached
    margins  largest minus second largest logit at each appended id; where it is small, rounding in
             the engine may turn the decision, and what follows cannot be compared
"""
import json
import struct
import sys

import gguf
import numpy as np

from make_tokens import model_tokenizer

TEXT = """\
The library keeps the keys and values of every token once, however many branches share it. A search \
program opens a root, appends the prompt, and forks children where it wants to try several \
continuations. Each child is a node of a tree; what it attends to is the path from the root to \
itself. When a branch is given up, its node is pruned and its blocks return to the pool.

def fork(tree, parent, n):
    return [tree.add(parent) for _ in range(n)]

In 1969, 3 people flew to the Moon: Armstrong, Aldrin and Collins. The trip took 4 days, and they \
brought back 21.5 kg of rocks. Why does the sky look blue? Light from the sun is scattered by the \
molecules of the air, and blue light is scattered more than red light because its wavelength is \
shorter. At sunset the path through the air is longer, so that most of the blue is gone and the \
remaining light looks red or orange. Le ciel est bleu pendant le jour, et rouge le soir.
"""
N_TOKENS = 200
ROWS = [0, 1, 7, 31, 63, 100, 150, 199]
N_IDS = 2000
SEED = 20240901

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def chat(user):
    """The model's own chat template with its default system message, ready for the answer."""
    return (f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
            "<|im_start|>assistant\n")


PROMPTS = [
    "The capital of France is",
    "Once upon a time, there was a small robot who",
    "def fibonacci(n):\n    ",
    "1, 2, 3, 4, 5, 6, 7,",
    "The three states of matter are",
    chat("What is photosynthesis?"),
    chat("Tell me a short story about a cat and a dog."),
    chat("Give me tips for learning a language."),
    chat("Write a haiku about the sea."),
    chat("What is 12 + 30?"),
    chat("Name three colours of the rainbow."),
    chat("Explain in one sentence why leaves are green."),
]
N_NEW = 40


class Model:
    """Llama in float64 with a growing KV cache."""

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.reader = reader
        arch = reader.fields["general.architecture"].contents()
        assert arch == "llama"

        def number(key):
            return reader.fields[f"llama.{key}"].contents()

        self.n_layers = number("block_count")
        self.n_heads = number("attention.head_count")
        self.n_kv_heads = number("attention.head_count_kv")
        self.eps = number("attention.layer_norm_rms_epsilon")
        self.dim = number("rope.dimension_count")
        self.freq = number("rope.freq_base") ** (-np.arange(0, self.dim, 2) / self.dim)
        self.w = {}
        for t in reader.tensors:
            w = gguf.quants.dequantize(t.data, t.tensor_type)
            assert w.dtype == np.float32
            self.w[t.name] = w.astype(np.float64)
        assert "output.weight" not in self.w  # tied to the embedding
        self.cache = [None] * self.n_layers

    def reset(self):
        self.cache = [None] * self.n_layers

    def norm(self, x, name):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps) * self.w[name]

    def rope(self, x, start):
        angle = (start + np.arange(x.shape[0]))[:, None, None] * self.freq
        even, odd = x[..., 0::2], x[..., 1::2]
        out = np.empty_like(x)
        out[..., 0::2] = even * np.cos(angle) - odd * np.sin(angle)
        out[..., 1::2] = even * np.sin(angle) + odd * np.cos(angle)
        return out

    def attention(self, x, layer):
        n, name = x.shape[0], f"blk.{layer}.attn_"
        past = 0 if self.cache[layer] is None else self.cache[layer][0].shape[0]
        q = (x @ self.w[name + "q.weight"].T).reshape(n, self.n_heads, self.dim)
        k = (x @ self.w[name + "k.weight"].T).reshape(n, self.n_kv_heads, self.dim)
        v = (x @ self.w[name + "v.weight"].T).reshape(n, self.n_kv_heads, self.dim)
        q, k = self.rope(q, past), self.rope(k, past)
        if past:
            k = np.concatenate([self.cache[layer][0], k])
            v = np.concatenate([self.cache[layer][1], v])
        self.cache[layer] = (k, v)
        group = self.n_heads // self.n_kv_heads
        out = np.empty((n, self.n_heads, self.dim))
        mask = np.arange(k.shape[0])[None, :] > past + np.arange(n)[:, None]
        for h in range(self.n_heads):
            s = q[:, h] @ k[:, h // group].T / np.sqrt(self.dim)
            s[mask] = -np.inf
            p = np.exp(s - s.max(axis=-1, keepdims=True))
            out[:, h] = p / p.sum(axis=-1, keepdims=True) @ v[:, h // group]
        return out.reshape(n, -1) @ self.w[name + "output.weight"].T

    def logits(self, ids):
        x = self.w["token_embd.weight"][ids]
        for layer in range(self.n_layers):
            name = f"blk.{layer}."
            x = x + self.attention(self.norm(x, name + "attn_norm.weight"), layer)
            y = self.norm(x, name + "ffn_norm.weight")
            gate = y @ self.w[name + "ffn_gate.weight"].T
            y = gate / (1 + np.exp(-gate)) * (y @ self.w[name + "ffn_up.weight"].T)
            x = x + y @ self.w[name + "ffn_down.weight"].T
        return self.norm(x, "output_norm.weight") @ self.w["token_embd.weight"].T


def margins(logits):
    two = np.partition(logits, -2, axis=-1)[..., -2:]
    return two[..., 1] - two[..., 0]


def write_logits(model, tokenizer, path):
    ids = tokenizer.encode(TEXT).ids[:N_TOKENS]
    assert len(ids) == N_TOKENS
    model.reset()
    logits = model.logits(ids)
    loss = np.log(np.exp(logits).sum(-1))[:-1] - logits[np.arange(N_TOKENS - 1), ids[1:]]
    print(f"mean loss {loss.mean():.4f} (perplexity {np.exp(loss.mean()):.2f})")
    rng = np.random.default_rng(SEED)
    n_vocab = logits.shape[1]
    sampled = set(rng.choice(n_vocab, N_IDS, replace=False).tolist())
    top = set(logits[ROWS].argmax(-1).tolist())
    sampled -= set(sorted(sampled - top)[: len(top - sampled)])  # the largest of each row are in
    sampled = np.array(sorted(sampled | top))
    assert len(sampled) == N_IDS
    with open(path, "wb") as f:
        f.write(b"DEFTREF1")
        f.write(struct.pack("<4I", N_TOKENS, len(ROWS), N_IDS, n_vocab))
        for a, kind in ((ids, "<i4"), (ROWS, "<i4"), (sampled, "<i4"),
                        (logits[np.ix_(ROWS, sampled)], "<f4"),
                        (np.sqrt((logits ** 2).sum(-1)), "<f8"),
                        (logits.argmax(-1), "<i4"), (margins(logits), "<f4")):
            f.write(np.ascontiguousarray(a, dtype=kind).tobytes())


def write_greedy(model, tokenizer, eos, path):
    with open(path, "w", encoding="ascii") as f:
        for prompt in PROMPTS:
            ids = tokenizer.encode(prompt).ids
            model.reset()
            logits, new, gaps = model.logits(ids)[-1], [], []
            while len(new) < N_NEW and (not new or new[-1] != eos):
                new.append(int(logits.argmax()))
                gaps.append(float(margins(logits)))
                logits = model.logits(new[-1:])[-1]
            print(repr(tokenizer.decode(new)), f"least margin {min(gaps):.4f}")
            f.write(json.dumps(prompt) + "\n")
            f.write(" ".join(map(str, ids)) + " | " + " ".join(map(str, new)) + "\n")
            f.write(" ".join(f"{g:.6g}" for g in gaps) + "\n\n")


def main():
    out = sys.argv[2] if len(sys.argv) > 2 else sys.path[0]
    model = Model(sys.argv[1])
    tokenizer = model_tokenizer(sys.argv[1], special=True)
    eos = model.reader.fields["tokenizer.ggml.eos_token_id"].contents()
    write_logits(model, tokenizer, f"{out}/reference_logits.bin")
    write_greedy(model, tokenizer, eos, f"{out}/reference_greedy.txt")


if __name__ == "__main__":
    main()
