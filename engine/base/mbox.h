/* A mailbox between threads: a mutex and a list swap. Senders push chains of nodes under one lock; the receiver takes all at once
 * and works on them unlocked. Ownership of a node moves with it. After close, push returns false and the sender keeps its nodes. */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

struct sq_node {
    struct sq_node *next;
};

struct sq_mbox {
    pthread_mutex_t lock;
    pthread_cond_t filled;
    struct sq_node *head, **tail;
    size_t n;
    bool closed;
};

void sq_mbox_init(struct sq_mbox *m);
void sq_mbox_done(struct sq_mbox *m); /* asserts that it is empty */

bool sq_mbox_push(struct sq_mbox *m, struct sq_node *node); /* one node */
bool sq_mbox_push_chain(struct sq_mbox *m,
                        struct sq_node *first); /* NULL-terminated chain, order kept */
struct sq_node *
sq_mbox_take(struct sq_mbox *m); /* all, oldest first; NULL when empty; never blocks */
struct sq_node *
sq_mbox_wait(struct sq_mbox *m,
             unsigned timeout_ms); /* as take, but waits for something, close or time */
void sq_mbox_close(struct sq_mbox *m);
