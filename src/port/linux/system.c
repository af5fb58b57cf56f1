/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sleeping, time, CPUs, memory and messages on Linux: the half of port.h that
 * is not about descriptors.
 *
 * Who calls it: everything above src/pool.  Invariant: no name of libc that
 * the preload library interposes, errno stays as it was.
 */
#include "../port.h"
#include "syscall.h"

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define NS_PER_S 1000000000LL

/* ---- sleeping and waking ---- */

static int futex_wait(_Atomic(uint32_t) *word, int operation, uint32_t value, int64_t timeout_ns)
{
	struct timespec timeout = {.tv_sec = timeout_ns / NS_PER_S, .tv_nsec = timeout_ns % NS_PER_S};
	return (int)kernel(SYS_futex, word, operation, value, timeout_ns < 0 ? NULL : &timeout);
}

int port_futex_wait(_Atomic(uint32_t) *word, uint32_t value, int64_t timeout_ns)
{
	return futex_wait(word, FUTEX_WAIT, value, timeout_ns);
}

int port_futex_wake(_Atomic(uint32_t) *word, int how_many)
{
	return (int)kernel(SYS_futex, word, FUTEX_WAKE, how_many);
}

int port_futex_wait_private(_Atomic(uint32_t) *word, uint32_t value, int64_t timeout_ns)
{
	return futex_wait(word, FUTEX_WAIT_PRIVATE, value, timeout_ns);
}

int port_futex_wake_private(_Atomic(uint32_t) *word, int how_many)
{
	return (int)kernel(SYS_futex, word, FUTEX_WAKE_PRIVATE, how_many);
}

bool port_process_lives(int pid)
{
	struct pollfd ended = {.events = POLLIN};
	struct timespec now = {0, 0};
	bool lives;

	if (pid <= 0)
		return false;
	ended.fd = (int)kernel(SYS_pidfd_open, pid, 0);
	if (ended.fd < 0)
		return ended.fd != -ESRCH;
	lives = kernel(SYS_ppoll, &ended, 1, &now, NULL, 0) == 0;
	kernel(SYS_close, ended.fd);
	return lives;
}

/* ---- time and CPU ---- */

/* clock_gettime is not interposed and costs no system call. */
static uint64_t clock_ns(clockid_t clock)
{
	struct timespec now;
	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

uint64_t port_now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

uint64_t port_realtime_ns(void)
{
	return clock_ns(CLOCK_REALTIME);
}

uint32_t port_cpu(void)
{
	int cpu = sched_getcpu();
	return cpu < 0 ? 0 : (uint32_t)cpu;
}

/* Not our affinity mask: two ends pinned to one CPU each are apart, and that is what is asked. */
uint32_t port_cpu_count(void)
{
	long count = sysconf(_SC_NPROCESSORS_ONLN);

	return count > 0 ? (uint32_t)count : 1;
}

#if defined(__x86_64__)
#define CALIBRATION_NS 200000u

/* The TSC's rate is not told to user space: it is measured once against the clock. */
static uint64_t measure_ticks_per_us(void)
{
	uint64_t start_ns = port_now_ns();
	uint64_t start = port_ticks();
	uint64_t now_ns;
	do
		now_ns = port_now_ns();
	while (now_ns - start_ns < CALIBRATION_NS);
	return (port_ticks() - start) * 1000 / (now_ns - start_ns);
}
#elif defined(__aarch64__)
static uint64_t measure_ticks_per_us(void)
{
	uint64_t frequency;
	__asm__("mrs %0, cntfrq_el0" : "=r"(frequency));
	return frequency / 1000000;
}
#endif

uint64_t port_ticks_per_us(void)
{
	static _Atomic(uint64_t) known;
	uint64_t rate = atomic_load_explicit(&known, memory_order_relaxed);
	if (rate == 0) {
		rate = measure_ticks_per_us();
		if (rate == 0)
			rate = 1;
		atomic_store_explicit(&known, rate, memory_order_relaxed);
	}
	return rate;
}

int port_pid(void)
{
	return (int)kernel(SYS_getpid);
}

int port_tid(void)
{
	return (int)kernel(SYS_gettid);
}

/* ---- memory ---- */

/*
 * In two steps because of mlockall(MCL_FUTURE): a writable mapping would be
 * filled, and so allocate the whole pool, before we could unlock it.
 */
void *port_map_pool(int fd, uint64_t size, int *error)
{
	long base = kernel(SYS_mmap, NULL, size, PROT_NONE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (base < 0 && base > -4096) {
		*error = (int)base;
		return NULL;
	}
	kernel(SYS_munlock, base, size);
	long status = kernel(SYS_mprotect, base, size, PROT_READ | PROT_WRITE);
	if (status < 0) {
		kernel(SYS_munmap, base, size);
		*error = (int)status;
		return NULL;
	}
	kernel(SYS_madvise, base, size, MADV_DONTDUMP);
	return (void *)base;
}

void port_unmap(void *base, uint64_t size)
{
	kernel(SYS_munmap, base, size);
}

void *port_private_memory(size_t size)
{
	long base = kernel(SYS_mmap, NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return base < 0 && base > -4096 ? NULL : (void *)base;
}

/* ---- messages for people ---- */

void port_complain(const char *format, ...)
{
	int before = errno; /* vsnprintf may set it */
	char line[512] = "unclot: ";
	const size_t prefix = 8;
	va_list arguments;
	va_start(arguments, format);
	int length = vsnprintf(line + prefix, sizeof line - prefix - 1, format, arguments);
	va_end(arguments);
	errno = before;
	if (length < 0)
		return;
	size_t end = prefix + (size_t)length;
	if (end > sizeof line - 2)
		end = sizeof line - 2;
	line[end] = '\n';
	kernel(SYS_write, 2, line, end + 1);
}
