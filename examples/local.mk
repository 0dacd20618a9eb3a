# SPDX-License-Identifier: MIT
# The examples. fork_prune needs the library alone; the engine needs PCRE2 for its tokenizer.
noinst_PROGRAMS += examples/fork_prune
examples_fork_prune_SOURCES = examples/fork_prune.c examples/common.h
examples_fork_prune_LDADD = libdeft.la

if HAVE_ENGINE
noinst_LTLIBRARIES += libengine.la
libengine_la_SOURCES = \
	examples/engine/bpe.c examples/engine/bpe.h \
	examples/engine/chat.c examples/engine/chat.h \
	examples/engine/dequant.c examples/engine/draft.c examples/engine/draft.h examples/engine/error.h \
	examples/engine/full_pool.c examples/engine/full_pool.h \
	examples/engine/gguf.c examples/engine/gguf.h \
	examples/engine/jobs.c examples/engine/jobs.h \
	examples/engine/matmul.c examples/engine/matmul.h \
	examples/engine/matmul_f32.h examples/engine/matmul_int.c examples/engine/matmul_panel.h \
	examples/engine/forward.h examples/engine/forward_cpu.c \
	examples/engine/model.c examples/engine/model.h \
	examples/engine/pretok.c examples/engine/pretok.h \
	examples/engine/sampler.c examples/engine/sampler.h \
	examples/engine/beam.c examples/engine/beam.h \
	examples/engine/tokenizer.c examples/engine/tokenizer.h examples/engine/vector_exp.h
libengine_la_CPPFLAGS = $(public_cppflags) -I$(top_srcdir)/examples/engine $(PCRE2_CFLAGS)
libengine_la_LIBADD = $(PCRE2_LIBS) $(LIBM)
engine_cuda_sources = examples/engine/forward_cuda.c examples/engine/forward_cuda.h examples/engine/forward_load.c \
	examples/engine/forward_products.c examples/engine/forward_kernels.cu examples/engine/forward_kernels.h
if HAVE_CUBLAS
libengine_la_SOURCES += $(engine_cuda_sources)
libengine_la_CPPFLAGS += $(CUDA_CPPFLAGS) -DHAVE_CUDA=1
libengine_la_LIBADD += $(CUDA_LIBS) $(CUBLAS_LIBS)
examples/engine/forward_kernels.lo: examples/engine/forward_kernels.h examples/engine/sampler.h
else
EXTRA_DIST += $(engine_cuda_sources)
endif

cli_sources = examples/cli.c examples/cli.h examples/common.h
cli_libs = libengine.la libdeft.la $(LIBM)
noinst_PROGRAMS += examples/beam_search examples/best_of_n examples/prefix_cache \
	examples/speculative
examples_beam_search_SOURCES = examples/beam_search.c $(cli_sources)
examples_beam_search_LDADD = $(cli_libs)
examples_best_of_n_SOURCES = examples/best_of_n.c $(cli_sources)
examples_best_of_n_LDADD = $(cli_libs)
examples_prefix_cache_SOURCES = examples/prefix_cache.c $(cli_sources)
examples_prefix_cache_LDADD = $(cli_libs)
examples_speculative_SOURCES = examples/speculative.c $(cli_sources)
examples_speculative_LDADD = $(cli_libs)

countdown_search = examples/countdown/game.c examples/countdown/game.h examples/countdown/puct.c \
	examples/countdown/puct.h examples/countdown/story.c examples/countdown/story.h \
	examples/countdown/thoughts.c examples/countdown/thoughts.h
countdown_sources = $(countdown_search) examples/countdown/puzzles.c examples/countdown/puzzles.h $(cli_sources)
noinst_PROGRAMS += examples/mcts examples/play examples/tot examples/countdown/generate
examples_mcts_SOURCES = examples/mcts.c $(countdown_sources)
examples_mcts_LDADD = $(cli_libs)
examples_play_SOURCES = examples/play.c $(countdown_sources)
examples_play_LDADD = $(cli_libs)
examples_tot_SOURCES = examples/tot.c $(countdown_sources)
examples_tot_LDADD = $(cli_libs)
examples_countdown_generate_SOURCES = examples/countdown/generate.c examples/countdown/game.c examples/countdown/game.h
examples_countdown_generate_LDADD =
endif

EXTRA_DIST += examples/get_model.sh examples/packages.sh examples/quickstart.sh examples/countdown/compare.sh \
	examples/countdown/countdown.gguf examples/countdown/train.py examples/countdown/cpu/results.txt \
	examples/countdown/cpu/soak.svg examples/countdown/cpu/soak.txt examples/countdown/cpu/solved.svg \
	examples/countdown/h200/results.txt examples/countdown/h200/solved.svg
