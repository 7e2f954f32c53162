/* sqd serve: command line and configuration, then the daemon. */
#include <stdio.h>
#include <string.h>

#include "daemon/app.h"
#include "daemon/cmd.h"
#include "daemon/plan.h"
#include "daemon/settings.h"

struct args {
    int argc;
    char **argv;
    bool check, print, sample, plan, json, help;
};

static void help(FILE *out)
{
    fputs(
        "Serves a model over an OpenAI-compatible HTTP API.\n\n"
        "Usage: sqd serve --model DIR [--config FILE] [OPTIONS]\n\n"
        "  --config FILE                  read settings from FILE and FILE.d/*.conf; options given "
        "here win\n"
        "  --check-config                 check the settings and exit (0, or 78 with the reason)\n"
        "  --print-config                 print the effective settings with their origins and "
        "exit\n"
        "  --sample-config                print a configuration file with every key at its default "
        "and exit\n"
        "  --plan [--json]                print the memory that a start would take and exit: no "
        "weights are read, no device is touched\n",
        out);
    sq_settings_help(out);
    fputs("\nSignals: SIGTERM, SIGINT drain and end (a second one ends at once); SIGHUP reloads "
          "what can be reloaded.\n",
          out);
}

/* One option at argv[i]; returns how many words it took, or -SQ_E_*. */
static int take_option(struct sq_settings *s, struct args *a, int i, struct sq_err *err)
{
    char *word = a->argv[i];
    if (strncmp(word, "--", 2) != 0)
        return sq_fail(err, SQ_E_INVAL, "unexpected argument '%s'", word);
    char name[64];
    const char *eq = strchr(word, '=');
    (void)snprintf(name, sizeof name, "%.*s", (int)(eq ? eq - word - 2 : 60), word + 2);
    bool flag;
    if (!sq_settings_known(name, &flag)) {
        (void)!sq_settings_set(s, name, "", err); /* for its message */
        err->code = SQ_E_INVAL;
        return -SQ_E_INVAL;
    }
    const char *value = eq ? eq + 1 : NULL;
    int n = 1;
    if (!value && i + 1 < a->argc && (!flag || strncmp(a->argv[i + 1], "--", 2) != 0)) {
        value = a->argv[i + 1];
        n = 2;
    }
    if (!value && flag)
        value = "yes";
    if (!value)
        return sq_fail(err, SQ_E_INVAL, "option --%s needs a value", name);
    int rc = sq_settings_set(s, name, value, err);
    return rc ? rc : n;
}

/* Options of this command itself; returns words taken, 0 if it is none of them. */
static int take_own(struct args *a, int i, const char **config)
{
    const char *w = a->argv[i];
    if (strcmp(w, "--help") == 0 || strcmp(w, "-h") == 0)
        a->help = true;
    else if (strcmp(w, "--check-config") == 0)
        a->check = true;
    else if (strcmp(w, "--print-config") == 0)
        a->print = true;
    else if (strcmp(w, "--sample-config") == 0)
        a->sample = true;
    else if (strcmp(w, "--plan") == 0)
        a->plan = true;
    else if (strcmp(w, "--json") == 0)
        a->json = true;
    else if (strcmp(w, "--config") == 0 && i + 1 < a->argc) {
        *config = a->argv[i + 1];
        return 2;
    } else if (strncmp(w, "--config=", 9) == 0)
        *config = w + 9;
    else
        return 0;
    return 1;
}

static int read_settings(void *ctx, struct sq_settings *ret, struct sq_err *err)
{
    struct args *a = ctx;
    const char *config = NULL;
    int rc = sq_settings_init(ret, err);
    for (int i = 1, n; !rc && i < a->argc; i += n ? n : 1)
        n = take_own(a, i, &config);
    if (!rc && config)
        rc = sq_settings_read_file(ret, config, err);
    for (int i = 1, n; !rc && i < a->argc; i += n) {
        const char *unused;
        n = take_own(a, i, &unused);
        if (!n)
            n = take_option(ret, a, i, err);
        if (n < 0)
            rc = n;
    }
    if (!rc && !a->help && !a->sample)
        rc = sq_settings_check(ret, err);
    if (rc)
        sq_settings_done(ret);
    return rc;
}

int sq_cmd_serve(int argc, char **argv)
{
    struct args a = {.argc = argc, .argv = argv};
    struct sq_settings s;
    struct sq_err err = {0};
    if (read_settings(&a, &s, &err)) {
        if (a.help) {
            help(stdout);
            return SQ_EXIT_OK;
        }
        return err.code == SQ_E_INVAL ? sq_cmd_usage("serve", "%s", err.msg)
                                      : sq_cmd_fail("serve", &err);
    }
    int code = SQ_EXIT_OK;
    if (a.help)
        help(stdout);
    else if (a.sample)
        sq_settings_sample(stdout);
    else if (a.print)
        sq_settings_print(&s, stdout);
    else if (a.check)
        fprintf(stderr, "sqd serve: the configuration is fine\n");
    else if (a.plan)
        code = sq_plan_print(&s, a.json);
    else if (a.json)
        code = sq_cmd_usage("serve", "--json goes with --plan");
    else
        code = sq_app_run(&s, read_settings, &a);
    sq_settings_done(&s);
    return code;
}
