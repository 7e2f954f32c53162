/* Settings of `sqd serve`: defaults < configuration file < drop-ins (FILE.d/ *.conf, in order of name) < command line. One table, settings.def. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "api/api.h"
#include "engine/base/err.h"

struct sq_list_value {
    char **items; /* NULL-terminated, or NULL when empty */
    size_t n;
};

struct sq_settings {
#define SQ_T_STR char *
#define SQ_T_LIST struct sq_list_value
#define SQ_T_INT int64_t
#define SQ_T_BYTES uint64_t
#define SQ_T_MS uint64_t
#define SQ_T_BOOL bool
#define SQ_T_CHOICE char *
#define SETTING(type, section, name, def, min, max, reload, help) SQ_T_##type name;
#include "daemon/settings.def"
#undef SETTING
    struct sq_api_limits limits;
    struct sq_setting_origin *origins; /* where each value came from, for --print-config */
};

int sq_settings_init(struct sq_settings *s, struct sq_err *err) SQ_CHECKED;
void sq_settings_done(struct sq_settings *s);

/* Errors name file and line, the key, the expected and the found; an unknown key names the nearest known one. -SQ_E_CONFIG, -SQ_E_NOTFOUND, -SQ_E_IO. */
int sq_settings_read_file(struct sq_settings *s, const char *path, struct sq_err *err) SQ_CHECKED;
/* One option of the command line: name with dashes or underscores, without the leading "--". */
int sq_settings_set(struct sq_settings *s, const char *name, const char *value,
                    struct sq_err *err) SQ_CHECKED;
/* True if --name is a setting; *ret_flag says that it takes no value (BOOL may stand alone). */
bool sq_settings_known(const char *name, bool *ret_flag);
/* What no single key can say: a model is needed, and so on. */
int sq_settings_check(const struct sq_settings *s, struct sq_err *err) SQ_CHECKED;

void sq_settings_help(FILE *out); /* the option list of `sqd serve --help` */
void sq_settings_print(const struct sq_settings *s,
                       FILE *out);  /* effective values with their origins, as a valid file */
void sq_settings_sample(FILE *out); /* etc/sqd.conf: every key commented, at its default */
