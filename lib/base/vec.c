/* SPDX-License-Identifier: MIT */
/* Growing of the arrays of vec.h. */
#include "config.h"

#include "vec.h"

#include <string.h>

bool ideft_vec_grow(ideft_host_t *host, void **memory, size_t *cap, size_t used, size_t n,
                    size_t elem)
{
    if (n > SIZE_MAX / elem / 2)
        return false;
    size_t want = *cap + *cap / 2;
    want = want > n ? want : n;
    const size_t page = 4096 / elem > 0 ? 4096 / elem : 1; /* small ones grow by about a page */
    want = (want + page - 1) / page * page;
    void *fresh = ideft_malloc(host, want * elem, 64, "array");
    if (fresh == NULL)
        return false;
    if (used > 0)
        memcpy(fresh, *memory, used * elem);
    ideft_free(host, *memory, *cap * elem);
    *memory = fresh;
    *cap = want;
    return true;
}
