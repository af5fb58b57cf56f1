/* SPDX-License-Identifier: BSD-3-Clause */
/* What port.h promises about itself: errno stays, results are the kernel's, own descriptors sit high. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../../src/port/linux/pool_path.h"
#include "../../src/port/port.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define MS 1000000LL

static void errno_stays_and_results_are_negative(void **state)
{
	(void)state;
	errno = 1234;
	assert_int_equal(port_close(-1), -EBADF);
	assert_int_equal(port_read(-1, NULL, 0), -EBADF);
	assert_int_equal(port_socket(-1, 0, 0), -EAFNOSUPPORT);
	assert_int_equal(port_listen(0x7fffffff, 1), -EBADF);
	port_complain("%s", "a sentence of this test");
	assert_int_equal(errno, 1234);
}

static void futex_sleeps_are_bounded(void **state)
{
	_Atomic(uint32_t) word = 7;
	(void)state;
	assert_int_equal(port_futex_wait(&word, 8, -1), -EAGAIN);
	uint64_t before = port_now_ns();
	assert_int_equal(port_futex_wait(&word, 7, 5 * MS), -ETIMEDOUT);
	assert_int_equal(port_futex_wait_private(&word, 7, 5 * MS), -ETIMEDOUT);
	assert_true(port_now_ns() - before >= 10 * MS);
	assert_int_equal(port_futex_wake(&word, 1), 0);
}

static void ticks_have_a_rate(void **state)
{
	(void)state;
	uint64_t rate = port_ticks_per_us();
	uint64_t start_ns = port_now_ns();
	uint64_t start = port_ticks();
	usleep(20000);
	uint64_t us = (port_ticks() - start) / rate;
	uint64_t true_us = (port_now_ns() - start_ns) / 1000;
	assert_true(us > true_us * 9 / 10 && us < true_us * 11 / 10);
	assert_true(port_cpu_count() >= 1);
	assert_int_equal(port_cpu_count(), sysconf(_SC_NPROCESSORS_ONLN));
}

static void own_descriptors_sit_high(void **state)
{
	struct rlimit limit;
	(void)state;
	getrlimit(RLIMIT_NOFILE, &limit);
	int low = port_eventfd();
	int high = port_move_high(low);
	assert_true(high >= 0 && (rlim_t)high >= (limit.rlim_cur < 16384 ? limit.rlim_cur : 16384) * 3 / 4);
	assert_int_equal(fcntl(low, F_GETFD), -1);
	assert_int_equal(fcntl(high, F_GETFD), FD_CLOEXEC);
	/* Nothing free up there: it stays where it is. */
	struct rlimit tight = {.rlim_cur = 16, .rlim_max = limit.rlim_max};
	low = port_eventfd();
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &tight), 0);
	high = port_move_high(low);
	assert_true(high >= low && high < 16);
	setrlimit(RLIMIT_NOFILE, &limit);
	port_close(high);
}

static void epoll_keeps_short_timeouts(void **state)
{
	struct epoll_event event;
	(void)state;
	int epoll = epoll_create1(0);
	uint64_t before = port_now_ns();
	assert_int_equal(port_epoll_wait(epoll, &event, 1, 1500000, NULL), 0);
	uint64_t took = port_now_ns() - before;
	assert_true(took >= 1500000);
	assert_int_equal(port_epoll_wait(epoll, &event, 1, 0, NULL), 0);
	close(epoll);
}

static void cookies_name_sockets_and_namespaces(void **state)
{
	uint64_t one = 0;
	uint64_t two = 0;
	uint64_t space = 0;
	(void)state;
	int a = port_socket(AF_INET, SOCK_STREAM, 0);
	int b = port_socket(AF_INET, SOCK_STREAM, 0);
	assert_int_equal(port_socket_cookie(a, &one), 0);
	assert_int_equal(port_socket_cookie(b, &two), 0);
	assert_int_equal(port_netns_cookie(a, &space), 0);
	assert_int_not_equal(one, two);
	assert_int_not_equal(space, 0);
	assert_int_equal(port_netns_cookie(-1, &space), -EBADF);
	port_close(a);
	port_close(b);
}

static void a_pool_is_mapped_without_being_filled(void **state)
{
	int error = 0;
	struct stat status;
	(void)state;
	int fd = memfd_create("test", MFD_CLOEXEC);
	assert_int_equal(ftruncate(fd, 32 << 20), 0);
	int locked = mlockall(MCL_FUTURE);
	unsigned char *base = port_map_pool(fd, 32 << 20, &error);
	if (locked == 0)
		munlockall();
	assert_non_null(base);
	base[4096] = 1;
	fstat(fd, &status);
	assert_true(status.st_blocks * 512 <= 2 << 20); /* one page, perhaps a huge one */
	port_unmap(base, 32 << 20);
	assert_null(port_map_pool(-1, 4096, &error));
	assert_int_equal(error, -EBADF);
	close(fd);
}

static void names_cannot_leave_the_directory(void **state)
{
	char path[POOL_PATH_MAX];
	(void)state;
	assert_int_equal(pool_default_path(false, "../x", path, sizeof path), -EINVAL);
	assert_int_equal(pool_default_path(false, "", path, sizeof path), -EINVAL);
	assert_int_equal(pool_default_path(false, ".x", path, sizeof path), -EINVAL);
	assert_int_equal(pool_default_path(false, "x", path, 8), -ENAMETOOLONG);
	assert_int_equal(pool_default_path(true, NULL, path, sizeof path), 0);
	assert_string_equal(path, "/run/unclot/system.sock");
	setenv("XDG_RUNTIME_DIR", "relative", 1);
	assert_int_equal(pool_default_path(false, "web-1", path, sizeof path), 0);
	assert_true(path[0] == '/' && strstr(path, "/web-1.sock"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(errno_stays_and_results_are_negative),
		cmocka_unit_test(futex_sleeps_are_bounded),
		cmocka_unit_test(ticks_have_a_rate),
		cmocka_unit_test(own_descriptors_sit_high),
		cmocka_unit_test(epoll_keeps_short_timeouts),
		cmocka_unit_test(cookies_name_sockets_and_namespaces),
		cmocka_unit_test(a_pool_is_mapped_without_being_filled),
		cmocka_unit_test(names_cannot_leave_the_directory),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
