#include "engine/smooth/report.h"

#include <inttypes.h>

const char *sq_eval_scheme_text(enum sq_eval_scheme s)
{
    static const char *const texts[] = {[SQ_EVAL_AS_STORED] = "as stored",
                                        [SQ_EVAL_FLOAT] = "fp",
                                        [SQ_EVAL_NAIVE] = "naive",
                                        [SQ_EVAL_O1] = "o1",
                                        [SQ_EVAL_O3] = "o3"};
    return texts[s];
}

void sq_report_json_string(FILE *out, const char *s)
{
    fputc('"', out);
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            fprintf(out, "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            fprintf(out, "\\u%04x", (unsigned)c);
        else
            fputc(c, out);
    }
    fputc('"', out);
}

static void key_string(FILE *out, const char *key, const char *value)
{
    fprintf(out, "\"%s\": ", key);
    sq_report_json_string(out, value);
}

static void quantize_json(FILE *out, const struct sq_quantize_options *o,
                          const struct sq_quantize_report *r, double seconds)
{
    fputc('{', out);
    key_string(out, "model", o->model_dir);
    fputs(", ", out);
    key_string(out, "out", o->out_dir);
    fprintf(out, ", \"level\": \"%s\", \"alpha\": %g, \"folds\": [",
            o->recipe.dynamic ? "o1" : "o3", o->recipe.alpha);
    for (int i = 0; i < r->n_folds; i++) {
        fputs(i ? ", {" : "{", out);
        key_string(out, "fold", r->folds[i].what);
        fputs(", ", out);
        key_string(out, "state", sq_fold_state_text(r->folds[i].state));
        fputc('}', out);
    }
    fprintf(out,
            "], \"weights\": \"%s\", \"passages\": %d, \"passages_cut\": %d, \"tokens\": %zu, "
            "\"first_token\": %s, \"factor_min\": %.9g, \"factor_max\": %.9g, "
            "\"verified_positions\": %d, \"verify_difference\": %.3g, \"bytes\": %" PRIu64
            ", \"seconds\": %.3f}\n",
            o->recipe.per_tensor ? "tensor" : "channel", r->n_passages, r->n_cut, r->n_tokens,
            o->recipe.keep_first ? "true" : "false", r->min_s, r->max_s, r->n_verified,
            r->verify_diff, r->bytes, seconds);
}

static void quantize_text(FILE *out, const struct sq_quantize_options *o,
                          const struct sq_quantize_report *r, double seconds)
{
    fprintf(out, "%s: W8A8 %s, weights per %s, alpha %g\n", o->out_dir,
            o->recipe.dynamic ? "O1 (per-token dynamic activations)" : "O3 (static activations)",
            o->recipe.per_tensor ? "tensor" : "output channel", o->recipe.alpha);
    fprintf(out, "calibrated on %zu tokens of %d passages", r->n_tokens, r->n_passages);
    if (r->n_cut)
        fprintf(out, ", %d of them cut at the limit", r->n_cut);
    fputc('\n', out);
    for (int i = 0; i < r->n_folds; i++)
        fprintf(out, "fold %s: %s\n", r->folds[i].what, sq_fold_state_text(r->folds[i].state));
    if (r->n_verified)
        fprintf(out,
                "verified: logits of %d positions differ by %.2g of their range from the float "
                "model's; "
                "factors %g to %g\n",
                r->n_verified, r->verify_diff, r->min_s, r->max_s);
    fprintf(out, "wrote %.1f MB of tensors in %.1f s\n", (double)r->bytes * 1e-6, seconds);
}

void sq_report_quantize(FILE *out, bool json, const struct sq_quantize_options *o,
                        const struct sq_quantize_report *r, double seconds)
{
    if (json)
        quantize_json(out, o, r, seconds);
    else
        quantize_text(out, o, r, seconds);
}

static void result_json(FILE *out, const char *dir, const struct sq_eval_result *r)
{
    fputc('{', out);
    key_string(out, "model", dir);
    fprintf(out,
            ", \"perplexity\": %.9g, \"bits_per_byte\": %.9g, \"nats\": %.9g, \"tokens\": %zu, "
            "\"bytes\": %zu, \"context\": %d, \"seconds\": %.3f",
            r->perplexity, r->bits_per_byte, r->nats, r->n_tokens, r->n_bytes, r->context,
            r->seconds);
}

static void result_text(FILE *out, const char *dir, const char *how, const struct sq_eval_result *r)
{
    fprintf(out,
            "%s (%s): perplexity %.4f, %.4f bits per byte, %zu tokens in windows of %d, %.1f s\n",
            dir, how, r->perplexity, r->bits_per_byte, r->n_tokens, r->context, r->seconds);
}

void sq_report_eval(FILE *out, bool json, const struct sq_eval_options *o,
                    const struct sq_eval_result *r, const char *against_dir,
                    const struct sq_eval_result *against)
{
    const char *scheme = sq_eval_scheme_text(o->scheme);
    const double ratio = against ? r->perplexity / against->perplexity : 0;
    if (json) {
        result_json(out, o->model_dir, r);
        fputs(", ", out);
        key_string(out, "scheme", scheme);
        if (against) {
            fputs(", \"against\": ", out);
            result_json(out, against_dir, against);
            fprintf(out, "}, \"ratio\": %.9g", ratio);
        }
        fputs("}\n", out);
        return;
    }
    result_text(out, o->model_dir, scheme, r);
    if (against) {
        result_text(out, against_dir, "as stored", against);
        fprintf(out, "ratio %.5f (%+.3f %%)\n", ratio, (ratio - 1) * 100);
    }
}
