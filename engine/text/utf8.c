/* The table of well-formed byte sequences of the Unicode standard (table 3-7), as code. */
#include "engine/text/utf8.h"

/* Range of the second byte after this first byte; *ret_n the length of the character, 0 if no character begins so. */
static void second_byte(unsigned char first, unsigned *ret_n, unsigned char *ret_lo,
                        unsigned char *ret_hi)
{
    *ret_lo = 0x80;
    *ret_hi = 0xBF;
    *ret_n = first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
    switch (first) {
    case 0xE0:
        *ret_lo = 0xA0;
        break;
    case 0xED:
        *ret_hi = 0x9F;
        break;
    case 0xF0:
        *ret_lo = 0x90;
        break;
    case 0xF4:
        *ret_hi = 0x8F;
        break;
    }
}

int sq_utf8_step(const unsigned char *p, size_t n, bool *ret_short)
{
    unsigned len;
    unsigned char lo, hi;
    *ret_short = false;
    if (p[0] < 0x80)
        return 1;
    second_byte(p[0], &len, &lo, &hi);
    if (!len)
        return -1;
    for (unsigned i = 1; i < len; i++) {
        if (i == n) {
            *ret_short = true;
            return -(int)i;
        }
        if (p[i] < lo || p[i] > hi)
            return -(int)i;
        lo = 0x80;
        hi = 0xBF;
    }
    return (int)len;
}

bool sq_utf8_valid(const char *p, size_t n)
{
    const unsigned char *s = (const unsigned char *)p;
    bool cut;
    for (size_t i = 0; i < n;) {
        int step = sq_utf8_step(s + i, n - i, &cut);
        if (step < 0)
            return false;
        i += (size_t)step;
    }
    return true;
}
