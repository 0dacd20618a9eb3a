/* SPDX-License-Identifier: MIT */
/* Byte-level BPE. Text becomes ids in four steps:
 *
 *   1. control and user-defined tokens are cut out, leftmost first, longest at one place;
 *   2. what lies between them is cut into words (pretok.c);
 *   3. a word's bytes become the ids of its byte tokens; bytes without one are dropped, as the
 *      reference implementations do;
 *   4. the ids are merged (bpe.c).
 *
 * In the file, a token's text is written in a byte alphabet: each byte is one printable character
 * (0x20 is U+0120). "text" below means this form, "bytes" what it stands for. */
#include "tokenizer.h"

#include "bpe.h"
#include "error.h"
#include "pretok.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NONE BPE_NONE
#define ALPHABET_END 324 /* 256 + the 68 bytes that are not printable */

enum token_type { TYPE_UNKNOWN = 2, TYPE_CONTROL = 3, TYPE_USER = 4, TYPE_UNUSED = 5 };
enum token_flag { FLAG_HIDDEN = 1, FLAG_USER = 2, FLAG_EOG = 4, FLAG_RAW = 8 };

/* One spelling of the vocabulary. Token i is [blob + at[i], blob + at[i + 1]). */
typedef struct spelling {
    char *blob;
    size_t *at; /* [n_vocab + 1] ascending */
} spelling_t;

struct tokenizer {
    size_t n_vocab;
    spelling_t text;
    spelling_t bytes;
    uint8_t *flags; /* [n_vocab] enum token_flag */
    uint32_t *slot; /* [slot_mask + 1] open addressing by text; NONE: free */
    size_t slot_mask;
    uint32_t byte_id[256];
    uint32_t *special; /* [n_special] by first byte, then longest first */
    size_t n_special;
    size_t first_special[257]; /* by first byte b: [first_special[b], first_special[b + 1]) */
    pretok_t *pre;
    bpe_t *bpe;
    int add_bos;
    int chatml;
    int32_t bos;
    int32_t eos;
};

/* ---- the byte alphabet ---- */

static int is_printable(unsigned b)
{
    return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
}

/* Printable bytes are the character of that number, the others follow from U+0100 in order. */
static unsigned char_of_byte(unsigned b)
{
    return is_printable(b) ? b
           : b <= 0x20     ? 0x100 + b
           : b <= 0xa0     ? 0x121 + (b - 0x7f)
                           : ALPHABET_END - 1;
}

static void fill_alphabet(int16_t byte_of[ALPHABET_END])
{
    for (unsigned c = 0; c < ALPHABET_END; c++) {
        byte_of[c] = -1;
    }
    for (unsigned b = 0; b < 256; b++) {
        byte_of[char_of_byte(b)] = (int16_t)b;
    }
}

/* Text of n bytes, at most two bytes for each; returns its length. */
static size_t text_of_bytes(const char *bytes, size_t n, char *text)
{
    size_t m = 0;

    for (size_t i = 0; i < n; i++) {
        unsigned c = char_of_byte((unsigned char)bytes[i]);

        if (c >= 0x80) {
            text[m++] = (char)(0xc0 | c >> 6);
            c = 0x80 | (c & 0x3f);
        }
        text[m++] = (char)c;
    }
    return m;
}

/* The inverse; returns 0, or -1 when the text is not wholly in the alphabet. */
static int bytes_of_text(const int16_t byte_of[ALPHABET_END], const char *text, size_t n,
                         char *bytes, size_t *n_p)
{
    const unsigned char *p = (const unsigned char *)text;
    size_t m = 0;

    for (size_t i = 0, len; i < n; i += len) {
        unsigned c = p[i];

        len = c < 0x80 ? 1 : 2; /* the alphabet has no longer characters */
        if (len == 2) {
            if (n - i < 2 || c < 0xc2 || c > 0xdf || (p[i + 1] & 0xc0) != 0x80) {
                return -1;
            }
            c = (c & 0x1f) << 6 | (p[i + 1] & 0x3fu);
        }
        if (c >= ALPHABET_END || byte_of[c] < 0) {
            return -1;
        }
        bytes[m++] = (char)byte_of[c];
    }
    *n_p = m;
    return 0;
}

/* ---- the vocabulary ---- */

static const char *spelling_of(const spelling_t *s, size_t id, size_t *n_p)
{
    *n_p = s->at[id + 1] - s->at[id];
    return s->blob + s->at[id];
}

static uint64_t hash_text(const char *s, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;

    for (size_t i = 0; i < n; i++) {
        h = (h ^ (unsigned char)s[i]) * 0x100000001b3u;
    }
    return bpe_mix(h);
}

/* The slot that holds this text, or the free one where it belongs; NULL: too many probes. */
static uint32_t *slot_find(const tokenizer_t *tok, const char *text, size_t n)
{
    uint64_t h = hash_text(text, n);

    for (size_t probe = 0; probe < BPE_MAX_PROBE; probe++, h++) {
        uint32_t *slot = &tok->slot[h & tok->slot_mask];
        const char *have;
        size_t len;

        if (*slot == NONE) {
            return slot;
        }
        have = spelling_of(&tok->text, *slot, &len);
        if (len == n && memcmp(have, text, n) == 0) {
            return slot;
        }
    }
    return NULL;
}

/* Id of a text, or NONE. */
static uint32_t vocab_find(const tokenizer_t *tok, const char *text, size_t n)
{
    const uint32_t *slot = slot_find(tok, text, n);

    return slot ? *slot : NONE;
}

static int load_texts(tokenizer_t *tok, const gguf_t *g, char *err, size_t err_size)
{
    uint64_t n_vocab;
    size_t total = 0, n;
    const char *s;

    if (gguf_array_len(g, "tokenizer.ggml.tokens", &n_vocab) != 0 || n_vocab == 0 ||
        n_vocab > INT32_MAX || gguf_array_str(g, "tokenizer.ggml.tokens", 0, &s, &n) != 0) {
        return ENGINE_FAIL(err, err_size, "the model has no tokenizer.ggml.tokens");
    }
    tok->n_vocab = (size_t)n_vocab;
    for (size_t i = 0; i < tok->n_vocab; i++) {
        (void)gguf_array_str(g, "tokenizer.ggml.tokens", i, &s, &n);
        total += n; /* strings of one file: their sum fits */
    }
    tok->text.at = malloc((tok->n_vocab + 1) * sizeof(*tok->text.at));
    tok->text.blob = malloc(total + 1);
    if (!tok->text.at || !tok->text.blob) {
        return ENGINE_FAIL(err, err_size, "out of memory");
    }
    tok->text.at[0] = 0;
    for (size_t i = 0; i < tok->n_vocab; i++) {
        (void)gguf_array_str(g, "tokenizer.ggml.tokens", i, &s, &n);
        memcpy(tok->text.blob + tok->text.at[i], s, n);
        tok->text.at[i + 1] = tok->text.at[i] + n;
    }
    return 0;
}

/* Of tokens with the same text the first is found. */
static int build_slots(tokenizer_t *tok, char *err, size_t err_size)
{
    size_t size = bpe_table_size(tok->n_vocab), n;

    tok->slot = size ? malloc(size * sizeof(*tok->slot)) : NULL;
    if (!tok->slot) {
        return ENGINE_FAIL(err, err_size, "out of memory");
    }
    memset(tok->slot, 0xff, size * sizeof(*tok->slot)); /* NONE */
    tok->slot_mask = size - 1;
    for (size_t i = 0; i < tok->n_vocab; i++) {
        const char *text = spelling_of(&tok->text, i, &n);
        uint32_t *slot = slot_find(tok, text, n);

        if (!slot) {
            return ENGINE_FAIL(err, err_size, "the vocabulary does not fit its hash table");
        }
        if (*slot == NONE) {
            *slot = (uint32_t)i;
        }
    }
    return 0;
}

static int load_flags(tokenizer_t *tok, const gguf_t *g, char *err, size_t err_size)
{
    static const char key[] = "tokenizer.ggml.token_type";
    uint64_t n = 0;
    int64_t type;

    tok->flags = calloc(tok->n_vocab, 1);
    if (!tok->flags) {
        return ENGINE_FAIL(err, err_size, "out of memory");
    }
    if (gguf_array_len(g, key, &n) != 0) {
        return 0; /* all are normal */
    }
    if (n != tok->n_vocab) {
        return ENGINE_FAIL(err, err_size, "%s has %llu entries for %zu tokens", key,
                           (unsigned long long)n, tok->n_vocab);
    }
    for (size_t i = 0; i < tok->n_vocab; i++) {
        if (gguf_array_i64(g, key, i, &type) != 0) {
            return ENGINE_FAIL(err, err_size, "%s holds no integers", key);
        }
        tok->flags[i] = type == TYPE_CONTROL || type == TYPE_UNKNOWN ? FLAG_HIDDEN | FLAG_RAW
                        : type == TYPE_USER                          ? FLAG_USER | FLAG_RAW
                        : type == TYPE_UNUSED                        ? FLAG_RAW
                                                                     : 0;
    }
    return 0;
}

/* Bytes are never more than the text. A token not written in the alphabet stands for itself. */
static int build_bytes(tokenizer_t *tok, char *err, size_t err_size)
{
    int16_t byte_of[ALPHABET_END];
    size_t n, m;

    fill_alphabet(byte_of);
    tok->bytes.at = malloc((tok->n_vocab + 1) * sizeof(*tok->bytes.at));
    tok->bytes.blob = malloc(tok->text.at[tok->n_vocab] + 1);
    if (!tok->bytes.at || !tok->bytes.blob) {
        return ENGINE_FAIL(err, err_size, "out of memory");
    }
    tok->bytes.at[0] = 0;
    for (size_t i = 0; i < tok->n_vocab; i++) {
        const char *text = spelling_of(&tok->text, i, &n);
        char *bytes = tok->bytes.blob + tok->bytes.at[i];

        if ((tok->flags[i] & FLAG_RAW) || bytes_of_text(byte_of, text, n, bytes, &m) != 0) {
            memcpy(bytes, text, n);
            m = n;
        }
        tok->bytes.at[i + 1] = tok->bytes.at[i] + m;
    }
    for (unsigned b = 0; b < 256; b++) {
        char byte = (char)b, text[2];

        n = text_of_bytes(&byte, 1, text);
        tok->byte_id[b] = vocab_find(tok, text, n);
    }
    return 0;
}

/* ---- merges ---- */

/* The merge "left right". joined_p: a buffer that grows. */
static int add_merge(tokenizer_t *tok, const char *s, size_t n, uint32_t rank, char **joined_p,
                     char *err, size_t err_size)
{
    const char *space = n > 1 ? memchr(s + 1, ' ', n - 1) : NULL;
    size_t left_n = space ? (size_t)(space - s) : 0;
    uint32_t left, right, id;
    char *joined;

    if (!space || !(joined = realloc(*joined_p, n))) {
        return ENGINE_FAIL(err, err_size, space ? "out of memory" : "merge %u is no pair", rank);
    }
    *joined_p = joined;
    memcpy(joined, s, left_n);
    memcpy(joined + left_n, space + 1, n - left_n - 1);
    left = vocab_find(tok, s, left_n);
    right = vocab_find(tok, space + 1, n - left_n - 1);
    id = vocab_find(tok, joined, n - 1);
    if (left == NONE || right == NONE || id == NONE) {
        return ENGINE_FAIL(err, err_size, "merge %u names a token that is not in the vocabulary",
                           rank);
    }
    if (bpe_add(tok->bpe, left, right, rank, id) != 0) {
        return ENGINE_FAIL(err, err_size, "the merges do not fit their hash table");
    }
    return 0;
}

static int load_merges(tokenizer_t *tok, const gguf_t *g, char *err, size_t err_size)
{
    static const char key[] = "tokenizer.ggml.merges";
    char *joined = NULL;
    const char *s;
    uint64_t n_merges;
    size_t n;
    int status = 0;

    if (gguf_array_len(g, key, &n_merges) != 0 || n_merges > INT32_MAX) {
        return ENGINE_FAIL(err, err_size, "the model has no %s", key);
    }
    tok->bpe = bpe_create((size_t)n_merges);
    if (!tok->bpe) {
        return ENGINE_FAIL(err, err_size, "out of memory");
    }
    for (uint32_t i = 0; i < n_merges && status == 0; i++) {
        status = gguf_array_str(g, key, i, &s, &n) != 0
                     ? ENGINE_FAIL(err, err_size, "%s holds no strings", key)
                     : add_merge(tok, s, n, i, &joined, err, err_size);
    }
    free(joined);
    return status;
}

/* ---- special tokens ---- */

typedef struct special {
    uint32_t id;
    unsigned char first;
    size_t n;
} special_t;

static int compare_specials(const void *a_v, const void *b_v)
{
    const special_t *a = a_v, *b = b_v;

    return a->first != b->first ? (a->first > b->first) - (a->first < b->first)
           : a->n != b->n       ? (a->n < b->n) - (a->n > b->n)
                                : (a->id > b->id) - (a->id < b->id);
}

static int build_specials(tokenizer_t *tok, char *err, size_t err_size)
{
    special_t *list = malloc(tok->n_vocab * sizeof(*list));
    size_t n = 0, len;

    tok->special = malloc(tok->n_vocab * sizeof(*tok->special));
    if (!list || !tok->special) {
        free(list);
        return ENGINE_FAIL(err, err_size, "out of memory");
    }
    for (size_t i = 0; i < tok->n_vocab; i++) {
        const char *s = spelling_of(&tok->bytes, i, &len);

        if ((tok->flags[i] & (FLAG_HIDDEN | FLAG_USER)) && len > 0) {
            list[n++] = (special_t){ (uint32_t)i, (unsigned char)s[0], len };
        }
    }
    qsort(list, n, sizeof(*list), compare_specials);
    for (size_t i = 0; i < n; i++) {
        tok->special[i] = list[i].id;
        tok->first_special[list[i].first + 1] = i + 1;
    }
    for (size_t b = 1; b <= 256; b++) { /* first bytes that no special has */
        if (tok->first_special[b] < tok->first_special[b - 1]) {
            tok->first_special[b] = tok->first_special[b - 1];
        }
    }
    tok->n_special = n;
    free(list);
    return 0;
}

/* The special token with exactly these bytes, or NONE. */
static uint32_t special_find(const tokenizer_t *tok, const char *text, size_t n)
{
    for (size_t i = 0; i < tok->n_special; i++) {
        size_t len;
        const char *s = spelling_of(&tok->bytes, tok->special[i], &len);

        if (len == n && memcmp(s, text, n) == 0) {
            return tok->special[i];
        }
    }
    return NONE;
}

/* An id of the file: absent is -1, past the vocabulary an error. */
static int load_id(const tokenizer_t *tok, const gguf_t *g, const char *key, int32_t *id_p,
                   char *err, size_t err_size)
{
    uint64_t id;

    *id_p = -1;
    if (gguf_u64(g, key, &id) != 0) {
        return 0;
    }
    if (id >= tok->n_vocab) {
        return ENGINE_FAIL(err, err_size, "%s is %llu, past the %zu tokens", key,
                           (unsigned long long)id, tok->n_vocab);
    }
    *id_p = (int32_t)id;
    return 0;
}

static int load_ends(tokenizer_t *tok, const gguf_t *g, char *err, size_t err_size)
{
    static const char *const name[] = { "<|im_end|>",    "<|endoftext|>", "<|eot_id|>",
                                        "<|eom_id|>",    "<|end|>",       "<|end_of_text|>",
                                        "<end_of_turn>", "<EOT>",         "</s>" };
    int32_t eot, eom;

    if (load_id(tok, g, "tokenizer.ggml.bos_token_id", &tok->bos, err, err_size) != 0 ||
        load_id(tok, g, "tokenizer.ggml.eos_token_id", &tok->eos, err, err_size) != 0 ||
        load_id(tok, g, "tokenizer.ggml.eot_token_id", &eot, err, err_size) != 0 ||
        load_id(tok, g, "tokenizer.ggml.eom_token_id", &eom, err, err_size) != 0) {
        return -1;
    }
    for (size_t i = 0; i < sizeof(name) / sizeof(name[0]); i++) {
        uint32_t id = special_find(tok, name[i], strlen(name[i]));

        if (id != NONE) {
            tok->flags[id] |= FLAG_EOG;
        }
    }
    for (size_t i = 0; i < 3; i++) {
        int32_t id = i == 0 ? tok->eos : i == 1 ? eot : eom;

        if (id >= 0) {
            tok->flags[id] |= FLAG_EOG;
        }
    }
    return 0;
}

static void load_chatml(tokenizer_t *tok, const gguf_t *g)
{
    static const char start[] = "<|im_start|>", end[] = "<|im_end|>";
    const char *s;
    size_t n;

    tok->chatml = special_find(tok, start, strlen(start)) != NONE &&
                  special_find(tok, end, strlen(end)) != NONE;
    if (tok->chatml && gguf_str(g, "tokenizer.chat_template", &s, &n) == 0) {
        tok->chatml = 0;
        for (size_t i = 0; i + strlen(start) <= n && !tok->chatml; i++) {
            tok->chatml = memcmp(s + i, start, strlen(start)) == 0;
        }
    }
}

/* ---- making and freeing ---- */

static int load_pre(tokenizer_t *tok, const gguf_t *g, char *err, size_t err_size)
{
    const char *s;
    size_t n;

    if (gguf_str(g, "tokenizer.ggml.model", &s, &n) != 0 || n != 4 || memcmp(s, "gpt2", 4) != 0) {
        return ENGINE_FAIL(err, err_size,
                           "the tokenizer is not byte-level BPE "
                           "(tokenizer.ggml.model is not \"gpt2\")");
    }
    if (gguf_str(g, "tokenizer.ggml.pre", &s, &n) != 0) {
        return ENGINE_FAIL(err, err_size,
                           "the model does not name its pre-tokenizer "
                           "(tokenizer.ggml.pre)");
    }
    return pretok_create(s, n, &tok->pre, err, err_size);
}

static int load_all(tokenizer_t *tok, const gguf_t *g, char *err, size_t err_size)
{
    if (load_pre(tok, g, err, err_size) != 0 || load_texts(tok, g, err, err_size) != 0 ||
        build_slots(tok, err, err_size) != 0 || load_flags(tok, g, err, err_size) != 0 ||
        build_bytes(tok, err, err_size) != 0 || load_merges(tok, g, err, err_size) != 0 ||
        build_specials(tok, err, err_size) != 0 || load_ends(tok, g, err, err_size) != 0) {
        return -1;
    }
    tok->add_bos = pretok_add_bos(tok->pre);
    (void)gguf_bool(g, "tokenizer.ggml.add_bos_token", &tok->add_bos);
    load_chatml(tok, g);
    return 0;
}

int tokenizer_create(const gguf_t *g, tokenizer_t **tok_p, char *err, size_t err_size)
{
    tokenizer_t *tok = calloc(1, sizeof(*tok));

    if (!tok) {
        return ENGINE_FAIL(err, err_size, "out of memory");
    }
    if (load_all(tok, g, err, err_size) != 0) {
        tokenizer_free(tok);
        return -1;
    }
    *tok_p = tok;
    return 0;
}

void tokenizer_free(tokenizer_t *tok)
{
    if (!tok) {
        return;
    }
    pretok_free(tok->pre);
    bpe_free(tok->bpe);
    free(tok->text.blob);
    free(tok->text.at);
    free(tok->bytes.blob);
    free(tok->bytes.at);
    free(tok->flags);
    free(tok->slot);
    free(tok->special);
    free(tok);
}

/* ---- encoding ---- */

typedef struct encoding {
    const tokenizer_t *tok;
    uint32_t *ids; /* [room] of which n are done */
    size_t n;
    size_t room;
    bpe_work_t work;
} encoding_t;

/* Room for n more ids. */
static int reserve_ids(encoding_t *enc, size_t n)
{
    size_t room = enc->room;
    uint32_t *ids;

    if (n > SIZE_MAX / 8 - enc->n) {
        return -1;
    }
    if (enc->ids && enc->n + n <= room) {
        return 0;
    }
    while (room < enc->n + n || room < 16) {
        room = room < 16 ? 16 : 2 * room;
    }
    ids = realloc(enc->ids, room * sizeof(*ids));
    if (!ids) {
        return -1;
    }
    enc->ids = ids;
    enc->room = room;
    return 0;
}

/* The token that is this word as a whole, or NONE. */
static uint32_t find_bytes(const tokenizer_t *tok, const char *word, size_t n)
{
    char local[256] = "", *text = local;
    uint32_t id;

    if (n > sizeof(local) / 2 && (n > SIZE_MAX / 2 || !(text = malloc(2 * n)))) {
        return NONE;
    }
    id = vocab_find(tok, text, text_of_bytes(word, n, text));
    if (text != local) {
        free(text);
    }
    return id == NONE || (tok->flags[id] & FLAG_RAW) ? NONE : id;
}

static int encode_word(void *arg, const char *word, size_t n)
{
    encoding_t *enc = arg;
    const tokenizer_t *tok = enc->tok;
    uint32_t *ids, whole = pretok_whole_words(tok->pre) ? find_bytes(tok, word, n) : NONE;
    size_t m = 0;

    if (reserve_ids(enc, n) != 0) {
        return -1;
    }
    ids = enc->ids + enc->n;
    if (whole != NONE) {
        ids[m++] = whole;
    } else {
        for (size_t i = 0; i < n; i++) {
            ids[m] = tok->byte_id[(unsigned char)word[i]];
            m += ids[m] != NONE;
        }
        if (bpe_apply(tok->bpe, &enc->work, ids, m, &m) != 0) {
            return -1;
        }
    }
    enc->n += m;
    return 0;
}

/* The special token that begins the n > 0 bytes at p, or NONE. Hidden ones only when asked for. */
static uint32_t special_at(const tokenizer_t *tok, const char *p, size_t n, int hidden)
{
    size_t first = (unsigned char)p[0];

    for (size_t i = tok->first_special[first]; i < tok->first_special[first + 1]; i++) {
        uint32_t id = tok->special[i];
        size_t len;
        const char *s = spelling_of(&tok->bytes, id, &len);

        if (len <= n && memcmp(s, p, len) == 0 && (hidden || (tok->flags[id] & FLAG_USER))) {
            return id;
        }
    }
    return NONE;
}

static int encode_all(encoding_t *enc, const char *text, size_t n, int parse_special)
{
    const tokenizer_t *tok = enc->tok;
    size_t begin = 0, pos = 0, len;

    if (n == 0) {
        return 0; /* text may be NULL */
    }
    while (pos < n) {
        uint32_t id = special_at(tok, text + pos, n - pos, parse_special);

        if (id == NONE) {
            pos++;
            continue;
        }
        if (pretok_split(tok->pre, text + begin, pos - begin, encode_word, enc) != 0 ||
            reserve_ids(enc, 1) != 0) {
            return -1;
        }
        enc->ids[enc->n++] = id;
        (void)spelling_of(&tok->bytes, id, &len);
        pos += len;
        begin = pos;
    }
    return pretok_split(tok->pre, text + begin, n - begin, encode_word, enc);
}

int tokenizer_encode(const tokenizer_t *tok, const char *text, size_t n, int parse_special,
                     int32_t **ids_p, size_t *n_p)
{
    encoding_t enc = { .tok = tok };
    int status = reserve_ids(&enc, 1); /* so that no text is no NULL */

    if (status == 0) {
        status = encode_all(&enc, text, n, parse_special);
    }
    bpe_work_free(&enc.work);
    if (status != 0) {
        free(enc.ids);
        return -1;
    }
    *ids_p = (int32_t *)enc.ids; /* all are below INT32_MAX */
    *n_p = enc.n;
    return 0;
}

/* ---- decoding and asking ---- */

size_t tokenizer_decode(const tokenizer_t *tok, const int32_t *ids, size_t n, int show_special,
                        char *buf, size_t size)
{
    size_t need = 0, len;

    for (size_t i = 0; i < n; i++) {
        const char *s;

        if (ids[i] < 0 || (size_t)ids[i] >= tok->n_vocab ||
            ((tok->flags[ids[i]] & FLAG_HIDDEN) && !show_special)) {
            continue;
        }
        s = spelling_of(&tok->bytes, (size_t)ids[i], &len);
        if (need < size) {
            memcpy(buf + need, s, len < size - need ? len : size - need);
        }
        need += len;
    }
    if (size > 0) {
        buf[need < size ? need : size - 1] = '\0';
    }
    return need;
}

int32_t tokenizer_bos(const tokenizer_t *tok)
{
    return tok->bos;
}

int32_t tokenizer_eos(const tokenizer_t *tok)
{
    return tok->eos;
}

int tokenizer_add_bos(const tokenizer_t *tok)
{
    return tok->add_bos && tok->bos >= 0;
}

int tokenizer_is_eog(const tokenizer_t *tok, int32_t id)
{
    return id >= 0 && (size_t)id < tok->n_vocab && (tok->flags[id] & FLAG_EOG) != 0;
}

size_t tokenizer_vocab_size(const tokenizer_t *tok)
{
    return tok->n_vocab;
}

int32_t tokenizer_find(const tokenizer_t *tok, const char *text, size_t n)
{
    uint32_t id = special_find(tok, text, n);

    if (id == NONE) {
        id = find_bytes(tok, text, n);
    }
    return id == NONE ? -1 : (int32_t)id;
}

int tokenizer_has_byte(const tokenizer_t *tok, unsigned char byte)
{
    return tok->byte_id[byte] != NONE;
}

int tokenizer_has_chatml(const tokenizer_t *tok)
{
    return tok->chatml;
}
