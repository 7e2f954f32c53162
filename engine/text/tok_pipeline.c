/* What stands around the model in tokenizer.json: normaliser, pre-tokenizers, post-processor, decoder. Rule T5: known settings
 * only. A table of keys says for each part what it may hold. */
#include <string.h>

#include "engine/base/check.h"
#include "engine/text/tok_priv.h"

#define GPT2_PATTERN                                                                               \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

/* Of a ByteLevel, whichever of its three places it stands in. */
static const char *const byte_level_keys[] = {"add_prefix_space", "trim_offsets", "use_regex?"};

static int bad(const struct sq_tokenizer *t, struct sq_err *err, const char *part, const char *what)
{
    return sq_tok_fail(t, err, SQ_E_NOTSUP, "T5", "%s: %s", part, what);
}

/* The `type` of a part; never NULL. */
static const char *type_of(const json_t *part)
{
    const char *type = json_string_value(json_object_get(part, "type"));
    return type ? type : "(none)";
}

/* The keys of an object, beside "type", are all among the n given; keys ending in '?' may be absent. */
static int check_keys(const struct sq_tokenizer *t, const json_t *part, const char *const *keys,
                      size_t n, struct sq_err *err)
{
    size_t present = 1;
    for (size_t i = 0; i < n; i++) {
        char key[32];
        bool optional = keys[i][strlen(keys[i]) - 1] == '?';
        snprintf(key, sizeof key, "%.*s", (int)strlen(keys[i]) - optional, keys[i]);
        bool there = json_object_get(part, key) != NULL;
        if (!there && !optional)
            return sq_tok_fail(t, err, SQ_E_FORMAT, "T5", "%s: %s is missing", type_of(part), key);
        present += there;
    }
    if (present != json_object_size(part))
        return bad(t, err, type_of(part), "unknown keys");
    return 0;
}

/* A boolean key; absent: dflt. */
static int get_bool(const struct sq_tokenizer *t, const json_t *part, const char *key, bool dflt,
                    bool *ret, struct sq_err *err)
{
    const json_t *v = json_object_get(part, key);
    if (v && !json_is_boolean(v))
        return sq_tok_fail(t, err, SQ_E_FORMAT, "T5", "%s: %s is not a boolean", type_of(part),
                           key);
    *ret = v ? json_is_true(v) : dflt;
    return 0;
}

/* --- pre-tokenizers --------------------------------------------------------------------------------------------------------- */

static int pattern_failed(const struct sq_tokenizer *t, const struct sq_err *why,
                          struct sq_err *err)
{
    return sq_tok_fail(t, err, (enum sq_code)why->code, "T5", "pre_tokenizer: %s", why->msg);
}

static int new_pattern(struct sq_tokenizer *t, const char *text, size_t n, bool literal,
                       struct sq_tok_stage *stage, struct sq_err *err)
{
    struct sq_err why = {0};
    int rc = sq_split_pattern_new(text, n, literal, &stage->pattern, &why);
    return rc ? pattern_failed(t, &why, err) : 0;
}

static int load_byte_level(struct sq_tokenizer *t, const json_t *part, struct sq_tok_stage *stage,
                           struct sq_err *err)
{
    bool use_regex = true, trim = false;
    int rc = check_keys(t, part, byte_level_keys, SQ_ARRAY_LEN(byte_level_keys), err);
    if (!rc)
        rc = get_bool(t, part, "add_prefix_space", false, &stage->add_prefix_space, err);
    if (!rc)
        rc = get_bool(t, part, "trim_offsets", false, &trim, err); /* of offsets only */
    if (!rc)
        rc = get_bool(t, part, "use_regex", true, &use_regex, err);
    if (rc)
        return rc;
    for (size_t i = 0; i < t->n_stages; i++)
        if (t->stages[i].byte_level)
            return bad(t, err, "pre_tokenizer", "more than one ByteLevel");
    stage->byte_level = true;
    stage->behavior = SQ_TOK_ISOLATED;
    return use_regex ? new_pattern(t, GPT2_PATTERN, strlen(GPT2_PATTERN), false, stage, err) : 0;
}

static int load_split(struct sq_tokenizer *t, const json_t *part, struct sq_tok_stage *stage,
                      struct sq_err *err)
{
    static const char *const keys[] = {"pattern", "behavior", "invert"};
    static const char *const behaviors[] = {
        [SQ_TOK_REMOVED] = "Removed",
        [SQ_TOK_ISOLATED] = "Isolated",
        [SQ_TOK_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
        [SQ_TOK_MERGED_WITH_NEXT] = "MergedWithNext",
        [SQ_TOK_CONTIGUOUS] = "Contiguous",
    };
    int rc = check_keys(t, part, keys, SQ_ARRAY_LEN(keys), err);
    if (!rc)
        rc = get_bool(t, part, "invert", false, &stage->invert, err);
    if (rc)
        return rc;
    const char *behavior = json_string_value(json_object_get(part, "behavior"));
    size_t b = 0;
    while (b < SQ_ARRAY_LEN(behaviors) && (!behavior || strcmp(behavior, behaviors[b]) != 0))
        b++;
    if (b == SQ_ARRAY_LEN(behaviors))
        return bad(t, err, "Split", "unknown behavior");
    stage->behavior = (enum sq_tok_behavior)b;
    const json_t *pattern = json_object_get(part, "pattern");
    const json_t *regex = json_object_get(pattern, "Regex");
    const json_t *string = json_object_get(pattern, "String");
    const json_t *text = regex ? regex : string;
    if (!json_is_string(text) || json_object_size(pattern) != 1)
        return bad(t, err, "Split", "pattern is neither a Regex nor a String");
    return new_pattern(t, json_string_value(text), json_string_length(text), !regex, stage, err);
}

static int load_digits(struct sq_tokenizer *t, const json_t *part, struct sq_tok_stage *stage,
                       struct sq_err *err)
{
    static const char *const keys[] = {"individual_digits"};
    bool individual = false;
    struct sq_cpset digits = {0};
    struct sq_err why = {0};
    int rc = check_keys(t, part, keys, SQ_ARRAY_LEN(keys), err);
    if (!rc)
        rc = get_bool(t, part, "individual_digits", false, &individual, err);
    if (rc)
        return rc;
    stage->behavior = individual ? SQ_TOK_ISOLATED : SQ_TOK_CONTIGUOUS;
    rc = sq_cpset_add_digits(&digits);
    if (rc)
        sq_fail(&why, SQ_E_NOMEM, "no memory");
    sq_cpset_tidy(&digits);
    if (!rc)
        rc = sq_split_pattern_new_set(&digits, &stage->pattern, &why);
    sq_cpset_done(&digits);
    return rc ? pattern_failed(t, &why, err) : 0;
}

static int load_stage(struct sq_tokenizer *t, const json_t *part, struct sq_err *err)
{
    static const struct {
        const char *type;
        int (*load)(struct sq_tokenizer *, const json_t *, struct sq_tok_stage *, struct sq_err *);
    } kinds[] = {{"ByteLevel", load_byte_level}, {"Split", load_split}, {"Digits", load_digits}};
    if (t->n_stages == SQ_TOK_MAX_STAGES)
        return bad(t, err, "pre_tokenizer", "more than 16 steps");
    size_t k = 0;
    while (k < SQ_ARRAY_LEN(kinds) && strcmp(type_of(part), kinds[k].type) != 0)
        k++;
    if (k == SQ_ARRAY_LEN(kinds))
        return sq_tok_fail(t, err, SQ_E_NOTSUP, "T5",
                           "pre_tokenizer \"%.40s\", expected ByteLevel, Split, Digits or Sequence",
                           type_of(part));
    struct sq_tok_stage *stage = &t->stages[t->n_stages];
    int rc = kinds[k].load(t, part, stage, err);
    t->n_stages += stage->pattern || !rc; /* counted as soon as it owns something */
    return rc;
}

static int load_pre_tokenizer(struct sq_tokenizer *t, const json_t *part, struct sq_err *err)
{
    int rc = 0;
    if (strcmp(type_of(part), "Sequence") == 0) {
        static const char *const keys[] = {"pretokenizers"};
        rc = check_keys(t, part, keys, 1, err);
        const json_t *list = json_object_get(part, "pretokenizers"), *item;
        size_t i;
        if (!rc && !json_is_array(list))
            rc = bad(t, err, "Sequence", "pretokenizers is not a list");
        for (i = 0; !rc && i < json_array_size(list); i++) {
            item = json_array_get(list, i);
            rc = load_stage(t, item, err);
        }
    } else {
        rc = load_stage(t, part, err);
    }
    if (rc)
        return rc;
    bool byte_level = false;
    for (size_t i = 0; i < t->n_stages; i++)
        byte_level |= t->stages[i].byte_level;
    return byte_level ? 0 : bad(t, err, "pre_tokenizer", "no ByteLevel");
}

/* --- post-processor --------------------------------------------------------------------------------------------------------- */

/* The ids of a template's special token, appended to list[*n]. */
static int template_token(const struct sq_tokenizer *t, const json_t *tokens, const char *name,
                          uint32_t *list, size_t *n, struct sq_err *err)
{
    const json_t *ids = json_object_get(json_object_get(tokens, name), "ids"), *item;
    size_t i;
    if (!json_is_array(ids))
        return sq_tok_fail(t, err, SQ_E_FORMAT, "T5",
                           "post_processor: no special token \"%.64s\" in the template", name);
    json_array_foreach(ids, i, item)
    {
        json_int_t id = json_integer_value(item);
        if (!json_is_integer(item) || id < 0 || (size_t)id >= t->vocab.n_ids ||
            !t->vocab.ids[id].used)
            return sq_tok_fail(t, err, SQ_E_FORMAT, "T5",
                               "post_processor: \"%.64s\" stands for no token of the file", name);
        if (*n == SQ_TOK_MAX_TEMPLATE)
            return bad(t, err, "post_processor", "more than 32 special tokens");
        list[(*n)++] = (uint32_t)id;
    }
    return 0;
}

/* Puts what a template sets before the text in front of what is there, and what comes after behind it. */
static int wrap(struct sq_tokenizer *t, const uint32_t *before, size_t n_before,
                const uint32_t *after, size_t n_after, struct sq_err *err)
{
    if (n_before + t->n_prefix > SQ_TOK_MAX_TEMPLATE || n_after + t->n_suffix > SQ_TOK_MAX_TEMPLATE)
        return bad(t, err, "post_processor", "more than 32 special tokens");
    memmove(t->prefix + n_before, t->prefix, t->n_prefix * sizeof *t->prefix);
    memcpy(t->prefix, before, n_before * sizeof *before);
    memcpy(t->suffix + t->n_suffix, after, n_after * sizeof *after);
    t->n_prefix += n_before;
    t->n_suffix += n_after;
    return 0;
}

static int load_template(struct sq_tokenizer *t, const json_t *part, struct sq_err *err)
{
    static const char *const keys[] = {"single", "pair", "special_tokens"};
    uint32_t list[2][SQ_TOK_MAX_TEMPLATE]; /* before and after the text */
    size_t n[2] = {0, 0}, i, n_text = 0;
    int rc = check_keys(t, part, keys, SQ_ARRAY_LEN(keys), err);
    if (rc)
        return rc;
    const json_t *single = json_object_get(part, "single"), *piece;
    json_array_foreach(single, i, piece)
    {
        const json_t *sequence = json_object_get(piece, "Sequence");
        const json_t *special = json_object_get(piece, "SpecialToken");
        const char *id = json_string_value(json_object_get(sequence ? sequence : special, "id"));
        if (!id)
            return bad(t, err, "TemplateProcessing", "a piece without an id");
        if (sequence) {
            n_text += strcmp(id, "A") == 0 ? 1 : 2;
            continue;
        }
        size_t side = n_text > 0;
        rc = template_token(t, json_object_get(part, "special_tokens"), id, list[side], &n[side],
                            err);
        if (rc)
            return rc;
    }
    if (n_text != 1)
        return bad(t, err, "TemplateProcessing", "single must hold the text, A, just once");
    return wrap(t, list[0], n[0], list[1], n[1], err);
}

static int load_post_processor(struct sq_tokenizer *t, const json_t *part, bool nested,
                               struct sq_err *err)
{
    const char *type = type_of(part);
    if (strcmp(type, "ByteLevel") == 0) /* of offsets only */
        return check_keys(t, part, byte_level_keys, SQ_ARRAY_LEN(byte_level_keys), err);
    if (strcmp(type, "TemplateProcessing") == 0)
        return load_template(t, part, err);
    if (strcmp(type, "Sequence") == 0 && !nested) {
        static const char *const keys[] = {"processors"};
        int rc = check_keys(t, part, keys, 1, err);
        const json_t *list = json_object_get(part, "processors");
        for (size_t i = 0; !rc && i < json_array_size(list); i++)
            rc = load_post_processor(t, json_array_get(list, i), true, err);
        return rc;
    }
    return sq_tok_fail(
        t, err, SQ_E_NOTSUP, "T5",
        "post_processor \"%.40s\", expected ByteLevel, TemplateProcessing or Sequence", type);
}

int sq_tok_load_pipeline(struct sq_tokenizer *t, const json_t *root, struct sq_err *err)
{
    const json_t *normalizer = json_object_get(root, "normalizer");
    const json_t *post = json_object_get(root, "post_processor");
    const json_t *decoder = json_object_get(root, "decoder");
    if (normalizer && !json_is_null(normalizer))
        return sq_tok_fail(t, err, SQ_E_NOTSUP, "T5", "normalizer \"%.40s\", expected null",
                           type_of(normalizer));
    int rc = load_pre_tokenizer(t, json_object_get(root, "pre_tokenizer"), err);
    if (!rc && post && !json_is_null(post))
        rc = load_post_processor(t, post, false, err);
    if (rc)
        return rc;
    if (strcmp(type_of(decoder), "ByteLevel") != 0)
        return sq_tok_fail(t, err, SQ_E_NOTSUP, "T5", "decoder \"%.40s\", expected ByteLevel",
                           type_of(decoder));
    return check_keys(t, decoder, byte_level_keys, SQ_ARRAY_LEN(byte_level_keys), err);
}
