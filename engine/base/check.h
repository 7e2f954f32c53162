/* Assertions in two grades. Both mean "our own bug": input from files, clients or devices gets an error, never an assertion. */
#pragma once

#include <stdint.h>

/* Prints the expression and its place to stderr and aborts. */
void sq_assert_failed(const char *expr, const char *file, int line) __attribute__((noreturn, cold));

/* Always compiled in. */
#define SQ_ASSERT(e)                                                                               \
    do {                                                                                           \
        if (__builtin_expect(!(e), 0))                                                             \
            sq_assert_failed(#e, __FILE__, __LINE__);                                              \
    } while (0)

/* Too dear for a release build; on where NDEBUG is not set. */
#ifdef NDEBUG
#define SQ_SLOW_ASSERT(e) ((void)sizeof(e))
#else
#define SQ_SLOW_ASSERT(e) SQ_ASSERT(e)
#endif

/* A number at the head of every struct that passes through a void *, checked where it comes back. */
#define SQ_MAGIC_SET(p, m) ((p)->magic = (m))
#define SQ_MAGIC_CHECK(p, m) SQ_ASSERT((p) && (p)->magic == (m))

#define SQ_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define SQ_MIN(a, b) ((a) < (b) ? (a) : (b))
#define SQ_MAX(a, b) ((a) > (b) ? (a) : (b))
