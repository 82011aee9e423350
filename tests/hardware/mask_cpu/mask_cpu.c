/* Answers the CPUID instructions of a patched library as a smaller CPU would, and shows its flags in /proc/cpuinfo.

   A patched place holds 0e a2 instead of 0f a2 (cpuid): an instruction that 64-bit mode does not have and no compiler
   emits. It raises SIGILL; the handler runs the real CPUID, clears bits of leaf 7 and goes on behind the two bytes.
   Whatever else raises SIGILL goes to the handler that the program installed (faulthandler's, under pytest).

   MASK_CPU_LEAF7   bits to clear, in hexadecimal: leaf 7.0 ebx, ecx, edx; leaf 7.1 eax, edx
   MASK_CPU_INFO    the file that is opened in place of /proc/cpuinfo
*/
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

typedef int (*sigaction_function)(int, const struct sigaction *, struct sigaction *);
typedef int (*open_function)(const char *, int, ...);

static unsigned cleared[5];
static struct sigaction programs; /* what the program wants done at SIGILL; SIG_DFL at first */

static int real_sigaction(int number, const struct sigaction *action, struct sigaction *before) {
    return ((sigaction_function)dlsym(RTLD_NEXT, "sigaction"))(number, action, before);
}

static void masked_cpuid(greg_t *registers) {
    unsigned leaf = (unsigned)registers[REG_RAX], sub = (unsigned)registers[REG_RCX], a, b, c, d;
    __cpuid_count(leaf, sub, a, b, c, d);
    if (leaf == 7 && sub == 0) b &= ~cleared[0], c &= ~cleared[1], d &= ~cleared[2];
    if (leaf == 7 && sub == 1) a &= ~cleared[3], d &= ~cleared[4];
    registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

static void on_sigill(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    if (memcmp((const void *)registers[REG_RIP], "\x0e\xa2", 2) == 0) {
        masked_cpuid(registers);
    } else if (programs.sa_flags & SA_SIGINFO) {
        programs.sa_sigaction(number, info, context);
    } else if (programs.sa_handler != SIG_DFL && programs.sa_handler != SIG_IGN) {
        programs.sa_handler(number);
    } else { /* returns to the same instruction, which then ends the process */
        struct sigaction standard = {.sa_handler = SIG_DFL};
        real_sigaction(number, &standard, NULL);
    }
}

__attribute__((constructor)) static void install(void) {
    const char *bits = getenv("MASK_CPU_LEAF7");
    if (bits) sscanf(bits, "%x,%x,%x,%x,%x", cleared, cleared + 1, cleared + 2, cleared + 3, cleared + 4);
    struct sigaction ours = {.sa_sigaction = on_sigill, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    real_sigaction(SIGILL, &ours, NULL);
}

int sigaction(int number, const struct sigaction *action, struct sigaction *before) {
    if (number != SIGILL) return real_sigaction(number, action, before);
    if (before) *before = programs;
    if (action) programs = *action;
    return 0;
}

static int open_as(const char *name, const char *path, int flags, mode_t mode) {
    const char *shown = getenv("MASK_CPU_INFO");
    if (shown && strcmp(path, "/proc/cpuinfo") == 0) path = shown;
    return ((open_function)dlsym(RTLD_NEXT, name))(path, flags, mode);
}

#define OPEN(name)                                            \
    int name(const char *path, int flags, ...) {              \
        va_list arguments;                                    \
        va_start(arguments, flags);                           \
        mode_t mode = va_arg(arguments, mode_t);              \
        va_end(arguments);                                    \
        return open_as(#name, path, flags, mode);             \
    }
OPEN(open)
OPEN(open64)
