/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * System calls by the instruction itself.
 *
 * Who includes it: the files of src/port/linux.  The preload library puts its
 * own functions behind libc's names, so what UNCLOT asks of the kernel for
 * itself must not go through them; nor may it touch errno or be a
 * cancellation point.  Results are the kernel's: >= 0 or a negative errno.
 */
#ifndef UNCLOT_PORT_LINUX_SYSCALL_H
#define UNCLOT_PORT_LINUX_SYSCALL_H

#include <stdint.h>
#include <sys/syscall.h>

#if defined(__x86_64__)
static inline long syscall_6(long number, long a, long b, long c, long d, long e, long f)
{
	long result;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	__asm__ volatile("syscall"
					 : "=a"(result)
					 : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
					 : "rcx", "r11", "memory");
	return result;
}
#elif defined(__aarch64__)
static inline long syscall_6(long number, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
}
#else
#error "UNCLOT knows the system call instruction of x86_64 and aarch64 only"
#endif

#define SYSCALL_PICK(_0, _1, _2, _3, _4, _5, _6, name, ...) name
#define SYSCALL_0(n) syscall_6(n, 0, 0, 0, 0, 0, 0)
#define SYSCALL_1(n, a) syscall_6(n, (long)(a), 0, 0, 0, 0, 0)
#define SYSCALL_2(n, a, b) syscall_6(n, (long)(a), (long)(b), 0, 0, 0, 0)
#define SYSCALL_3(n, a, b, c) syscall_6(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define SYSCALL_4(n, a, b, c, d) syscall_6(n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define SYSCALL_5(n, a, b, c, d, e) syscall_6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)
#define SYSCALL_6(n, a, b, c, d, e, f) syscall_6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
/* kernel(SYS_read, fd, buffer, length) */
#define kernel(...)                                                                                                    \
	SYSCALL_PICK(__VA_ARGS__, SYSCALL_6, SYSCALL_5, SYSCALL_4, SYSCALL_3, SYSCALL_2, SYSCALL_1, SYSCALL_0)(__VA_ARGS__)

/* The kernel's sigset is 64 bits, whatever libc's is. */
#define KERNEL_SIGSET 8

#endif
