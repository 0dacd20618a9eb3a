/* SPDX-License-Identifier: MIT */
/** @file deft.h  libdeft: decoding language models along trees.
 *
 *  deft/status.h   what a call returns
 *  deft/context.h  the context: geometry of the model, KV pool, device, log, memory
 *  deft/tree.h     the tree: fork, append, prune, truncate, commit, compact, evict, share, find
 *  deft/step.h     the step: plan, write K and V, attend
 *  deft/threads.h  a pool of threads that contexts and the caller share
 *  deft/cuda.h     not included here: streams, device pointers and captured graphs
 *
 *  deft(7) is the introduction. */
#ifndef DEFT_H
#define DEFT_H

#include "deft/context.h"
#include "deft/export.h"
#include "deft/status.h"
#include "deft/step.h"
#include "deft/threads.h"
#include "deft/tree.h"
#include "deft/version.h"

#endif
