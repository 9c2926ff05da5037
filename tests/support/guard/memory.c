/* What a hostile guest tries, continued: memory, and io_uring. */
#include "guard.h"

#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

/* Mappings. */

static char *mapped(int sharing)
{
    char *at = mmap(NULL, 4096, PROT_READ, sharing, reader(), 0);
    if (at == MAP_FAILED)
        die("mmap");
    return *(volatile char *)at == 'f' ? at : NULL;
}
OPERATION(ATTACK, protect_mapping) { return mprotect(mapped(MAP_SHARED), 4096, PROT_READ | PROT_WRITE); }
OPERATION(ATTACK, map_writable) { return mmap(NULL, 1, PROT_WRITE, MAP_SHARED, reader(), 0) == MAP_FAILED ? -1 : 0; }
OPERATION(ATTACK, remove_pages) { return madvise(mapped(MAP_SHARED), 4096, MADV_REMOVE); }
OPERATION(ATTACK, prepare_pages_for_writing) { return madvise(mapped(MAP_SHARED), 4096, 23 /* MADV_POPULATE_WRITE */); }
OPERATION(ATTACK, fill_faults_of_mapping)
{
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register watched = {.range = {ADDRESS(mapped(MAP_SHARED)), 4096},
                                      .mode = UFFDIO_REGISTER_MODE_MISSING};
    static char content[4096] = "changed";
    struct uffdio_copy copy = {.dst = watched.range.start, .src = ADDRESS(content), .len = 4096};
    int faults = sys(userfaultfd, O_CLOEXEC);
    if (ioctl(faults, UFFDIO_API, &api) || ioctl(faults, UFFDIO_REGISTER, &watched))
        return -1;
    return madvise((void *)(uintptr_t)copy.dst, 4096, MADV_DONTNEED) ? -1 : ioctl(faults, UFFDIO_COPY, &copy);
}
static long by_memory_file(int sharing)
{
    char *at = mapped(sharing);
    return pwrite(open("/proc/self/mem", O_RDWR), "changed", 7, (off_t)(uintptr_t)at) < 0 ? -1 : 0;
}
OPERATION(ATTACK, memory_file_shared) { return by_memory_file(MAP_SHARED); }
OPERATION(ATTACK, memory_file_private) { return by_memory_file(MAP_PRIVATE); }
OPERATION(ATTACK, write_to_other_process)
{
    char *at = mapped(MAP_SHARED);
    struct iovec from = {"changed", 7}, to = {at, 7};
    pid_t child = fork();
    long result;
    if (!child)
        pause();
    result = process_vm_writev(child, &from, 1, &to, 1, 0);
    kill(child, SIGKILL);
    return result < 0 ? -1 : 0;
}
static long poke(int sharing)
{
    char *at = mapped(sharing);
    pid_t child = fork();
    long result;
    if (!child) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
    }
    if (waitpid(child, NULL, 0) != child)
        return -1;
    result = ptrace(PTRACE_POKEDATA, child, at, 0x12345678);
    kill(child, SIGKILL);
    return result;
}
OPERATION(ATTACK, poke_shared) { return poke(MAP_SHARED); }
OPERATION(ATTACK, poke_private) { return poke(MAP_PRIVATE); }
OPERATION(ATTACK, read_into_mapping) { char *at = mapped(MAP_SHARED); return read(other(), at, 7) < 0 ? -1 : 0; }

/* io_uring: one request; its result. */

static long ring_with(struct io_uring_sqe request, int registered)
{
    struct io_uring_params parameters = {0};
    int fd = sys(io_uring_setup, 2, &parameters);
    size_t size = parameters.sq_off.array + 8 + parameters.cq_off.cqes + 64 * sizeof(struct io_uring_cqe);
    char *submit, *complete;
    struct io_uring_sqe *requests;
    long result;
    if (fd < 0 || (registered >= 0 && sys(io_uring_register, fd, IORING_REGISTER_FILES, &registered, 1)))
        return -1;
    submit = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQ_RING);
    complete = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_CQ_RING);
    requests = mmap(NULL, 2 * sizeof *requests, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQES);
    if (submit == MAP_FAILED || complete == MAP_FAILED || requests == MAP_FAILED)
        return -1;
    *requests = request;
    *(uint32_t *)(submit + parameters.sq_off.array) = 0;
    __atomic_store_n((uint32_t *)(submit + parameters.sq_off.tail), 1, __ATOMIC_RELEASE);
    if (sys(io_uring_enter, fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
        return -1;
    result = ((struct io_uring_cqe *)(complete + parameters.cq_off.cqes))->res;
    if (result < 0)
        errno = -result;
    return result < 0 ? -1 : result;
}
static long ring(struct io_uring_sqe request) { return ring_with(request, -1); }
static long ring_open(unsigned char flags)
{
    struct io_uring_sqe request = {.opcode = IORING_OP_OPENAT, .flags = flags, .fd = AT_FDCWD, .addr = ADDRESS("file"),
                                   .open_flags = O_WRONLY};
    long fd = ring(request);
    return fd < 0 ? -1 : write(fd, "changed", 7);
}
OPERATION(ATTACK, ring_open_call) { return ring_open(0); }
OPERATION(ATTACK, ring_open_by_worker) { return ring_open(IOSQE_ASYNC); }
OPERATION(ATTACK, ring_write)
{
    struct io_uring_sqe request = {.opcode = IORING_OP_WRITE, .fd = reader(), .addr = ADDRESS("changed"), .len = 7};
    return ring(request);
}
OPERATION(ATTACK, ring_write_registered)
{
    struct io_uring_sqe request = {.opcode = IORING_OP_WRITE, .flags = IOSQE_FIXED_FILE, .addr = ADDRESS("changed"),
                                   .len = 7};
    return ring_with(request, reader());
}
/* A command of the filesystem that comes on another way than ioctl(2). */
OPERATION(ATTACK, ring_encoded_write)
{
    struct iovec vector = {"changed", 4096};
    struct encoded encoded = {&vector, 1, 0, 0, 4096, 4096, 0, 1, 0, ""};
    struct io_uring_sqe request = {.opcode = 46, .fd = reader(), .addr = ADDRESS(&encoded),
                                   .off = ENCODED_WRITE};
    return ring(request);
}
OPERATION(ATTACK, ring_allocate)
{
    struct io_uring_sqe request = {.opcode = IORING_OP_FALLOCATE, .fd = reader(), .addr = 1 << 20};
    return ring(request);
}
OPERATION(ATTACK, ring_set_attribute)
{
    struct io_uring_sqe request = {.opcode = IORING_OP_SETXATTR, .addr = ADDRESS("user.two"), .addr2 = ADDRESS("2"),
                                   .len = 1, .addr3 = ADDRESS("file")};
    return ring(request);
}
OPERATION(ATTACK, ring_set_attribute_by_worker)
{
    struct io_uring_sqe request = {.opcode = IORING_OP_FSETXATTR, .flags = IOSQE_ASYNC, .fd = reader(),
                                   .addr = ADDRESS("user.two"), .addr2 = ADDRESS("2"), .len = 1};
    return ring(request);
}
OPERATION(ATTACK, ring_truncate)
{
    struct io_uring_sqe request = {.opcode = 55, .fd = reader(), .off = 1};
    return ring(request);
}

/* A page that is written to when its mapping and its descriptor are gone: what is written comes from a page that comes
 * late. */
static struct iovec slow_page, mapped_page;
static void *write_to_page(void *unused)
{
    (void)unused;
    process_vm_writev(getpid(), &slow_page, 1, &mapped_page, 1, 0);
    return NULL;
}
OPERATION(ATTACK, pinned_page)
{
    static char content[4096] = "changed";
    char *slow = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *at;
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register watched = {.range = {ADDRESS(slow), 4096}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    struct uffdio_copy late = {.dst = ADDRESS(slow), .src = ADDRESS(content), .len = 4096};
    int fd = opened(O_RDWR), faults = sys(userfaultfd, O_CLOEXEC);
    struct uffd_msg fault;
    pthread_t writer;
    if (fd < 0)
        return -1;
    at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED || ioctl(faults, UFFDIO_API, &api) || ioctl(faults, UFFDIO_REGISTER, &watched))
        return -1;
    slow_page = (struct iovec){slow, 4096};
    mapped_page = (struct iovec){at, 4096};
    if (pthread_create(&writer, NULL, write_to_page, NULL) || read(faults, &fault, sizeof fault) != sizeof fault
        || munmap(at, 4096) || close(fd) || ioctl(faults, UFFDIO_COPY, &late))
        return -1;
    return pthread_join(writer, NULL);
}
