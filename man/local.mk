# SPDX-License-Identifier: MIT
# The manual. man/*.in is written by hand; sed fills in version and date. Each name among the
# aliases gets a page of one line, which leads to the page whose NAME section lists it.
deft_man3_pages = man/deft_ctx.3 man/deft_cuda.3 man/deft_node_hooks.3 man/deft_status.3 \
	man/deft_step.3 man/deft_step_attend.3 man/deft_step_stats.3 man/deft_threads.3 man/deft_tree.3 \
	man/deft_tree_append.3 man/deft_tree_compact.3 man/deft_tree_evict.3 man/deft_tree_fork.3 \
	man/deft_tree_node.3 man/deft_tree_print.3 man/deft_tree_prune.3 man/deft_tree_share.3
deft_man3_in = man/deft_ctx.3in man/deft_cuda.3in man/deft_node_hooks.3in \
	man/deft_status.3in man/deft_step.3in man/deft_step_attend.3in man/deft_step_stats.3in \
	man/deft_threads.3in \
	man/deft_tree.3in man/deft_tree_append.3in man/deft_tree_compact.3in man/deft_tree_evict.3in \
	man/deft_tree_fork.3in man/deft_tree_node.3in man/deft_tree_print.3in \
	man/deft_tree_prune.3in man/deft_tree_share.3in
deft_man3_aliases = \
	man/deft_ctx_create.3 man/deft_ctx_destroy.3 man/deft_ctx_info.3 man/deft_ctx_set_split.3 \
	man/deft_ctx_tree.3 man/deft_ctx_trim.3 man/deft_last_error.3 man/deft_version.3 \
	man/deft_cuda_replayed.3 man/deft_cuda_reserve.3 man/deft_cuda_set_stream.3 \
	man/deft_cuda_view.3 man/deft_cuda_written.3 \
	man/deft_status_name.3 man/deft_strerror.3 \
	man/deft_step_abandon.3 man/deft_step_begin.3 man/deft_step_cancel.3 man/deft_step_end.3 \
	man/deft_step_ids.3 man/deft_step_nodes.3 man/deft_step_positions.3 man/deft_step_tokens.3 \
	man/deft_step_write.3 \
	man/deft_threads_count.3 man/deft_threads_create.3 man/deft_threads_destroy.3 man/deft_threads_run.3 \
	man/deft_tree_check.3 man/deft_tree_create.3 man/deft_tree_ctx.3 man/deft_tree_destroy.3 \
	man/deft_tree_root.3 man/deft_tree_stats.3 \
	man/deft_tree_truncate.3 \
	man/deft_tree_evict_unseen.3 \
	man/deft_tree_fork_append.3 man/deft_tree_fork_at.3 \
	man/deft_tree_first_child.3 man/deft_tree_next.3 man/deft_tree_next_sibling.3 \
	man/deft_tree_parent.3 man/deft_tree_path_len.3 man/deft_tree_path_tokens.3 \
	man/deft_tree_set_user.3 man/deft_tree_user.3 \
	man/deft_tree_commit.3 man/deft_tree_footprint.3 \
	man/deft_tree_find.3

man3_MANS = $(deft_man3_pages) $(deft_man3_aliases)
man7_MANS = man/deft.7
example_pages = man/beam_search.1 man/best_of_n.1 man/mcts.1 man/play.1 \
	man/prefix_cache.1 man/speculative.1 man/tot.1
noinst_DATA += $(example_pages)
EXTRA_DIST += $(deft_man3_in) man/deft.7in man/beam_search.1in man/best_of_n.1in man/mcts.1in \
	man/play.1in man/prefix_cache.1in man/speculative.1in man/tot.1in
CLEANFILES += $(man3_MANS) $(man7_MANS) $(example_pages)

deft_man_fill = $(AM_V_GEN)$(MKDIR_P) man && \
	$(SED) -e 's/@VERSION[@]/$(VERSION)/' -e 's/@DATE[@]/$(DEFT_DATE)/' $< >$@.tmp && \
	mv $@.tmp $@

.1in.1:
	$(deft_man_fill)
.3in.3:
	$(deft_man_fill)
.7in.7:
	$(deft_man_fill)
$(deft_man3_pages) man/deft.7 $(example_pages): Makefile

$(deft_man3_aliases): $(deft_man3_in)
	$(AM_V_GEN)$(MKDIR_P) man && name=`basename $@ .3` && \
	page=`cd $(srcdir) && $(AWK) '/^\.SH/ { in_name = $$2 == "NAME"; next } \
		in_name { n = split($$0, word, /[ ,]+/) } \
		in_name { for (i = 1; i <= n && in_name; i++) if (word[i] == "\\-") in_name = 0; \
			else if (word[i] == name) { print FILENAME; exit } }' \
		name=$$name $(deft_man3_in)` && \
	if test -z "$$page"; then echo "$$name: no NAME section lists it" >&2; exit 1; fi && \
	echo ".so man3/`basename $$page .3in`.3" >$@
