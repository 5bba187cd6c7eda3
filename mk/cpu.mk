# Kernels of one instruction set are compiled for it; the rest of the binary runs on any CPU of the architecture, and
# compute/cpu/device.c asks the CPU before it takes a table. -O3: the tiles are written as loops that must be unrolled.
# Sanitizers on unrolled kernels would take the compiler a quarter of an hour.
CPU_OPT := $(if $(SAN),,-O3)
FLAGS_compute/cpu/avx2_matmul.c    := -mavx2 -mfma -mf16c $(CPU_OPT)
FLAGS_compute/cpu/avx2_pack.c      := -mavx2 $(CPU_OPT)
FLAGS_compute/cpu/avx512_pack.c    := -mavx2 -mavx512f -mavx512bw $(CPU_OPT)
FLAGS_compute/cpu/avx2_table.c     := -mavx2 -mfma -mf16c $(CPU_OPT)
FLAGS_compute/cpu/avx2_attention.c := -mavx2 -mfma -mf16c $(CPU_OPT)
FLAGS_compute/cpu/avx2_recurrent.c := -mavx2 -mfma -mf16c $(CPU_OPT)
FLAGS_compute/cpu/avx2_rope.c      := -mavx2 -mfma -mf16c $(CPU_OPT)
FLAGS_tests/unit/test_cpu_exp.c     := -mavx2 -mfma
FLAGS_compute/cpu/avxvnni_matmul.c := -mavx2 -mfma -mf16c -mavxvnni $(CPU_OPT)
FLAGS_compute/cpu/avx512_matmul.c  := -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni $(CPU_OPT)
FLAGS_compute/cpu/avx512_attention.c := -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl $(CPU_OPT)
FLAGS_tests/unit/test_cpu_exp512.c  := -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl
FLAGS_compute/cpu/amx_matmul.c     := $(FLAGS_compute/cpu/avx512_matmul.c)
FLAGS_tests/unit/amx_plain.c       := $(FLAGS_compute/cpu/avx512_matmul.c)
FLAGS_compute/cpu/avx512_ops.c      := -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni $(CPU_OPT)
