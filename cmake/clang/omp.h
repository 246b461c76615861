// What this project uses of OpenMP's header, for Clang: its own comes with another runtime, and it cannot read GCC's.
#pragma once

extern "C" {
int omp_get_max_threads(void);
int omp_in_parallel(void);
void omp_set_num_threads(int count);
}
