/* SPDX-License-Identifier: MIT */
/** @file deft.h  libdeft: decoding language models along trees.
 *
 *  deft/status.h     what a call returns
 *  deft/params.h     the context: geometry of the model, KV pool, device
 *  deft/tree.h       the tree: fork, append, prune, truncate, commit, share, find
 *  deft/attention.h  the step: plan, write K and V, attend
 *  deft/cuda.h       not included here: streams, device pointers and captured graphs
 *
 *  deft(7) is the introduction. */
#ifndef DEFT_H
#define DEFT_H

#include "deft/attention.h"
#include "deft/export.h"
#include "deft/params.h"
#include "deft/status.h"
#include "deft/tree.h"
#include "deft/version.h"

#endif
