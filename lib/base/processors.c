/* SPDX-License-Identifier: MIT */
/* Affinity mask and cgroup quotas. A quota counts processor time: with more threads than it pays
 * for, all of them are stopped for the rest of each period. */
#include "config.h"

#include "processors.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static uint32_t in_mask(void)
{
#ifdef HAVE_SCHED_GETAFFINITY
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0)
        return (uint32_t)CPU_COUNT(&set);
#endif
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (uint32_t)n : 1;
}

/* The first line of a file. */
static int first_line(const char *path, char *line, int size)
{
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return 0;
    const int got = fgets(line, size, file) != NULL;
    fclose(file);
    return got;
}

/* Processors that a quota pays for, or `most` where it pays for more, or does not say. */
static uint32_t paid_for(double quota, double period, uint32_t most)
{
    if (!(quota > 0) || !(period > 0) || quota / period >= most)
        return most;
    const uint32_t n = (uint32_t)(quota / period);
    return n < quota / period ? n + 1 : n;
}

/* The quota of the cgroup at `dir`: cpu.max holds "max 100000" or "200000 100000" (version 2); the
 * two numbers have a file each in version 1. */
static uint32_t quota_of(const char *dir, int version, uint32_t most)
{
    char path[1200], line[64];
    double quota = 0, period = 0;
    snprintf(path, sizeof(path), "%s/%s", dir, version == 2 ? "cpu.max" : "cpu.cfs_quota_us");
    if (!first_line(path, line, sizeof(line)))
        return most;
    char *rest = line;
    quota = strtod(line, &rest); /* 0 for "max", -1 for none */
    if (version == 1) {
        snprintf(path, sizeof(path), "%s/cpu.cfs_period_us", dir);
        if (!first_line(path, line, sizeof(line)))
            return most;
        rest = line;
    }
    period = strtod(rest, NULL);
    return paid_for(quota, period, most);
}

/* Those of a cgroup and of all above it. Where a container sees its own cgroup as the root, the
 * path may name folders that are not there: what is there counts. */
static uint32_t quota_above(const char *mount, const char *cgroup, int version, uint32_t most)
{
    char dir[1100];
    snprintf(dir, sizeof(dir), "%s%s", mount, cgroup);
    for (;;) {
        most = quota_of(dir, version, most);
        char *slash = strrchr(dir, '/');
        if (slash == NULL || (size_t)(slash - dir) < strlen(mount))
            return most;
        *slash = '\0';
    }
}

static int lists(const char *controllers, const char *name)
{
    const size_t n = strlen(name);
    for (const char *at = controllers; at != NULL; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, name, n) == 0 && (at[n] == ',' || at[n] == '\0'))
            return 1;
    }
    return 0;
}

/* /proc/self/cgroup: a line "0::/path" for version 2, "4:cpu,cpuacct:/path" for version 1. */
static uint32_t in_quota(const char *root, uint32_t most)
{
    char path[512], line[1024];
    snprintf(path, sizeof(path), "%s/proc/self/cgroup", root);
    FILE *file = fopen(path, "re");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *cgroup = controllers == NULL ? NULL : strchr(controllers + 1, ':');
        if (cgroup == NULL)
            continue;
        *cgroup++ = '\0';
        controllers++;
        const int version = *controllers == '\0' ? 2 : 1;
        if (version == 1 && !lists(controllers, "cpu"))
            continue;
        snprintf(path, sizeof(path), "%s/sys/fs/cgroup%s", root, version == 2 ? "" : "/cpu");
        most = quota_above(path, cgroup, version, most);
    }
    if (file != NULL)
        fclose(file);
    return most;
}

uint32_t ideft_processors(const char *root)
{
    const uint32_t n = in_quota(root, in_mask());
    return n < IDEFT_MAX_THREADS ? n : IDEFT_MAX_THREADS;
}
