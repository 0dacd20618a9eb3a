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

# DEFT_CHECK_ISA(NAME, FLAGS, EXPRESSION): can the compiler make code for it? Whether the machine
# has it is asked at run time. Sets DEFT_NAME_CFLAGS, HAVE_NAME and the conditional HAVE_NAME.
AC_DEFUN([DEFT_CHECK_ISA], [
    AC_MSG_CHECKING([whether $CC makes $1 code])
    deft_save_CFLAGS=$CFLAGS
    CFLAGS="$CFLAGS $2"
    AC_LINK_IFELSE([AC_LANG_PROGRAM([[
        #include <immintrin.h>
        typedef float __v8sf __attribute__((vector_size(32)));]], [[$3;]])],
        [deft_have_$1=yes], [deft_have_$1=no])
    AS_IF([test "$1" = AVX2], [
        AC_COMPILE_IFELSE([AC_LANG_PROGRAM([[#include <immintrin.h>]],
            [[(void)_mm256_fmadd_ps(_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps());]])],
            [deft_have_$1=yes], [deft_have_$1=no])])
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

# DEFT_CHECK_CUDA: --with-cuda=guess|yes|DIR|no. This release has no device code: the toolkit is
# looked for and named, so that a user sees what a release with it will find.
AC_DEFUN([DEFT_CHECK_CUDA], [
    AC_ARG_WITH([cuda], [AS_HELP_STRING([--with-cuda=guess|yes|DIR|no],
        [CUDA backend (default: guess; not part of this release)])], [], [with_cuda=guess])
    AS_CASE([$with_cuda],
        [no], [deft_cuda_text="no"],
        [guess], [
            AC_PATH_PROG([NVCC], [nvcc], [], [$PATH:/usr/local/cuda/bin])
            AS_IF([test -n "$NVCC"], [
                deft_cuda_version=`"$NVCC" --version | sed -n 's/.*release \(@<:@0-9.@:>@*\).*/\1/p'`
                deft_cuda_text="toolkit $deft_cuda_version found, but this release has no CUDA backend"],
                [deft_cuda_text="not found"])],
        [AC_MSG_ERROR([--with-cuda=$with_cuda: this release has no CUDA backend])])])
