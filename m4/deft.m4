# SPDX-License-Identifier: MIT

# DEFT_CHECK_FLAG(FLAG, [IF-TAKEN], [IF-NOT]): does the C compiler take FLAG without a word?
AC_DEFUN([DEFT_CHECK_FLAG], [
    AC_MSG_CHECKING([whether $CC takes $1])
    deft_save_CFLAGS=$CFLAGS
    CFLAGS="$CFLAGS -Werror $1"
    AC_COMPILE_IFELSE([AC_LANG_PROGRAM()], [deft_ok=yes], [deft_ok=no])
    CFLAGS=$deft_save_CFLAGS
    AC_MSG_RESULT([$deft_ok])
    AS_IF([test $deft_ok = yes], [$2], [$3])])

# DEFT_CHECK_ISA(NAME, FLAGS, STATEMENT): can the compiler make code for it? Whether the machine
# has it is asked at run time. Sets DEFT_NAME_CFLAGS, HAVE_NAME and the conditional HAVE_NAME.
AC_DEFUN([DEFT_CHECK_ISA], [
    AC_MSG_CHECKING([whether $CC makes $1 code])
    deft_save_CFLAGS=$CFLAGS
    CFLAGS="$CFLAGS $2"
    AC_LINK_IFELSE([AC_LANG_PROGRAM([[
        #include <immintrin.h>
        static volatile int some;]], [[$3;]])],
        [deft_have_$1=yes], [deft_have_$1=no])
    CFLAGS=$deft_save_CFLAGS
    AC_MSG_RESULT([$deft_have_$1])
    AS_IF([test $deft_have_$1 = yes], [
        AC_DEFINE([HAVE_$1], [1], [The compiler makes $1 code])
        deft_isa_text="$deft_isa_text $1"])
    AC_SUBST([DEFT_$1_CFLAGS], ["$2"])
    AM_CONDITIONAL([HAVE_$1], [test $deft_have_$1 = yes])])

# DEFT_CHECK_VERSION_SCRIPT: does the linker take lib/libdeft.map?
AC_DEFUN([DEFT_CHECK_VERSION_SCRIPT], [
    AC_MSG_CHECKING([whether the linker takes a version script])
    deft_save_LDFLAGS=$LDFLAGS
    LDFLAGS="$LDFLAGS -Wl,--version-script=$srcdir/lib/libdeft.map"
    AC_LINK_IFELSE([AC_LANG_PROGRAM()], [deft_ok=yes], [deft_ok=no])
    LDFLAGS=$deft_save_LDFLAGS
    AC_MSG_RESULT([$deft_ok])
    AM_CONDITIONAL([HAVE_VERSION_SCRIPT], [test $deft_ok = yes])])

# DEFT_CHECK_MIMALLOC: --with-mimalloc[=DIR] (required by default), --without-mimalloc: malloc.
AC_DEFUN([DEFT_CHECK_MIMALLOC], [
    AC_ARG_WITH([mimalloc], [AS_HELP_STRING([--with-mimalloc=DIR],
        [mimalloc in DIR (default: where the compiler finds it; required unless --without-mimalloc)])],
        [], [with_mimalloc=yes])
    MIMALLOC_CFLAGS= MIMALLOC_LIBS=
    AS_IF([test "x$with_mimalloc" = xno], [deft_mimalloc_text="no: malloc serves host memory"], [
        AS_IF([test "x$with_mimalloc" != xyes],
            [MIMALLOC_CFLAGS="-I$with_mimalloc/include" MIMALLOC_LIBS="-L$with_mimalloc/lib"])
        deft_save_CPPFLAGS=$CPPFLAGS deft_save_LIBS=$LIBS
        CPPFLAGS="$CPPFLAGS $MIMALLOC_CFLAGS" LIBS="$MIMALLOC_LIBS $LIBS"
        AC_CHECK_HEADER([mimalloc.h], [], [AC_MSG_ERROR([mimalloc.h not found. Install mimalloc
            (Debian: libmimalloc-dev), name it by --with-mimalloc=DIR, or do --without-mimalloc])])
        AC_CHECK_LIB([mimalloc], [mi_malloc_aligned], [], [AC_MSG_ERROR([libmimalloc not found])])
        CPPFLAGS=$deft_save_CPPFLAGS LIBS=$deft_save_LIBS
        MIMALLOC_LIBS="$MIMALLOC_LIBS -lmimalloc"
        deft_mimalloc_text="yes"
        AC_DEFINE([HAVE_MIMALLOC], [1], [mimalloc serves host memory])])
    AC_SUBST([MIMALLOC_CFLAGS])
    AC_SUBST([MIMALLOC_LIBS])])

# DEFT_CHECK_CUDA: --with-cuda=guess|yes|DIR|no, --with-nvcc-gencode=FLAGS. A guess that finds no
# toolkit builds without; an explicit request that finds none is an error. The runtime is linked
# statically and finds the driver when the program runs, so the library depends on neither.
AC_DEFUN([DEFT_CHECK_CUDA], [
    AC_ARG_WITH([cuda], [AS_HELP_STRING([--with-cuda=guess|yes|DIR|no],
        [CUDA backend, with the toolkit in DIR (default: guess)])], [], [with_cuda=guess])
    AC_ARG_WITH([nvcc-gencode], [AS_HELP_STRING([--with-nvcc-gencode=FLAGS],
        [targets of the device code (default: sm_80, sm_90a, PTX of compute_80)])], [],
        [with_nvcc_gencode="-gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a -gencode arch=compute_80,code=compute_80"])
    have_cuda=no deft_cuda_text=no CUDA_CPPFLAGS= CUDA_LIBS=
    AS_IF([test "x$with_cuda" != xno], [
        AS_CASE([$with_cuda], [guess|yes], [deft_cuda_path=$PATH:/usr/local/cuda/bin], [deft_cuda_path=$with_cuda/bin])
        AC_PATH_PROG([NVCC], [nvcc], [], [$deft_cuda_path])
        AS_IF([test -n "$NVCC"], [
            deft_cuda_dir=`dirname "$NVCC"`
            deft_cuda_dir=`cd "$deft_cuda_dir/.." && pwd -P`
            deft_cuda_version=`"$NVCC" --version | sed -n 's/.*release \(@<:@0-9.@:>@*\).*/\1/p'`
            deft_cuda_lib=
            for deft_dir in lib64 lib targets/x86_64-linux/lib targets/sbsa-linux/lib; do
                AS_IF([test -z "$deft_cuda_lib" && test -f "$deft_cuda_dir/$deft_dir/libcudart_static.a"],
                    [deft_cuda_lib=$deft_cuda_dir/$deft_dir])
            done
            deft_save_CPPFLAGS=$CPPFLAGS deft_save_LIBS=$LIBS
            CUDA_CPPFLAGS="-isystem $deft_cuda_dir/include"
            CUDA_LIBS="-L$deft_cuda_lib -lcudart_static -ldl -lrt -lpthread"
            CPPFLAGS="$CPPFLAGS $CUDA_CPPFLAGS" LIBS="$CUDA_LIBS $LIBS"
            AC_MSG_CHECKING([for the CUDA runtime 12.3 or later in $deft_cuda_dir])
            AC_LINK_IFELSE([AC_LANG_PROGRAM([[#include <cuda_runtime_api.h>
                #if CUDART_VERSION < 12030
                #error too old
                #endif]], [[int n; return cudaGetDeviceCount(&n);]])], [have_cuda=yes])
            AC_MSG_RESULT([$have_cuda])
            CPPFLAGS=$deft_save_CPPFLAGS LIBS=$deft_save_LIBS
            deft_cuda_text="toolkit $deft_cuda_version in $deft_cuda_dir does not serve"])
        AS_IF([test $have_cuda = yes], [
            deft_cuda_text="toolkit $deft_cuda_version in $deft_cuda_dir"
            AC_DEFINE([HAVE_CUDA], [1], [There is a CUDA backend])], [
            CUDA_CPPFLAGS= CUDA_LIBS=
            AS_IF([test "x$with_cuda" != xguess],
                [AC_MSG_ERROR([--with-cuda=$with_cuda: no nvcc and static CUDA runtime, 12.3 or later, found there])],
                [deft_cuda_text="no: ${deft_cuda_text%no}not found"])])])
    AC_SUBST([CUDA_CPPFLAGS])
    AC_SUBST([CUDA_LIBS])
    AC_SUBST([NVCC_GENCODE], ["$with_nvcc_gencode"])
    AM_CONDITIONAL([HAVE_CUDA], [test $have_cuda = yes])])

# DEFT_CHECK_CUBLAS: the engine's products on CUDA, and what a benchmark compares with. Not for the library.
AC_DEFUN([DEFT_CHECK_CUBLAS],
    [have_cublas=no CUBLAS_LIBS=
    AS_IF([test $have_cuda = yes], [
        deft_save_CPPFLAGS=$CPPFLAGS deft_save_LIBS=$LIBS
        CUBLAS_LIBS="-lcublas -lcublasLt"
        CPPFLAGS="$CPPFLAGS $CUDA_CPPFLAGS" LIBS="-L$deft_cuda_lib $CUBLAS_LIBS $CUDA_LIBS $LIBS"
        AC_MSG_CHECKING([for cuBLAS])
        AC_LINK_IFELSE([AC_LANG_PROGRAM([[#include <cublasLt.h>
            #include <cublas_v2.h>]], [[cublasHandle_t h; cublasLtHandle_t l;
            return cublasCreate(&h) || cublasLtCreate(&l);]])], [have_cublas=yes], [CUBLAS_LIBS=])
        AC_MSG_RESULT([$have_cublas])
        CPPFLAGS=$deft_save_CPPFLAGS LIBS=$deft_save_LIBS])
    AC_SUBST([CUBLAS_LIBS])
    AM_CONDITIONAL([HAVE_CUBLAS], [test $have_cublas = yes])])
