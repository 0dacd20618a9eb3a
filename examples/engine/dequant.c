/* SPDX-License-Identifier: MIT */
/* From stored weights to float32. A quantised row is a run of blocks; each holds one scale, or one
 * for every 16 values, and small integers:
 *
 *   Q8_0   32 values: half d, int8 q[32]                        x = d q
 *   Q4_0   32 values: half d, nibble q[32]                      x = d (q - 8)
 *   Q4_1   32 values: half d, half m, nibble q[32]              x = d q + m
 *   Q6_K  256 values: 6-bit q[256], int8 scale[16], half d      x = d scale (q - 32)
 *
 * Nibbles: byte i of a block holds value i in its low half and value i + 16 in its high half.
 * d q has at most 19 significant bits, so it is exact in float32, and fusing the multiply with the
 * add changes nothing: the result is the same with and without FMA. */
#include "gguf.h"

#include <string.h>

static uint32_t load_u16(const unsigned char *p)
{
    uint16_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

static float float_from_bits(uint32_t bits)
{
    float f;

    memcpy(&f, &bits, sizeof(f));
    return f;
}

/* Exact for every half, subnormals, infinities and NaN payloads included. */
static float load_half(const unsigned char *p)
{
    uint32_t h = load_u16(p), sign = (h & 0x8000) << 16, exponent = h >> 10 & 0x1f;
    uint32_t mantissa = h & 0x3ff;

    if (exponent == 0) {
        float f = (float)mantissa * 0x1p-24f;

        return sign ? -f : f;
    }
    exponent = exponent == 0x1f ? 0xff : exponent + (127 - 15);
    return float_from_bits(sign | exponent << 23 | mantissa << 13);
}

/* Each converter turns n values, a multiple of its block, at p into out. */

static void from_f32(const unsigned char *p, uint64_t n, float *out)
{
    memcpy(out, p, (size_t)n * sizeof(*out));
}

static void from_f16(const unsigned char *p, uint64_t n, float *out)
{
    for (uint64_t i = 0; i < n; i++) {
        out[i] = load_half(p + 2 * i);
    }
}

static void from_bf16(const unsigned char *p, uint64_t n, float *out)
{
    for (uint64_t i = 0; i < n; i++) {
        out[i] = float_from_bits(load_u16(p + 2 * i) << 16);
    }
}

static void from_q8_0(const unsigned char *p, uint64_t n, float *out)
{
    for (; n > 0; n -= 32, p += 34, out += 32) {
        float d = load_half(p);

        for (int i = 0; i < 32; i++) {
            out[i] = d * (float)(int8_t)p[2 + i];
        }
    }
}

static void from_q4_0(const unsigned char *p, uint64_t n, float *out)
{
    for (; n > 0; n -= 32, p += 18, out += 32) {
        float d = load_half(p);

        for (int i = 0; i < 16; i++) {
            out[i] = d * (float)((p[2 + i] & 15) - 8);
            out[i + 16] = d * (float)((p[2 + i] >> 4) - 8);
        }
    }
}

static void from_q4_1(const unsigned char *p, uint64_t n, float *out)
{
    for (; n > 0; n -= 32, p += 20, out += 32) {
        float d = load_half(p), m = load_half(p + 2);

        for (int i = 0; i < 16; i++) {
            out[i] = d * (float)(p[4 + i] & 15) + m;
            out[i + 16] = d * (float)(p[4 + i] >> 4) + m;
        }
    }
}

/* A block is two halves of 128 values; a half is 64 bytes of low nibbles, 32 bytes of high pairs
 * and 8 scales. Value 32 j + i of a half (j < 4) has its low bits in byte 32 (j % 2) + i, in the
 * nibble j / 2, its high bits in pair j of byte i, and the scale 2 j + i / 16. */
static void from_q6_k(const unsigned char *p, uint64_t n, float *out)
{
    for (; n > 0; n -= 256, p += 210) {
        float d = load_half(p + 208);

        for (int half = 0; half < 2; half++, out += 128) {
            const unsigned char *low = p + 64 * half, *high = p + 128 + 32 * half;
            const unsigned char *scale = p + 192 + 8 * half;

            for (int j = 0; j < 4; j++) {
                for (int i = 0; i < 32; i++) {
                    int q = (low[32 * (j % 2) + i] >> 4 * (j / 2) & 15) | (high[i] >> 2 * j & 3)
                                                                              << 4;

                    out[32 * j + i] = d * (float)(int8_t)scale[2 * j + i / 16] * (float)(q - 32);
                }
            }
        }
    }
}

/* What is known of each type; convert is NULL for those that are only measured. */
typedef struct type_info {
    uint32_t type;
    uint32_t block; /* values in a block */
    uint32_t bytes; /* of a block */
    const char *name;
    void (*convert)(const unsigned char *p, uint64_t n, float *out);
} type_info_t;

static const type_info_t type_table[] = {
    { GGUF_F32, 1, 4, "F32", from_f32 },
    { GGUF_F16, 1, 2, "F16", from_f16 },
    { GGUF_BF16, 1, 2, "BF16", from_bf16 },
    { GGUF_Q8_0, 32, 34, "Q8_0", from_q8_0 },
    { GGUF_Q4_0, 32, 18, "Q4_0", from_q4_0 },
    { GGUF_Q4_1, 32, 20, "Q4_1", from_q4_1 },
    { GGUF_Q6_K, 256, 210, "Q6_K", from_q6_k },
    { 6, 32, 22, "Q5_0", NULL },
    { 7, 32, 24, "Q5_1", NULL },
    { 10, 256, 84, "Q2_K", NULL },
    { 11, 256, 110, "Q3_K", NULL },
    { 12, 256, 144, "Q4_K", NULL },
    { 13, 256, 176, "Q5_K", NULL },
    { 15, 256, 292, "Q8_K", NULL },
    { 16, 256, 66, "IQ2_XXS", NULL },
    { 17, 256, 74, "IQ2_XS", NULL },
    { 18, 256, 98, "IQ3_XXS", NULL },
    { 19, 256, 50, "IQ1_S", NULL },
    { 20, 32, 18, "IQ4_NL", NULL },
    { 21, 256, 110, "IQ3_S", NULL },
    { 22, 256, 82, "IQ2_S", NULL },
    { 23, 256, 136, "IQ4_XS", NULL },
    { 24, 1, 1, "I8", NULL },
    { 25, 1, 2, "I16", NULL },
    { 26, 1, 4, "I32", NULL },
    { 27, 1, 8, "I64", NULL },
    { 28, 1, 8, "F64", NULL },
    { 29, 256, 56, "IQ1_M", NULL },
    { 34, 256, 54, "TQ1_0", NULL },
    { 35, 256, 66, "TQ2_0", NULL },
    { 39, 32, 17, "MXFP4", NULL },
};

static const type_info_t *type_find(uint32_t type)
{
    for (size_t i = 0; i < sizeof(type_table) / sizeof(type_table[0]); i++) {
        if (type_table[i].type == type) {
            return &type_table[i];
        }
    }
    return NULL;
}

const char *gguf_type_name(uint32_t type)
{
    const type_info_t *info = type_find(type);

    return info ? info->name : "unknown";
}

int gguf_type_layout(uint32_t type, uint32_t *block_p, uint32_t *bytes_p)
{
    const type_info_t *info = type_find(type);

    if (!info) {
        return -1;
    }
    *block_p = info->block;
    *bytes_p = info->bytes;
    return 0;
}

int gguf_dequantize(const gguf_tensor_t *t, uint64_t row, uint64_t n_rows, float *out)
{
    const type_info_t *info = type_find(t->type);
    uint64_t rows = t->dims[1] * t->dims[2] * t->dims[3]; /* checked when the file was opened */
    uint64_t row_bytes;

    if (!info || !info->convert || row > rows || n_rows > rows - row) {
        return -1;
    }
    row_bytes = t->dims[0] / info->block * info->bytes;
    info->convert((const unsigned char *)t->data + row * row_bytes, n_rows * t->dims[0], out);
    return 0;
}
