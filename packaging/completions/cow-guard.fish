# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_cow_guard_global_optspecs
    string join \n q/quiet v/verbose h/help V/version
end

function __fish_cow_guard_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_cow_guard_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_cow_guard_using_subcommand
    set -l cmd (__fish_cow_guard_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c cow-guard -n "__fish_cow_guard_needs_command" -s q -l quiet -d 'Print only warnings and errors; given twice: only errors'
complete -c cow-guard -n "__fish_cow_guard_needs_command" -s v -l verbose -d 'Print every step; given twice: everything'
complete -c cow-guard -n "__fish_cow_guard_needs_command" -s h -l help -d 'Print help'
complete -c cow-guard -n "__fish_cow_guard_needs_command" -s V -l version -d 'Print version'
complete -c cow-guard -n "__fish_cow_guard_needs_command" -f -a "load" -d 'Load the guard into the kernel; if that fails, make the objects of pools that rely on it immutable'
complete -c cow-guard -n "__fish_cow_guard_needs_command" -f -a "unload" -d 'Take the guard out of the kernel'
complete -c cow-guard -n "__fish_cow_guard_needs_command" -f -a "status" -d 'Show what is loaded, and which pools it protects'
complete -c cow-guard -n "__fish_cow_guard_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c cow-guard -n "__fish_cow_guard_using_subcommand load" -l pool -d 'Also guard the filesystem of this pool, now and whenever the guard is loaded; may be repeated' -r -f -a "(__fish_complete_directories)"
complete -c cow-guard -n "__fish_cow_guard_using_subcommand load" -l forget -d 'Guard the filesystem of this pool no longer: the pool was removed; may be repeated' -r -f -a "(__fish_complete_directories)"
complete -c cow-guard -n "__fish_cow_guard_using_subcommand load" -s q -l quiet -d 'Print only warnings and errors; given twice: only errors'
complete -c cow-guard -n "__fish_cow_guard_using_subcommand load" -s v -l verbose -d 'Print every step; given twice: everything'
complete -c cow-guard -n "__fish_cow_guard_using_subcommand load" -s h -l help -d 'Print help'
complete -c cow-guard -n "__fish_cow_guard_using_subcommand unload" -l protect -d 'First make the objects of pools that rely on the guard immutable'
complete -c cow-guard -n "__fish_cow_guard_using_subcommand unload" -s q -l quiet -d 'Print only warnings and errors; given twice: only errors'
complete -c cow-guard -n "__fish_cow_guard_using_subcommand unload" -s v -l verbose -d 'Print every step; given twice: everything'
complete -c cow-guard -n "__fish_cow_guard_using_subcommand unload" -s h -l help -d 'Print help'
complete -c cow-guard -n "__fish_cow_guard_using_subcommand status" -l json -d 'Print the result as one JSON object on standard output'
complete -c cow-guard -n "__fish_cow_guard_using_subcommand status" -s q -l quiet -d 'Print only warnings and errors; given twice: only errors'
complete -c cow-guard -n "__fish_cow_guard_using_subcommand status" -s v -l verbose -d 'Print every step; given twice: everything'
complete -c cow-guard -n "__fish_cow_guard_using_subcommand status" -s h -l help -d 'Print help'
complete -c cow-guard -n "__fish_cow_guard_using_subcommand help; and not __fish_seen_subcommand_from load unload status help" -f -a "load" -d 'Load the guard into the kernel; if that fails, make the objects of pools that rely on it immutable'
complete -c cow-guard -n "__fish_cow_guard_using_subcommand help; and not __fish_seen_subcommand_from load unload status help" -f -a "unload" -d 'Take the guard out of the kernel'
complete -c cow-guard -n "__fish_cow_guard_using_subcommand help; and not __fish_seen_subcommand_from load unload status help" -f -a "status" -d 'Show what is loaded, and which pools it protects'
complete -c cow-guard -n "__fish_cow_guard_using_subcommand help; and not __fish_seen_subcommand_from load unload status help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
