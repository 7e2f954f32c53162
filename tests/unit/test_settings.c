/* daemon/settings: files, drop-ins, command line, and the sample file that ships as etc/sqd.conf. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/settings.h"
#include "engine/base/mem.h"

static char dir[] = "/tmp/sqd-settings-XXXXXX";

static const char *file(const char *name, const char *text)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    return path;
}

static int read_text(struct sq_settings *s, const char *text, struct sq_err *err)
{
    assert_int_equal(sq_settings_init(s, err), 0);
    return sq_settings_read_file(s, file("sqd.conf", text), err);
}

static void test_layers(void **state)
{
    (void)state;
    struct sq_settings s;
    struct sq_err err;
    char drop[300];
    snprintf(drop, sizeof drop, "%s/sqd.conf.d", dir);
    mkdir(drop, 0755);
    file("sqd.conf.d/50.conf", "[engine]\nthreads = 3\n[server]\nlisten = 127.0.0.1:9\n");
    file("sqd.conf.d/ignored.txt", "nonsense\n");
    assert_int_equal(
        read_text(
            &s,
            "# c\n[model]\n model = /m \n[engine]\nthreads = 2\nmax_sequences=8\n[server]\nlisten "
            "= a:1\nlisten = b:2\n[limits]\nmax_body = 1MiB\nhead_timeout = 250ms\n",
            &err),
        0);
    assert_string_equal(s.model, "/m");
    assert_int_equal(s.threads, 3);
    assert_int_equal(s.max_sequences, 8);
    assert_int_equal(s.listen.n, 1); /* the drop-in replaces the file's list */
    assert_int_equal(s.limits.max_body, 1 << 20);
    assert_int_equal(s.limits.head_timeout, 250);
    assert_int_equal(sq_settings_set(&s, "max-sequences", "9", &err), 0);
    assert_int_equal(sq_settings_set(&s, "listen", "c:3", &err), 0);
    assert_int_equal(sq_settings_set(&s, "listen", "d:4", &err), 0);
    assert_int_equal(s.max_sequences, 9);
    assert_int_equal(s.listen.n, 2);
    assert_string_equal(s.listen.items[1], "d:4");
    sq_settings_done(&s);
    snprintf(drop, sizeof drop, "%s/sqd.conf.d/50.conf", dir);
    unlink(drop);
}

static void test_errors(void **state)
{
    (void)state;
    static const struct {
        const char *text, *expect;
    } cases[] = {
        {"[engine]\nthread = 2\n", "sqd.conf:2: unknown key 'thread' (nearest: 'threads')"},
        {"[engin]\n", "sqd.conf:1: unknown section [engin]"},
        {"threads = 2\n", "key 'threads' belongs under [engine], found under []"},
        {"[engine]\nthreads = many\n", "threads: expected an integer, found 'many'"},
        {"[engine]\nthreads = 99999\n", "threads: expected 0 to 1024, found '99999'"},
        {"[engine]\nbackend = gpu\n", "backend: expected one of auto, cpu, cuda, found 'gpu'"},
        {"[engine]\nkv_cache = 3MB\n", "kv_cache: expected a size such as 64MiB, found '3MB'"},
        {"[log]\naccess_log = maybe\n", "access_log: expected yes or no, found 'maybe'"},
        {"[shutdown]\ndrain_timeout = 1 s\n", "drain_timeout: expected a time"},
        {"[engine]\nthreads\n", "sqd.conf:2: expected key = value, found 'threads'"},
        {"[engine\n", "sqd.conf:1: expected [section], found '[engine'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sq_settings s;
        struct sq_err err = {0};
        assert_int_equal(read_text(&s, cases[i].text, &err), -SQ_E_CONFIG);
        if (!strstr(err.msg, cases[i].expect))
            fail_msg("expected '%s' in '%s'", cases[i].expect, err.msg);
        sq_settings_done(&s);
    }
    struct sq_settings s;
    struct sq_err err;
    assert_int_equal(sq_settings_init(&s, &err), 0);
    assert_int_equal(sq_settings_read_file(&s, "/nowhere/sqd.conf", &err), -SQ_E_NOTFOUND);
    assert_int_equal(sq_settings_check(&s, &err), -SQ_E_CONFIG);
    sq_settings_done(&s);
}

static char *slurp(const char *path)
{
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    char *text = sq_calloc(1, 65536);
    size_t n = fread(text, 1, 65535, f);
    (void)n;
    fclose(f);
    return text;
}

/* etc/sqd.conf is the sample, and the sample with every key uncommented reads back as the defaults. */
static void test_sample(void **state)
{
    (void)state;
    char path[256];
    snprintf(path, sizeof path, "%s/sample", dir);
    FILE *f = fopen(path, "w");
    sq_settings_sample(f);
    fclose(f);
    char *sample = slurp(path), *shipped = slurp(SQD_SOURCE_DIR "/etc/sqd.conf");
    assert_string_equal(sample, shipped);
    for (char *p = sample; *p; p++)
        if (*p == '#' && p[1] != ' ')
            *p = ' ';
    struct sq_settings s, d;
    struct sq_err err = {0};
    assert_int_equal(sq_settings_init(&d, &err), 0);
    if (read_text(&s, sample, &err))
        fail_msg("%s", err.msg);
    assert_int_equal(s.max_sequences, d.max_sequences);
    assert_memory_equal(&s.limits, &d.limits, sizeof s.limits);
    assert_int_equal(s.drain_timeout, d.drain_timeout);
    sq_settings_done(&s);
    sq_settings_done(&d);
    sq_free(sample);
    sq_free(shipped);
}

static void test_no_memory(void **state)
{
    (void)state;
    const char *path = file("sqd.conf", "[model]\nmodel = /m\nserved_name = a\nserved_name = b\n");
    for (uint64_t k = 1;; k++) {
        struct sq_settings s;
        struct sq_err err = {0};
        sq_mem_fail_at(k, false);
        int rc = sq_settings_init(&s, &err);
        if (!rc) {
            rc = sq_settings_read_file(&s, path, &err);
            sq_settings_done(&s);
        }
        bool done = sq_mem_count() < k;
        sq_mem_fail_at(0, false);
        if (done) {
            assert_int_equal(rc, 0);
            return;
        }
        assert_int_equal(rc, -SQ_E_NOMEM);
    }
}

static int make_dir(void **state)
{
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layers),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_sample),
        cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, make_dir, NULL);
}
