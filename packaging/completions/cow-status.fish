complete -c cow-status -l root -d 'Show the guest whose root directory is DIR' -r -f -a "(__fish_complete_directories)"
complete -c cow-status -l json -d 'Print the result as one JSON object on standard output'
complete -c cow-status -l check -d 'Say whether the next run of a package manager will work, and what should be seen to before'
complete -c cow-status -s v -l verbose -d 'Print more about what is looked at'
complete -c cow-status -s h -l help -d 'Print help'
complete -c cow-status -s V -l version -d 'Print version'
