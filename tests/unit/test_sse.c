/* api/sse, api/reply: the outgoing buffer and the framing of events and faults. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "api/sse.h"

static void expect(struct sq_wbuf *o, const char *want)
{
    assert_false(o->failed);
    assert_int_equal(o->n, strlen(want));
    assert_memory_equal(o->data, want, o->n);
    sq_wbuf_done(o);
}

static void test_frames(void **state)
{
    (void)state;
    struct sq_wbuf o = {0};
    sq_sse_begin(&o);
    sq_wbuf_puts(&o, "{}");
    sq_sse_end(&o);
    sq_sse_ping(&o);
    sq_sse_finished(&o);
    expect(&o, "data: {}\n\n: ping\n\ndata: [DONE]\n\n");
}

static void test_fault(void **state)
{
    (void)state;
    struct sq_wbuf o = {0};
    struct sq_fault f;
    assert_true(sq_fault_set(&f, SQ_STATUS_QUEUE_FULL, NULL, "full \"%d\"", 5) < 0);
    sq_sse_fault(&o, &f);
    expect(
        &o,
        "data: {\"error\":{\"message\":\"full "
        "\\\"5\\\"\",\"type\":\"rate_limit_error\",\"param\":null,\"code\":\"queue_full\"}}\n\n");
    assert_true(sq_fault_set(&f, SQ_STATUS_INVALID_VALUE, "stop[1]", "bad") < 0);
    struct sq_reply r;
    sq_reply_fault(&r, &f);
    assert_int_equal(r.http, 400);
    expect(&r.body, "{\"error\":{\"message\":\"bad\",\"type\":\"invalid_request_error\",\"param\":"
                    "\"stop[1]\",\"code\":\"invalid_value\"}}");
    assert_true(sq_fault_set(&f, SQ_STATUS_CONTEXT, "prompt", "long") < 0);
    f.counts[0] = 1;
    f.counts[1] = 2;
    f.counts[2] = 3;
    sq_fault_write(&f, &o);
    expect(&o, "{\"error\":{\"message\":\"long\",\"type\":\"invalid_request_error\",\"param\":"
               "\"prompt\",\"code\":\"context_length_exceeded\","
               "\"n_prompt_tokens\":1,\"max_tokens\":2,\"n_ctx\":3}}");
}

static void test_statuses(void **state)
{
    (void)state;
    for (int s = SQ_STATUS_OK + 1; s < SQ_STATUS_MAX; s++) {
        assert_in_range(sq_status_http((enum sq_status)s), 400, 599);
        assert_int_not_equal(sq_status_http((enum sq_status)s), 422);
        assert_true(strlen(sq_status_code((enum sq_status)s)) > 0);
    }
}

/* Bytes come out as they went in, whatever the sizes, and the memory stays near what is waiting. */
static void test_fifo(void **state)
{
    (void)state;
    struct sq_fifo f = {0};
    srand(1);
    unsigned char in = 0, out = 0;
    size_t waiting = 0;
    for (int i = 0; i < 20000; i++) {
        char block[700];
        size_t n = (size_t)rand() % sizeof(block);
        if (waiting < 30000 && rand() % 2) {
            for (size_t k = 0; k < n; k++)
                block[k] = (char)in++;
            sq_wbuf_put(sq_fifo_tail(&f), block, n);
            waiting += n;
        } else {
            size_t got = sq_fifo_read(&f, block, n);
            assert_int_equal(got, n < waiting ? n : waiting);
            for (size_t k = 0; k < got; k++)
                assert_int_equal((unsigned char)block[k], out++);
            waiting -= got;
        }
        assert_int_equal(sq_fifo_n(&f), waiting);
    }
    assert_true(f.out.cap <= 131072);
    sq_fifo_done(&f);
    f.out.max = 100;
    sq_wbuf_put(sq_fifo_tail(&f), "0123456789", 10);
    assert_false(f.out.failed);
    for (int i = 0; i < 10; i++)
        sq_wbuf_put(sq_fifo_tail(&f), "0123456789", 10);
    assert_true(f.out.failed);
    sq_fifo_done(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_frames), cmocka_unit_test(test_fault),
                                       cmocka_unit_test(test_statuses),
                                       cmocka_unit_test(test_fifo)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
