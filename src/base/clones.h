// A loop compiled for several instruction sets, the best of which is taken at run time.
#pragma once

#define MEGADICT_CLONES __attribute__((target_clones("avx512f", "avx2,fma", "default")))
