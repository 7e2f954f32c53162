#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "engine/base/mem.h"
#include "engine/run/kvpool.h"

static void every_block_is_handed_out_once(void **state)
{
    (void)state;
    struct sq_kvpool *p = sq_kvpool_new(5);
    bool seen[5] = {false};
    for (int i = 0; i < 5; i++) {
        int32_t b = sq_kvpool_take(p);
        assert_in_range(b, 0, 4);
        assert_false(seen[b]);
        seen[b] = true;
        assert_int_equal(sq_kvpool_n_free(p), 4 - i);
    }
    assert_int_equal(sq_kvpool_take(p), -1);
    for (int32_t b = 0; b < 5; b++)
        sq_kvpool_put(p, b);
    assert_int_equal(sq_kvpool_n_free(p), sq_kvpool_size(p));
    assert_null(sq_kvpool_free(p));
    assert_null(sq_kvpool_free(NULL));
}

static void a_shared_block_lives_until_its_last_holder(void **state)
{
    (void)state;
    struct sq_kvpool *p = sq_kvpool_new(2);
    int32_t b = sq_kvpool_take(p);
    sq_kvpool_ref(p, b);
    sq_kvpool_put(p, b);
    assert_int_equal(sq_kvpool_n_free(p), 1);
    assert_int_not_equal(sq_kvpool_take(p), b);
    assert_int_equal(sq_kvpool_take(p), -1);
    sq_kvpool_put(p, b);
    assert_int_equal(sq_kvpool_take(p), b);
    sq_kvpool_put(p, 0);
    sq_kvpool_put(p, 1);
    sq_kvpool_free(p);
}

static void out_of_memory_is_told(void **state)
{
    (void)state;
    for (uint64_t k = 1; k <= 3; k++) {
        sq_mem_fail_at(k, false);
        assert_null(sq_kvpool_new(4));
    }
    sq_mem_fail_at(0, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_block_is_handed_out_once),
        cmocka_unit_test(a_shared_block_lives_until_its_last_holder),
        cmocka_unit_test(out_of_memory_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
