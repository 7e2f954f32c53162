/* The KV cache's blocks: who holds which. Bookkeeping only; the cells themselves are the backend's.
 * A block is reference-counted, so that sequences may share a prefix. One owner, one thread. Blocks
 * freed last are handed out first. */
#pragma once

#include <stdint.h>

struct sq_kvpool;

struct sq_kvpool *sq_kvpool_new(int n_blocks);         /* NULL: no memory */
struct sq_kvpool *sq_kvpool_free(struct sq_kvpool *p); /* asserts that every block came back */

int sq_kvpool_size(const struct sq_kvpool *p);
int sq_kvpool_n_free(const struct sq_kvpool *p);

int32_t
sq_kvpool_take(struct sq_kvpool *p); /* a block with one reference, or -1 when all are taken */
void sq_kvpool_ref(struct sq_kvpool *p, int32_t block); /* one more holder */
void sq_kvpool_put(struct sq_kvpool *p, int32_t block); /* one holder less; the last one frees it */
