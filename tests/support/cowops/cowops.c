/* Tries what programs do to files, and tells what came of it, so that two runs can be compared: on private files, and
 * on shared ones under cow-run.
 *
 *   cowops list                          the operations; "harmless" after those that change no shared file
 *   cowops op NAME                       one operation on the tree that is the current directory
 *   cowops random SEED STEPS COUNT       random steps on each tree t0... of the current directory, and its dump
 *   cowops fixture DIR                   a pristine tree; its files are immutable
 *   cowops farm PRISTINE COUNT DIR ROOT  trees t0... in DIR, links of the pristine one; seen by programs from ROOT
 *   cowops copies COUNT DIR ROOT         the same, each on its own
 *   cowops dump DIR                      all there is to see of a tree
 *   cowops dumps COUNT DIR               the same of the trees t0... in DIR
 *   cowops sum DIR                       the same of one tree, with immutable flags
 *   cowops check PRISTINE DIR            whether what is shared is immutable, and nothing else; and for litter
 *   cowops shared PRISTINE TREE          the same, and whether all of the tree is still shared
 *   cowops enter ROOT COMMAND...         a command in the guest that has this root, with its own mounts and processes
 *   cowops append FILE                   what operations run as another program
 *
 * -C DIR before the command goes to a directory first.
 * -x WORD before the command leaves something out: "pairs", the fixture's hard links of each other; "places", keeping
 * descriptors of places only (O_PATH); "children", changes by a child through a descriptor of its parent; "times",
 * directories' times.
 * Exit codes: 1 what was checked is wrong, 2 usage or trouble. */
#include "cowops.h"

#include <grp.h>
#include <stdarg.h>

static struct {
    const char *name;
    operation *run;
    bool harmless;
} operations[512];
static size_t operations_used;

void add_operation(const char *name, operation *run, bool harmless)
{
    if (operations_used == sizeof operations / sizeof *operations)
        abort();
    operations[operations_used].name = name;
    operations[operations_used].run = run;
    operations[operations_used++].harmless = harmless;
}

void die(const char *what)
{
    fflush(stdout);
    perror(what);
    exit(2);
}

const char *error_name(int number)
{
    static char unknown[32];
    const char *name = number == ENOTSUP ? "ENOTSUP" : strerrorname_np(number);
    snprintf(unknown, sizeof unknown, "errno %d", number);
    return name ? name : unknown;
}

long step(const char *what, long result)
{
    int error = errno;
    note("%s: %s", what, result < 0 ? error_name(error) : "ok");
    errno = error;
    return result;
}

long count(const char *what, long result)
{
    if (result < 0)
        return step(what, result);
    note("%s: %ld", what, result);
    return result;
}

int opened(const char *what, long result)
{
    if (result < 0)
        return step(what, result);
    note("%s: fd %ld flags %#o %d", what, result, fcntl(result, F_GETFL), fcntl(result, F_GETFD));
    return result;
}

void note(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    putchar('\n');
}

void look(const char *path)
{
    putchar(' ');
    describe(AT_FDCWD, path, path);
}

void agree(int fd, const char *path)
{
    struct stat here, there;
    if (fstat(fd, &here) || stat(path, &there))
        note("  descriptor and %s: %s", path, error_name(errno));
    else
        note("  descriptor and %s: %s, %s", path,
             here.st_dev == there.st_dev && here.st_ino == there.st_ino ? "one file" : "two files",
             here.st_size == there.st_size && here.st_mode == there.st_mode && here.st_uid == there.st_uid
                     && here.st_gid == there.st_gid && here.st_mtim.tv_sec == there.st_mtim.tv_sec
                 ? "alike" : "not alike");
}

void read_on(int fd)
{
    char text[13];
    ssize_t size = read(fd, text, 12);
    if (size < 0) {
        note("  read: %s", error_name(errno));
        return;
    }
    for (ssize_t i = 0; i < size; i++)
        if (text[i] < ' ' || text[i] > '~')
            text[i] = '.';
    note("  read: \"%.*s\", then at %lld", (int)size, text, (long long)lseek(fd, 0, SEEK_CUR));
}

int reader(const char *path, int flags, off_t offset)
{
    int fd = open(path, O_RDONLY | flags);
    if (fd < 0 || lseek(fd, offset, SEEK_SET) != offset)
        die(path);
    return fd;
}

int begin_child(void)
{
    int status;
    pid_t child;
    fflush(stdout);
    child = fork();
    if (child < 0)
        die("fork");
    if (child == 0)
        return 1;
    if (waitpid(child, &status, 0) != child)
        die("wait");
    if (status)
        note("child: %s %d", WIFEXITED(status) ? "exit" : "signal",
             WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
    return 0;
}

void end_child(void)
{
    fflush(stdout);
    _exit(0);
}

void become_nobody(void)
{
    if (setgroups(0, NULL) || setresgid(NOBODY, NOBODY, NOBODY) || setresuid(NOBODY, NOBODY, NOBODY))
        die("nobody");
}

static int list(void)
{
    for (size_t i = 0; i < operations_used; i++)
        printf("%s%s\n", operations[i].name, operations[i].harmless ? " harmless" : "");
    return 0;
}

static int run_operation(const char *name)
{
    for (size_t i = 0; i < operations_used; i++)
        if (!strcmp(operations[i].name, name)) {
            /* Nothing may be lost when an operation ends in a signal. */
            setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
            umask(022);
            alarm(60);
            operations[i].run();
            note("then:");
            dump();
            return 0;
        }
    fprintf(stderr, "cowops: no operation \"%s\"\n", name);
    return 2;
}

/* What operations run as another program. */
static int append_line(const char *path)
{
    int fd = opened(path, open(path, O_WRONLY | O_APPEND));
    count("write", write(fd, "by a program\n", 13));
    return 0;
}

static int usage(void)
{
    fputs("usage: cowops [-n] [-C DIR] [-x pairs|places|children|times]... list | op NAME | random SEED STEPS COUNT | fixture DIR\n"
          "         | farm PRISTINE COUNT DIR ROOT | copies COUNT DIR ROOT | dump DIR | dumps COUNT DIR | sum DIR\n"
          "         | check PRISTINE DIR | shared PRISTINE TREE | enter ROOT COMMAND...\n", stderr);
    return 2;
}

static int run_command(int number, char **words)
{
    static const struct {
        const char *name;
        int arguments;
    } commands[] = {{"list", 0}, {"op", 1}, {"random", 3}, {"fixture", 1}, {"farm", 4}, {"copies", 3}, {"dump", 1},
                    {"dumps", 2}, {"sum", 1}, {"check", 2}, {"shared", 2}, {"append", 1}};
    size_t command = 0;
    if (number >= 3 && !strcmp(words[0], "enter"))
        return enter(words[1], words + 2);
    while (command < sizeof commands / sizeof *commands && (!number || strcmp(words[0], commands[command].name)))
        command++;
    if (command == sizeof commands / sizeof *commands || number != 1 + commands[command].arguments)
        return usage();
    umask(0);
    switch (command) {
    case 0: return list();
    case 1: return run_operation(words[1]);
    case 2: return run_random(strtoull(words[1], NULL, 0), atoi(words[2]), atoi(words[3]));
    case 3: return make_fixture(words[1]);
    case 4: return make_farm(words[1], atoi(words[2]), words[3], words[4]);
    case 5: return make_copies(atoi(words[1]), words[2], words[3]);
    case 6: return dump_tree(words[1], false);
    case 7: return dump_trees(atoi(words[1]), words[2]);
    case 8: return dump_tree(words[1], true);
    case 9: return check_shared(words[1], words[2], false);
    case 10: return check_shared(words[1], words[2], true);
    default: return append_line(words[1]);
    }
}

int main(int argc, char **argv)
{
    int option, code;
    while ((option = getopt(argc, argv, "+nx:C:")) != -1) {
        if (option == 'C') {
            if (chdir(optarg))
                die(optarg);
        } else if (option == 'n')
            always_nobody = true;
        else if (option != 'x')
            return usage();
        else if (!strcmp(optarg, "pairs"))
            without_pairs = true;
        else if (!strcmp(optarg, "places"))
            without_places = true;
        else if (!strcmp(optarg, "children"))
            without_children = true;
        else if (!strcmp(optarg, "times"))
            without_directory_times = true;
        else
            return usage();
    }
    code = run_command(argc - optind, argv + optind);
    if (fflush(stdout) || ferror(stdout))
        die("output");
    return code;
}
