/* Cutting a text file into passages, and passages into tokens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/**/
#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/mem.h"
#include "engine/smooth/passages.h"
#include "tests/lib/model_files.h"

static void check_cut(const char *text, const char *want)
{
    char got[256] = "";
    size_t n = strlen(text), pos = 0, begin, end;
    bool by_paragraph = sq_passages_by_paragraph(text, n);
    while (sq_passage_next(text, n, by_paragraph, &pos, &begin, &end))
        snprintf(got + strlen(got), sizeof got - strlen(got), "<%.*s>", (int)(end - begin),
                 text + begin);
    assert_string_equal(got, want);
    assert_int_equal(pos, n);
    assert_false(sq_passage_next(text, n, by_paragraph, &pos, &begin, &end));
}

static void test_cut(void **state)
{
    (void)state;
    check_cut("", "");
    check_cut("\n \n\t\n", "");
    check_cut("a", "<a>");
    check_cut("a\nb\n", "<a><b>");
    check_cut("a\nb", "<a><b>");
    check_cut("  a \r\nb c\n", "<a><b c>");
    check_cut("a\nb\n\nc", "<a\nb><c>");
    check_cut("\n\na\nb\n \t\n\n\nc\nd\n\n", "<a\nb><c\nd>");
    check_cut("\n\na\nb\n\n\n", "<a><b>"); /* nothing behind the blank lines: a line is a passage */
}

struct world {
    char *dir, path[300];
    struct sq_tokenizer *tok;
};

static void init(struct world *w, const char *text, size_t n)
{
    struct sq_err err = {0};
    *w = (struct world){.dir = sq_files_mkdir()};
    snprintf(w->path, sizeof w->path, "%s/text", w->dir);
    sq_files_write(w->dir, "text", text, n);
    int rc = sq_tokenizer_open(AT_FDCWD, SQD_SOURCE_DIR "/tests/golden/logits/bytes-tokenizer.json",
                               0, &w->tok, &err);
    if (rc)
        fail_msg("%s", err.msg);
}

static void done(struct world *w)
{
    sq_tokenizer_free(w->tok);
    sq_files_rmdir(w->dir);
}

static void test_tokens(void **state)
{
    struct world w;
    struct sq_passages *p = NULL;
    struct sq_err err = {0};
    (void)state;
    init(&w, "abcdefgh\n\nxy\n\nz\n", 16);
    assert_int_equal(sq_passages_load(w.path, w.tok, 2, 2, 6, &p, &err), 0);
    assert_int_equal(p->n, 2);
    assert_int_equal(p->start[1], 6); /* bos and five of eight */
    assert_int_equal(p->start[2], 9);
    assert_int_equal(p->n_cut, 1);
    assert_int_equal(p->ids[0], 2);
    assert_int_equal(p->ids[6], 2);
    assert_int_equal(p->ids[1] + 1, p->ids[2]); /* bytes follow each other in the alphabet */
    p = sq_passages_free(p);
    assert_int_equal(sq_passages_load(w.path, w.tok, -1, 9, 100, &p, &err), 0);
    assert_int_equal(p->n, 3);
    assert_int_equal(p->start[3], 8 + 2 + 1);
    assert_int_equal(p->n_cut, 0);
    sq_passages_free(p);
    done(&w);
}

static void test_bad_text(void **state)
{
    struct world w;
    struct sq_passages *p = NULL;
    struct sq_err err = {0};
    (void)state;
    init(&w,
         "good\nb\xff"
         "d\n",
         9);
    assert_int_equal(sq_passages_load(w.path, w.tok, 2, 9, 9, &p, &err), -SQ_E_INVAL);
    assert_non_null(strstr(err.msg, "passage at byte 5"));
    assert_int_equal(sq_passages_load("/", w.tok, 2, 9, 9, &p, &err), -SQ_E_IO);
    assert_int_equal(sq_passages_load("/no/such/file", w.tok, 2, 9, 9, &p, &err), -SQ_E_NOTFOUND);
    assert_null(p);
    done(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cut),
        cmocka_unit_test(test_tokens),
        cmocka_unit_test(test_bad_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
