/* Operations on names. */
#include "cowops.h"

static long renamed(const char *from, const char *to, unsigned flags)
{
    long result = sys(renameat2, AT_FDCWD, from, AT_FDCWD, to, flags);
    step("rename", result);
    look(from);
    look(to);
    return result;
}

#ifdef __NR_unlink
OPERATION(unlink_call)
{
    step("unlink", sys(unlink, "file"));
    look("file");
    step("again", sys(unlink, "file"));
}
#endif
OPERATION(unlinkat_call) { step("unlinkat", sys(unlinkat, open("d", O_RDONLY), "one", 0)); look("d/one"); }
OPERATION(unlink_all)
{
    const char *names[] = {"file", "other", "empty", "program", "setid", "attributes", "sparse", "everyones", "nobodys",
                           "pair", "d/pair", "d/one", "d/two", "d/deep/three", "common/file", "sticky/file", "own"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        step(names[i], unlink(names[i]));
}
OPERATION(unlink_by_directory_symlink) { step("unlink", unlink("dirlink/one")); look("d/one"); }
OPERATION(unlink_symlink) { step("unlink", unlink("link")); look("link"); look("file"); }
OPERATION(unlink_of_pair) { step("unlink", unlink("pair")); look("d/pair"); }
OPERATION(unlink_and_create)
{
    int fd = reader("file", 0, 10);
    step("unlink", unlink("file"));
    opened("create", open("file", O_WRONLY | O_CREAT | O_EXCL, 0600));
    read_on(fd);
    agree(fd, "file");
    look("file");
}
OPERATION(unlink_after_write)
{
    int fd = opened("open", open("file", O_RDWR));
    step("unlink", unlink("file"));
    count("write", write(fd, "changed\n", 8));
    read_on(fd);
    look("file");
}
OPERATION(remove_tree)
{
    step("unlink", unlink("d/one"));
    step("unlink", unlink("d/two"));
    step("unlink", unlink("d/pair"));
    step("unlink", unlink("d/up"));
    step("rmdir", rmdir("d/deep"));
    step("unlink", unlink("d/deep/three"));
    step("unlink", unlink("d/deep/own"));
    step("rmdir", rmdir("d/deep"));
    step("rmdir", rmdir("d"));
}
HARMLESS(rmdir_wrongly)
{
    step("file", rmdir("file"));
    step("file", unlinkat(AT_FDCWD, "file", AT_REMOVEDIR));
    step("symlink", rmdir("dirlink"));
    step("full", rmdir("d"));
    step("here", rmdir("."));
    step("parent", rmdir("d/.."));
    step("missing", rmdir("missing"));
    step("below file", rmdir("file/x"));
}
HARMLESS(unlink_wrongly)
{
    step("directory", unlink("d"));
    step("directory", unlink("void"));
    step("here", unlink("."));
    step("parent", unlink("d/.."));
    step("root", unlink("/"));
    step("missing", unlink("missing"));
    step("below file", unlink("file/x"));
    step("loop", unlink("loop/x"));
    step("no directory", unlinkat(99, "file", 0));
    step("flags", unlinkat(AT_FDCWD, "file", 0x4000));
    step("proc", unlink("/proc/self/cwd"));
}
OPERATION(rmdir_directory) { step("rmdir", rmdir("void")); step("unlink", unlink("loop")); }

#ifdef __NR_rename
OPERATION(rename_call) { step("rename", sys(rename, "file", "d/renamed")); look("d/renamed"); look("file"); }
#endif
OPERATION(renameat_call)
{
    int d = open("d", O_RDONLY), deep = open("d/deep", O_PATH);
    step("renameat", sys(renameat2, d, "one", deep, "renamed", 0));
    step("renameat", syscall(__NR_renameat2, d, "../file", deep, "../../file2", 0));
#ifdef __NR_renameat
    step("renameat", sys(renameat, d, "two", deep, "../three"));
#endif
}
OPERATION(rename_over_shared) { renamed("file", "d/one", 0); }
OPERATION(rename_over_shared_open)
{
    int from = reader("file", 0, 0), over = reader("d/one", 0, 0);
    renamed("file", "d/one", 0);
    read_on(from);
    read_on(over);
    agree(from, "d/one");
}
OPERATION(rename_private_over_shared) { renamed("own", "file", 0); }
OPERATION(rename_shared_over_private) { renamed("file", "own", 0); }
OPERATION(rename_symlink_over_shared) { renamed("dangling", "file", 0); }
OPERATION(rename_shared_over_symlink) { renamed("file", "dangling", 0); }
OPERATION(rename_fifo_over_shared) { renamed("fifo", "file", 0); }
OPERATION(rename_new_over_shared)
{
    /* As editors and package managers do. */
    int fd = open("d/.new", O_WRONLY | O_CREAT | O_EXCL, 0600);
    count("write", write(fd, "changed\n", 8));
    step("fsync", fsync(fd));
    renamed("d/.new", "d/one", 0);
    agree(fd, "d/one");
}
OPERATION(rename_with_backup)
{
    step("link", link("file", "file~"));
    opened("create", open("new", O_WRONLY | O_CREAT | O_EXCL, 0644));
    renamed("new", "file", 0);
    look("file~");
    step("chmod", chmod("file~", 0600));
    look("file~");
}
OPERATION(rename_directory)
{
    renamed("d", "void", 0);
    step("chmod", chmod("void/one", 0600));
    renamed("void/deep", "deep", 0);
    look("deep/three");
}
OPERATION(rename_onto_own_link) { renamed("pair", "d/pair", 0); look("pair"); }
OPERATION(rename_onto_itself) { renamed("file", "file", 0); renamed("file", "d/../file", 0); }
OPERATION(rename_onto_run_time_link)
{
    step("link", link("file", "linked"));
    renamed("linked", "file", 0);
}
HARMLESS(rename_wrongly)
{
    step("over directory", rename("file", "void"));
    step("directory over file", rename("void", "file"));
    step("over full", rename("void", "d"));
    step("into itself", rename("d", "d/deep/d"));
    step("over parent", rename("d/one", "d"));
    step("here", rename(".", "new"));
    step("here", rename("file", "."));
    step("missing", rename("missing", "file"));
    step("missing directory", rename("file", "missing/file"));
    step("below file", rename("file", "own/x"));
    step("below file", rename("own", "file/x"));
    step("loop", rename("file", "loop/x"));
    step("elsewhere", rename("file", "/proc/self/x"));
    step("elsewhere", rename("file", "/dev/../proc/x"));
    step("exchange missing", sys(renameat2, AT_FDCWD, "file", AT_FDCWD, "missing", RENAME_EXCHANGE));
    step("no replace", sys(renameat2, AT_FDCWD, "file", AT_FDCWD, "d/one", RENAME_NOREPLACE));
    step("no replace", sys(renameat2, AT_FDCWD, "own", AT_FDCWD, "d/one", RENAME_NOREPLACE));
    step("no replace itself", sys(renameat2, AT_FDCWD, "file", AT_FDCWD, "file", RENAME_NOREPLACE));
    step("both", sys(renameat2, AT_FDCWD, "file", AT_FDCWD, "own", RENAME_NOREPLACE | RENAME_EXCHANGE));
    step("flags", sys(renameat2, AT_FDCWD, "file", AT_FDCWD, "own", 0x100));
    step("no directory", sys(renameat2, 99, "file", AT_FDCWD, "own", 0));
}
OPERATION(rename_no_replace) { renamed("file", "new", RENAME_NOREPLACE); }
OPERATION(exchange_with_private) { renamed("file", "own", RENAME_EXCHANGE); }
OPERATION(exchange_private_with_shared) { renamed("own", "d/one", RENAME_EXCHANGE); }
OPERATION(exchange_shared) { renamed("file", "d/one", RENAME_EXCHANGE); }
OPERATION(exchange_with_directory) { renamed("file", "d", RENAME_EXCHANGE); }
OPERATION(exchange_with_symlink) { renamed("link", "d/one", RENAME_EXCHANGE); }
OPERATION(exchange_of_pair) { renamed("pair", "d/pair", RENAME_EXCHANGE); }
OPERATION(exchange_with_itself) { renamed("file", "file", RENAME_EXCHANGE); }
OPERATION(exchange_and_write)
{
    renamed("file", "d/one", RENAME_EXCHANGE);
    step("truncate", truncate("file", 100));
    step("chmod", chmod("d/one", 0600));
    look("file");
    look("d/one");
}
OPERATION(whiteout) { renamed("file", "d/renamed", RENAME_WHITEOUT); }
OPERATION(whiteout_over_shared) { renamed("own", "d/one", RENAME_WHITEOUT); }
OPERATION(rename_after_write)
{
    int fd = opened("open", open("file", O_RDWR));
    renamed("file", "d/one", 0);
    count("write", write(fd, "changed\n", 8));
    agree(fd, "d/one");
    look("d/one");
}

static void linked(const char *from, const char *to)
{
    step("link", link(from, to));
    look(from);
    look(to);
}
#ifdef __NR_link
OPERATION(link_call)
{
    step("link", sys(link, "file", "d/linked"));
    look("d/linked");
    step("unlink", unlink("file"));
}
#endif
OPERATION(linkat_call)
{
    step("linkat", sys(linkat, open("d", O_RDONLY), "one", open("void", O_RDONLY), "linked", 0));
    step("linkat", sys(linkat, open("d", O_PATH), "../file", open("void", O_PATH), "../linked", 0));
}
OPERATION(link_symlink)
{
    linked("link", "linked");
    step("follow", linkat(AT_FDCWD, "link", AT_FDCWD, "followed", AT_SYMLINK_FOLLOW));
    look("followed");
}
OPERATION(link_descriptor)
{
    char path[64];
    int fd = reader("file", 0, 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    step("follow", linkat(AT_FDCWD, path, AT_FDCWD, "linked", AT_SYMLINK_FOLLOW));
    step("empty", linkat(fd, "", AT_FDCWD, "empty-path", AT_EMPTY_PATH));
    step("not followed", linkat(AT_FDCWD, path, AT_FDCWD, "symlink", 0));
    agree(fd, "linked");
    agree(fd, "empty-path");
}
OPERATION(link_of_link)
{
    linked("file", "linked");
    linked("linked", "d/again");
    step("unlink", unlink("linked"));
    step("unlink", unlink("file"));
    look("d/again");
    step("unlink", unlink("d/again"));
}
OPERATION(link_after_unlink)
{
    char path[64];
    int fd = reader("file", 0, 0);
    step("unlink", unlink("file"));
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    step("follow", linkat(AT_FDCWD, path, AT_FDCWD, "linked", AT_SYMLINK_FOLLOW));
    step("empty", linkat(fd, "", AT_FDCWD, "linked", AT_EMPTY_PATH));
    look("linked");
}
HARMLESS(link_wrongly)
{
    step("existing", link("file", "own"));
    step("existing", link("own", "file"));
    step("itself", link("file", "file"));
    step("directory", link("d", "linked"));
    step("missing", link("missing", "linked"));
    step("missing directory", link("file", "missing/linked"));
    step("below file", link("file", "own/linked"));
    step("elsewhere", link("file", "/proc/linked"));
    step("flags", linkat(AT_FDCWD, "file", AT_FDCWD, "linked", 0x4000));
    step("no directory", linkat(99, "file", AT_FDCWD, "linked", 0));
    step("dangling", linkat(AT_FDCWD, "dangling", AT_FDCWD, "linked", AT_SYMLINK_FOLLOW));
}
HARMLESS(make_over_existing)
{
    step("mkdir", mkdir("file", 0755));
    step("mknod", mknod("file", S_IFREG | 0644, 0));
    step("mkfifo", mkfifo("d/one", 0644));
    step("symlink", symlink("x", "file"));
}
OPERATION(file_to_directory_and_back)
{
    step("unlink", unlink("file"));
    step("mkdir", mkdir("file", 0755));
    step("rename", rename("d/one", "file/one"));
    step("write", open("file/one", O_WRONLY));
    step("rename", rename("file/one", "d/file"));
    step("rmdir", rmdir("file"));
    step("rename", rename("d/file", "file"));
    look("file");
}
OPERATION(swap_by_three_renames)
{
    step("rename", rename("file", "temporary"));
    step("rename", rename("d/one", "file"));
    step("rename", rename("temporary", "d/one"));
    look("file");
    look("d/one");
}
