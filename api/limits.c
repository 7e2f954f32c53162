#include "api/api.h"

void sq_api_limits_default(struct sq_api_limits *ret)
{
#define LIMIT(name, def, min, max, unit, help) ret->name = def;
#include "api/limits.def"
#undef LIMIT
}
