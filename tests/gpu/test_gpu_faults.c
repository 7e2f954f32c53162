/* Every call of the runtime and every operation on the device fails once, from the start of a backend to the end of its second step: each time
 * there is one clear error, no crash and no hang, and nothing stays allocated that the device would still give back.
 *
 * The program runs itself for each: softgpu reads SG_FAULT once, at its start. The child's exit code says how it went. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "cuda/cuda.h"
#include "engine/base/check.h"
#include "engine/model/model.h"
#include "engine/quant.h"
#include "engine/run/forward.h"

enum { CHILD_OK = 0, CHILD_ERROR = 10, CHILD_SILENT = 11, CHILD_LEAKED = 12 };
enum { ROWS = 80, CHILD_SECONDS = 60 };

static const char json[] =
    "{\"model_type\": \"opt\", \"architectures\": [\"OPTForCausalLM\"], \"num_hidden_layers\": 1, "
    "\"hidden_size\": 64, \"ffn_dim\": 96, \"num_attention_heads\": 1, \"word_embed_proj_dim\": "
    "64, \"vocab_size\": 67, \"max_position_embeddings\": 96, \"do_layer_norm_before\": true, "
    "\"activation_function\": \"relu\", \"torch_dtype\": \"float16\", \"bos_token_id\": 2, "
    "\"eos_token_id\": 2, \"pad_token_id\": 1}";

/* A prompt of 70 rows, then two decode steps, recorded and replayed. */
static int steps(struct sq_runner *r, struct sq_err *err)
{
    int32_t ids[ROWS], pos[ROWS], blocks[] = {0, 1, 2}, out, best;
    int rc = 0;
    for (int i = 0; i < ROWS; i++) {
        ids[i] = i % 67;
        pos[i] = i;
    }
    for (int s = 0; s < 3 && !rc; s++) {
        const int n = s ? 1 : 70, at = s ? 69 + s : 0;
        struct sq_batch_seq seq = {.n_rows = n, .pos0 = at, .blocks = blocks};
        struct sq_batch b = {.n_rows = n,
                             .n_seqs = 1,
                             .n_out = 1,
                             .ids = ids + at,
                             .pos = pos + at,
                             .seqs = &seq,
                             .out_rows = &out};
        const float *logits;
        out = n - 1;
        rc = sq_forward(r, &b, NULL, err);
        rc = rc ? rc : sq_runner_argmax(r, 1, &best, err);
        rc = rc ? rc : sq_runner_logits(r, 1, &logits, err);
    }
    return rc;
}

static int start_and_step(struct sq_backend *be, struct sq_err *err)
{
    struct sq_load_options lo = {.head = SQ_HEAD_INT8};
    struct sq_runner_options ro = {.max_rows = ROWS, .max_out = 2, .n_kv_blocks = 4};
    struct sq_config c;
    struct sq_source *src;
    struct sq_model *m = NULL;
    struct sq_runner *r = NULL;
    int rc = sq_config_parse(json, sizeof json - 1, "test", &c, err);
    SQ_ASSERT(!rc);
    c.scheme = SQ_SCHEME_W8A8_STATIC;
    rc = sq_random_source_open(&c, 3, &src, err);
    SQ_ASSERT(!rc);
    rc = sq_model_load(src, &c, be, &lo, &m, err);
    src->ops->close(src);
    if (!rc)
        rc = sq_runner_new(m, &ro, &r, err);
    if (!rc)
        rc = steps(r, err);
    sq_runner_free(r);
    sq_model_free(m);
    return rc;
}

static int child(void)
{
    const struct sq_gpu_options o = {0};
    struct sq_err err = {0};
    struct sq_backend *be = NULL;
    struct sq_gpu_budget left = {0};
    alarm(CHILD_SECONDS);
    int rc = sq_cuda_open(&o, &be, &err);
    if (!rc) {
        rc = start_and_step(be, &err);
        sq_cuda_budget(be, &left);
        be->ops->close(be);
    }
    if (left.weight_bytes || left.kv_bytes || left.activation_bytes)
        return CHILD_LEAKED;
    if (!rc)
        return CHILD_OK;
    return err.msg[0] ? CHILD_ERROR : CHILD_SILENT;
}

/* Exit code, or 1000 + the signal. */
static int run_child(const char *name, int n, const char *code)
{
    char value[64];
    snprintf(value, sizeof value, "%d%s%s", n, code ? ":" : "", code ? code : "");
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        setenv(name, value, 1);
        setenv("SQ_GPU_FAULT_CHILD", "1", 1);
        execl("/proc/self/exe", "test_gpu_faults", (char *)NULL);
        _exit(127);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

/* Until a child runs through, the fault lying behind its last call; returns its number. Faults stick, so none may go unseen. */
static int sweep(const char *name, const char *code, int stride)
{
    int n = 1, rc;
    while ((rc = run_child(name, n, code)) != CHILD_OK) {
        if (rc != CHILD_ERROR)
            fail_msg("%s=%d: the child's status is %d", name, n, rc);
        n += stride;
    }
    print_message("%s: %d of 1 to %d failed, each told\n", name, (n - 1) / stride, n - 1);
    assert_true(n > 20 * stride);
    return n;
}

static int n_calls;

static int stride(void)
{
    const char *s = getenv("SQ_GPU_FAULT_STRIDE");
    return s ? atoi(s) : 1;
}

static void calls(void **state)
{
    (void)state;
    n_calls = sweep("SG_FAULT", NULL, stride());
}

static void operations(void **state)
{
    (void)state;
    sweep("SG_FAULT_OP", NULL, stride());
}

static void memory(void **state)
{
    (void)state;
    int n_errors = 0;
    /* cudaErrorMemoryAllocation does not stick, so that calls whose answer may be missed go on */
    for (int n = 1; n < n_calls; n += 3 * stride()) {
        int rc = run_child("SG_FAULT", n, "2");
        if (rc != CHILD_ERROR && rc != CHILD_OK)
            fail_msg("SG_FAULT=%d:2: the child's status is %d", n, rc);
        n_errors += rc == CHILD_ERROR;
    }
    assert_true(n_errors * stride() > 20);
}

int main(void)
{
    if (getenv("SQ_GPU_FAULT_CHILD"))
        return child();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(calls),
        cmocka_unit_test(operations),
        cmocka_unit_test(memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
