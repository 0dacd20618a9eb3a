/* SPDX-License-Identifier: MIT */
#include "chat.h"

#include <stdlib.h>
#include <string.h>

static const char default_system[] = "You are a helpful AI assistant named SmolLM, "
                                     "trained by Hugging Face";

static int join(int32_t **to, size_t *n, const int32_t *more, size_t n_more)
{
    int32_t *p = realloc(*to, (*n + n_more + 1) * sizeof(*p));

    if (!p)
        return -1;
    if (n_more > 0)
        memcpy(p + *n, more, n_more * sizeof(*p));
    *to = p;
    *n += n_more;
    return 0;
}

static int join_text(const tokenizer_t *tok, const char *text, int special, int32_t **to, size_t *n)
{
    int32_t *ids;
    size_t n_ids;
    int status = tokenizer_encode(tok, text, strlen(text), special, &ids, &n_ids);

    if (status == 0) {
        status = join(to, n, ids, n_ids);
        free(ids);
    }
    return status;
}

static int is_chatml(const tokenizer_t *tok, int raw)
{
    return !raw && tokenizer_has_chatml(tok);
}

int chat_message(const tokenizer_t *tok, const char *role, const char *text, int raw,
                 int32_t **ids_p, size_t *n_p)
{
    const int32_t bos = tokenizer_bos(tok);
    int status = 0;

    if (is_chatml(tok, raw)) {
        if (!text && strcmp(role, "system") == 0)
            text = default_system;
        if (!text)
            return 0;
        status = join_text(tok, "<|im_start|>", 1, ids_p, n_p) ||
                 join_text(tok, role, 0, ids_p, n_p) || join_text(tok, "\n", 0, ids_p, n_p) ||
                 join_text(tok, text, 0, ids_p, n_p) || chat_close(tok, raw, ids_p, n_p);
        return status ? -1 : 0;
    }
    if (*n_p == 0 && tokenizer_add_bos(tok) && bos >= 0)
        status = join(ids_p, n_p, &bos, 1);
    return status || (text && join_text(tok, text, 0, ids_p, n_p)) ? -1 : 0;
}

int chat_open(const tokenizer_t *tok, int raw, int32_t **ids_p, size_t *n_p)
{
    return is_chatml(tok, raw) ? join_text(tok, "<|im_start|>assistant\n", 1, ids_p, n_p) : 0;
}

int chat_close(const tokenizer_t *tok, int raw, int32_t **ids_p, size_t *n_p)
{
    return is_chatml(tok, raw) ? join_text(tok, "<|im_end|>\n", 1, ids_p, n_p) : 0;
}

int chat_encode(const tokenizer_t *tok, const char *text, int raw, int32_t **ids_p, size_t *n_p)
{
    int32_t *ids = NULL;
    size_t n = 0;

    if (chat_message(tok, "system", NULL, raw, &ids, &n) != 0 ||
        chat_message(tok, "user", text, raw, &ids, &n) != 0 || chat_open(tok, raw, &ids, &n) != 0) {
        free(ids);
        return -1;
    }
    *ids_p = ids;
    *n_p = n;
    return 0;
}
