/* UTF-8, read strictly: no surrogates, no overlong forms, nothing above U+10FFFF. Pure functions, any thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Length in bytes of the valid character at p, 1..4. Where p holds none: minus the number of bytes (1..3) of the longest prefix
 * of p that could begin one, the part that one U+FFFD stands for. *ret_short: that prefix ran into the end of the input, so more
 * bytes might have completed it. n > 0. */
int sq_utf8_step(const unsigned char *p, size_t n, bool *ret_short);

bool sq_utf8_valid(const char *p, size_t n);

/* The character at p, which is valid there; *ret_n its bytes. */
static inline uint32_t sq_utf8_get(const unsigned char *p, unsigned *ret_n)
{
    if (p[0] < 0x80) {
        *ret_n = 1;
        return p[0];
    }
    if (p[0] < 0xE0) {
        *ret_n = 2;
        return (uint32_t)(p[0] & 0x1F) << 6 | (p[1] & 0x3F);
    }
    if (p[0] < 0xF0) {
        *ret_n = 3;
        return (uint32_t)(p[0] & 0x0F) << 12 | (uint32_t)(p[1] & 0x3F) << 6 | (p[2] & 0x3F);
    }
    *ret_n = 4;
    return (uint32_t)(p[0] & 0x07) << 18 | (uint32_t)(p[1] & 0x3F) << 12 |
           (uint32_t)(p[2] & 0x3F) << 6 | (p[3] & 0x3F);
}

/* Writes c at p (4 bytes of room), returns the bytes written. c is a character, not a surrogate. */
static inline unsigned sq_utf8_put(unsigned char *p, uint32_t c)
{
    if (c < 0x80) {
        p[0] = (unsigned char)c;
        return 1;
    }
    if (c < 0x800) {
        p[0] = (unsigned char)(0xC0 | c >> 6);
        p[1] = (unsigned char)(0x80 | (c & 0x3F));
        return 2;
    }
    if (c < 0x10000) {
        p[0] = (unsigned char)(0xE0 | c >> 12);
        p[1] = (unsigned char)(0x80 | (c >> 6 & 0x3F));
        p[2] = (unsigned char)(0x80 | (c & 0x3F));
        return 3;
    }
    p[0] = (unsigned char)(0xF0 | c >> 18);
    p[1] = (unsigned char)(0x80 | (c >> 12 & 0x3F));
    p[2] = (unsigned char)(0x80 | (c >> 6 & 0x3F));
    p[3] = (unsigned char)(0x80 | (c & 0x3F));
    return 4;
}
