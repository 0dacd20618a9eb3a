/* SPDX-License-Identifier: MIT */
/* A pre-tokenizer is a list of patterns. The first cuts the text into its matches and what lies
 * between them; each next one cuts the pieces of the one before in the same way, seeing nothing of
 * the neighbouring pieces, which matters to the look-ahead. */
#include "pretok.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PATTERNS 2

/* White space is spelled out, as PCRE2's \s has U+180E as well, which White_Space has not. */
#define SPACES                                                                                  \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}" \
    "\\x{205f}\\x{3000}"
#define TAIL "[" SPACES "]+(?![^" SPACES "])|[" SPACES "]+"
#define DIGIT "\\p{N}"
#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" SPACES "\\p{L}\\p{N}]+|" TAIL
#define LLAMA3                                                               \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}" \
    "| ?[^" SPACES "\\p{L}\\p{N}]+[\\r\\n]*|[" SPACES "]*[\\r\\n]+|" TAIL

typedef struct recipe {
    const char *name;
    const char *pattern[MAX_PATTERNS];
    int whole_words;
    int add_bos;
} recipe_t;

static const recipe_t recipes[] = {
    { "smollm", { DIGIT, GPT2 }, 0, 0 },
    { "gpt-2", { GPT2, NULL }, 0, 0 },
    { "llama-bpe", { LLAMA3, NULL }, 1, 1 },
};

struct pretok {
    const recipe_t *recipe;
    pcre2_code *code[MAX_PATTERNS];
    size_t n_codes;
    pcre2_match_context *limits;
};

/* One call of pretok_split(). */
typedef struct split {
    const pretok_t *pre;
    pcre2_match_data *match[MAX_PATTERNS];
    pretok_word_fn word;
    void *arg;
} split_t;

static const recipe_t *recipe_find(const char *name, size_t n)
{
    for (size_t i = 0; i < sizeof(recipes) / sizeof(recipes[0]); i++) {
        if (strlen(recipes[i].name) == n && memcmp(recipes[i].name, name, n) == 0) {
            return &recipes[i];
        }
    }
    return NULL;
}

static int compile(pretok_t *pre)
{
    for (size_t i = 0; i < MAX_PATTERNS && pre->recipe->pattern[i]; i++) {
        PCRE2_SIZE at;
        int code;

        pre->code[i] = pcre2_compile((PCRE2_SPTR)pre->recipe->pattern[i], PCRE2_ZERO_TERMINATED,
                                     PCRE2_UTF | PCRE2_UCP, &code, &at, NULL);
        if (!pre->code[i]) {
            return -1;
        }
        (void)pcre2_jit_compile(pre->code[i], PCRE2_JIT_COMPLETE); /* else it is interpreted */
        pre->n_codes = i + 1;
    }
    pre->limits = pcre2_match_context_create(NULL);
    if (!pre->limits) {
        return -1;
    }
    /* No pattern backtracks more than once over a run, but a run may be as long as the text. */
    (void)pcre2_set_match_limit(pre->limits, UINT32_MAX);
    return 0;
}

int pretok_create(const char *name, size_t n, pretok_t **pre_p, char *err, size_t err_size)
{
    const recipe_t *recipe = recipe_find(name, n);
    pretok_t *pre;
    int shown = 0;

    if (!recipe) {
        while ((size_t)shown < n && shown < 40 && name[shown] > 0x20 && name[shown] < 0x7f) {
            shown++;
        }
        (void)snprintf(err, err_size, "the pre-tokenizer \"%.*s\" is not known", shown, name);
        return -1;
    }
    pre = calloc(1, sizeof(*pre));
    if (pre) {
        pre->recipe = recipe;
    }
    if (!pre || compile(pre) != 0) {
        (void)snprintf(err, err_size, "PCRE2 refuses the patterns of \"%s\"", recipe->name);
        pretok_free(pre);
        return -1;
    }
    *pre_p = pre;
    return 0;
}

void pretok_free(pretok_t *pre)
{
    if (!pre) {
        return;
    }
    for (size_t i = 0; i < MAX_PATTERNS; i++) {
        pcre2_code_free(pre->code[i]);
    }
    pcre2_match_context_free(pre->limits);
    free(pre);
}

int pretok_whole_words(const pretok_t *pre)
{
    return pre->recipe->whole_words;
}

int pretok_add_bos(const pretok_t *pre)
{
    return pre->recipe->add_bos;
}

/* Bytes of the UTF-8 sequence at p, of which left > 0 bytes are there; 0: it is none. */
static size_t utf8_length(const unsigned char *p, size_t left)
{
    size_t n = p[0] < 0x80   ? 1
               : p[0] < 0xc2 ? 0
               : p[0] < 0xe0 ? 2
               : p[0] < 0xf0 ? 3
               : p[0] < 0xf5 ? 4
                             : 0;

    if (n > left) {
        return 0;
    }
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    if (n >= 3 && ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) ||
                   (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f))) {
        return 0; /* overlong, a surrogate, or past U+10FFFF */
    }
    return n;
}

/* The next match at or after pos; 1 found, 0 none, -1 failed. The text is known to be UTF-8. */
static int next_match(const split_t *split, size_t stage, const char *text, size_t n, size_t pos,
                      size_t *begin_p, size_t *end_p)
{
    const pretok_t *pre = split->pre;
    pcre2_match_data *match = split->match[stage];
    const PCRE2_SIZE *span = pcre2_get_ovector_pointer(match);
    int got = pcre2_match(pre->code[stage], (PCRE2_SPTR)text, n, pos, PCRE2_NO_UTF_CHECK, match,
                          pre->limits);

    if (got == PCRE2_ERROR_JIT_STACKLIMIT) { /* the interpreter's stack is the heap */
        got = pcre2_match(pre->code[stage], (PCRE2_SPTR)text, n, pos,
                          PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, match, pre->limits);
    }
    if (got == PCRE2_ERROR_NOMATCH) {
        return 0;
    }
    if (got < 0 || span[0] < pos || span[1] <= span[0]) {
        return -1;
    }
    *begin_p = span[0];
    *end_p = span[1];
    return 1;
}

static int split_stage(const split_t *split, size_t stage, const char *text, size_t n)
{
    size_t pos = 0, begin, end;
    int status;

    if (stage == split->pre->n_codes) {
        return split->word(split->arg, text, n);
    }
    while (pos < n) {
        status = next_match(split, stage, text, n, pos, &begin, &end);
        if (status < 0) {
            return -1;
        }
        if (status == 0) {
            begin = end = n;
        }
        if (begin > pos && (status = split_stage(split, stage + 1, text + pos, begin - pos))) {
            return status;
        }
        if (end > begin && (status = split_stage(split, stage + 1, text + begin, end - begin))) {
            return status;
        }
        pos = end;
    }
    return 0;
}

/* Runs of UTF-8 go through the patterns, runs of other bytes are words as they are. */
static int split_runs(const split_t *split, const char *text, size_t n)
{
    const unsigned char *p = (const unsigned char *)text;
    size_t begin = 0;
    int status;

    while (begin < n) {
        size_t end = begin, len = utf8_length(p + begin, n - begin);
        int valid = len > 0;

        while (end < n && (len > 0) == valid) {
            end += valid ? len : 1;
            len = end < n ? utf8_length(p + end, n - end) : 0;
        }
        status = split_stage(split, valid ? 0 : split->pre->n_codes, text + begin, end - begin);
        if (status) {
            return status;
        }
        begin = end;
    }
    return 0;
}

int pretok_split(const pretok_t *pre, const char *text, size_t n, pretok_word_fn word, void *arg)
{
    split_t split = { .pre = pre, .word = word, .arg = arg };
    int status = 0;

    for (size_t i = 0; i < pre->n_codes; i++) {
        split.match[i] = pcre2_match_data_create(1, NULL);
        if (!split.match[i]) {
            status = -1;
        }
    }
    if (status == 0) {
        status = split_runs(&split, text, n);
    }
    for (size_t i = 0; i < pre->n_codes; i++) {
        pcre2_match_data_free(split.match[i]);
    }
    return status;
}
