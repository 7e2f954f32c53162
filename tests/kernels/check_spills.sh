#!/bin/sh
# check_spills.sh LIBRARY: fails if a matmul tile of the AVX-512 library touches a zmm register's copy on the stack.
# Twenty-eight accumulators fit the registers only as long as the compiler keeps its hands off (see gemm_avx512vnni.c), and nothing
# but speed tells when it does not.
set -eu
command -v objdump >/dev/null || exit 77
objdump -d --no-show-raw-insn "$1" | awk '
    /^[0-9a-f]+ <.*>:$/ { tile = $2 ~ /^<tile[0-9]+>:$/; n_tiles += tile }
    tile && /zmm/ && /\(%r[sb]p/ { print $0; n_spills++ }
    END {
        if (n_tiles < 14) { print "found " n_tiles + 0 " tiles, expected 14"; exit 1 }
        if (n_spills) { print n_spills " zmm spills in the tiles"; exit 1 }
        print n_tiles " tiles, no spills"
    }'
