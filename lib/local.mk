# SPDX-License-Identifier: MIT
# The host library. Files for an instruction set are convenience libraries of their own, so that
# their code cannot leak into what runs on every processor.
lib_LTLIBRARIES += libdeft.la

deft_cppflags = $(public_cppflags) -DDEFT_BUILDING -I$(top_builddir) -I$(top_srcdir)/lib

# The layers, from the lowest: tests build some of them alone.
deft_base = lib/base/alloc.c lib/base/error.c lib/base/host.h lib/base/processors.c lib/base/processors.h \
	lib/base/threads.c \
	lib/base/vec.c lib/base/vec.h
deft_format = lib/format/format.c lib/format/format.h lib/format/geometry.h lib/format/half.h
deft_forest = lib/forest/compact.c lib/forest/forest.h lib/forest/grow.c lib/forest/lookup.c lib/forest/move.h \
	lib/forest/nodes.c lib/forest/pool.c lib/forest/pool.h lib/forest/runs.c lib/forest/runs.h \
	lib/forest/selfcheck.c lib/forest/shrink.c
deft_plan = lib/plan/cost.c lib/plan/cost.h lib/plan/order.c lib/plan/patch.c lib/plan/plan.h \
	lib/plan/plan_make.c lib/plan/planner.h lib/plan/splits.c lib/plan/stats.c
deft_cpu = lib/device.h lib/cpu/layout.h lib/cpu/cpu_device.c lib/cpu/isa.c lib/cpu/isa_scalar.c \
	lib/cpu/kernel.h lib/cpu/state.h

libdeft_la_SOURCES = $(deft_base) $(deft_format) $(deft_forest) $(deft_plan) $(deft_cpu) \
	lib/devices.c lib/context.c lib/context_int.h lib/cuda_api.c lib/step.c \
	lib/tree.c lib/tree_print.c lib/tree_query.c
libdeft_la_CPPFLAGS = $(deft_cppflags) $(MIMALLOC_CFLAGS)
libdeft_la_LIBADD = $(MIMALLOC_LIBS) $(LIBM)
libdeft_la_LDFLAGS = -version-info $(DEFT_SO_VERSION) -no-undefined
if HAVE_VERSION_SCRIPT
libdeft_la_LDFLAGS += -Wl,--version-script=$(top_srcdir)/lib/libdeft.map
endif
libdeft_la_DEPENDENCIES = $(top_srcdir)/lib/libdeft.map
EXTRA_DIST += lib/libdeft.map

deft_tile = lib/cpu/ahead.h lib/cpu/micro_amx.h lib/cpu/micro_bf16.h lib/cpu/micro_fma.h \
	lib/cpu/pairs.h lib/cpu/shapes.h lib/cpu/tile.h lib/cpu/transpose8_avx.h lib/cpu/lanes.h \
	lib/cpu/vec_4.h lib/cpu/vec_avx2.h lib/cpu/vec_avx512.h lib/cpu/vec_math.h lib/cpu/walk.h \
	lib/cpu/work.h
noinst_LTLIBRARIES += libdeft_vector.la
libdeft_vector_la_SOURCES = lib/cpu/isa_vector.c $(deft_tile)
libdeft_vector_la_CPPFLAGS = $(deft_cppflags)
libdeft_vector_la_CFLAGS = $(DEFT_CFLAGS)
libdeft_la_LIBADD += libdeft_vector.la
libdeft_la_DEPENDENCIES += libdeft_vector.la
if HAVE_AVX2
noinst_LTLIBRARIES += libdeft_avx2.la
libdeft_avx2_la_SOURCES = lib/cpu/isa_avx2.c $(deft_tile)
libdeft_avx2_la_CPPFLAGS = $(deft_cppflags)
libdeft_avx2_la_CFLAGS = $(DEFT_CFLAGS) $(DEFT_AVX2_CFLAGS)
libdeft_la_LIBADD += libdeft_avx2.la
libdeft_la_DEPENDENCIES += libdeft_avx2.la
endif
if HAVE_AVX512
noinst_LTLIBRARIES += libdeft_avx512.la
libdeft_avx512_la_SOURCES = lib/cpu/isa_avx512.c $(deft_tile)
libdeft_avx512_la_CPPFLAGS = $(deft_cppflags)
libdeft_avx512_la_CFLAGS = $(DEFT_CFLAGS) $(DEFT_AVX512_CFLAGS)
libdeft_la_LIBADD += libdeft_avx512.la
libdeft_la_DEPENDENCIES += libdeft_avx512.la
endif
if HAVE_AVX512_BF16
noinst_LTLIBRARIES += libdeft_avx512_bf16.la
libdeft_avx512_bf16_la_SOURCES = lib/cpu/isa_avx512_bf16.c $(deft_tile)
libdeft_avx512_bf16_la_CPPFLAGS = $(deft_cppflags)
libdeft_avx512_bf16_la_CFLAGS = $(DEFT_CFLAGS) $(DEFT_AVX512_BF16_CFLAGS)
libdeft_la_LIBADD += libdeft_avx512_bf16.la
libdeft_la_DEPENDENCIES += libdeft_avx512_bf16.la
endif
if HAVE_AMX_BF16
noinst_LTLIBRARIES += libdeft_amx_bf16.la
libdeft_amx_bf16_la_SOURCES = lib/cpu/isa_amx_bf16.c $(deft_tile)
libdeft_amx_bf16_la_CPPFLAGS = $(deft_cppflags)
libdeft_amx_bf16_la_CFLAGS = $(DEFT_CFLAGS) $(DEFT_AMX_BF16_CFLAGS)
libdeft_la_LIBADD += libdeft_amx_bf16.la
libdeft_la_DEPENDENCIES += libdeft_amx_bf16.la
endif
