/* SPDX-License-Identifier: MIT */
/* What tile.h asks for, in AVX-512; shared by the sets that build on it. */
#include <immintrin.h>

#define VL 16
#define VMAX(_a, _b) ((vf)_mm512_max_ps((__m512)(_a), (__m512)(_b)))
#define HMAX(_v) _mm512_reduce_max_ps((__m512)(_v))
#define ANY_ABOVE(_v, _x) _mm512_cmp_ps_mask((__m512)(_v), _mm512_set1_ps(_x), _CMP_GT_OQ)
#define LOAD_F16(_p) ((vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(_p))))
#define STORE_FIRST(_p, _v, _n) \
    _mm512_mask_storeu_ps(_p, (__mmask16)((1u << (_n)) - 1), (__m512)(_v))
#define REDUCE(_v) ((vf)_mm512_reduce_ps((__m512)(_v), 0))
#define SCALE(_p, _n) ((vf)_mm512_scalef_ps((__m512)(_p), (__m512)(_n)))
#define TO_BF16(_v) ((__m256i)_mm512_cvtneps_pbh((__m512)(_v)))
#define FROM_BF16(_h) ((vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_h), 16))
#define ROUND_BF16(_p, _v) _mm256_storeu_si256((__m256i *)(_p), TO_BF16(_v))
