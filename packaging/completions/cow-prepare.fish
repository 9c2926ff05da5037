complete -c cow-prepare -l root -d 'Work in the guest whose root directory is DIR' -r -f -a "(__fish_complete_directories)"
complete -c cow-prepare -l files-from -d 'Also read paths from FILE, one per line; if FILE is -, from standard input' -r -F
complete -c cow-prepare -l package -d 'Prepare for the installation of these package files, .deb or .rpm' -r -F
complete -c cow-prepare -s n -l dry-run -d 'Print what would be done, and change nothing'
complete -c cow-prepare -s q -l quiet -d 'Print only warnings and errors; given twice: only errors'
complete -c cow-prepare -s v -l verbose -d 'Print the name of each file; given twice: every step'
complete -c cow-prepare -l json -d 'Print the result as one JSON object on standard output'
complete -c cow-prepare -s 0 -d 'Paths in FILE end with a NUL byte instead of a newline'
complete -c cow-prepare -l recover -d 'Only finish or roll back what an interrupted run has left'
complete -c cow-prepare -s h -l help -d 'Print help'
complete -c cow-prepare -s V -l version -d 'Print version'
