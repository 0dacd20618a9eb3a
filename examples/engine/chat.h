/* SPDX-License-Identifier: MIT */
/* Prompts of chat models. */
#ifndef ENGINE_CHAT_H
#define ENGINE_CHAT_H

#include "tokenizer.h"

/* Token ids of one user message: as ChatML with SmolLM2's default system message where the model has
 * that template and raw is 0, else as it is, after BOS where the model wants it. Control tokens in
 * the text stay text. ids_p: free() it. 0, or -1: out of memory. */
int chat_encode(const tokenizer_t *tok, const char *text, int raw, int32_t **ids_p, size_t *n_p);

#endif
