/* sqd: makes and serves SmoothQuant INT8 language models. This file only finds the subcommand. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "daemon/cmd.h"
#include "engine/base/check.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} commands[] = {
    {"serve", sq_cmd_serve, "serve a model over HTTP (a long-running daemon)"},
    {"quantize", sq_cmd_quantize,
     "make a SmoothQuant W8A8 INT8 model of a Hugging Face checkpoint"},
    {"eval", sq_cmd_eval, "measure perplexity on a text"},
    {"bench", sq_cmd_bench, "measure speed against the machine's own peaks"},
};

enum sq_exit sq_exit_code(const struct sq_err *err)
{
    switch (err->code) {
    case SQ_E_FORMAT:
    case SQ_E_NOTSUP:
    case SQ_E_LIMIT:
        return SQ_EXIT_DATA;
    case SQ_E_NOTFOUND:
        return SQ_EXIT_NO_INPUT;
    case SQ_E_CONFIG:
        return SQ_EXIT_CONFIG;
    case SQ_E_UNAVAIL:
        return SQ_EXIT_UNAVAILABLE;
    case SQ_E_DEVICE:
        return SQ_EXIT_DEVICE;
    case SQ_E_NOMEM:
        return SQ_EXIT_MEMORY;
    default:
        return SQ_EXIT_RUNTIME;
    }
}

int sq_cmd_fail(const char *command, const struct sq_err *err)
{
    fprintf(stderr, "sqd %s: %s\n", command, err->msg[0] ? err->msg : sq_code_text(err->code));
    return (int)sq_exit_code(err);
}

int sq_cmd_end(const char *command)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return SQ_EXIT_OK;
    fprintf(stderr, "sqd %s: standard output: %s\n", command, strerror(errno));
    return SQ_EXIT_RUNTIME;
}

int sq_cmd_usage(const char *command, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "sqd %s: ", command);
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, " (see sqd %s --help)\n", command);
    va_end(ap);
    return SQ_EXIT_USAGE;
}

static void help(FILE *out)
{
    fputs("sqd makes and serves SmoothQuant W8A8 INT8 language models.\n\nUsage: sqd COMMAND "
          "[OPTIONS]\n\n",
          out);
    for (size_t i = 0; i < SQ_ARRAY_LEN(commands); i++)
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].help);
    fputs("\n  sqd COMMAND --help   options of a command\n  sqd --version\n", out);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        help(stderr);
        return SQ_EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        help(stdout);
        return SQ_EXIT_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        puts("sqd " SQD_VERSION);
        return SQ_EXIT_OK;
    }
    for (size_t i = 0; i < SQ_ARRAY_LEN(commands); i++)
        if (strcmp(argv[1], commands[i].name) == 0)
            return commands[i].run(argc - 1, argv + 1);
    fprintf(stderr, "sqd: unknown command '%s' (see sqd --help)\n", argv[1]);
    return SQ_EXIT_USAGE;
}
