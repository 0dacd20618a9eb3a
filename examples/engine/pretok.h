/* SPDX-License-Identifier: MIT */
/** @file pretok.h
 *  Cutting text into the words that merges stay within, by the patterns of a
 *  model's pre-tokenizer.
 *
 *  Threads: a pretok_t is read-only; threads may share it. */
#ifndef ENGINE_PRETOK_H
#define ENGINE_PRETOK_H

#include <stddef.h>

typedef struct pretok pretok_t;

/** Takes one word; not 0 ends the cutting. */
typedef int (*pretok_word_fn)(void *arg, const char *word, size_t n);

/** The pre-tokenizer called @p name ([n], as in tokenizer.ggml.pre).
 *  @return 0; -1 for an unknown name, with the reason in @p err. */
int pretok_create(const char *name, size_t n, pretok_t **pre_p, char *err, size_t err_size);
void pretok_free(pretok_t *pre);

/** Hand the words of @p text to @p word, in order; together they are the text.
 *  Each run of bytes that are no UTF-8 is a word of its own.
 *  @return 0; -1 when PCRE2 failed; else what @p word returned. */
int pretok_split(const pretok_t *pre, const char *text, size_t n, pretok_word_fn word, void *arg);

/** 1 when a word that is a token as a whole takes no merges. */
int pretok_whole_words(const pretok_t *pre);

/** 1 when BOS begins a text unless the model says otherwise. */
int pretok_add_bos(const pretok_t *pre);

#endif
