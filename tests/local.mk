# SPDX-License-Identifier: MIT
# Tests. Suites on Check need it; test_abi, the sweep, the stress test and the fuzz replay need the
# library alone. DEFT_TEST_SEED and DEFT_TEST_SCALE reach them all (util.h). What a suite can afford
# of DEFT_DEBUG_CHECK it sets itself. A program is made of NAME.c and linked with libtests.la and the
# library (Makefile.am); what differs stands here.
AM_TESTS_ENVIRONMENT = srcdir='$(srcdir)'; top_srcdir='$(top_srcdir)'; \
	top_builddir='$(top_builddir)'; CC='$(CC)'; NM='$(NM)'; \
	export srcdir top_srcdir top_builddir CC NM;

check_LTLIBRARIES = libtests.la
libtests_la_SOURCES = tests/support/device_memory.c tests/support/device_memory.h tests/support/fixture.h \
	tests/support/problem.c tests/support/problem.h tests/support/shadow.c tests/support/shadow.h \
	tests/support/shadow_step.c tests/support/suite.h tests/support/util.c tests/support/util.h
libtests_la_LIBADD = $(CUDA_LIBS)
if HAVE_CHECK
libtests_la_SOURCES += tests/support/fixture.c
endif
if HAVE_CUDA
libtests_la_SOURCES += tests/support/device_fault.cu
endif

tests_programs = tests/unit/test_abi tests/unit/oom_sweep tests/unit/stress_tree tests/unit/fuzz_ops \
	tests/unit/test_node_hooks
if HAVE_CHECK
tests_programs += tests/unit/test_attention tests/unit/test_attention_properties tests/unit/test_batch_invariance \
	tests/unit/test_cancel tests/unit/test_compact tests/unit/test_context tests/unit/test_cpu_device \
	tests/unit/test_evict tests/unit/test_forest tests/unit/test_large_trees tests/unit/test_planner tests/unit/test_plan_image tests/unit/test_pool \
	tests/unit/test_step tests/unit/test_threads tests/unit/test_tree tests/unit/test_tree_print tests/unit/test_tree_walk
tests_unit_test_plan_image_SOURCES = tests/unit/test_plan_image.c cuda/plan_image.c cuda/plan_image.h cuda/kernels.h
tests_unit_test_plan_image_CPPFLAGS = $(AM_CPPFLAGS) -I$(top_srcdir)/lib -I$(top_srcdir)/cuda
# Layers by themselves, since libdeft.so hides what is inside: a program that uses more than the folders
# it names does not link.
tests_unit_test_planner_SOURCES = tests/unit/test_planner.c $(deft_base) $(deft_format) $(deft_forest) $(deft_plan)
tests_unit_test_planner_CPPFLAGS = $(AM_CPPFLAGS) -DDEFT_BUILDING -I$(top_srcdir)/lib $(MIMALLOC_CFLAGS)
tests_unit_test_planner_LDADD = $(LDADD) $(MIMALLOC_LIBS)
tests_unit_test_forest_SOURCES = tests/unit/test_forest.c $(deft_base) $(deft_forest)
tests_unit_test_forest_CPPFLAGS = $(AM_CPPFLAGS) -DDEFT_BUILDING -I$(top_srcdir)/lib $(MIMALLOC_CFLAGS)
tests_unit_test_forest_LDADD = $(LDADD) $(MIMALLOC_LIBS)
# libdeft.so hides the counting of processors.
tests_unit_test_threads_SOURCES = tests/unit/test_threads.c lib/base/processors.c lib/base/processors.h
tests_unit_test_threads_CPPFLAGS = $(AM_CPPFLAGS) -I$(top_srcdir)/lib
tests_unit_test_cpu_device_SOURCES = tests/unit/test_cpu_device.c $(deft_base) $(deft_format) $(deft_cpu)
tests_unit_test_cpu_device_CPPFLAGS = $(AM_CPPFLAGS) -DDEFT_BUILDING -I$(top_srcdir)/lib $(MIMALLOC_CFLAGS)
tests_unit_test_cpu_device_LDADD = $(LDADD) $(libdeft_la_LIBADD)
if HAVE_ENGINE
tests_programs += tests/engine/test_countdown tests/engine/test_draft tests/engine/test_engine tests/engine/test_gguf \
	tests/engine/test_matmul tests/engine/test_sampler tests/engine/test_tokenizer
tests_engine_libs = libengine.la $(LDADD)
tests_engine_test_countdown_SOURCES = tests/engine/test_countdown.c examples/countdown/game.c examples/countdown/game.h
tests_engine_test_draft_LDADD = $(tests_engine_libs)
tests_engine_test_engine_LDADD = $(tests_engine_libs)
tests_engine_test_gguf_SOURCES = tests/engine/test_gguf.c tests/engine/gguf_fixture.h
tests_engine_test_gguf_LDADD = $(tests_engine_libs)
tests_engine_test_matmul_LDADD = $(tests_engine_libs)
tests_engine_test_sampler_LDADD = $(tests_engine_libs)
tests_engine_test_tokenizer_SOURCES = tests/engine/test_tokenizer.c tests/engine/gguf_fixture.h
tests_engine_test_tokenizer_LDADD = $(tests_engine_libs)
# By hand, for hours; a few seconds of it in tests/engine/examples.sh.
check_PROGRAMS += tests/engine/soak_search
tests_engine_soak_search_SOURCES = tests/engine/soak_search.c $(countdown_search)
tests_engine_soak_search_LDADD = $(tests_engine_libs)
endif
endif

# test_cuda, and test_candidates_cuda where it is, are run by cuda.sh.
check_PROGRAMS += $(tests_programs) tests/unit/test_cuda
tests_scripts = tests/cuda.sh tests/engine/examples.sh tests/gates/format.sh tests/gates/headers.sh tests/gates/layers.sh \
	tests/gates/man.sh tests/gates/symbols.sh
TESTS += $(tests_programs) $(tests_scripts)

# The benchmark: verifies first, then times.
noinst_PROGRAMS += tests/bench/deft_bench
tests_bench_deft_bench_SOURCES = tests/bench/deft_bench.c tests/bench/bench.c tests/bench/bench.h \
	tests/bench/bench_attend.c tests/bench/bench_attend.h tests/bench/bench_bits.c tests/bench/bench_cuda_error.h \
	tests/bench/bench_io.c tests/bench/bench_plan.c tests/bench/bench_trace.c tests/bench/bench_trace.h tests/bench/bench_tree.c
tests_bench_deft_bench_CPPFLAGS = $(AM_CPPFLAGS)
tests_bench_deft_bench_LDADD =
if HAVE_ENGINE
tests_bench_deft_bench_SOURCES += tests/bench/bench_model.c
tests_bench_deft_bench_CPPFLAGS += -DHAVE_ENGINE=1
tests_bench_deft_bench_LDADD += libengine.la
endif
if HAVE_CUDA
check_LTLIBRARIES += libbench_cuda.la
libbench_cuda_la_SOURCES = tests/bench/bench_attend_cuda.cu
tests_bench_deft_bench_LDADD += libbench_cuda.la
tests/bench/bench_attend_cuda.lo: tests/bench/bench.h tests/bench/bench_attend.h tests/bench/bench_cuda_error.h
if HAVE_CUBLAS
if HAVE_ENGINE
check_PROGRAMS += tests/engine/test_candidates_cuda
tests_engine_test_candidates_cuda_LDADD = $(tests_engine_libs)
libbench_cuda_la_SOURCES += tests/bench/bench_unfused.cu
tests_bench_deft_bench_SOURCES += tests/bench/bench_replay.c tests/bench/bench_unfused.h
tests_bench_deft_bench_CPPFLAGS += -DHAVE_REPLAY=1
tests/bench/bench_unfused.lo: tests/bench/bench.h tests/bench/bench_cuda_error.h tests/bench/bench_unfused.h \
	examples/engine/model.h
endif
endif
endif
tests_bench_deft_bench_LDADD += libtests.la libdeft.la $(LIBM) $(CUDA_LIBS) $(CUBLAS_LIBS)

EXTRA_DIST += $(tests_scripts) .clang-format tests/bench/speculative_vs_plain.sh \
	tests/gates/symbols.txt tests/run.sh tests/data tests/golden tests/paper tests/peers tests/unit/fuzz_corpus

# The paper's claims on this machine's GPU: make paper TRACES=folder [OUT=folder].
paper: tests/bench/deft_bench
	out='$(OUT)'; DEFT_BENCH=tests/bench/deft_bench $(SHELL) $(srcdir)/tests/paper/paper.sh '$(TRACES)' "$${out:-paper}" && \
	    python3 $(srcdir)/tests/paper/report.py "$${out:-paper}"
.PHONY: paper

# What check-threads runs.
threads_tests = tests/unit/test_threads tests/unit/test_context tests/unit/test_step tests/unit/test_cancel tests/unit/test_cpu_device \
	tests/unit/test_attention tests/unit/test_attention_properties tests/unit/test_batch_invariance tests/unit/stress_tree
if HAVE_ENGINE
threads_tests += tests/engine/test_matmul tests/engine/test_engine
endif

# What check-valgrind runs.
valgrind_tests = tests/unit/test_threads tests/unit/test_context tests/unit/test_tree tests/unit/test_pool tests/unit/test_step \
	tests/unit/test_compact tests/unit/test_evict tests/unit/test_forest tests/unit/test_node_hooks tests/unit/test_planner \
	tests/unit/test_cpu_device \
	tests/unit/test_attention_properties tests/unit/test_batch_invariance
