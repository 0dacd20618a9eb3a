# SPDX-License-Identifier: MIT
# The examples. fork_prune needs the library alone; the engine needs PCRE2 for its tokenizer.
noinst_PROGRAMS += examples/fork_prune
examples_fork_prune_SOURCES = examples/fork_prune.c examples/common.h
examples_fork_prune_LDADD = libdeft.la

EXTRA_DIST += examples/quickstart.sh examples/get_model.sh examples/packages.sh
