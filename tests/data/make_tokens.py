#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Write tokens.txt and vocab_*.gguf: what the tokenizer must give.

Run by hand:  pip install gguf numpy tokenizers;  make_tokens.py MODEL.gguf [OUTDIR]

The reference is HF tokenizers. For the model it is built from the vocabulary and merges of MODEL
(SmolLM2-135M-Instruct) with SmolLM2's pre-tokenizer. So that the suite tests the tokenizer where
there is no model, a small vocabulary is trained here and written as a GGUF for each pre-tokenizer:
vocab_smollm.gguf, vocab_gpt-2.gguf, vocab_llama-bpe.gguf. They have two control tokens, one
user-defined token, one word without merges that lead to it, and tokens for all 256 bytes.

tokens.txt, UTF-8, a line for each string, columns separated by tabs:
    mode       "plain" or "special": whether control tokens are parsed
    text       printable characters stand for themselves but for \\\\, the rest is \\xHH, byte by byte
    ids        of the model, of vocab_smollm, of vocab_gpt-2, of vocab_llama-bpe, in four columns,
               separated by spaces; "-" where a long text has been left out
"""
import json
import os
import random
import sys
import unicodedata

import gguf
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SEED = 20240902
NORMAL, CONTROL, USER = 1, 3, 4
PRES = ("smollm", "gpt-2", "llama-bpe")
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

SENTENCES = """\
The quick brown fox jumps over the lazy dog.
Grüße aus München: Straße, Äpfel, Öl, Übermut – und Fußgängerübergänge!
Où est la bibliothèque ? L’été dernier, j’ai vu naître un œuf.
¿Dónde está el niño? ¡Mañana, señor!
Pchnąć w tę łódź jeża lub ośm skrzyń fig.
Příliš žluťoučký kůň úpěl ďábelské ódy.
Árvíztűrő tükörfúrógép.
Sæmi, þú ert íslenskur; ð og þ.
Iğdır'ın ılık ışığı
Съешь же ещё этих мягких французских булок, да выпей чаю.
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.
דג סקרן שט בים מאוכזב ולפתע מצא חברה
نص حكيم له سر قاطع وذو شأن عظيم
ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण
আমার সোনার বাংলা, আমি তোমায় ভালোবাসি
யாமறிந்த மொழிகளிலே தமிழ்மொழி போல்
เป็นมนุษย์สุดประเสริฐเลิศคุณค่า
ვეპხის ტყაოსანი შოთა რუსთაველი
Բել դղյակի ձախ ժամն
다람쥐 헌 쳇바퀴에 타고파
いろはにほへと ちりぬるを
イロハニホヘト チリヌルヲ ワカヨタレソ
我能吞下玻璃而不伤身体。
視野無限廣，窗外有藍天
ሰማይ አይታረስ ንጉሥ አይከሰስ።
ខ្ញុំអាចញុំកញ្ចក់បាន
ཤེལ་སྒོ་ཟ་ནས་ང་ན་གི་མ་རེད།
😀 😃👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 ❤️ ☃ ✈️
e\u0301 vs é, n\u0303 vs ñ, A\u030a vs Å
∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β = ¬(¬α ∨ β)
ℵ₀ 2⁸ ½ ¾ Ⅻ ⅷ ①②③ ㊿ 𝟘𝟙𝟚 ٠١٢٣ ०१२ ０１２ 〇一二
I'm you're he's she'll we've they'd isn't I'M YOU'RE HE'S SHE'LL WE'VE THEY'D
it’s, 's 't 're 've 'm 'll 'd 'S 'T x's' ''s 'ſ 'K don'tcan't
a_b __init__ foo.bar(baz)[0]->qux != 0x1F && y |= ~z; // comment
for (int i = 0; i < n; i++) { sum += a[i] * b[i]; }
SELECT * FROM "t" WHERE a >= 10 AND b LIKE '%x%';
<div class="a">&nbsp;</div> https://example.org/path?q=1&r=2#top
1 12 123 1234 12345 1234567890 3.14159 1,000,000 1e-10 0b101 v2.0.1 2024-01-02T03:04:05Z
user@example.com $99.99 50% #hash @at ~tilde `tick` ^caret | pipe \\ back
no-break\u00a0space, thin\u2009space, ideographic\u3000space, zero\u200bwidth, bom\ufeff, mvs\u180e, nel\u0085
line\u2028separator and paragraph\u2029separator
<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n
<|im_end|><|im_end|> <|endoftext|>text<|endoftext|>
<|im_en <|im_end| <|im_end|>> <<|im_end|> im_end|>
<repo_name>x<file_sep>y<reponame><jupyter_code>print(1)<jupyter_output>1<empty_output>
<|begin|>hello<tool>call</tool><|end|> <|begin|<|begin|>
Hello Hello HelloHello hello world internationalization unhappinesses
"""

SCRIPTS = [(0x41, 0x5a), (0x61, 0x7a), (0xc0, 0x17f), (0x1e00, 0x1eff), (0x370, 0x3ff),
           (0x400, 0x4ff), (0x531, 0x586), (0x5d0, 0x5ea), (0x620, 0x6d3), (0x900, 0x963),
           (0x980, 0x9e3), (0xa01, 0xa74), (0xb82, 0xbcd), (0xc01, 0xc4d), (0xe01, 0xe5b),
           (0xe81, 0xedd), (0xf40, 0xf97), (0x10a0, 0x10f6), (0x1200, 0x12ff), (0x1780, 0x17dd),
           (0x1820, 0x1877), (0x3041, 0x3094), (0x30a1, 0x30fa), (0x4e00, 0x9fa5), (0xac00, 0xd7a3),
           (0xff21, 0xff5a), (0x2200, 0x22f1), (0x2500, 0x25f0), (0x2600, 0x2613),
           (0x1d400, 0x1d454), (0x20000, 0x2a6d6), (0x1f600, 0x1f64f), (0x1f300, 0x1f5ff)]
SPACES = [*"    \t\t\n\n\r\v\f", "\r\n", "\u0085", "\u00a0", "\u1680", "\u180e", "\u2000", "\u2009",
          "\u200a", "\u200b", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\ufeff"]
DIGITS = [*"0123456789", "١", "٢", "०", "５", "²", "½", "Ⅻ", "①", "㊿", "一", "𝟙", "10", "007"]
PIECES = [*"ab'\"_-.,;:!?()[]{}<>/\\|@#$%^&*+=~`", "'s", "'ll", "'RE", "’s", "the", "Hello", "été",
          "中", "文", "Я", "😀", "👍🏽", "e\u0301", "\u200d", "<|im_end|>", "<|end|>", "<tool>",
          "<|im_start|>", "<|", "|>"]


def stable(c):
    """Assigned since Unicode 3.2 and of the same category: no two engines disagree about it."""
    old = unicodedata.ucd_3_2_0.category(c)
    return old not in ("Cn", "Cs", "Co") and old == unicodedata.category(c)


def random_strings(rng):
    for low, high in SCRIPTS:
        chars = [chr(c) for c in range(low, high + 1) if low >= 0x1f300 or stable(chr(c))]
        for _ in range(9):
            words = ["".join(rng.choices(chars, k=rng.randint(1, 9)))
                     for _ in range(rng.randint(1, 4))]
            yield rng.choice(["", " "]) + rng.choice([" ", " ", "  ", "-", "'"]).join(words)
    for kinds in ((SPACES, PIECES), (DIGITS, SPACES), (DIGITS, PIECES), (SPACES, PIECES, DIGITS),
                  (PIECES,), (SPACES,)):
        for _ in range(70):
            yield "".join(rng.choice(rng.choice(kinds)) for _ in range(rng.randint(1, 16)))
    every = [chr(c) for c in range(0x110000) if stable(chr(c))]
    for _ in range(100):
        yield "".join(rng.choices(every, k=rng.randint(1, 8)))


def strings():
    rng = random.Random(SEED)
    yield from ("", " ", "  ", "\n", "a", " a", "a ", "'", "''", "\0", "a\0b", "\x7f")
    yield from (chr(c) for c in range(1, 33))
    yield from (line.replace("\\n", "\n") for line in SENTENCES.split("\n"))
    with open(__file__, encoding="utf-8") as f:
        yield from (line for line in f.read().split("\n")[:170] if line)
    yield from random_strings(rng)
    yield from (c * n for c in ("a", " ", "\n", "=", "ab", "the ", "0", "中", "😀", " \n", "\t")
                for n in (3, 17, 64, 500))
    yield "".join(rng.choices("abcdefgh", k=1500))
    yield "antidisestablishmentarianism" * 40


def read_vocab(path):
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    return tokens, types, merges


def build_tokenizer(tokens, types, merges, pre, special):
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges,
                                     ignore_merges=pre == "llama-bpe"))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre != "llama-bpe")
    first = {"smollm": [pre_tokenizers.Digits(individual_digits=True)], "gpt-2": [],
             "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA3), "isolated")]}[pre]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, level])
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, types):
        if kind == USER or (kind == CONTROL and special):
            tokenizer.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False)])
    assert tokenizer.get_vocab_size() == len(tokens)
    return tokenizer


def model_tokenizer(path, special):
    return build_tokenizer(*read_vocab(path), "smollm", special)


def train_vocab():
    """A vocabulary of 700 tokens from the strings above."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=696, min_frequency=2, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    with open(__file__, encoding="utf-8") as f:
        tokenizer.train_from_iterator([*SENTENCES.split("\n"), f.read()], trainer)
    vocab = tokenizer.get_vocab()
    tokens = ["<|begin|>", "<|end|>", "<tool>", *sorted(vocab, key=vocab.get), "Ġunhappinesses"]
    types = [CONTROL, CONTROL, USER] + [NORMAL] * (len(tokens) - 3)
    merges = [tuple(m) for m in json.loads(tokenizer.to_str())["model"]["merges"]]
    return tokens, types, merges


def write_vocab(path, tokens, types, merges, pre):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("a vocabulary for tests")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(m) for m in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_tensor("one", np.ones(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def escape(text):
    return "".join(c if c.isprintable() and c != "\\"
                   else "".join(f"\\x{b:02x}" for b in c.encode()) for c in text)


def main():
    out = sys.argv[2] if len(sys.argv) > 2 else os.path.dirname(os.path.abspath(__file__))
    vocab = train_vocab()
    references = {}
    for mode in ("plain", "special"):
        references[mode] = [model_tokenizer(sys.argv[1], mode == "special")]
        references[mode] += [build_tokenizer(*vocab, pre, mode == "special") for pre in PRES]
    for pre in PRES:
        write_vocab(f"{out}/vocab_{pre}.gguf", *vocab, pre)
    n = 0
    with open(f"{out}/tokens.txt", "w", encoding="utf-8", newline="\n") as f:
        for text in dict.fromkeys(strings()):
            for mode in ("plain", "special") if "<" in text else ("plain",):
                ids = [" ".join(map(str, r.encode(text).ids)) for r in references[mode]]
                if len(text) > 60:
                    ids[1:] = ["-"] * len(PRES)
                f.write("\t".join([mode, escape(text), *ids]) + "\n")
                n += 1
    print(n, "lines")


if __name__ == "__main__":
    main()
