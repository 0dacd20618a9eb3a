# SPDX-License-Identifier: MIT
# The host library. Files for an instruction set are convenience libraries of their own, so that
# their code cannot leak into what runs on every processor.
lib_LTLIBRARIES += libdeft.la

deft_cppflags = $(public_cppflags) -DDEFT_BUILDING -I$(top_builddir) -I$(top_srcdir)/lib
deft_isa_cflags = $(DEFT_CFLAGS) -O3

libdeft_la_SOURCES = \
	lib/alloc.c lib/alloc.h \
	lib/attn.c lib/attn_cpu.c lib/attn_cpu.h lib/attn_ref.c \
	lib/backend.h \
	lib/check.c \
	lib/ctx.c \
	lib/cuda_api.c \
	lib/cut.c \
	lib/kv.h \
	lib/plan.c lib/plan.h \
	lib/pool.c lib/pool.h lib/runs.c lib/runs.h \
	lib/print.c \
	lib/state.h \
	lib/status.c lib/status_int.h \
	lib/threads.c lib/threads.h \
	lib/tree.c lib/tree_int.h lib/tree_walk.c \
	lib/types.h
libdeft_la_CPPFLAGS = $(deft_cppflags) $(MIMALLOC_CFLAGS)
libdeft_la_LIBADD = $(MIMALLOC_LIBS) $(LIBM)
libdeft_la_LDFLAGS = -version-info $(DEFT_SO_VERSION) -no-undefined
if HAVE_VERSION_SCRIPT
libdeft_la_LDFLAGS += -Wl,--version-script=$(top_srcdir)/lib/libdeft.map
endif
libdeft_la_DEPENDENCIES = $(top_srcdir)/lib/libdeft.map
EXTRA_DIST += lib/libdeft.map

if HAVE_AVX2
noinst_LTLIBRARIES += libdeft_avx2.la
libdeft_avx2_la_SOURCES = lib/attn_avx2.c lib/attn_rank.h lib/attn_tile.h
libdeft_avx2_la_CPPFLAGS = $(deft_cppflags)
libdeft_avx2_la_CFLAGS = $(deft_isa_cflags) $(DEFT_AVX2_CFLAGS)
libdeft_la_LIBADD += libdeft_avx2.la
libdeft_la_DEPENDENCIES += libdeft_avx2.la
endif
if HAVE_AVX512
noinst_LTLIBRARIES += libdeft_avx512.la
libdeft_avx512_la_SOURCES = lib/attn_avx512.c lib/attn_avx512.h lib/attn_rank.h lib/attn_tile.h
libdeft_avx512_la_CPPFLAGS = $(deft_cppflags)
libdeft_avx512_la_CFLAGS = $(deft_isa_cflags) $(DEFT_AVX512_CFLAGS)
libdeft_la_LIBADD += libdeft_avx512.la
libdeft_la_DEPENDENCIES += libdeft_avx512.la
endif
if HAVE_AVX512_BF16
noinst_LTLIBRARIES += libdeft_avx512_bf16.la
libdeft_avx512_bf16_la_SOURCES = lib/attn_avx512_bf16.c lib/attn_avx512.h lib/attn_dot.h lib/attn_tile.h
libdeft_avx512_bf16_la_CPPFLAGS = $(deft_cppflags)
libdeft_avx512_bf16_la_CFLAGS = $(deft_isa_cflags) $(DEFT_AVX512_BF16_CFLAGS)
libdeft_la_LIBADD += libdeft_avx512_bf16.la
libdeft_la_DEPENDENCIES += libdeft_avx512_bf16.la
endif
if HAVE_AMX_BF16
noinst_LTLIBRARIES += libdeft_amx_bf16.la
libdeft_amx_bf16_la_SOURCES = lib/attn_amx_bf16.c lib/attn_avx512.h lib/attn_dot.h lib/attn_tile.h
libdeft_amx_bf16_la_CPPFLAGS = $(deft_cppflags)
libdeft_amx_bf16_la_CFLAGS = $(deft_isa_cflags) $(DEFT_AMX_BF16_CFLAGS)
libdeft_la_LIBADD += libdeft_amx_bf16.la
libdeft_la_DEPENDENCIES += libdeft_amx_bf16.la
endif
