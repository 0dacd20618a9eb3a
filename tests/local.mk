# SPDX-License-Identifier: MIT
# Tests. Suites on Check need it; the sweeps, the stress test, the fuzz replay and the ABI pins need
# the library alone. DEFT_TEST_SEED and DEFT_TEST_SCALE reach them all (util.h). What a suite can
# afford of DEFT_DEBUG_CHECK it sets itself.
AM_TESTS_ENVIRONMENT = srcdir='$(srcdir)'; top_srcdir='$(top_srcdir)'; \
	top_builddir='$(top_builddir)'; CC='$(CC)'; NM='$(NM)'; \
	export srcdir top_srcdir top_builddir CC NM;

tests_cppflags = -I$(top_srcdir)/include -I$(top_builddir)/include
tests_libs = libtests.la libdeft.la $(LIBM)

check_LTLIBRARIES = libtests.la
libtests_la_SOURCES = tests/device.c tests/device.h tests/problem.c tests/problem.h tests/shadow.c tests/shadow.h \
	tests/shadow_step.c tests/util.c tests/util.h
libtests_la_CPPFLAGS = $(tests_cppflags) -I$(top_builddir) $(CUDA_CPPFLAGS)
libtests_la_LIBADD = $(CUDA_LIBS)

tests_programs = tests/sizes tests/oom_sweep tests/stress_tree tests/fuzz_ops
tests_check_cuda_SOURCES = tests/check_cuda.c
tests_check_cuda_CPPFLAGS = $(tests_cppflags) -I$(top_builddir) $(CUDA_CPPFLAGS)
tests_check_cuda_LDADD = $(tests_libs)
tests_sizes_SOURCES = tests/sizes.c
tests_sizes_CPPFLAGS = $(tests_cppflags)
tests_oom_sweep_SOURCES = tests/oom_sweep.c
tests_oom_sweep_CPPFLAGS = $(tests_cppflags)
tests_oom_sweep_LDADD = $(tests_libs)
tests_stress_tree_SOURCES = tests/stress_tree.c
tests_stress_tree_CPPFLAGS = $(tests_cppflags)
tests_stress_tree_LDADD = $(tests_libs)
tests_fuzz_ops_SOURCES = tests/fuzz_ops.c
tests_fuzz_ops_CPPFLAGS = $(tests_cppflags)
tests_fuzz_ops_LDADD = $(tests_libs)

if HAVE_CHECK
tests_programs += tests/check_ctx tests/check_tree tests/check_walk tests/check_print \
	tests/check_image tests/check_pool tests/check_large tests/check_step tests/check_attn tests/check_props \
	tests/check_invariant
tests_check_cppflags = $(tests_cppflags) $(CHECK_CFLAGS)
tests_check_libs = $(tests_libs) $(CHECK_LIBS)
tests_fixture = tests/fixture.c tests/fixture.h tests/suite.h
tests_check_ctx_SOURCES = tests/check_ctx.c $(tests_fixture)
tests_check_ctx_CPPFLAGS = $(tests_check_cppflags) -I$(top_builddir)
tests_check_ctx_LDADD = $(tests_check_libs)
tests_check_tree_SOURCES = tests/check_tree.c $(tests_fixture)
tests_check_tree_CPPFLAGS = $(tests_check_cppflags)
tests_check_tree_LDADD = $(tests_check_libs)
tests_check_walk_SOURCES = tests/check_walk.c $(tests_fixture)
tests_check_walk_CPPFLAGS = $(tests_check_cppflags)
tests_check_walk_LDADD = $(tests_check_libs)
tests_check_print_SOURCES = tests/check_print.c $(tests_fixture)
tests_check_print_CPPFLAGS = $(tests_check_cppflags)
tests_check_print_LDADD = $(tests_check_libs)
tests_check_pool_SOURCES = tests/check_pool.c $(tests_fixture)
tests_check_pool_CPPFLAGS = $(tests_check_cppflags)
tests_check_pool_LDADD = $(tests_check_libs)
tests_check_image_SOURCES = tests/check_image.c tests/suite.h cuda/image.c cuda/image.h cuda/kernels.h
tests_check_image_CPPFLAGS = $(tests_check_cppflags) -I$(top_builddir) -I$(top_srcdir)/lib -I$(top_srcdir)/cuda
tests_check_image_LDADD = $(tests_check_libs)
tests_check_large_SOURCES = tests/check_large.c $(tests_fixture)
tests_check_large_CPPFLAGS = $(tests_check_cppflags)
tests_check_large_LDADD = $(tests_check_libs)
tests_check_step_SOURCES = tests/check_step.c $(tests_fixture)
tests_check_step_CPPFLAGS = $(tests_check_cppflags)
tests_check_step_LDADD = $(tests_check_libs)
tests_check_attn_SOURCES = tests/check_attn.c tests/suite.h
tests_check_attn_CPPFLAGS = $(tests_check_cppflags)
tests_check_attn_LDADD = $(tests_check_libs)
tests_check_props_SOURCES = tests/check_props.c tests/suite.h
tests_check_props_CPPFLAGS = $(tests_check_cppflags)
tests_check_props_LDADD = $(tests_check_libs)
tests_check_invariant_SOURCES = tests/check_invariant.c tests/suite.h
tests_check_invariant_CPPFLAGS = $(tests_check_cppflags)
tests_check_invariant_LDADD = $(tests_check_libs)
if HAVE_ENGINE
tests_programs += tests/check_engine tests/check_gguf tests/check_matmul \
	tests/check_countdown tests/check_draft tests/check_sampler tests/check_tokenizer
tests_engine_cppflags = $(tests_check_cppflags) -I$(top_srcdir)/examples/engine
tests_check_gguf_SOURCES = tests/check_gguf.c tests/gguf_file.h
tests_check_gguf_CPPFLAGS = $(tests_engine_cppflags)
tests_check_gguf_LDADD = libengine.la libdeft.la $(CHECK_LIBS) $(LIBM)
tests_check_matmul_SOURCES = tests/check_matmul.c tests/suite.h
tests_check_matmul_CPPFLAGS = $(tests_engine_cppflags)
tests_check_matmul_LDADD = libengine.la $(tests_check_libs)
tests_check_tokenizer_SOURCES = tests/check_tokenizer.c tests/gguf_file.h
tests_check_tokenizer_CPPFLAGS = $(tests_engine_cppflags)
tests_check_tokenizer_LDADD = libengine.la libdeft.la $(CHECK_LIBS) $(LIBM)
tests_check_engine_SOURCES = tests/check_engine.c tests/suite.h
tests_check_engine_CPPFLAGS = $(tests_engine_cppflags)
tests_check_engine_LDADD = libengine.la $(tests_check_libs)
tests_check_countdown_SOURCES = tests/check_countdown.c tests/suite.h examples/countdown/game.c examples/countdown/game.h
tests_check_countdown_CPPFLAGS = $(tests_check_cppflags) -I$(top_srcdir)/examples
tests_check_countdown_LDADD = $(tests_check_libs)
tests_check_draft_SOURCES = tests/check_draft.c tests/suite.h
tests_check_draft_CPPFLAGS = $(tests_engine_cppflags)
tests_check_draft_LDADD = libengine.la $(tests_check_libs)
tests_check_sampler_SOURCES = tests/check_sampler.c tests/suite.h
tests_check_sampler_CPPFLAGS = $(tests_engine_cppflags)
tests_check_sampler_LDADD = libengine.la $(tests_check_libs)
# By hand, for hours; a few seconds of it in tests/examples.sh.
check_PROGRAMS += tests/soak_search
tests_soak_search_SOURCES = tests/soak_search.c $(countdown_search)
tests_soak_search_CPPFLAGS = $(tests_cppflags) -I$(top_srcdir)/examples -I$(top_srcdir)/examples/engine
tests_soak_search_LDADD = libengine.la $(tests_libs)
endif
endif

check_PROGRAMS += $(tests_programs) tests/check_cuda
TESTS += $(tests_programs) tests/cuda.sh tests/examples.sh tests/headers.sh tests/man.sh tests/symbols.sh

# The benchmark: verifies first, then times.
noinst_PROGRAMS += deft_bench
deft_bench_SOURCES = tests/deft_bench.c tests/bench.h tests/bench_attend.c tests/bench_cell.h tests/bench_gpu.h tests/bench_io.c \
	tests/bench_plan.c tests/bench_trace.c tests/bench_trace.h tests/bench_tree.c tests/bench_util.c
deft_bench_CPPFLAGS = $(tests_cppflags) -I$(top_builddir)
deft_bench_LDADD = libdeft.la $(LIBM)
if HAVE_ENGINE
deft_bench_SOURCES += tests/bench_model.c
deft_bench_CPPFLAGS += -DHAVE_ENGINE=1 -I$(top_srcdir)/examples/engine
deft_bench_LDADD += libengine.la
endif

replay_sources = tests/bench_replay.c tests/bench_unfused.h
if HAVE_CUBLAS
if HAVE_ENGINE
check_PROGRAMS += tests/check_kernels
tests_check_kernels_SOURCES = tests/check_kernels.c
tests_check_kernels_CPPFLAGS = $(tests_cppflags) -I$(top_srcdir)/examples/engine $(CUDA_CPPFLAGS)
tests_check_kernels_LDADD = libengine.la $(tests_libs)
check_LTLIBRARIES += libbench_unfused.la
libbench_unfused_la_SOURCES = tests/bench_unfused.cu
deft_bench_SOURCES += $(replay_sources)
deft_bench_CPPFLAGS += -DHAVE_REPLAY=1 $(CUDA_CPPFLAGS)
deft_bench_LDADD += libbench_unfused.la libbench_cuda.la $(CUDA_LIBS) $(CUBLAS_LIBS)
tests/bench_unfused.lo: tests/bench.h tests/bench_gpu.h tests/bench_unfused.h examples/engine/model.h
endif
else
EXTRA_DIST += $(replay_sources) tests/bench_unfused.cu tests/check_kernels.c
endif

if HAVE_CUDA
check_LTLIBRARIES += libbench_cuda.la libfault.la
libbench_cuda_la_SOURCES = tests/bench_cuda.cu
libfault_la_SOURCES = tests/fault.cu
tests_check_cuda_LDADD += libfault.la
deft_bench_LDADD += libbench_cuda.la libdeft.la $(CUDA_LIBS)
tests/bench_cuda.lo: tests/bench.h tests/bench_cell.h tests/bench_gpu.h
else
EXTRA_DIST += tests/bench_cuda.cu tests/fault.cu
endif

EXTRA_DIST += tests/cuda.sh tests/examples.sh tests/headers.sh tests/man.sh tests/speculative.sh tests/peers tests/symbols.sh tests/symbols.txt tests/run.sh \
	tests/corpus tests/golden tests/data tests/paper

# The paper's claims on this machine's GPU: make paper TRACES=folder [OUT=folder].
paper: deft_bench
	out='$(OUT)'; DEFT_BENCH=./deft_bench $(SHELL) $(srcdir)/tests/paper/paper.sh '$(TRACES)' "$${out:-paper}" && \
	    python3 $(srcdir)/tests/paper/report.py "$${out:-paper}"
.PHONY: paper

# What check-threads runs.
threads_tests = tests/check_ctx tests/check_step tests/check_attn tests/check_props tests/check_invariant tests/stress_tree
if HAVE_ENGINE
threads_tests += tests/check_matmul tests/check_engine
endif

# What check-valgrind runs.
valgrind_tests = tests/check_ctx tests/check_tree tests/check_pool tests/check_step \
	tests/check_props tests/check_invariant
