/* SPDX-License-Identifier: MIT */
/** @file suite.h  Runs one Check suite. */
#ifndef DEFT_TEST_SUITE_H
#define DEFT_TEST_SUITE_H

#include <check.h>
#include <stdlib.h>

/* Without time limits; set-up and teardown (NULL: none) around each test. Returns an exit
 * status. */
static inline int suite_run(const char *name, SFun setup, SFun teardown, const TTest *const *tests,
                            size_t n)
{
    Suite *suite = suite_create(name);
    TCase *tc = tcase_create(name);
    SRunner *runner;
    int failed;

    if (setup != NULL) {
        tcase_add_checked_fixture(tc, setup, teardown);
    }
    tcase_set_timeout(tc, 0);
    for (size_t i = 0; i < n; i++) {
        tcase_add_test(tc, tests[i]);
    }
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

#endif
