# SPDX-License-Identifier: MIT
# Device code and the device that drives it. nvcc compiles through libtool: config/nvcc_wrap.sh
# hands it what libtool adds. The objects need no C++ runtime.
SUFFIXES = .cu
NVCCFLAGS = -O3 -std=c++17
cuda_nvcc = $(SHELL) $(top_srcdir)/config/nvcc_wrap.sh $(NVCC) $(NVCCFLAGS) $(NVCC_GENCODE) \
	-I$(top_srcdir)/include -I$(top_builddir)/include

AM_V_NVCC = $(am__v_NVCC_@AM_V@)
am__v_NVCC_ = $(am__v_NVCC_@AM_DEFAULT_V@)
am__v_NVCC_0 = @echo "  NVCC    " $@;
am__v_NVCC_1 =

.cu.lo:
	$(AM_V_NVCC)$(MKDIR_P) $(@D) && \
	$(LIBTOOL) $(AM_V_lt) --tag=CC --mode=compile $(cuda_nvcc) -c -o $@ $<

cuda_host_sources = cuda/cuda_device.c cuda/cuda_int.h cuda/cuda_launch.c cuda/cuda_memory.c \
	cuda/cuda_runtime.c cuda/plan_image.c cuda/plan_image.h cuda/kernels.h
cuda_device_sources = cuda/attend_bf16.cu cuda/attend_f16.cu cuda/kv_move.cu cuda/kv_write.cu \
	cuda/merge.cu
cuda_device_headers = cuda/arch.cuh cuda/attend.cuh cuda/consume.cuh cuda/copy_boxes.cuh \
	cuda/copy_rows.cuh cuda/metadata.cuh cuda/named_barrier.cuh cuda/narrow.cuh cuda/produce.cuh \
	cuda/ptx.cuh cuda/shared_memory.cuh cuda/sm80.cuh cuda/sm90.cuh cuda/state.cuh cuda/tile.cuh
EXTRA_DIST += $(cuda_device_headers) cuda/README.md config/nvcc_wrap.sh

if HAVE_CUDA
noinst_LTLIBRARIES += libdeft_cuda.la
libdeft_cuda_la_SOURCES = $(cuda_host_sources) $(cuda_device_sources)
libdeft_cuda_la_CPPFLAGS = $(deft_cppflags) -I$(top_srcdir)/cuda $(CUDA_CPPFLAGS)
libdeft_la_LIBADD += libdeft_cuda.la $(CUDA_LIBS)
libdeft_la_DEPENDENCIES += libdeft_cuda.la
$(cuda_device_sources:.cu=.lo): $(cuda_device_headers) cuda/kernels.h config/nvcc_wrap.sh
else
EXTRA_DIST += $(cuda_host_sources) $(cuda_device_sources)
endif
