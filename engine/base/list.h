/* Intrusive doubly linked list. A head is a struct sq_list initialised to point at itself. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct sq_list {
    struct sq_list *prev, *next;
};

static inline void sq_list_init(struct sq_list *l)
{
    l->prev = l->next = l;
}

static inline bool sq_list_empty(const struct sq_list *l)
{
    return l->next == l;
}

static inline void sq_list_append(struct sq_list *head, struct sq_list *l)
{
    l->prev = head->prev;
    l->next = head;
    head->prev->next = l;
    head->prev = l;
}

static inline void sq_list_prepend(struct sq_list *head, struct sq_list *l)
{
    l->next = head->next;
    l->prev = head;
    head->next->prev = l;
    head->next = l;
}

/* Leaves l pointing at itself, so that removing twice is harmless. */
static inline void sq_list_remove(struct sq_list *l)
{
    l->prev->next = l->next;
    l->next->prev = l->prev;
    sq_list_init(l);
}

#define sq_list_entry(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

/* Safe against removal of the current element. */
#define sq_list_each(it, head)                                                                     \
    for (struct sq_list *it = (head)->next, *it##_next = it->next; it != (head);                   \
         it = it##_next, it##_next = it->next)
