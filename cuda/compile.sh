#!/bin/sh
# compile.sh REPORT NVCC ARGUMENT...: compiles, and puts what ptxas says of registers and spills into REPORT; the rest is shown.
report=$1
shift
"$@" -Xptxas -v >"$report" 2>&1
rc=$?
if [ $rc -ne 0 ]; then
    cat "$report" >&2
else
    grep -v -e '^ptxas info' -e '^ *[0-9]* bytes stack frame' "$report" >&2
fi
exit $rc
