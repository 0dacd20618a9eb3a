/* SPDX-License-Identifier: MIT */
/* Prompts of chat models, as token ids. Where the model has the ChatML template and raw is 0,
 * they are written in it; else text is as it is, after BOS where the model wants it. Control
 * tokens in the text stay text. */
#ifndef ENGINE_CHAT_H
#define ENGINE_CHAT_H

#include "tokenizer.h"

/* One user message, after SmolLM2's default system message. ids_p: free() it. 0, or -1: out of
 * memory. */
int chat_encode(const tokenizer_t *tok, const char *text, int raw, int32_t **ids_p, size_t *n_p);

/* A conversation, piece by piece: each call appends to the ids (NULL and 0 at first). 0, or -1: out
 * of memory; the ids are still to be freed.
 *   chat_message()  what "system", "user" or "assistant" says; text NULL is the default of the
 *                   system in ChatML, else nothing
 *   chat_open()     what comes before an answer of the model
 *   chat_close()    what comes after it, in place of the end token that the model drew */
int chat_message(const tokenizer_t *tok, const char *role, const char *text, int raw,
                 int32_t **ids_p, size_t *n_p);
int chat_open(const tokenizer_t *tok, int raw, int32_t **ids_p, size_t *n_p);
int chat_close(const tokenizer_t *tok, int raw, int32_t **ids_p, size_t *n_p);

#endif
