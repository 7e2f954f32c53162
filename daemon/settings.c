#include "daemon/settings.h"

#include <dirent.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/num.h"

enum type { STR, LIST, INT, BYTES, MS, BOOL, CHOICE };

struct row {
    enum type type;
    const char *section, *name, *def;
    int64_t min, max;
    bool reload;
    const char *help;
    size_t offset;
};

static const struct row rows[] = {
#define SETTING(type, section, name, def, min, max, reload, help)                                  \
    {type, #section, #name, def, min, max, reload, help, offsetof(struct sq_settings, name)},
#include "daemon/settings.def"
#undef SETTING
#define UNIT_INT(unit)                                                                             \
    (sizeof(unit) == sizeof("bytes") ? BYTES : sizeof(unit) == sizeof("ms") ? MS : INT)
#define LIMIT(name, def, min, max, unit, help)                                                     \
    {UNIT_INT(unit), "limits", #name,                                                              \
     #def,           min,      max,                                                                \
     false,          help,     offsetof(struct sq_settings, limits.name)},
#include "api/limits.def"
#undef LIMIT
};
#define N_ROWS SQ_ARRAY_LEN(rows)

static const struct {
    const char *name;
    const char *words[6];
} choices[] = {
    {"head", {"auto", "keep", "int8"}},
    {"backend", {"auto", "cpu", "cuda"}},
    {"log_level", {"error", "warning", "notice", "info", "debug"}},
};

struct sq_setting_origin {
    char text[160]; /* "" = default */
};

static bool is_limit(const struct row *r)
{
    return strcmp(r->section, "limits") == 0;
}

static const struct row *find_row(const char *name)
{
    for (size_t i = 0; i < N_ROWS; i++) {
        const char *a = rows[i].name, *b = name;
        while (*a && (*a == *b || (*a == '_' && *b == '-')))
            a++, b++;
        if (!*a && !*b)
            return &rows[i];
    }
    return NULL;
}

/* Edit distance over short names, to suggest what was meant. */
static size_t distance(const char *a, const char *b)
{
    size_t row[64], n = strnlen(b, 62);
    for (size_t j = 0; j <= n; j++)
        row[j] = j;
    for (size_t i = 1; *a; a++, i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= n; j++) {
            size_t old = row[j];
            size_t change = diagonal + (*a != b[j - 1]);
            row[j] = SQ_MIN(change, SQ_MIN(row[j], row[j - 1]) + 1);
            diagonal = old;
        }
    }
    return row[n];
}

static const char *nearest(const char *name)
{
    const char *best = rows[0].name;
    size_t best_distance = SIZE_MAX;
    for (size_t i = 0; i < N_ROWS; i++) {
        size_t d = distance(name, rows[i].name);
        if (d < best_distance) {
            best_distance = d;
            best = rows[i].name;
        }
    }
    return best;
}

static bool choice_ok(const struct row *r, const char *value, char *expected, size_t n_expected)
{
    expected[0] = '\0';
    for (size_t i = 0; i < SQ_ARRAY_LEN(choices); i++) {
        if (strcmp(choices[i].name, r->name) != 0)
            continue;
        for (int j = 0; j < 6 && choices[i].words[j]; j++) {
            if (strcmp(choices[i].words[j], value) == 0)
                return true;
            size_t len = strlen(expected);
            (void)snprintf(expected + len, n_expected - len, "%s%s", j ? ", " : "",
                           choices[i].words[j]);
        }
    }
    return false;
}

static int list_add(struct sq_list_value *l, const char *value)
{
    char **items = sq_realloc_array(l->items, l->n + 2, sizeof *items);
    if (!items)
        return -SQ_E_NOMEM;
    l->items = items;
    l->items[l->n] = sq_strdup(value);
    if (!l->items[l->n])
        return -SQ_E_NOMEM;
    l->items[++l->n] = NULL;
    return 0;
}

static void list_clear(struct sq_list_value *l)
{
    for (size_t i = 0; i < l->n; i++)
        sq_free(l->items[i]);
    sq_free(l->items);
    *l = (struct sq_list_value){0};
}

static bool parse_bool(const char *v, bool *ret)
{
    static const char *const words[] = {"no", "yes", "false", "true", "off", "on", "0", "1"};
    for (size_t i = 0; i < SQ_ARRAY_LEN(words); i++)
        if (strcmp(v, words[i]) == 0) {
            *ret = i & 1;
            return true;
        }
    return false;
}

static int store_number(const struct row *r, void *at, const char *value, const char *where,
                        struct sq_err *err)
{
    static const char *const kinds[] = {[INT] = "an integer",
                                        [BYTES] = "a size such as 64MiB",
                                        [MS] = "a time such as 30s or 250ms"};
    int64_t i = 0;
    uint64_t u = 0;
    bool ok = r->type == INT
                  ? sq_parse_i64(value, INT64_MIN, INT64_MAX, &i)
                  : (r->type == BYTES ? sq_parse_bytes : sq_parse_ms)(value, &u) && u <= INT64_MAX;
    if (r->type != INT)
        i = (int64_t)u;
    if (!ok)
        return sq_fail(err, SQ_E_CONFIG, "%s: %s: expected %s, found '%s'", where, r->name,
                       kinds[r->type], value);
    if ((r->min || r->max) && (i < r->min || i > r->max))
        return sq_fail(err, SQ_E_CONFIG, "%s: %s: expected %lld to %lld, found '%s'", where,
                       r->name, (long long)r->min, (long long)r->max, value);
    memcpy(at, &i, sizeof i); /* int64_t and uint64_t fields alike */
    return 0;
}

static int store(struct sq_settings *s, const struct row *r, const char *value, const char *where,
                 struct sq_err *err)
{
    void *at = (char *)s + r->offset;
    char expected[128];
    switch (r->type) {
    case LIST: {
        struct sq_list_value *l = at;
        struct sq_setting_origin *o = &s->origins[r - rows];
        /* a nearer source replaces a farther one's list, the same source adds to it */
        if (strncmp(o->text, where, strcspn(where, ":")) != 0 || !o->text[0])
            list_clear(l);
        if (list_add(l, value))
            return sq_fail(err, SQ_E_NOMEM, "out of memory");
        break;
    }
    case CHOICE:
        if (!choice_ok(r, value, expected, sizeof expected))
            return sq_fail(err, SQ_E_CONFIG, "%s: %s: expected one of %s, found '%s'", where,
                           r->name, expected, value);
        __attribute__((fallthrough));
    case STR: {
        char *copy = sq_strdup(value);
        if (!copy)
            return sq_fail(err, SQ_E_NOMEM, "out of memory");
        sq_free(*(char **)at);
        *(char **)at = copy;
        break;
    }
    case BOOL:
        if (!parse_bool(value, at))
            return sq_fail(err, SQ_E_CONFIG, "%s: %s: expected yes or no, found '%s'", where,
                           r->name, value);
        break;
    default: {
        int rc = store_number(r, at, value, where, err);
        if (rc)
            return rc;
    }
    }
    (void)snprintf(s->origins[r - rows].text, sizeof s->origins[0].text, "%s", where);
    return 0;
}

int sq_settings_init(struct sq_settings *s, struct sq_err *err)
{
    *s = (struct sq_settings){.origins = sq_new_array(struct sq_setting_origin, N_ROWS)};
    if (!s->origins)
        return sq_fail(err, SQ_E_NOMEM, "out of memory");
    sq_api_limits_default(&s->limits);
    for (size_t i = 0; i < N_ROWS; i++) {
        if (is_limit(&rows[i]) || rows[i].type == LIST)
            continue;
        int rc = store(s, &rows[i], rows[i].def, "default", err);
        if (rc) {
            sq_settings_done(s);
            return rc;
        }
        s->origins[i].text[0] = '\0';
    }
    return 0;
}

void sq_settings_done(struct sq_settings *s)
{
    for (size_t i = 0; i < N_ROWS; i++) {
        void *at = (char *)s + rows[i].offset;
        if (rows[i].type == STR || rows[i].type == CHOICE)
            sq_free(*(char **)at);
        else if (rows[i].type == LIST)
            list_clear(at);
    }
    sq_free(s->origins);
    *s = (struct sq_settings){0};
}

static char *trim(char *s)
{
    s += strspn(s, " \t\r");
    size_t n = strlen(s);
    while (n && strchr(" \t\r\n", s[n - 1]))
        s[--n] = '\0';
    return s;
}

static int read_line(struct sq_settings *s, char *line, char *section, size_t n_section,
                     const char *where, struct sq_err *err)
{
    line = trim(line);
    if (!*line || *line == '#' || *line == ';')
        return 0;
    size_t len = strlen(line);
    if (*line == '[') {
        if (line[len - 1] != ']' || len < 3 || len - 2 >= n_section)
            return sq_fail(err, SQ_E_CONFIG, "%s: expected [section], found '%s'", where, line);
        (void)snprintf(section, n_section, "%.*s", (int)(len - 2), line + 1);
        for (size_t i = 0; i < N_ROWS; i++)
            if (strcmp(rows[i].section, section) == 0)
                return 0;
        return sq_fail(err, SQ_E_CONFIG, "%s: unknown section [%s]", where, section);
    }
    char *eq = strchr(line, '=');
    if (!eq)
        return sq_fail(err, SQ_E_CONFIG, "%s: expected key = value, found '%s'", where, line);
    *eq = '\0';
    const char *key = trim(line), *value = trim(eq + 1);
    const struct row *r = find_row(key);
    if (!r)
        return sq_fail(err, SQ_E_CONFIG, "%s: unknown key '%s' (nearest: '%s')", where, key,
                       nearest(key));
    if (strcmp(r->section, section) != 0)
        return sq_fail(err, SQ_E_CONFIG, "%s: key '%s' belongs under [%s], found under [%s]", where,
                       key, r->section, section);
    return store(s, r, value, where, err);
}

static int read_one(struct sq_settings *s, const char *path, struct sq_err *err)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return sq_fail(err, errno == ENOENT ? SQ_E_NOTFOUND : SQ_E_IO, "configuration file %s: %s",
                       path, strerror(errno));
    char line[4096], section[64] = "", where[160];
    int rc = 0;
    for (int n = 1; !rc && fgets(line, sizeof line, f); n++) {
        (void)snprintf(where, sizeof where, "%s:%d", path, n);
        if (strlen(line) == sizeof line - 1 && line[sizeof line - 2] != '\n')
            rc =
                sq_fail(err, SQ_E_CONFIG, "%s: line longer than %zu bytes", where, sizeof line - 2);
        else
            rc = read_line(s, line, section, sizeof section, where, err);
    }
    if (!rc && ferror(f))
        rc = sq_fail(err, SQ_E_IO, "configuration file %s: %s", path, strerror(errno));
    fclose(f);
    return rc;
}

static int is_conf(const struct dirent *e)
{
    size_t n = strlen(e->d_name);
    return e->d_name[0] != '.' && n > 5 && strcmp(e->d_name + n - 5, ".conf") == 0;
}

int sq_settings_read_file(struct sq_settings *s, const char *path, struct sq_err *err)
{
    int rc = read_one(s, path, err);
    char dir[4096], file[4096 + 300];
    struct dirent **names = NULL;
    (void)snprintf(dir, sizeof dir, "%s.d", path);
    int n = rc ? 0 : scandir(dir, &names, is_conf, alphasort);
    for (int i = 0; i < n; i++) {
        if (!rc) {
            (void)snprintf(file, sizeof file, "%s/%s", dir, names[i]->d_name);
            rc = read_one(s, file, err);
        }
        free(names[i]); /* scandir's own malloc */
    }
    free(names);
    return rc;
}

bool sq_settings_known(const char *name, bool *ret_flag)
{
    const struct row *r = find_row(name);
    if (!r)
        return false;
    *ret_flag = r->type == BOOL;
    return true;
}

int sq_settings_set(struct sq_settings *s, const char *name, const char *value, struct sq_err *err)
{
    const struct row *r = find_row(name);
    if (!r)
        return sq_fail(err, SQ_E_CONFIG, "unknown option --%s (nearest: --%s)", name,
                       nearest(name));
    return store(s, r, value, "command line", err);
}

int sq_settings_check(const struct sq_settings *s, struct sq_err *err)
{
    if (!s->model[0])
        return sq_fail(err, SQ_E_CONFIG,
                       "no model: give --model DIR, or 'model = DIR' under [model]");
    if (s->max_step_tokens < s->max_sequences)
        return sq_fail(err, SQ_E_CONFIG,
                       "max_step_tokens (%lld) must be at least max_sequences (%lld): every "
                       "running sequence needs a row in a step",
                       (long long)s->max_step_tokens, (long long)s->max_sequences);
    return 0;
}

static void dashed(const char *name, char *buf, size_t n)
{
    (void)snprintf(buf, n, "%s", name);
    for (; *buf; buf++)
        if (*buf == '_')
            *buf = '-';
}

/* limits.def holds plain milliseconds; a plain number in the file would mean seconds */
static const char *def_unit(const struct row *r)
{
    return is_limit(r) && r->type == MS ? "ms" : "";
}

void sq_settings_help(FILE *out)
{
    static const char *const values[] = {
        [STR] = "TEXT", [LIST] = "TEXT",   [INT] = "N",      [BYTES] = "SIZE",
        [MS] = "TIME",  [BOOL] = "yes|no", [CHOICE] = "WORD"};
    const char *section = "";
    for (size_t i = 0; i < N_ROWS; i++) {
        const struct row *r = &rows[i];
        if (strcmp(section, r->section) != 0)
            fprintf(out, "\n[%s]\n", r->section);
        section = r->section;
        char name[64], left[96];
        dashed(r->name, name, sizeof name);
        (void)snprintf(left, sizeof left, "--%s %s", name, values[r->type]);
        fprintf(out, "  %-30s %s%s", left, r->help, r->type == LIST ? " (repeatable)" : "");
        fprintf(out, r->def[0] ? " [%s%s]\n" : "%s%s\n", r->def, def_unit(r));
    }
}

static void print_value(const struct row *r, const void *at, FILE *out)
{
    int64_t i;
    switch (r->type) {
    case STR:
    case CHOICE:
        fprintf(out, "%s = %s", r->name, *(char *const *)at);
        break;
    case BOOL:
        fprintf(out, "%s = %s", r->name, *(const bool *)at ? "yes" : "no");
        break;
    case LIST: {
        const struct sq_list_value *l = at;
        for (size_t k = 0; k < l->n; k++)
            fprintf(out, "%s%s = %s", k ? "\n" : "", r->name, l->items[k]);
        if (!l->n)
            fprintf(out, "#%s =", r->name);
        break;
    }
    default:
        memcpy(&i, at, sizeof i);
        fprintf(out, "%s = %lld%s", r->name, (long long)i, r->type == MS ? "ms" : "");
    }
}

void sq_settings_print(const struct sq_settings *s, FILE *out)
{
    const char *section = "";
    for (size_t i = 0; i < N_ROWS; i++) {
        if (strcmp(section, rows[i].section) != 0)
            fprintf(out, "%s[%s]\n", i ? "\n" : "", rows[i].section);
        section = rows[i].section;
        fprintf(out, "# from: %s\n", s->origins[i].text[0] ? s->origins[i].text : "default");
        print_value(&rows[i], (const char *)s + rows[i].offset, out);
        fputc('\n', out);
    }
}

void sq_settings_sample(FILE *out)
{
    fputs("# Configuration of sqd serve. Every key is shown at its default. Drop-ins: "
          "sqd.conf.d/*.conf; the command line wins over both.\n",
          out);
    const char *section = "";
    for (size_t i = 0; i < N_ROWS; i++) {
        const struct row *r = &rows[i];
        if (strcmp(section, r->section) != 0)
            fprintf(out, "\n[%s]\n", r->section);
        section = r->section;
        fprintf(out, "# %s%s%s\n#%s =%s%s%s\n", r->help, r->type == LIST ? " (repeatable)" : "",
                r->reload ? " (reloadable: SIGHUP)" : "", r->name, r->def[0] ? " " : "", r->def,
                def_unit(r));
    }
}
