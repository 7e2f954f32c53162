#include "engine/base/mbox.h"

#include <time.h>

#include "engine/base/check.h"

void sq_mbox_init(struct sq_mbox *m)
{
    *m = (struct sq_mbox){.tail = &m->head};
    pthread_condattr_t attr;
    SQ_ASSERT(pthread_mutex_init(&m->lock, NULL) == 0);
    SQ_ASSERT(pthread_condattr_init(&attr) == 0);
    /* a clock that is set back must not make a waiter sleep for hours */
    SQ_ASSERT(pthread_condattr_setclock(&attr, CLOCK_MONOTONIC) == 0);
    SQ_ASSERT(pthread_cond_init(&m->filled, &attr) == 0);
    pthread_condattr_destroy(&attr);
}

void sq_mbox_done(struct sq_mbox *m)
{
    SQ_ASSERT(!m->head);
    pthread_cond_destroy(&m->filled);
    pthread_mutex_destroy(&m->lock);
}

bool sq_mbox_push_chain(struct sq_mbox *m, struct sq_node *first)
{
    if (!first)
        return true;
    size_t n = 1;
    struct sq_node *last = first;
    for (; last->next; last = last->next)
        n++;
    pthread_mutex_lock(&m->lock);
    bool open = !m->closed;
    if (open) {
        *m->tail = first;
        m->tail = &last->next;
        m->n += n;
        pthread_cond_signal(&m->filled);
    }
    pthread_mutex_unlock(&m->lock);
    return open;
}

bool sq_mbox_push(struct sq_mbox *m, struct sq_node *node)
{
    node->next = NULL;
    return sq_mbox_push_chain(m, node);
}

static struct sq_node *take_locked(struct sq_mbox *m)
{
    struct sq_node *first = m->head;
    m->head = NULL;
    m->tail = &m->head;
    m->n = 0;
    return first;
}

struct sq_node *sq_mbox_take(struct sq_mbox *m)
{
    pthread_mutex_lock(&m->lock);
    struct sq_node *first = take_locked(m);
    pthread_mutex_unlock(&m->lock);
    return first;
}

struct sq_node *sq_mbox_wait(struct sq_mbox *m, unsigned timeout_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&m->lock);
    while (!m->head && !m->closed)
        if (pthread_cond_timedwait(&m->filled, &m->lock, &until))
            break;
    struct sq_node *first = take_locked(m);
    pthread_mutex_unlock(&m->lock);
    return first;
}

void sq_mbox_close(struct sq_mbox *m)
{
    pthread_mutex_lock(&m->lock);
    m->closed = true;
    pthread_cond_broadcast(&m->filled);
    pthread_mutex_unlock(&m->lock);
}
