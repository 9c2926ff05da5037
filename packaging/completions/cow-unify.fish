# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_cow_unify_global_optspecs
    string join \n n/dry-run changed gc scope= share= protection= mtime= min-size= allow-setid unify-running-system reference= in-use= exclude= include= exclude-from= vserver-excludes= pool= json q/quiet v/verbose jobs= h/help V/version
end

function __fish_cow_unify_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_cow_unify_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_cow_unify_using_subcommand
    set -l cmd (__fish_cow_unify_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c cow-unify -n "__fish_cow_unify_needs_command" -l scope -d 'Which files to unify' -r -f -a "owned\t'The files that the guest\'s packages list'
all\t'All files of the guest\'s own file system'"
complete -c cow-unify -n "__fish_cow_unify_needs_command" -l share -d 'How equal files share; set when the pool is created [default: hardlink]' -r -f -a "hardlink\t'One inode: disk and page cache are used once; the inode must be protected'
reflink\t'Blocks (xfs, btrfs): disk is used once, each file keeps its own inode; needs no protection'"
complete -c cow-unify -n "__fish_cow_unify_needs_command" -l protection -d 'How shared inodes are protected; set when the pool is created [default: auto]' -r -f -a "auto\t'The best that the kernel offers'
guard\t'A mark that the guard in the host\'s kernel respects (cow-guard)'
immutable\t'The flag of chattr +i'
iunlink\t'Linux-VServer\'s flag "immutable, but may be unlinked"'
none\t'Plain hard links: any guest can change a file for all guests'"
complete -c cow-unify -n "__fish_cow_unify_needs_command" -l mtime -d 'Whether modification times must be equal; set when the pool is created [default: match]' -r -f -a "match\t'They must be equal, to the nanosecond'
ignore\t'They may differ; guests see the time of the pool\'s inode'"
complete -c cow-unify -n "__fish_cow_unify_needs_command" -l min-size -d 'Leave smaller files as they are; SIZE is for example 4KiB or 4K. Empty files are never unified' -r
complete -c cow-unify -n "__fish_cow_unify_needs_command" -l reference -d 'Unify a file only with the file of the same path in this guest' -r -f -a "(__fish_complete_directories)"
complete -c cow-unify -n "__fish_cow_unify_needs_command" -l in-use -d 'What to do with files that running programs were loaded from [default: replace; with --changed: wait]' -r -f -a "replace\t'Link them too; the programs keep the replaced inodes until they end'
wait\t'Leave them until the programs have ended'"
complete -c cow-unify -n "__fish_cow_unify_needs_command" -l exclude -d 'Leave out files that match; of all patterns, the first that matches decides' -r
complete -c cow-unify -n "__fish_cow_unify_needs_command" -l include -d 'Unify files that match, even if policy or scope leave them out' -r
complete -c cow-unify -n "__fish_cow_unify_needs_command" -l exclude-from -d 'Read patterns from FILE, one per line; a line that begins with ! includes' -r -F
complete -c cow-unify -n "__fish_cow_unify_needs_command" -l vserver-excludes -d 'Read an exclude list of Linux-VServer\'s vunify or vhashify' -r -F
complete -c cow-unify -n "__fish_cow_unify_needs_command" -l pool -d 'The pool; without this option, the one the guests belong to, or else .cow-pool beside the first guest' -r -f -a "(__fish_complete_directories)"
complete -c cow-unify -n "__fish_cow_unify_needs_command" -l jobs -d 'Examine and read files with N threads' -r
complete -c cow-unify -n "__fish_cow_unify_needs_command" -s n -l dry-run -d 'Print what would be done, and change nothing'
complete -c cow-unify -n "__fish_cow_unify_needs_command" -l changed -d 'Look only at the files that the guests\' hooks have listed since the last run'
complete -c cow-unify -n "__fish_cow_unify_needs_command" -l gc -d 'Then remove objects that no guest has, as `cow-unify gc` does'
complete -c cow-unify -n "__fish_cow_unify_needs_command" -l allow-setid -d 'Also unify set-user-ID and set-group-ID files and files with capabilities'
complete -c cow-unify -n "__fish_cow_unify_needs_command" -l unify-running-system -d 'Accept a guest that is, or contains, the running system: the host\'s own programs become immutable'
complete -c cow-unify -n "__fish_cow_unify_needs_command" -l json -d 'Print the result as one JSON object on standard output'
complete -c cow-unify -n "__fish_cow_unify_needs_command" -s q -l quiet -d 'Print only warnings and errors; given twice: only errors'
complete -c cow-unify -n "__fish_cow_unify_needs_command" -s v -l verbose -d 'Print the name of each file; given twice: every step'
complete -c cow-unify -n "__fish_cow_unify_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c cow-unify -n "__fish_cow_unify_needs_command" -s V -l version -d 'Print version'
complete -c cow-unify -n "__fish_cow_unify_needs_command" -a "status" -d 'Show what the guests share and how much that saves'
complete -c cow-unify -n "__fish_cow_unify_needs_command" -a "verify" -d 'Read the whole pool; quarantine and replace damaged objects'
complete -c cow-unify -n "__fish_cow_unify_needs_command" -a "gc" -d 'Remove objects from the pool that no guest has a link to or shares blocks with'
complete -c cow-unify -n "__fish_cow_unify_needs_command" -a "protect" -d 'Change how the pool\'s objects are protected'
complete -c cow-unify -n "__fish_cow_unify_needs_command" -a "remove" -d 'Delete guests; what they share with others stays as it is'
complete -c cow-unify -n "__fish_cow_unify_needs_command" -a "detach" -d 'Give a guest private copies of all files that it shares'
complete -c cow-unify -n "__fish_cow_unify_needs_command" -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand status" -l pool -d 'The pool; without this option, the one the guests belong to, or else .cow-pool beside the first guest' -r -f -a "(__fish_complete_directories)"
complete -c cow-unify -n "__fish_cow_unify_using_subcommand status" -l jobs -d 'Examine and read files with N threads' -r
complete -c cow-unify -n "__fish_cow_unify_using_subcommand status" -l json -d 'Print the result as one JSON object on standard output'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand status" -s q -l quiet -d 'Print only warnings and errors; given twice: only errors'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand status" -s v -l verbose -d 'Print the name of each file; given twice: every step'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand status" -s h -l help -d 'Print help'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand verify" -l pool -d 'The pool; without this option, the one the guests belong to, or else .cow-pool beside the first guest' -r -f -a "(__fish_complete_directories)"
complete -c cow-unify -n "__fish_cow_unify_using_subcommand verify" -l jobs -d 'Examine and read files with N threads' -r
complete -c cow-unify -n "__fish_cow_unify_using_subcommand verify" -l json -d 'Print the result as one JSON object on standard output'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand verify" -s q -l quiet -d 'Print only warnings and errors; given twice: only errors'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand verify" -s v -l verbose -d 'Print the name of each file; given twice: every step'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand verify" -s h -l help -d 'Print help'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand gc" -l pool -d 'The pool; without this option, the one the guests belong to, or else .cow-pool beside the first guest' -r -f -a "(__fish_complete_directories)"
complete -c cow-unify -n "__fish_cow_unify_using_subcommand gc" -l jobs -d 'Examine and read files with N threads' -r
complete -c cow-unify -n "__fish_cow_unify_using_subcommand gc" -s n -l dry-run -d 'Print what would be removed, and remove nothing'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand gc" -l json -d 'Print the result as one JSON object on standard output'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand gc" -s q -l quiet -d 'Print only warnings and errors; given twice: only errors'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand gc" -s v -l verbose -d 'Print the name of each file; given twice: every step'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand gc" -s h -l help -d 'Print help'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand protect" -l to -d 'The new protection; auto: guard if the kernel can' -r -f -a "auto\t'Guard if the kernel can, else immutable'
guard\t'A mark that the guard in the host\'s kernel respects (cow-guard)'
immutable\t'The flag of chattr +i'"
complete -c cow-unify -n "__fish_cow_unify_using_subcommand protect" -l pool -d 'The pool; without this option, the one the guests belong to, or else .cow-pool beside the first guest' -r -f -a "(__fish_complete_directories)"
complete -c cow-unify -n "__fish_cow_unify_using_subcommand protect" -l jobs -d 'Examine and read files with N threads' -r
complete -c cow-unify -n "__fish_cow_unify_using_subcommand protect" -l json -d 'Print the result as one JSON object on standard output'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand protect" -s q -l quiet -d 'Print only warnings and errors; given twice: only errors'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand protect" -s v -l verbose -d 'Print the name of each file; given twice: every step'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand protect" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand remove" -l pool -d 'The pool; without this option, the one the guests belong to, or else .cow-pool beside the first guest' -r -f -a "(__fish_complete_directories)"
complete -c cow-unify -n "__fish_cow_unify_using_subcommand remove" -l jobs -d 'Examine and read files with N threads' -r
complete -c cow-unify -n "__fish_cow_unify_using_subcommand remove" -s n -l dry-run -d 'Print what would be removed, and remove nothing'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand remove" -l gc -d 'Then remove objects that no guest has, as `cow-unify gc` does'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand remove" -l clear-flags -d 'Clear the immutable and append-only flags of files and directories that only this guest has'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand remove" -l force -d 'Remove guests that are in use: by processes, by mounts of them elsewhere, by a package manager that was killed'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand remove" -l json -d 'Print the result as one JSON object on standard output'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand remove" -s q -l quiet -d 'Print only warnings and errors; given twice: only errors'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand remove" -s v -l verbose -d 'Print the name of each file; given twice: every step'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand remove" -s h -l help -d 'Print help'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand detach" -l pool -d 'The pool; without this option, the one the guests belong to, or else .cow-pool beside the first guest' -r -f -a "(__fish_complete_directories)"
complete -c cow-unify -n "__fish_cow_unify_using_subcommand detach" -l jobs -d 'Examine and read files with N threads' -r
complete -c cow-unify -n "__fish_cow_unify_using_subcommand detach" -l json -d 'Print the result as one JSON object on standard output'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand detach" -s q -l quiet -d 'Print only warnings and errors; given twice: only errors'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand detach" -s v -l verbose -d 'Print the name of each file; given twice: every step'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand detach" -s h -l help -d 'Print help'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand help; and not __fish_seen_subcommand_from status verify gc protect remove detach help" -f -a "status" -d 'Show what the guests share and how much that saves'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand help; and not __fish_seen_subcommand_from status verify gc protect remove detach help" -f -a "verify" -d 'Read the whole pool; quarantine and replace damaged objects'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand help; and not __fish_seen_subcommand_from status verify gc protect remove detach help" -f -a "gc" -d 'Remove objects from the pool that no guest has a link to or shares blocks with'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand help; and not __fish_seen_subcommand_from status verify gc protect remove detach help" -f -a "protect" -d 'Change how the pool\'s objects are protected'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand help; and not __fish_seen_subcommand_from status verify gc protect remove detach help" -f -a "remove" -d 'Delete guests; what they share with others stays as it is'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand help; and not __fish_seen_subcommand_from status verify gc protect remove detach help" -f -a "detach" -d 'Give a guest private copies of all files that it shares'
complete -c cow-unify -n "__fish_cow_unify_using_subcommand help; and not __fish_seen_subcommand_from status verify gc protect remove detach help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
