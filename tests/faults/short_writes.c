// Loaded before libc: the write number `short_write` (of more than a byte) takes half of its bytes.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>

int short_write = 0;
int writes = 0;

ssize_t write(int file, const void *bytes, size_t count) {
    static ssize_t (*libc)(int, const void *, size_t);
    if (!libc) libc = dlsym(RTLD_NEXT, "write");
    if (count > 1 && ++writes == short_write) count /= 2;
    return libc(file, bytes, count);
}
