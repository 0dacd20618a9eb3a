/* SPDX-License-Identifier: MIT */
/** @file tokenizer.h
 *  The model's own tokenizer: byte-level BPE from the metadata of its GGUF.
 *
 *  Text is cut into words by the pattern that `tokenizer.ggml.pre` names, and
 *  each word's bytes are merged pairwise in the order of
 *  `tokenizer.ggml.merges`. Text may be any bytes, valid UTF-8 or not, and
 *  decode(encode(x)) == x unless x has a byte that the vocabulary lacks
 *  (tokenizer_has_byte()): such bytes are dropped, as in the reference
 *  implementations, so that ids stay those the model was trained on.
 *
 *  Threads: a tokenizer is read-only once created; threads may share it. */
#ifndef ENGINE_TOKENIZER_H
#define ENGINE_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#include "gguf.h"

/** A tokenizer; keeps nothing of the gguf_t that it was made from. */
typedef struct tokenizer tokenizer_t;

/** Build the tokenizer of @p g.
 *  @param[out] tok_p  written only on success.
 *  @param[out] err    [err_size] the reason on failure.
 *  @return 0; -1 when the model has no tokenizer, one of another kind, one
 *  with an unknown pattern, or one that is inconsistent. Cost: O(vocabulary). */
int tokenizer_create(const gguf_t *g, tokenizer_t **tok_p, char *err, size_t err_size);

/** Free @p tok; NULL is allowed. */
void tokenizer_free(tokenizer_t *tok);

/** Token ids of @p n bytes of @p text (may be NULL for none). No BOS is added: see
 *  tokenizer_add_bos().
 *  @param parse_special  0: text that reads like a control token
 *                        ("<|im_end|>") is plain text, so that a user cannot
 *                        forge one; 1: it becomes that token.
 *  @param[out] ids_p     ids, to be freed with free(); never NULL on success.
 *  @param[out] n_p       how many.
 *  @return 0; -1 out of memory, a word of 2^30 bytes, or PCRE2 failed; the
 *  outputs are untouched.   Cost: O(n log n) even for one long word. */
int tokenizer_encode(const tokenizer_t *tok, const char *text, size_t n, int parse_special,
                     int32_t **ids_p, size_t *n_p);

/** Bytes of @p n token ids. Ids outside the vocabulary give nothing.
 *  @param show_special  1: control tokens give their text; 0: nothing.
 *  @param[out] buf      [size] as much as fits; where @p size > 0 it ends in a
 *                       NUL. May be NULL when @p size is 0.
 *  @return bytes needed without the NUL, as snprintf. Text cut between tokens
 *  may end inside a UTF-8 sequence: join bytes, then look. */
size_t tokenizer_decode(const tokenizer_t *tok, const int32_t *ids, size_t n, int show_special,
                        char *buf, size_t size);

/** @name What the model file says
 *  @{ */
/** Begin and end of sequence, or -1 for none. */
int32_t tokenizer_bos(const tokenizer_t *tok);
int32_t tokenizer_eos(const tokenizer_t *tok);
/** 1 when the caller should put tokenizer_bos() before a raw prompt. */
int tokenizer_add_bos(const tokenizer_t *tok);
/** 1 for an id that ends a turn or the text (EOS, EOT, <|im_end|> ...). */
int tokenizer_is_eog(const tokenizer_t *tok, int32_t id);
/** Number of token ids. */
size_t tokenizer_vocab_size(const tokenizer_t *tok);
/** Id of the token whose text is the @p n bytes @p text exactly (control
 *  tokens included, byte-level tokens by the bytes they stand for), or -1. */
int32_t tokenizer_find(const tokenizer_t *tok, const char *text, size_t n);
/** 1 when @p byte has a token, so that no text loses it. SmolLM2 lacks some
 *  control characters and the bytes that begin no assigned character. */
int tokenizer_has_byte(const tokenizer_t *tok, unsigned char byte);
/** 1 when chats are written as <|im_start|>role ... <|im_end|>: both control
 *  tokens exist and the model's chat template, if any, uses them. */
int tokenizer_has_chatml(const tokenizer_t *tok);
/** @} */

#endif
