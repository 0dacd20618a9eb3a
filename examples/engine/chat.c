/* SPDX-License-Identifier: MIT */
#include "chat.h"

#include <stdlib.h>
#include <string.h>

static const char before[] = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, "
                             "trained by Hugging Face<|im_end|>\n<|im_start|>user\n";
static const char after[] = "<|im_end|>\n<|im_start|>assistant\n";

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

int chat_encode(const tokenizer_t *tok, const char *text, int raw, int32_t **ids_p, size_t *n_p)
{
    int chatml = !raw && tokenizer_has_chatml(tok), status = 0;
    int32_t *ids = NULL, bos = tokenizer_bos(tok);
    size_t n = 0;

    if (chatml)
        status = join_text(tok, before, 1, &ids, &n);
    else if (tokenizer_add_bos(tok) && bos >= 0)
        status = join(&ids, &n, &bos, 1);
    if (status == 0)
        status = join_text(tok, text, 0, &ids, &n);
    if (status == 0 && chatml)
        status = join_text(tok, after, 1, &ids, &n);
    if (status != 0) {
        free(ids);
        return -1;
    }
    *ids_p = ids;
    *n_p = n;
    return 0;
}
